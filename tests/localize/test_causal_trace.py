from __future__ import annotations

import importlib
import itertools
import json
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoTokenizer

from tests.tiny import D_MODEL, N_LAYERS, tiny_hf
from tracelab.datasets import stereoset
from tracelab.errors import TracelabError
from tracelab.localize import causal_trace
from tracelab.localize.tracing.cases import KEY_ROLES, make_cases
from tracelab.localize.tracing.causal_trace import CASES
from tracelab.localize.tracing.noise import attribute_embedding_std
from tracelab.model import assets
from tracelab.model.load import from_hf
from tracelab.model.scoring import score

# ``tracelab.localize.tracing.causal_trace`` is the function of that name by now.
module = importlib.import_module("tracelab.localize.tracing.causal_trace")

QUICK = {"window": 2, "n_samples": 2}
CHEAP = {**QUICK, "components": ["mlp"], "layers": [1, 2]}


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model("llama")


@pytest.fixture(scope="module")
def pairs(model):
    """Four short traceable records and one that is not; the fillers of two differ in length."""
    records = stereoset("gender")
    cases, _ = make_cases(model, records)
    cases.sort(key=lambda case: len(case.stereotype.ids))
    chosen = [case.id for case in cases if case.equal_length][:2]
    chosen += [case.id for case in cases if not case.equal_length][:2]
    by_id = {record.id: record for record in records}
    (bad, *_) = [record for record in records if record.id not in {case.id for case in cases}]
    return [*[by_id[key] for key in chosen], bad]


@pytest.fixture(scope="module")
def trace(model, pairs):
    return causal_trace(model, pairs, **QUICK)


@pytest.fixture(scope="module")
def cheap_trace(model, pairs):
    return causal_trace(model, pairs, **CHEAP, run="fast")


def given_noise(model, pairs, seed: int = 0) -> dict[str, torch.Tensor]:
    cases, _ = make_cases(model, pairs)
    generator = torch.Generator().manual_seed(seed)
    return {
        case.id: 0.7 * torch.randn(2, len(case.noised), D_MODEL, generator=generator)
        for case in cases
    }


def same_tables(one, other) -> None:
    pd.testing.assert_frame_equal(one.states, other.states)
    pd.testing.assert_frame_equal(one.cases, other.cases)
    pd.testing.assert_frame_equal(one.effects, other.effects)


# --- the numbers
# --------------------------------------------------------------------------------------------------


def test_fast_and_plain_runs_give_the_same_tables(model, pairs):
    # Every architecture, sentence by sentence: test_trace_sentence.py.
    options = {"window": 3, "n_samples": 2, "layers": [0, 2]}
    fast, plain = (causal_trace(model, pairs[1:3], run=run, **options) for run in ("fast", "plain"))
    assert fast.cases["equal_length"].tolist() == [True, False]
    columns = ["gap"]
    assert fast.states.drop(columns=columns).equals(plain.states.drop(columns=columns))
    assert np.allclose(fast.states["gap"], plain.states["gap"], rtol=0, atol=3e-5)
    assert np.allclose(fast.cases[["high", "low"]], plain.cases[["high", "low"]], rtol=0, atol=3e-5)
    assert fast.cases["te"].abs().max() > 0.1


def test_noise_on_the_last_token_is_the_same_fast_and_plain(model):
    records = stereoset("gender")
    cases, _ = make_cases(model, records)
    ending = {case.id for case in cases if case.noised[-1] == len(case.columns) - 1}
    chosen = [record for record in records if record.id in ending][:2]
    assert len(chosen) == 2
    fast, plain = (
        causal_trace(model, chosen, **CHEAP, positions="all", run=run) for run in ("fast", "plain")
    )
    assert np.allclose(fast.states["gap"], plain.states["gap"], rtol=0, atol=3e-5)


def test_the_fast_way_is_taken_on_every_architecture_of_the_suite(tiny_model, pairs):
    for kind in ("llama", "gpt2", "qwen2", "gemma2", "gpt_neox", "gpt_neo"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # falling back to the slow way warns
            causal_trace(
                tiny_model(kind), pairs[:1], layers=[1], components=["mlp"], window=1, n_samples=1
            )


def test_where_caches_cannot_be_shared_the_slow_way_gives_the_same_numbers(
    model, pairs, monkeypatch
):
    def broken(*args, **kwargs):
        raise TypeError("this architecture's blocks take other arguments")

    expected = causal_trace(model, pairs[:1], **CHEAP)
    monkeypatch.setattr(module, "fast_traces", broken)
    with pytest.warns(UserWarning, match="caches cannot be shared on this model"):
        slow = causal_trace(model, pairs[:1], **CHEAP)
    assert np.allclose(slow.states["gap"], expected.states["gap"], rtol=0, atol=3e-5)


def test_the_clean_gap_is_the_difference_of_the_sentences_scores(model, trace):
    for case in trace.cases.to_dict("records"):
        stereo, anti = score(model, [case["stereotype"], case["anti_stereotype"]]).sum
        assert case["high"] == pytest.approx(stereo - anti, abs=1e-4)
        assert case["te"] == pytest.approx(case["high"] - case["low"])


def test_a_pair_is_traced_on_the_embedded_model(real_model):
    records = stereoset("gender", limit=4)
    trace = causal_trace(
        real_model, records, layers=[20], n_samples=1, components=["mlp"], max_cases=1
    )
    (case,) = trace.cases.to_dict("records")
    stereo, anti = score(real_model, [case["stereotype"], case["anti_stereotype"]]).sum
    assert case["high"] == pytest.approx(stereo - anti, abs=1e-3)
    assert abs(case["te"]) > 0.01
    assert set(trace.states["role"]) <= set(KEY_ROLES)
    assert (trace.states["gap"] - case["low"]).abs().max() > 0.01


def test_noise_has_three_times_the_spread_of_the_attribute_words_embeddings(
    model, pairs, trace, tokenizer
):
    cases, _ = make_cases(model, pairs)
    table = tiny_hf("llama", len(tokenizer)).get_input_embeddings().weight.detach()
    rows = [table[case.stereotype.ids[case.columns[c][0]]] for case in cases for c in case.noised]
    expected = float(torch.stack(rows).std())
    assert attribute_embedding_std(model, cases) == pytest.approx(expected, rel=1e-5)
    assert trace.settings["noise_std"] == pytest.approx(3 * expected, rel=1e-5)


# --- noise and seeds
# ----------------------------------------------------------------------------------------------


def test_the_same_seed_repeats_every_table_and_another_does_not(model, pairs, cheap_trace):
    same_tables(causal_trace(model, pairs, **CHEAP), cheap_trace)
    other = causal_trace(model, pairs, **CHEAP, seed=1)
    assert np.allclose(other.cases["high"], cheap_trace.cases["high"])
    assert not np.allclose(other.cases["low"], cheap_trace.cases["low"], atol=0.01)


def test_given_noise_is_the_noise_that_is_used(model, pairs):
    draw, other = given_noise(model, pairs[:2]), given_noise(model, pairs[:2], seed=1)
    one, again = (causal_trace(model, pairs[:2], **CHEAP, noise=draw, seed=seed) for seed in (0, 5))
    pd.testing.assert_frame_equal(one.states, again.states)
    changed = causal_trace(model, pairs[:2], **CHEAP, noise=other)
    assert not np.allclose(one.cases["low"], changed.cases["low"], atol=0.01)
    silent = causal_trace(
        model, pairs[:2], **CHEAP, noise={key: 0 * value for key, value in draw.items()}
    )
    assert np.allclose(silent.cases["te"], 0, atol=1e-4)


def test_noise_is_added_to_the_attribute_words_of_both_sentences(model, pairs, tokenizer):
    (case,), _ = make_cases(model, pairs[:1])
    draw = given_noise(model, pairs[:1])
    hf_model = tiny_hf("llama", len(tokenizer))
    scores = []
    for side, encoding in enumerate((case.stereotype, case.anti_stereotype)):
        embeds = (
            hf_model.get_input_embeddings()(torch.tensor([encoding.ids])).detach().repeat(2, 1, 1)
        )
        for k, column in enumerate(case.noised):
            embeds[:, case.columns[column][side]] += draw[case.id][:, k]
        with torch.no_grad():
            logprobs = hf_model(inputs_embeds=embeds).logits.log_softmax(-1)
        ids = encoding.ids
        scores.append(
            sum(
                float(logprobs[s, j - 1, ids[j]])
                for s in (0, 1)
                for j in range(case.first, len(ids))
            )
            / 2
        )
    traced = causal_trace(model, pairs[:1], **CHEAP, noise=draw).cases.set_index("case")
    assert traced.loc[case.id, "low"] == pytest.approx(scores[0] - scores[1], abs=1e-4)


@pytest.mark.parametrize("shape", [(3, 1, D_MODEL), (2, 1, D_MODEL + 1), (2, 9, D_MODEL)])
def test_noise_of_a_wrong_shape_is_refused_with_the_right_one(model, pairs, shape):
    with pytest.raises(TracelabError, match=r"must have the shape \(2, \d, 32\), found \("):
        causal_trace(model, pairs[:1], **CHEAP, noise={pairs[0].id: torch.zeros(shape)})


def test_noise_that_lacks_a_record_is_refused(model, pairs):
    draw = given_noise(model, pairs[:1])
    with pytest.raises(TracelabError, match=f"noise of record {pairs[1].id} .* found nothing"):
        causal_trace(model, pairs[:2], **CHEAP, noise=draw)


# --- the tables
# -----------------------------------------------------------------------------------------------------  # noqa: E501


def test_states_are_the_key_roles_or_every_token(model, pairs, trace):
    assert set(trace.states["role"]) <= set(KEY_ROLES)
    every = causal_trace(model, pairs, **QUICK, positions="all")
    cases, _ = make_cases(model, pairs)
    per_case = every.states.groupby(["case", "component", "layer"]).size()
    for case in cases:
        assert (per_case[case.id] == len(case.columns)).all()
    keyed = every.states[every.states["role"].isin(KEY_ROLES)].reset_index(drop=True)
    pd.testing.assert_frame_equal(keyed, trace.states, atol=1e-4)


def test_what_cannot_be_traced_is_counted_by_reason(trace, pairs):
    assert trace.settings["n_pairs"] == len(pairs) == 5
    assert trace.settings["n_traceable"] == len(trace.cases) == 4
    assert sum(trace.settings["skipped"].values()) == 1


def test_at_most_so_many_cases_are_drawn_by_the_seed_and_keep_their_numbers(model, pairs):
    draw = given_noise(model, pairs)
    whole = causal_trace(model, pairs, **CHEAP, noise=draw)
    some = causal_trace(model, pairs, **CHEAP, noise=draw, max_cases=2)
    assert len(some.cases) == 2
    assert some.settings["n_traceable"] == 4
    rows = whole.cases[whole.cases["case"].isin(some.cases["case"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(some.cases, rows)
    again, other = (
        causal_trace(model, pairs, **CHEAP, noise=draw, max_cases=2, seed=seed) for seed in (0, 2)
    )
    assert (
        again.cases["case"].tolist() == some.cases["case"].tolist() != other.cases["case"].tolist()
    )


def test_a_sample_of_cases_gets_the_noise_it_gets_among_all(model, pairs, cheap_trace):
    some = causal_trace(model, pairs, **CHEAP, max_cases=2)
    rows = cheap_trace.cases[cheap_trace.cases["case"].isin(some.cases["case"])].reset_index(
        drop=True
    )
    pd.testing.assert_frame_equal(some.cases, rows)


def test_a_window_wider_than_a_small_model_is_all_of_it_by_default(model, pairs):
    default = causal_trace(model, pairs[:1], n_samples=1, components=["mlp"], layers=[1])
    assert default.settings["window"] == N_LAYERS


def test_layers_are_a_selection_of_the_whole(model, pairs, trace):
    some = causal_trace(model, pairs, **QUICK, layers=[3, 1, 3], components=["resid"])
    rows = trace.states[trace.states["layer"].isin([1, 3]) & (trace.states["component"] == "resid")]
    pd.testing.assert_frame_equal(some.states, rows.reset_index(drop=True), atol=1e-4)
    assert some.settings["layers"] == [1, 3]


def test_token_counts_leave_out_the_first_token_that_has_no_probability(
    model, pairs, trace, tokenizer
):
    for case in trace.cases.to_dict("records"):
        assert case["n_tokens"] == len(tokenizer(case["stereotype"]).input_ids) - 1
    with_bos = causal_trace(model, pairs[:1], **CHEAP, prepend_bos=True)
    (case,) = with_bos.cases.to_dict("records")
    assert case["n_tokens"] == len(tokenizer(case["stereotype"]).input_ids)


def test_filler_columns_are_labelled_with_both_sentences_tokens(trace):
    labels = trace.states.groupby("role")["token"].apply(set)
    assert all(" / " in label for label in labels["filler"])
    assert not any(" / " in label for label in labels["attribute"])


# --- errors and interruptions
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": N_LAYERS + 1}, "a window of 5 layers needs a model with as many: it has 4"),
        ({"window": 0}, "a window of 0 layers"),
        ({"layers": [0, N_LAYERS]}, "layer 4 is out of range: tiny-llama has layers 0 to 3"),
        ({"layers": [-1]}, "layer -1 is out of range"),
        ({"layers": []}, "nothing to trace: name at least one layer"),
        (
            {"components": ["resid", "head"]},
            "unknown component 'head': choose one of resid, mlp, attn",
        ),
        ({"components": []}, "nothing to trace: .* one component"),
        ({"positions": "first"}, "unknown positions 'first': choose one of roles, all"),
        ({"run": "slow"}, "unknown run 'slow': choose one of auto, fast, plain"),
        ({"mentions": "last"}, "unknown mentions 'last': choose one of all, first"),
        ({"n_samples": 0}, "n_samples is at least 1, not 0"),
        ({"max_cases": 0}, "max_cases is at least 1, not 0"),
    ],
)
def test_wrong_requests_are_refused(model, pairs, arguments, message):
    with pytest.raises(TracelabError, match=message):
        causal_trace(model, pairs, **{**QUICK, **arguments})


def test_nothing_traceable_is_refused_with_the_reasons(model, pairs):
    with pytest.raises(TracelabError, match="none of 1 records can be traced"):
        causal_trace(model, pairs[-1:], **QUICK)


class Interrupted(Exception):
    pass


@pytest.fixture(scope="module")
def own_model(tokenizer):
    """A model that no other test uses."""
    own = AutoTokenizer.from_pretrained(assets.model_dir())
    return from_hf(tiny_hf("llama", len(tokenizer)), own, model_id="interrupted")


@pytest.mark.parametrize(
    ("run", "n"), [*(("fast", n) for n in (0, 1, 2, 3, 9)), ("plain", 0), ("plain", 5)]
)
def test_an_interrupted_run_leaves_the_model_as_it_was(own_model, pairs, run, n):
    blocks, tokens = list(own_model.blocks), torch.arange(10, 20)[None]
    with torch.no_grad():
        before = own_model(tokens)
    calls = itertools.count()

    def hook(value, hook):
        if next(calls) == n:
            raise Interrupted

    with own_model.hooks(fwd_hooks=[("blocks.2.hook_mlp_out", hook)]), pytest.raises(Interrupted):
        causal_trace(own_model, pairs[:1], **CHEAP, run=run)
    assert not own_model.list_hooks()
    assert list(own_model.blocks) == blocks
    with torch.no_grad():
        assert torch.equal(own_model(tokens), before)


@pytest.fixture
def traced(monkeypatch):
    """The sentences that the fast tracer was run on."""
    seen = []
    real = module.fast_traces

    def spy(runner, sentences, *rest):
        seen.extend(tuple(sentence.ids.tolist()) for sentence in sentences)
        return real(runner, sentences, *rest)

    monkeypatch.setattr(module, "fast_traces", spy)
    return seen


def test_a_resumed_run_gives_the_same_tables_and_repeats_no_finished_case(
    model, pairs, cheap_trace, tmp_path, traced
):
    stored = tmp_path / "sub" / CASES
    settings = {**CHEAP, "run": "fast", "checkpoint": stored.parent}
    whole = causal_trace(model, pairs, **settings)
    same_tables(whole, cheap_trace)
    assert len(traced) == 8  # two sentences a case
    lines = stored.read_text().splitlines()
    assert len(lines) == 4
    stored.write_text("\n".join(lines[:2]) + "\n")  # interrupted after two cases
    traced.clear()
    same_tables(causal_trace(model, pairs, **settings), cheap_trace)
    assert len(traced) == 4
    traced.clear()
    same_tables(causal_trace(model, pairs, **settings), cheap_trace)
    assert traced == []


def test_a_real_interruption_keeps_the_finished_cases(
    model, pairs, cheap_trace, tmp_path, traced, monkeypatch
):
    stored = tmp_path / CASES
    settings = {**CHEAP, "run": "fast", "checkpoint": stored.parent}
    counted = module.fast_traces

    def stop(*args):
        if stored.is_file() and len(stored.read_text().splitlines()) == 2:
            raise Interrupted
        return counted(*args)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(module, "fast_traces", stop)
        causal_trace(model, pairs, **settings)
    traced.clear()
    same_tables(causal_trace(model, pairs, **settings), cheap_trace)
    assert len(traced) == 2 * 2


def test_a_line_cut_by_the_interruption_costs_its_case_only_once(
    model, pairs, cheap_trace, tmp_path, traced
):
    stored = tmp_path / CASES
    settings = {**CHEAP, "run": "fast", "checkpoint": stored.parent}
    causal_trace(model, pairs, **settings)
    lines = stored.read_text().splitlines()
    # killed while writing the second case
    stored.write_text(lines[0] + "\n" + lines[1][:40])
    traced.clear()
    same_tables(causal_trace(model, pairs, **settings), cheap_trace)
    assert len(traced) == 6
    traced.clear()
    same_tables(causal_trace(model, pairs, **settings), cheap_trace)
    assert traced == []


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"window": 3}, {"layers": [1]}, {"noise_std": 0.4}]
)
def test_a_run_with_other_settings_does_not_take_over_finished_cases(
    model, pairs, tmp_path, traced, change
):
    settings = {**CHEAP, "run": "fast", "checkpoint": tmp_path}
    causal_trace(model, pairs[:2], **settings)
    traced.clear()
    fresh = causal_trace(model, pairs[:2], **{**settings, **change, "checkpoint": None})
    traced.clear()
    same_tables(causal_trace(model, pairs[:2], **{**settings, **change}), fresh)
    assert len(traced) == 4


def test_a_run_with_other_given_noise_does_not_take_over_finished_cases(model, pairs, tmp_path):
    settings = {**CHEAP, "checkpoint": tmp_path}
    one, other = (
        causal_trace(model, pairs[:1], **settings, noise=given_noise(model, pairs[:1], seed))
        for seed in (0, 1)
    )
    assert not np.allclose(one.cases["low"], other.cases["low"], atol=0.01)


def test_the_settings_are_plain_json_values(trace):
    assert json.loads(json.dumps(trace.settings, allow_nan=False)) == trace.settings
    assert trace.settings["model"]["model_id"] == "tiny-llama"
