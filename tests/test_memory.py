"""Memory by formula: what is measured on random models, and what is refused by it."""

from __future__ import annotations

import json
import runpy
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

import tracelab
from tests.interventions.edits import bridged
from tests.tiny import tiny_hf
from tracelab.errors import TracelabError
from tracelab.localize.probing import harvest as harvesting
from tracelab.localize.probing.harvest import group_token_ids, harvest
from tracelab.localize.probing.prober import ProberConfig, train_probers
from tracelab.model import memory
from tracelab.model.memory import Sizes, free_memory, require_room

SCRIPTS = Path(__file__).parents[1] / "analyses" / "gpu"
GIB = 2**30
WORKS = {"score", "harvest", "fit", "trace", "generate", "probers"}


def run_script(name: str, options: list[str], monkeypatch, capsys) -> tuple[int, list[dict]]:
    """The exit status of a script, and its lines."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setenv("TRACELAB_CACHE", str(Path(tempfile.gettempdir()) / "no-such-cache"))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *options])
    before = set(sys.modules)
    try:
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
    finally:
        for added in set(sys.modules) - before:
            if getattr(sys.modules[added], "__file__", None) == str(SCRIPTS / f"{added}.py"):
                del sys.modules[added]
    return ended.value.code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.slow
@pytest.mark.nightly
def test_formulas_and_measurement_agree_on_three_sizes(monkeypatch, capsys):
    status, lines = run_script("memory", ["--device", "cpu"], monkeypatch, capsys)
    *lines, summary = lines
    assert {line["work"] for line in lines} == WORKS
    assert len({line["size"] for line in lines}) == 3
    assert all(0.9 <= line["ratio"] <= 1.6 for line in lines)
    assert (status, summary["ok"]) == (0, True)


@pytest.mark.slow
@pytest.mark.nightly
def test_the_check_of_a_gpu_runs_on_a_tiny_model_without_data(monkeypatch, capsys):
    options = ["--device", "cpu", "--size", "tiny"]
    status, lines = run_script("check", options, monkeypatch, capsys)
    assert [line["check"] for line in lines if not line["ok"]] == []
    names = {line["check"] for line in lines}
    kinds = [method.kind for method in tracelab.interventions.methods.METHODS]
    assert {"score", "probe", "trace", "attention", "inspect", "evaluate", "generate"} <= names
    assert {f"fit_{kind}{exactly}" for kind in kinds for exactly in ("", "_exactly")} <= names
    assert (status, lines[-1]["check"]) == (0, "summary")


def test_a_check_that_finds_something_wrong_says_so(monkeypatch, capsys):
    options = ["--device", "cpu", "--size", "tiny", "--only", "export", "stack"]
    status, lines = run_script("check", options, monkeypatch, capsys)
    stack, export, summary = lines
    assert (stack["ok"], export["ok"]) == (False, True)  # no edit was fitted before
    assert "two edits are needed" in stack["detail"]["error"]
    assert (status, summary["failed"]) == (1, ["stack"])


def test_sizes_are_the_models(tiny_model):
    sizes = Sizes.of(tiny_model("llama"))
    assert (sizes.layers, sizes.width, sizes.inner, sizes.heads) == (4, 32, 64, 4)
    assert (sizes.keys, sizes.repeats, sizes.number) == (16, 2, 4)
    assert Sizes.of(tiny_model("gpt2")).inner == 128
    tokens, logits = 10, 10 * sizes.vocabulary * 4
    assert sizes.forward(2, 5) == 2 * 4 * tokens * 16 * 4 + logits
    assert replace(sizes, number=2).forward(2, 5) * 2 == sizes.forward(2, 5)


def test_the_memory_that_is_free_is_told_and_bounded():
    free = free_memory("cpu")
    assert free is not None
    assert 0 < free < 2**50
    require_room("cpu", "these", 1, "nothing")
    with pytest.raises(TracelabError, match=r"these need 1e\+06 GiB, cpu has .* GiB free: wait"):
        require_room("cpu", "these", 10**6 * GIB, "wait")
    assert free_memory("meta") is None
    require_room("meta", "these", 10**6 * GIB, "nobody tells")


def test_files_that_a_container_has_read_leave_room(tmp_path):
    assert memory._container_memory(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("950\n")
    stat = "anon 100\ninactive_file 500\nactive_file 250\nslab_reclaimable 50\n"
    (tmp_path / "memory.stat").write_text(stat)
    assert memory._container_memory(tmp_path) == 850
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._container_memory(tmp_path) is None


def test_a_trace_without_room_for_what_it_shares_shares_nothing(tiny_model, no_room):
    with pytest.warns(UserWarning, match="traces of 2 noise samples.*the slow way"):
        found = tracelab.causal_trace(
            tiny_model("llama"), own_pairs(), n_samples=2, layers=[1], components=["resid"]
        )
    assert found.settings["run"] == "plain"


@pytest.fixture
def no_room(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 1000)


PAIRS = [
    {
        "stereotype": f"The old {who} forgot it.",
        "anti_stereotype": f"The old {who} led it.",
        "unrelated": f"The old {who} seven it.",
        "target": who,
    }
    for who in ("man", "woman", "cook", "driver", "writer", "doctor")
]
TEXTS = ["The old man forgot it."] * 3
WITHOUT_ROOM = {
    "passes over 3 texts of .* tokens need .* lower batch_tokens": lambda m: tracelab.score(
        m, TEXTS
    ),
    "batches of 1 continuations of up to .* lower batch_size": lambda m: tracelab.generate(m, "a"),
    "passes over .* texts": lambda m: tracelab.attention_gap(m, own_pairs()),
    "passes over [0-9]* texts of": lambda m: tracelab.probe_layers(
        m, tracelab.datasets.templates("age", limit=8)
    ),
    "traces of 10 noise samples of .* lower n_samples": lambda m: tracelab.causal_trace(
        m, own_pairs(), run="fast"
    ),
    "steps of 2 texts of .* lower batch_size or block_size": lambda m: tracelab.Experts.fit(
        m, tracelab.datasets.ExpertTexts("age", TEXTS[:2], TEXTS[1:])
    ),
    "gradients of three sentences of": lambda m: tracelab.KLAAD.fit(m, own_pairs()),
    "gradients of three sentences": lambda m: tracelab.BiasEdit.fit(m, own_pairs()),
}


def own_pairs():
    return tracelab.datasets.pairs(PAIRS, bias="age")


@pytest.mark.parametrize("told", WITHOUT_ROOM)
def test_what_there_is_no_room_for_is_refused_before_it_begins(
    tiny_model, no_room, monkeypatch, told
):
    model, passes, forward = tiny_model("llama"), [], TransformerBridge.forward

    def counted(self, tokens, *args, **options):
        if options.get("stop_at_layer") != 1:  # the embeddings alone
            passes.append(tokens.numel())
        return forward(self, tokens, *args, **options)

    monkeypatch.setattr(TransformerBridge, "forward", counted)
    with pytest.raises(TracelabError, match=f"{told}.*"):
        WITHOUT_ROOM[told](model)
    assert sum(passes) < 50  # a look at the sizes of maps, or at embeddings


def test_weights_without_room_are_refused_before_they_are_read(
    tokenizer, tmp_path, no_room, monkeypatch
):
    tiny_hf("llama", len(tokenizer)).save_pretrained(tmp_path / "mine")
    tokenizer.save_pretrained(tmp_path / "mine")
    n = sum(p.numel() for p in tiny_hf("llama", len(tokenizer)).parameters())
    told = f"the weights of 'mine' in bfloat16 need {2 * n / GIB:.4g} GiB, cpu has .* free: load it"
    with pytest.raises(TracelabError, match=told):
        tracelab.load(tmp_path / "mine", dtype="bfloat16")


def test_probers_without_room_are_refused(no_room):
    states, labels = torch.zeros(4, 2, 8), torch.full((4, 2), 0.5)
    with pytest.raises(TracelabError, match="probers of width 64 need .* lower hidden="):
        train_probers(states, labels, torch.arange(4), config=ProberConfig(hidden=64), seed=0)


def corpus_of(count: int):
    own = tracelab.datasets.templates("age")
    prompts = [
        replace(own.prompts[i % len(own.prompts)], id=str(i), text=f"Number {i} said that the")
        for i in range(count)
    ]
    return replace(own, prompts=tuple(prompts))


def test_a_harvest_on_disk_holds_no_more_in_memory_for_more_prompts(
    tokenizer, tmp_path, monkeypatch
):
    model = bridged(len(tokenizer), seed=5, model_id="harvested")
    monkeypatch.setattr(harvesting, "SPILL_BYTES", 1)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    held, known = [], [*model.parameters(), *model.buffers()]
    for count in (256, 2048):
        corpus = corpus_of(count)
        words = group_token_ids(model, corpus)
        with tracelab.model.peak.peak_memory(known) as peak:
            found = harvest(model, corpus, words, batch_tokens=64)
        kept = 4 * found.activations.numel()
        # the file, and labels of a few numbers a prompt: all else is a batch's
        held.append(peak[0] - kept - 64 * count)
        assert found.activations.isfinite().all()
    assert held[1] < 1.2 * held[0]
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_with_what_is_needed(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(harvesting.os, "posix_fallocate", full)
    monkeypatch.setattr(harvesting, "SPILL_BYTES", 1)
    with pytest.raises(TracelabError, match=r"need 0\.\S+ GiB in .*No space left.*TMPDIR"):
        harvesting._store((1024, 32, 1024))
