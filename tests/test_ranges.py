"""The numbers that the Python functions take: the same range at every entry point, and one sentence
about it."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path

import numpy as np
import pytest
import torch

import tracelab
from tracelab import (
    BiasEditConfig,
    Experts,
    FairMed,
    FairMedConfig,
    FinetuneConfig,
    KLAADConfig,
    attention_gap,
    causal_trace,
    evaluate,
    generate,
    probe_layers,
)
from tracelab import (
    inspect as inspect_edits,
)
from tracelab.datasets import crows_pairs, stereoset, templates
from tracelab.errors import TracelabError
from tracelab.evaluate.benchmarks.stereoset import stereoset_scores
from tracelab.evaluate.scoreboard.costs import edit_costs
from tracelab.interventions import WeightDelta, to_peft
from tracelab.interventions.biasedit.biasedit import edited_layers
from tracelab.interventions.biasedit.editor import Editor
from tracelab.localize.probing.prober import ProberConfig, train_probers
from tracelab.model.scoring import score
from tracelab.ranges import (
    SEED_MOST,
    WIDTH_MOST,
    is_out_of_memory,
    require_int,
    require_layers,
    require_limit,
    require_memory,
    require_number,
    require_seed,
    shown,
)

HANDED_ON = {
    *("measure_cell", "score_table", "crows_pairs_metrics", "stereoset_metrics", "summarise"),
    *(
        "fit_edits",
        "development",
        "choose_stack",
        "compare",
        "measure",
        "finetune",
        "split_rows",
        "train_probers",
    ),
}
"""What is given a seed by a function that has checked it (or one made from it)."""


def functions_with_a_seed() -> list:
    found = {}
    for module in pkgutil.walk_packages(tracelab.__path__, "tracelab."):
        if module.name.startswith(("tracelab.cli", "tracelab.figures")):
            continue
        loaded = importlib.import_module(module.name)
        for name, function in vars(loaded).items():
            own = inspect.isfunction(function) and function.__module__ == module.name
            public = own and name not in HANDED_ON and not name.startswith("_")
            if public and "seed" in inspect.signature(function).parameters:
                found[f"{module.name}.{name}"] = inspect.unwrap(function)
    return [pytest.param(function, id=name) for name, function in found.items()]


# --- the helpers
# ----------------------------------------------------------------------------------------------------  # noqa: E501


@pytest.mark.parametrize("value", [1, np.int64(1), torch.tensor(1)])
def test_whole_numbers_of_any_library_are_taken(value):
    assert require_int("n", value) == 1
    assert type(require_int("n", value)) is int


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, "n is at least 1, not 0"),
        (-(2**70), "n is at least 1, not -1180591620717411303424"),
        (2**31, "n is at most 2147483647, not 2147483648"),
        pytest.param(
            10**5000, "n is at most 2147483647, not a number of 16610 bits", id="5001 digits"
        ),
        (1.0, "n is a whole number, not 1.0"),
        (True, "n is a whole number, not True"),
        ("1", "n is a whole number, not '1'"),
        (None, "n is a whole number, not None"),
        (float("nan"), "n is a whole number, not nan"),
    ],
)
def test_what_is_no_whole_number_in_the_range_is_refused(value, message):
    with pytest.raises(TracelabError) as caught:
        require_int("n", value)
    assert str(caught.value) == message


def test_a_seed_is_from_0_to_what_numpy_takes():
    assert require_seed(0) == 0
    assert require_seed(SEED_MOST) == 2**32 - 1
    for seed in (-1, 2**32, 2**70):
        with pytest.raises(TracelabError, match=f"not {seed}"):
            require_seed(seed)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -float("inf"), 10**400, "1", None, True]
)
def test_what_is_no_finite_number_is_refused(value):
    with pytest.raises(TracelabError, match="x is a finite number, not"):
        require_number("x", value)


def test_numbers_have_open_and_closed_ends():
    assert require_number("x", 0, least=0) == 0.0
    assert require_number("x", np.float32(0.5), above=0) == 0.5
    with pytest.raises(TracelabError, match="x is a number above 0, not 0"):
        require_number("x", 0, above=0)
    with pytest.raises(TracelabError, match="x is a number of at least 0, not -0.1"):
        require_number("x", -0.1, least=0)


def test_layers_that_no_memory_holds_are_refused_at_the_first_that_is_not_there():
    assert require_layers([3, np.int64(1), 3], 4, "m") == [1, 3]
    for layers in (range(10**12), [4], [-1]):
        with pytest.raises(TracelabError, match="is out of range: m has layers 0 to 3"):
            require_layers(layers, 4, "m")


def test_what_is_larger_than_the_machine_is_refused():
    require_memory("these", 2**20)
    with pytest.raises(TracelabError, match="these need .* GiB, the machine has .*: ask for less"):
        require_memory("these", 2**60)


def test_no_record_is_not_a_limit():
    require_limit(None)
    require_limit(1)
    for limit in (0, -1):
        with pytest.raises(TracelabError, match=f"no record is left with limit={limit}"):
            require_limit(limit)
    with pytest.raises(TracelabError, match="limit is a whole number, not 2.5"):
        require_limit(2.5)


def test_memory_that_ran_out_is_told_from_other_errors():
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
    )
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**56)
    assert is_out_of_memory(caught.value)


def test_long_values_are_cut():
    assert shown("x" * 5000) == "'" + "x" * 59 + "…"


def test_a_message_is_one_line_of_printable_characters_and_sane_length():
    assert str(TracelabError("a\n  b\x1b[31m\u202e\udcff é")) == r"a b\x1b[31m\u202e\udcff é"
    long = str(TracelabError("begin " + "x" * 5000 + " end"))
    assert len(long) < 1010
    assert long.startswith("begin")
    assert long.endswith("end")


# --- every entry point
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", functions_with_a_seed())
def test_every_public_function_refuses_a_bad_seed_first_of_all(function):
    needed = [
        p
        for p in inspect.signature(function).parameters.values()
        if p.default is inspect.Parameter.empty
    ]
    positional = [None for p in needed if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    for seed in (-1, 2**32, True, 1.5):
        with pytest.raises(TracelabError, match="seed is"):
            function(*positional, seed=seed)


def test_the_sweep_finds_the_functions():
    names = {parameter.id.rpartition(".")[2] for parameter in functions_with_a_seed()}
    assert {
        "stereoset_scores",
        "evaluate",
        "generate",
        "causal_trace",
        "report",
        "paired",
        "mean_interval",
    } <= names


@pytest.mark.parametrize(
    "config", [BiasEditConfig, FairMedConfig, FinetuneConfig, KLAADConfig, ProberConfig]
)
def test_every_number_of_a_configuration_has_its_range(config):
    numbers = {name: value for name, value in vars(config()).items() if type(value) in (int, float)}
    assert len(numbers) >= 4
    for name, value in numbers.items():
        bad = (
            (-1, 2**70, True) if type(value) is int else (float("nan"), float("inf"), -float("inf"))
        )
        for each in bad:
            with pytest.raises(TracelabError) as caught:
                config(**{name: each})
            assert name.removeprefix("lr") in str(caught.value)
    for name in ("rank", "delta_rank", "hidden"):
        if name in numbers:
            with pytest.raises(TracelabError, match=f"is at most {WIDTH_MOST}"):
                config(**{name: 99999999999})


@pytest.fixture(scope="module")
def tiny(tiny_model):
    return tiny_model("llama")


@pytest.fixture(scope="module")
def delta(tiny):
    return WeightDelta.low_rank(tiny, layers=[0], rank=2)


SENTENCES = [f"the {name} sat there" for name in ("cat", "dog")]
CALLS = {
    "score": (lambda m, d, **o: score(m, SENTENCES, **o), {"batch_tokens": (0, -1)}),
    "stereoset_scores": (
        lambda m, d, **o: stereoset_scores(m, stereoset("gender", limit=2), **o),
        {"batch_tokens": (0, -1)},
    ),
    "generate": (
        lambda m, d, **o: generate(m, SENTENCES, **o),
        {
            **dict.fromkeys(
                ("max_new_tokens", "num_return_sequences", "num_beams", "batch_size"),
                (0, -1, 2**40),
            ),
            "top_k": (-1, 2**40),
            "temperature": (0.0, -1.0, float("nan"), float("inf")),
            "top_p": (0.0, 1.5, float("nan")),
        },
    ),
    "probe": (
        lambda m, d, **o: probe_layers(m, templates("gender"), **o),
        {"n_seeds": (0, 10**6), "top_k": (0, 5, 2**40), "batch_tokens": (0,)},
    ),
    "trace": (
        lambda m, d, **o: causal_trace(m, stereoset("gender"), **o),
        {
            **{"n_samples": (0, 10**9), "max_cases": (0, -1), "window": (0, 5, 2**40)},
            **{"layers": ([-1], [4], [], range(10**12)), "noise_factor": (-1.0, float("nan"))},
            "noise_std": (float("inf"), -1.0),
        },
    ),
    "attention": (
        lambda m, d, **o: attention_gap(m, crows_pairs("gender", limit=4), **o),
        {
            "layer": (4, -5, 2**40),
            "heads": ([4], [-1], [], [2**40]),
            "keep_maps": (-1,),
            "batch_tokens": (0,),
        },
    ),
    "inspect": (
        lambda m, d, **o: inspect_edits(m, d, "He said", **o),
        {"top": (0, -1), "top_directions": (0, 2**40)},
    ),
    "evaluate": (
        lambda m, d, **o: evaluate(m, d, ["stereoset"], **o),
        {"limit": (0, -1, {"stereoset": 0}, {"stereoset": -3})},
    ),
    "costs": (
        lambda m, d, **o: edit_costs(m, d, **o),
        dict.fromkeys(("batch", "length", "new_tokens", "repeats"), (0,)),
    ),
    "low_rank": (
        lambda m, d, **o: WeightDelta.low_rank(m, **{"layers": [0], **o}),
        {
            "rank": (0, -1, 33, 99999999999),
            "layers": ([4], [-1], [], range(10**12)),
            "seed": (-1, 2**70),
        },
    ),
    "edited layers": (
        lambda m, d, **o: edited_layers(m, records=[], **o),
        {"layers": ([4], [-1], range(10**12), "last5", "first", "last0")},
    ),
    "fairmed": (
        lambda m, d, **o: FairMed.fit(m, templates("gender"), **o),
        {"layers": ([4], [-1], [], range(10**12)), "n_seeds": (0,), "seed": (-1,)},
    ),
    "export": (lambda m, d, **o: to_peft(m, d, Path("never"), **o), {"rank": (0, -1, 2**40)}),
    "limits": (lambda m, d, **o: stereoset("gender", **o), {"limit": (0, -1)}),
    "no alpha": (
        lambda m, d, **o: Experts(d, None).with_alpha(**o),
        {"alpha": (float("nan"), float("inf"))},
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_is_out_of_range_is_one_sentence(tiny, delta, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, wrong = CALLS[name]
    for option, values in wrong.items():
        for value in values:
            with pytest.raises(TracelabError):
                call(tiny, delta, **{option: value})
    assert not list(tmp_path.iterdir())


def test_networks_that_no_memory_holds_are_refused(monkeypatch):
    monkeypatch.setattr("os.sysconf", lambda name: 2**10)  # a machine of 1 MiB
    monkeypatch.setattr("tracelab.model.memory._main_memory", lambda: None)  # says no more
    with pytest.raises(TracelabError, match="editors of rank 65536 need"):
        Editor(32, 64, 1, rank=WIDTH_MOST)
    rows = torch.zeros(8, 2, 16), torch.full((8, 2), 0.5), torch.arange(8)
    with pytest.raises(TracelabError, match="probers of width 65536 need"):
        train_probers(*rows, config=ProberConfig(hidden=WIDTH_MOST), seed=0)


def test_samples_that_no_memory_holds_are_refused_before_any_is_drawn(tiny, monkeypatch):
    monkeypatch.setattr("os.sysconf", lambda name: 2**10)  # a machine of 1 MiB
    monkeypatch.setattr("tracelab.model.memory._main_memory", lambda: None)
    for run, told in (
        ("fast", "traces of 10000 noise samples of .* tokens need .* GiB, cpu has 0.00097"),
        ("auto", "10000 noise samples of 3 pairs need .* GiB, the machine has 0.00097"),
    ):
        with pytest.raises(TracelabError, match=told):
            causal_trace(tiny, stereoset("gender")[:40], n_samples=10_000, max_cases=3, run=run)


@pytest.mark.parametrize("device", ["meta", "cuda:99", "foo", ""])
def test_a_device_that_cannot_compute_is_refused_at_every_way_to_load(device, tokenizer):
    from tests.tiny import tiny_hf
    from tracelab.model.load import from_hf, load

    with pytest.raises(TracelabError, match="the device .* cannot be used here"):
        load(device=device)
    with pytest.raises(TracelabError, match="the device .* cannot be used here"):
        from_hf(tiny_hf("llama", 64), tokenizer, model_id="tiny", device=device)


def test_a_text_that_is_no_text_is_one_sentence(tiny, delta):
    for call in (
        lambda text: score(tiny, ["all is fine", text]),
        lambda text: generate(tiny, text),
        lambda text: inspect_edits(tiny, delta, text),
        lambda text: tracelab.report(tiny, "gender", "never", prompts=[text]),
    ):
        with pytest.raises(
            TracelabError,
            match=r"the text 'caf\\udce9' cannot be tokenised: it is not valid Unicode",
        ):
            call("caf\udce9")
    assert not Path("never").exists()


def test_a_prompt_without_a_token_is_refused_before_a_report_is_made(tiny, tmp_path):
    with pytest.raises(TracelabError, match="no token in the text ''"):
        tracelab.report(tiny, "gender", tmp_path / "report", prompts=["fine", ""])
    assert not (tmp_path / "report").exists()
