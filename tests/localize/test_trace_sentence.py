from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer

from tests.tiny import KINDS, MORE_KINDS, N_LAYERS, tiny_hf
from tracelab.datasets import stereoset
from tracelab.localize.tracing.cases import make_cases
from tracelab.localize.tracing.fast import block_positions, fast_traces
from tracelab.localize.tracing.sentence import (
    COMPONENTS,
    Noise,
    SentenceTrace,
    TracedSentence,
    TracedStates,
    noising,
    plain_traces,
    window_layers,
)
from tracelab.model import assets
from tracelab.model.load import from_hf
from tracelab.model.partial_forward import BlockRunner
from tracelab.model.plain_blocks import PlainBlockRunner, block_runner

LAYERS = list(range(N_LAYERS))


def fast_trace(runner, ids, noise, first, positions, *rest):
    """One sentence alone."""
    (trace,) = fast_traces(
        runner, [TracedSentence(ids, noise, positions)], first, TracedStates(*rest)
    )
    return trace


def plain_trace(runner, ids, noise, first, positions, *rest):
    (trace,) = plain_traces(
        runner, [TracedSentence(ids, noise, positions)], first, TracedStates(*rest)
    )
    return trace


def several_attribute_words(case) -> bool:
    return len(case.noised) >= 3


def long_filler_of_other_length(case) -> bool:
    fillers = [
        pair for pair, role in zip(case.columns, case.roles, strict=True) if role == "filler"
    ]
    return len(fillers) >= 3 and not case.equal_length


@pytest.fixture(scope="module")
def cases(tiny_model):
    """Short real cases with several attribute words, and with multi-token fillers of unequal
    length."""
    made, _ = make_cases(tiny_model("llama"), stereoset("gender"))
    made = [case for case in made if case.roles.count("after_filler") >= 2 and case.noised[0] >= 1]
    made.sort(key=lambda case: max(len(case.stereotype.ids), len(case.anti_stereotype.ids)))
    return [
        next(filter(kind, made)) for kind in (several_attribute_words, long_filler_of_other_length)
    ]


def longer_side(case) -> int:
    return int(len(case.anti_stereotype.ids) > len(case.stereotype.ids))


def noise_for(
    case, side: int, d_model: int, scale: float, seed: int = 0, samples: int = 2
) -> Noise:
    generator = torch.Generator().manual_seed(seed)
    values = scale * torch.randn(samples, len(case.noised), d_model, generator=generator)
    return Noise(tuple(case.columns[c][side] for c in case.noised), values)


def arguments(case, side: int, d_model: int, *, window: int = 2, scale: float = 0.75):
    encoding = (case.stereotype, case.anti_stereotype)[side]
    ids = torch.tensor(encoding.ids)
    noise = noise_for(case, side, d_model, scale)
    return ids, noise, case.first, list(range(len(ids))), LAYERS, COMPONENTS, window


@pytest.mark.parametrize("kind", KINDS)
def test_shared_caches_give_the_numbers_of_one_run_a_state(tiny_model, cases, kind):
    runner = BlockRunner(tiny_model(kind))
    for case, window in zip(cases, (2, 3), strict=True):
        ids, noise, first, _, _, components, _ = arguments(case, longer_side(case), 32)
        # Before, at and after the noise; around the filler; at the end.
        positions = sorted(
            {0, noise.positions[0], first - 1, first, first + 1, len(ids) - 2, len(ids) - 1}
        )
        given = (ids, noise, first, positions, [0, 1, 3], components, window)
        fast, plain = fast_trace(runner, *given), plain_trace(runner, *given)
        assert fast.clean == pytest.approx(plain.clean, abs=2e-5)
        assert fast.corrupted == pytest.approx(plain.corrupted, abs=2e-5)
        for component in COMPONENTS:
            assert fast.restored[component].shape == (len(positions), 3)
            assert torch.allclose(
                fast.restored[component], plain.restored[component], rtol=0, atol=2e-5
            )
            moved = (plain.restored[component] - plain.corrupted).abs().max()
            assert moved > 0.1  # far above the tolerance


def sentences_of(case, d_model: int, positions=None, scale: float = 0.75) -> list[TracedSentence]:
    """Both sentences of a pair, with states restored everywhere or at some positions."""
    return [
        TracedSentence(
            torch.tensor(encoding.ids),
            noise_for(case, side, d_model, scale),
            positions or list(range(len(encoding.ids))),
        )
        for side, encoding in enumerate((case.stereotype, case.anti_stereotype))
    ]


def largest_difference(one: list[SentenceTrace], other: list[SentenceTrace]) -> float:
    pairs = list(zip(one, other, strict=True))
    found = [abs(a.clean - b.clean) for a, b in pairs]
    found += [abs(a.corrupted - b.corrupted) for a, b in pairs]
    found += [
        float((a.restored[c] - b.restored[c]).abs().max()) for a, b in pairs for c in a.restored
    ]
    return max(found)


@pytest.mark.parametrize("kind", [kind for kind in MORE_KINDS if kind != "bloom"])
def test_a_pair_traced_as_one_has_the_numbers_of_one_run_a_state(tokenizer, cases, kind):
    # BLOOM gives its blocks the number of rows: causal_trace sees that, and takes the plain way.
    own = AutoTokenizer.from_pretrained(assets.model_dir())  # OPT's bridge has hooks of its own
    model, case = from_hf(tiny_hf(kind, len(tokenizer)), own, model_id=kind), cases[1]
    assert not case.equal_length
    given = (sentences_of(case, 32), case.first, TracedStates(LAYERS, COMPONENTS, 3))
    plain = plain_traces(BlockRunner(model), *given)
    for runner in (BlockRunner(model), block_runner(model)):
        assert largest_difference(fast_traces(runner, *given), plain) < 1e-4
    moved = [(trace.restored["mlp"] - trace.corrupted).abs().max() for trace in plain]
    assert min(moved) > 0.02


@pytest.mark.parametrize("window", [1, 2, N_LAYERS])
def test_windows_that_begin_or_are_alike_are_told_apart_where_they_part(tiny_model, cases, window):
    model, case = tiny_model("qwen2"), cases[0]
    given = (sentences_of(case, 32), case.first, TracedStates(LAYERS, ("mlp", "attn"), window))
    fast = fast_traces(block_runner(model), *given)
    assert largest_difference(fast, plain_traces(BlockRunner(model), *given)) < 1e-4


@pytest.mark.parametrize("positions", [1, 40])
def test_the_size_of_a_batch_is_no_matter(tiny_model, cases, positions, monkeypatch):
    model, case = tiny_model("llama"), cases[1]
    given = (sentences_of(case, 32), case.first, TracedStates(LAYERS, COMPONENTS, 3))
    whole = fast_traces(block_runner(model), *given)
    monkeypatch.setattr("tracelab.localize.tracing.fast.BATCH_POSITIONS", positions)
    monkeypatch.setattr("tracelab.localize.tracing.shared_runs.LOGIT_BYTES", 1)
    assert largest_difference(fast_traces(block_runner(model), *given), whole) < 2e-5


def test_a_sentence_alone_and_in_a_pair_has_the_same_numbers(tiny_model, cases):
    runner, case = block_runner(tiny_model("llama")), cases[1]
    both = sentences_of(case, 32)
    states = TracedStates(LAYERS, COMPONENTS, 2)
    pair = fast_traces(runner, both, case.first, states)
    for sentence, trace in zip(both, pair, strict=True):
        alone = fast_traces(runner, [sentence], case.first, states)
        assert largest_difference(alone, [trace]) < 2e-5


def test_the_count_of_positions_is_of_those_that_are_run(tiny_model, cases, monkeypatch):
    runner, case = BlockRunner(tiny_model("llama")), cases[1]
    both = sentences_of(case, 32)
    counted = [0, 0]
    extend, head = runner.extend, runner.head

    def counting(layer, resid, *, start, **rest):
        if start:  # else it is a shared run, with clean states at every position
            counted[0] += resid.shape[0] * resid.shape[1]
        return extend(layer, resid, start=start, **rest)

    def counting_head(resid):
        counted[1] += resid.shape[0] * resid.shape[1]
        return head(resid)

    monkeypatch.setattr(runner, "extend", counting)
    monkeypatch.setattr(runner, "head", counting_head)
    samples, n = len(both[0].noise.values), sum(len(s.ids) - case.first for s in both)
    for component in COMPONENTS:
        counted[:] = 0, 0
        states = TracedStates(LAYERS, [component], 2)
        fast_traces(runner, both, case.first, states)
        expected = block_positions(both, case.first, states, component, N_LAYERS)
        assert (counted[0], counted[1] - samples * n) == expected


def test_the_embedded_model_has_the_numbers_of_one_run_a_state(real_model):
    made, _ = make_cases(real_model, stereoset("gender", limit=20))
    case = min(made, key=lambda case: len(case.stereotype.ids))
    bridge, plain = BlockRunner(real_model), PlainBlockRunner(real_model)
    positions = [case.noised[0], case.first]
    sentences = sentences_of(case, 576, positions, scale=0.3)
    given = (sentences, case.first, TracedStates([2, 20], COMPONENTS, 10))
    expected = plain_traces(bridge, *given)
    for runner in (bridge, plain):
        assert largest_difference(fast_traces(runner, *given), expected) < 1e-4
    assert (expected[0].restored["resid"] - expected[0].corrupted).abs().max() > 0.1


# --- against transformers alone, without bridge or TransformerLens hooks
# ------------------------------------------


@torch.no_grad()
def by_forward_hooks(hf_model, ids, noise: Noise, first: int, window: int) -> SentenceTrace:
    """Tracing a llama with plain forward hooks, one noise sample, one state and one run at a
    time."""
    layers = hf_model.model.layers
    modules = {
        "resid": list(layers),
        "mlp": [layer.mlp for layer in layers],
        "attn": [layer.self_attn for layer in layers],
    }

    def tensor_of(output):
        return output[0] if isinstance(output, tuple) else output

    def with_tensor(output, value):
        return (value, *output[1:]) if isinstance(output, tuple) else value

    def score(embeds) -> float:
        logprobs = hf_model(inputs_embeds=embeds).logits[0].double().log_softmax(-1)
        return sum(float(logprobs[j - 1, ids[j]]) for j in range(first, len(ids)))

    clean_embeds = hf_model.get_input_embeddings()(ids[None])
    states: dict[tuple[str, int], torch.Tensor] = {}
    handles = [
        module.register_forward_hook(
            lambda m, i, o, key=(component, layer): states.update({key: tensor_of(o)}) or None
        )
        for component, of_layer in modules.items()
        for layer, module in enumerate(of_layer)
    ]
    clean = score(clean_embeds)
    for handle in handles:
        handle.remove()
    kept = dict(states)

    def corrupted(values, put_back=()) -> float:
        embeds = clean_embeds.clone()
        for position, value in zip(noise.positions, values, strict=True):
            embeds[0, position] += value
        handles = []
        for component, layer, position in put_back:

            def hook(module, inputs, output, key=(component, layer), position=position):
                value = tensor_of(output).clone()
                value[0, position] = kept[key][0, position]
                return with_tensor(output, value)

            handles.append(modules[component][layer].register_forward_hook(hook))
        try:
            return score(embeds)
        finally:
            for handle in handles:
                handle.remove()

    def mean(put_back=()) -> float:
        return sum(corrupted(values, put_back) for values in noise.values) / len(noise.values)

    restored = {component: torch.empty(len(ids), N_LAYERS) for component in modules}
    for component, table in restored.items():
        for position in range(len(ids)):
            for layer in range(N_LAYERS):
                low, high = layer - window // 2, layer + (window + 1) // 2
                inside = (
                    [layer] if component == "resid" else range(max(0, low), min(N_LAYERS, high))
                )
                table[position, layer] = mean([(component, n, position) for n in inside])
    return SentenceTrace(clean, mean(), restored)


def test_tracing_equals_forward_hooks_on_a_model_that_was_never_wrapped(
    tiny_model, cases, tokenizer
):
    case = cases[0]
    given = arguments(case, 0, 32)
    fast = fast_trace(BlockRunner(tiny_model("llama")), *given)
    expected = by_forward_hooks(tiny_hf("llama", len(tokenizer)), *given[:3], window=2)
    assert fast.clean == pytest.approx(expected.clean, abs=1e-4)
    assert fast.corrupted == pytest.approx(expected.corrupted, abs=1e-4)
    for component in COMPONENTS:
        assert torch.allclose(
            fast.restored[component], expected.restored[component], rtol=0, atol=1e-4
        )


# --- what restoring must and must not do
# ----------------------------------------------------------------------------


def gap_of_hooks(model, ids, hooks) -> torch.Tensor:
    with model.hooks(fwd_hooks=hooks), torch.no_grad():
        return model(ids[None].expand(2, -1))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_restoring_every_position_equals_clean(tiny_model, cases, kind):
    model = tiny_model(kind)
    ids, noise, *_ = arguments(cases[0], 0, 32)
    names = ["hook_embed", *(f"blocks.{layer}.hook_resid_post" for layer in LAYERS)]
    with torch.no_grad():
        clean, cache = model.run_with_cache(ids[None], names_filter=names)
    noise_hook = ("hook_embed", lambda value, hook: noising(noise)(value))
    assert (gap_of_hooks(model, ids, [noise_hook]) - clean).abs().max() > 0.5
    for name in names:
        restoring = (name, lambda value, hook, name=name: cache[name].expand_as(value).clone())
        assert torch.allclose(
            gap_of_hooks(model, ids, [noise_hook, restoring]), clean.expand(2, -1, -1), atol=1e-5
        )


@pytest.mark.parametrize("tracer", [fast_trace, plain_trace])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_restoring_a_position_before_the_noise_changes_nothing(tiny_model, cases, tracer, kind):
    ids, noise, first, *_ = arguments(cases[0], 0, 32)
    position = noise.positions[0] - 1
    assert position >= 0
    trace = tracer(
        BlockRunner(tiny_model(kind)), ids, noise, first, [position], LAYERS, COMPONENTS, 2
    )
    for component in COMPONENTS:
        assert trace.restored[component] == pytest.approx(trace.corrupted, abs=1e-5)


@pytest.mark.parametrize("tracer", [fast_trace, plain_trace])
def test_restoring_the_last_token_changes_nothing(tiny_model, cases, tracer):
    ids, noise, first, *_ = arguments(cases[0], 0, 32)
    trace = tracer(
        BlockRunner(tiny_model("llama")), ids, noise, first, [len(ids) - 1], LAYERS, COMPONENTS, 2
    )
    for component in COMPONENTS:
        assert trace.restored[component] == pytest.approx(trace.corrupted, abs=1e-5)


def test_without_noise_every_run_is_the_clean_run(tiny_model, cases):
    ids, noise, first, positions, *_ = arguments(cases[1], 0, 32)
    silent = Noise(noise.positions, 0 * noise.values)
    trace = fast_trace(
        BlockRunner(tiny_model("llama")), ids, silent, first, positions, LAYERS, COMPONENTS, 2
    )
    assert trace.corrupted == pytest.approx(trace.clean, abs=1e-4)
    for component in COMPONENTS:
        assert trace.restored[component] == pytest.approx(trace.clean, abs=1e-4)


def test_values_are_means_over_noise_samples(tiny_model, cases):
    runner = BlockRunner(tiny_model("qwen2"))
    ids, noise, *rest = arguments(cases[0], 0, 32)
    both = fast_trace(runner, ids, noise, *rest)
    alone = [
        fast_trace(runner, ids, Noise(noise.positions, noise.values[[k]]), *rest) for k in (0, 1)
    ]
    assert both.corrupted == pytest.approx((alone[0].corrupted + alone[1].corrupted) / 2, abs=1e-4)
    assert abs(alone[0].corrupted - alone[1].corrupted) > 0.01
    for component in COMPONENTS:
        mean = (alone[0].restored[component] + alone[1].restored[component]) / 2
        assert torch.allclose(both.restored[component], mean, atol=1e-4)


def test_the_chosen_layers_and_positions_are_rows_and_columns_of_the_whole(tiny_model, cases):
    runner = BlockRunner(tiny_model("llama"))
    ids, noise, first, positions, layers, components, window = arguments(cases[0], 0, 32, window=3)
    whole = fast_trace(runner, ids, noise, first, positions, layers, components, window)
    part = fast_trace(runner, ids, noise, first, [first - 1, first], [1, 3], ("attn",), window)
    assert list(part.restored) == ["attn"]
    rows = whole.restored["attn"][[first - 1, first]][:, [1, 3]]
    assert torch.allclose(part.restored["attn"], rows, atol=1e-5)


@pytest.mark.parametrize("window", [1, 2, 5, 10])
def test_a_window_reaches_from_half_below_to_just_under_half_above(window):
    for layer in range(12):
        expected = [
            n for n in range(12) if layer - window // 2 <= n <= layer + (window + 1) // 2 - 1
        ]
        assert list(window_layers(layer, window, 12)) == expected
        assert layer in window_layers(layer, window, 12)
    assert list(window_layers(20, 10, 30)) == list(range(15, 25))
