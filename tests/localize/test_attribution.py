from __future__ import annotations

import importlib
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoTokenizer

from tests.tiny import D_MODEL, N_LAYERS, tiny_hf
from tracelab.datasets import stereoset
from tracelab.errors import TracelabError
from tracelab.localize import causal_trace
from tracelab.localize.tracing import attribution
from tracelab.localize.tracing.attribution import attribution_traces
from tracelab.localize.tracing.cases import make_cases
from tracelab.localize.tracing.causal_trace import CASES
from tracelab.localize.tracing.sentence import (
    COMPONENTS,
    HOOKED,
    Noise,
    TracedSentence,
    TracedStates,
    plain_traces,
)
from tracelab.model import assets
from tracelab.model.load import from_hf
from tracelab.model.partial_forward import BlockRunner
from tracelab.model.plain_blocks import block_runner

module = importlib.import_module("tracelab.localize.tracing.causal_trace")

LAYERS = list(range(N_LAYERS))
FIRST = 4
LITTLE = {"llama": 1e-4, "gpt2": 1e-3, "gemma2": 1e-3, "olmo2": 3e-4, "gpt_neox": 1e-3}
"""Noise so small that the map is linear, and large beside what fp32 rounds."""


def two_sentences(scale: float, *, samples: int = 2) -> list[TracedSentence]:
    """The same before ``FIRST``, of 9 and 8 tokens, with states restored everywhere."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(100, 40000, (9,), generator=generator)
    other = torch.cat([ids[:FIRST], torch.randint(100, 40000, (4,), generator=generator)])
    values = scale * torch.randn(samples, 2, D_MODEL, generator=generator)
    noise = Noise((1, 2), values)
    return [TracedSentence(i, noise, list(range(len(i)))) for i in (ids, other)]


def model_of(kind: str, **changes):
    own = AutoTokenizer.from_pretrained(assets.model_dir())
    return from_hf(tiny_hf(kind, len(own), **changes), own, model_id=kind)


def effects(traces, component: str) -> torch.Tensor:
    return torch.cat([trace.restored[component] - trace.corrupted for trace in traces])


# --- to first order
# -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "runner_of"), [("llama", BlockRunner), *((kind, block_runner) for kind in LITTLE)]
)
def test_under_little_noise_the_effects_are_the_exact_ones(kind, runner_of):
    model = model_of(kind)
    sentences = [replace(s, positions=[1, 2, 3, 4, 5]) for s in two_sentences(LITTLE[kind])]
    states = TracedStates(LAYERS, COMPONENTS, 1)
    found = attribution_traces(runner_of(model), sentences, FIRST, states)
    exact = plain_traces(BlockRunner(model), sentences, FIRST, states)
    for ours, theirs in zip(found, exact, strict=True):
        assert ours.clean == pytest.approx(theirs.clean, abs=5e-5)
        assert ours.corrupted == pytest.approx(theirs.corrupted, abs=5e-5)
    for component in COMPONENTS:
        one, other = effects(found, component), effects(exact, component)
        size = float(other.abs().max())
        assert size > 3e-4
        assert float((one - other).abs().max()) < 0.1 * size


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "gpt_neox"])
def test_restoring_all_positions_of_a_layer_is_worth_the_total_effect(kind):
    model, sentences = model_of(kind), two_sentences(LITTLE[kind])
    states = TracedStates(LAYERS, ["resid"], 1)
    totals = []
    for trace in attribution_traces(block_runner(model), sentences, FIRST, states):
        totals.append(trace.clean - trace.corrupted)
        sums = (trace.restored["resid"] - trace.corrupted).sum(dim=0)
        assert sums.tolist() == pytest.approx([totals[-1]] * N_LAYERS, rel=0.05, abs=3e-5)
    assert max(map(abs, totals)) > 5e-4


def test_a_window_of_mlps_does_not_count_what_one_makes_of_the_next():
    """Where attention passes nothing on, windows are exactly of first order; sums of layers are
    not."""
    model = model_of("llama")
    with torch.no_grad():
        for block in model.blocks:
            block.attn.o.weight.zero_()
    noise = Noise((FIRST - 1,), 1e-4 * torch.randn(2, 1, D_MODEL))
    sentences = [TracedSentence(s.ids, noise, [FIRST - 1]) for s in two_sentences(0.0)]
    for window in (2, 3, N_LAYERS):
        states = TracedStates(LAYERS, ["mlp"], window)
        exact = effects(plain_traces(BlockRunner(model), sentences, FIRST, states), "mlp")
        found = effects(attribution_traces(BlockRunner(model), sentences, FIRST, states), "mlp")
        single = TracedStates(LAYERS, ["mlp"], 1)
        alone = effects(attribution_traces(BlockRunner(model), sentences, FIRST, single), "mlp")
        sums = torch.stack(
            [alone[:, list(w)].sum(dim=1) for w in states.windows("mlp", N_LAYERS)], dim=1
        )
        size = float(exact.abs().max())
        assert float((found - exact).abs().max()) < 0.05 * size
        assert float((sums - exact).abs().max()) > 0.3 * size


def by_autograd(hf_model, ids, noise: Noise, scales) -> dict[str, torch.Tensor]:
    """``gradient · change`` on a llama with plain hooks, a noise sample and a scale at a time."""
    layers = hf_model.model.layers
    modules = {
        "resid": list(layers),
        "mlp": [layer.mlp for layer in layers],
        "attn": [layer.self_attn for layer in layers],
    }
    places = [(c, n) for c in modules for n in LAYERS]

    def run(embeds):
        seen, handles = {}, []
        for component, n in places:

            def keep(m, i, o, place=(component, n)):
                seen[place] = o[0] if isinstance(o, tuple) else o

            handles.append(modules[component][n].register_forward_hook(keep))
        logprobs = hf_model(inputs_embeds=embeds).logits[0].log_softmax(-1)
        for handle in handles:
            handle.remove()
        score = sum(logprobs[j - 1, ids[j]] for j in range(FIRST, len(ids)))
        return score, [seen[place] for place in places]

    plain = hf_model.get_input_embeddings()(ids[None]).detach()
    _, clean = run(plain)
    found = {c: torch.zeros(len(ids), N_LAYERS) for c in modules}
    for values in noise.values:

        def noised(scale, values=values):
            embeds = plain.clone()
            embeds[0, list(noise.positions)] += scale * values
            return embeds.requires_grad_()

        _, corrupted = run(noised(1.0))
        for scale in scales:
            score, states = run(noised(scale))
            gradients = torch.autograd.grad(score, states)
            for (c, n), g, a, b in zip(places, gradients, clean, corrupted, strict=True):
                effect = (g * (a - b)).sum(dim=-1)[0].detach()
                found[c][:, n] += effect / len(scales) / len(noise.values)
    return found


@pytest.mark.parametrize(("ig_steps", "scales"), [(1, [1.0]), (4, [1.0, 0.75, 0.5, 0.25])])
def test_gradients_are_those_of_transformers_alone(tokenizer, ig_steps, scales):
    sentences = two_sentences(0.7)
    states = TracedStates(LAYERS, COMPONENTS, 1)
    found = attribution_traces(
        block_runner(model_of("llama")), sentences, FIRST, states, ig_steps=ig_steps
    )
    hf_model = tiny_hf("llama", len(tokenizer)).requires_grad_(False)
    for sentence, trace in zip(sentences, found, strict=True):
        expected = by_autograd(hf_model, sentence.ids, sentence.noise, scales)
        for component in COMPONENTS:
            effect = trace.restored[component] - trace.corrupted
            size = float(expected[component].abs().max())
            assert size > 0.5
            assert float((effect - expected[component])[1:-1].abs().max()) < 1e-3 * size


# --- what must not matter
# ------------------------------------------------------------------------------------------


def test_batches_and_partners_are_no_matter(monkeypatch):
    runner, sentences = block_runner(model_of("llama")), two_sentences(0.5, samples=3)
    states = TracedStates([0, 2], COMPONENTS, 2)
    both = attribution_traces(runner, sentences, FIRST, states)
    monkeypatch.setattr(attribution, "BATCH_POSITIONS", 1)
    for sentence, trace in zip(sentences, both, strict=True):
        (alone,) = attribution_traces(runner, [sentence], FIRST, states)
        assert alone.clean == pytest.approx(trace.clean, abs=1e-4)
        for component in COMPONENTS:
            assert torch.allclose(alone.restored[component], trace.restored[component], atol=2e-3)
            assert (trace.restored[component] - trace.corrupted).abs().max() > 0.1


def test_states_that_are_clean_and_the_last_token_change_nothing():
    for trace in attribution_traces(
        block_runner(model_of("gpt2")),
        two_sentences(0.5),
        FIRST,
        TracedStates(LAYERS, COMPONENTS, 2),
    ):
        for component in COMPONENTS:
            table = trace.restored[component]
            assert (table[[0, -1]] == trace.corrupted).all()
            assert (table[1:-1] != trace.corrupted).any()


def test_no_gradient_is_left_whatever_is_set_around(tiny_model):
    model, sentences = tiny_model("llama"), two_sentences(0.5)
    states = TracedStates(LAYERS, ["resid"], 1)
    before = [parameter.requires_grad for parameter in model.parameters()]
    plain = attribution_traces(BlockRunner(model), sentences, FIRST, states)
    with torch.inference_mode():
        inside = attribution_traces(BlockRunner(model), sentences, FIRST, states)
    assert torch.equal(plain[0].restored["resid"], inside[0].restored["resid"])
    assert not plain[0].restored["resid"].requires_grad
    assert [parameter.requires_grad for parameter in model.parameters()] == before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_every_component_has_a_hook_point():
    assert set(HOOKED) == set(COMPONENTS)


# --- as a method of causal_trace
# -----------------------------------------------------------------------------------

QUICK = {"window": 2, "n_samples": 2}
MAP = {**QUICK, "positions": "all", "noise_std": 0.02, "layers": [0, 2]}


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model("llama")


@pytest.fixture(scope="module")
def pairs(model):
    """Two short pairs; the fillers of the second have different lengths."""
    records = stereoset("gender")
    cases, _ = make_cases(model, records)
    cases.sort(key=lambda case: len(case.stereotype.ids))
    chosen = [case.id for case in cases if case.equal_length][:1]
    chosen += [case.id for case in cases if not case.equal_length][:1]
    by_id = {record.id: record for record in records}
    return [by_id[key] for key in chosen]


@pytest.fixture(scope="module")
def exact(model, pairs):
    return causal_trace(model, pairs, **MAP)


@pytest.fixture(scope="module")
def found(model, pairs):
    return causal_trace(model, pairs, **MAP, method="attribution")


def test_the_tables_are_those_of_an_exact_trace_with_other_gaps(exact, found):
    assert found.states.drop(columns="gap").equals(exact.states.drop(columns="gap"))
    assert np.allclose(found.cases[["high", "low"]], exact.cases[["high", "low"]], atol=1e-4)
    assert found.settings["noise_hash"] == exact.settings["noise_hash"]
    assert (found.settings["method"], exact.settings["method"]) == ("attribution", "exact")
    assert list(found.effects) == list(exact.effects)


def test_its_figures_and_headline_say_what_it_is(exact, found):
    assert "first-order" in found.headline()
    assert "first-order" not in exact.headline()
    for draw in ("plot", "plot_example"):
        said = [getattr(trace, draw)().to_json() for trace in (found, exact)]
        said = [
            " ".join(text.replace("\\u003cbr\\u003e", " ").replace("<br>", " ").split())
            for text in said
        ]
        assert ["to first order (attribution)" in text for text in said] == [True, False]


def test_a_resumed_run_gives_the_same_tables_and_no_method_reads_anothers_cases(
    model, pairs, tmp_path, monkeypatch
):
    given = {**QUICK, "layers": [1, 2], "checkpoint": tmp_path}
    seen = []

    def spy(runner, sentences, *rest, **options):
        seen.append(options["ig_steps"])
        return attribution_traces(runner, sentences, *rest, **options)

    monkeypatch.setattr(module, "attribution_traces", spy)
    whole = causal_trace(model, pairs, **given, method="attribution")
    assert seen == [1] * 2
    stored = tmp_path / CASES
    stored.write_text("\n".join(stored.read_text().splitlines()[:1]) + "\n")  # interrupted
    again = causal_trace(model, pairs, **given, method="attribution")
    assert seen == [1] * 3
    pd.testing.assert_frame_equal(again.states, whole.states)
    causal_trace(model, pairs, **given, method="attribution", ig_steps=2)
    assert seen == [1] * 3 + [2] * 2
    other = causal_trace(model, pairs, **given)
    assert not np.allclose(other.states["gap"], whole.states["gap"], atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "guess"}, "unknown method 'guess'"),
        ({"ig_steps": 2}, "ig_steps are of attribution"),
        ({"method": "attribution", "run": "plain"}, "attribution has one way to run"),
        ({"method": "attribution", "ig_steps": 0}, "ig_steps"),
    ],
)
def test_what_does_not_go_together_is_refused(model, pairs, options, message):
    with pytest.raises(TracelabError, match=message):
        causal_trace(model, pairs, **options)


# --- agreement with the exact trace
# --------------------------------------------------------------------------------


def test_agreement_is_the_correlation_of_the_effects(exact, found):
    table = found.agreement(exact)
    low = exact.cases.set_index("case")["low"]
    for component in COMPONENTS:
        both = [
            trace.states[trace.states["component"] == component].reset_index(drop=True)
            for trace in (found, exact)
        ]
        one, other = (part["gap"] - part["case"].map(low) for part in both)
        moved = np.maximum(one.abs(), other.abs()) > 1e-4
        row = table[(table["component"] == component) & (table["of"] == "all")].iloc[0]
        expected = one[moved].corr(other[moved], method="spearman")
        assert row["spearman"] == pytest.approx(expected, abs=0.01)
        assert row["pearson"] == pytest.approx(one[moved].corr(other[moved]), abs=0.01)
        assert row["spearman_low"] <= row["spearman"] <= row["spearman_high"]
        assert row["n_cases"] == 2
    roles = table[(table["component"] == "resid") & (table["of"] == "role")]
    everything = table[(table["component"] == "resid") & (table["of"] == "all")]
    assert roles["n_states"].sum() == everything["n_states"].iloc[0]


def test_a_trace_agrees_with_itself_and_a_reversed_one_does_not(exact):
    itself = exact.agreement(exact)
    assert np.allclose(itself[["spearman", "size"]], 1)
    low = exact.states["case"].map(exact.cases.set_index("case")["low"])
    turned = type(exact)(
        exact.settings,
        exact.effects,
        exact.cases,
        exact.states.assign(gap=2 * low - exact.states["gap"]),
    )
    assert np.allclose(turned.agreement(exact)["pearson"], -1)
    assert (turned.agreement(exact)["same_sign"] == 0).all()
    wrong = turned.most_wrong(exact, 5)
    assert wrong["rank_difference"].abs().tolist() == pytest.approx([0.9] * 5, abs=0.1)


def test_the_most_wrong_state_is_the_one_that_was_changed(exact):
    states = exact.states.copy()
    effect = states["gap"] - states["case"].map(exact.cases.set_index("case")["low"])
    most = effect[states["component"] == "mlp"].idxmax()
    states.loc[most, "gap"] -= 3 * effect[most]
    changed = type(exact)(exact.settings, exact.effects, exact.cases, states)
    first = changed.most_wrong(exact, 1).iloc[0]
    assert tuple(first[["case", "column", "layer"]]) == tuple(
        states.loc[most, ["case", "column", "layer"]]
    )
    assert not first["same_sign"]


def test_traces_under_other_noise_are_not_compared(model, pairs, exact):
    other = causal_trace(model, pairs, **QUICK, layers=[1], method="attribution")
    with pytest.raises(TracelabError, match="noise_hash"):
        other.agreement(exact)


@pytest.mark.slow
def test_on_the_embedded_model_the_map_ranks_states_as_the_exact_one_does(real_model):
    records = stereoset("gender")
    given = {"max_cases": 6, "n_samples": 3, "layers": range(1, 30, 8)}
    exact, one = (
        causal_trace(real_model, records, **given, method=method).of_first_token(False)
        for method in ("exact", "attribution")  # noise on an attention sink is far from linear
    )
    table = one.agreement(exact)
    whole = table[table["of"] == "all"].set_index("component")["spearman"]
    assert (whole > 0.5).all(), whole.to_dict()
    assert whole["resid"] > 0.6
