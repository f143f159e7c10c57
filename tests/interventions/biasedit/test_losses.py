"""BiasEdit against plain models: what is cached, the losses and gradients under an edit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.interventions.biasedit.models import (
    CONFIGS,
    DEV,
    KINDS,
    OWN,
    SMALL,
    TRAIN,
    Twin,
    dense_delta,
    random_shifts,
    slow_debias,
    slow_retention,
    triple_model,
)
from tracelab.interventions import BiasEditConfig
from tracelab.interventions.training.triples import LABELS, tokenise

# --- what is cached
# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_keys_times_output_gradients_are_the_gradient_of_the_weight(tiny, folder, kind, config):
    # Every position with a gradient is cached, and the micro-batches (here 3, 2) add up.
    config = config.replace(positions="predicting")
    trained = triple_model(tiny(kind), config)
    group = [7, 0, 3, 12, 5]
    keys, grads = trained.cached(group)
    twin = Twin(kind, folder)
    sum(slow_debias(twin, trained.triples, number, config) for number in group).div(
        config.batch_size
    ).backward()
    for k, g, expected in zip(keys, grads, twin.gradients(), strict=True):
        assert expected.abs().max() > 1e-6
        torch.testing.assert_close(
            k.T @ g, expected, atol=2e-4 * float(expected.abs().max()), rtol=1e-3
        )


def slow_inputs(twin: Twin, ids) -> list[torch.Tensor]:
    """What goes into each edited map, at every position of one sentence."""
    found, handles = [], []
    for layer in twin.layers:
        handles.append(
            twin.map(layer).register_forward_pre_hook(lambda module, args: found.append(args[0][0]))
        )
    with torch.no_grad():
        twin.logits(ids)
    for handle in handles:
        handle.remove()
    return found


def cached_sentences(triples, group) -> list[tuple[int, ...]]:
    """In the order of the cached rows: of each triple the anti-stereotype, then the stereotype."""
    return [
        triples.sequences[triples.index(n, label)]
        for n in group
        for label in ("anti_stereotype", "stereotype")
    ]


POSITIONS = {"predicting": lambda n: slice(0, n - 1), "ans_ref": lambda n: slice(1, n)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", POSITIONS)
def test_the_cached_positions_are_those_that_predict_or_those_one_later(tiny, folder, kind, rule):
    trained = triple_model(tiny(kind), BiasEditConfig(**SMALL, positions=rule))
    group = [4, 9, 1, 7]
    keys, grads = trained.cached(group)
    twin = Twin(kind, folder)
    by_sentence = [slow_inputs(twin, ids) for ids in cached_sentences(trained.triples, group)]
    for k, g, *rows in zip(keys, grads, *by_sentence, strict=True):
        expected = torch.cat([row[POSITIONS[rule](len(row))] for row in rows])
        torch.testing.assert_close(k, expected, atol=1e-4, rtol=1e-4)
        assert len(g) == len(k)


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_token_has_no_gradient_and_the_first_one_does(tiny, kind):
    model, group = tiny(kind), [4, 9, 1]
    predicting, later = (
        triple_model(model, BiasEditConfig(**SMALL, positions=rule)).cached(group)[1]
        for rule in POSITIONS
    )
    lengths = [len(ids) for ids in cached_sentences(tokenise(model, TRAIN), group)]
    for early, late in zip(predicting, later, strict=True):
        start = 0
        for length in lengths:
            rows = slice(start, start + length - 1)
            assert early[rows].any(dim=1).all()
            assert not late[rows][-1].any()
            assert torch.equal(late[rows][:-1], early[rows][1:])
            start = rows.stop


def test_the_rows_of_a_group_are_those_of_its_triples_in_order_however_often_they_are_asked_for(
    tiny,
):
    model = tiny("llama")
    alone = [triple_model(model).cached([i]) for i in (3, 1)]
    trained = triple_model(model)
    for group, order in (([3, 1], [0, 1]), ([1, 3], [1, 0]), ([1], [1]), ([3, 1], [0, 1])):
        for side, found in enumerate(trained.cached(group)):
            for m, rows in enumerate(found):
                expected = torch.cat([alone[i][side][m] for i in order])
                torch.testing.assert_close(rows, expected, atol=1e-5, rtol=1e-3)


def test_what_is_cached_does_not_depend_on_the_global_gradient_switch(tiny):
    trained = triple_model(tiny("llama"))
    plain = trained.cached([0, 1])
    with torch.no_grad():
        without = trained.cached([0, 1])
    for first, second in zip(plain[0] + plain[1], without[0] + without[1], strict=True):
        assert torch.equal(first, second)
        assert not first.requires_grad


# --- losses and gradients under an edit
# -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_losses_under_an_edit_and_their_gradients_are_those_of_edited_weights(
    tiny, folder, kind, config
):
    model, group = tiny(kind), [2, 11, 6, 0]
    trained, delta = triple_model(model, config), dense_delta(model)
    figures = trained.backward(delta, group)

    shifts = random_shifts(model)
    before, after = Twin(kind, folder), Twin(kind, folder, shifts)
    debias = torch.stack([slow_debias(after, trained.triples, n, config) for n in group])
    retention = torch.stack(
        [slow_retention(before, after, trained.triples, n, config) for n in group]
    )
    ((debias + config.lam * retention).sum() / config.batch_size).backward()

    assert figures["debias"] == pytest.approx(debias.mean().item(), rel=1e-3, abs=1e-5)
    assert figures["retention"] == pytest.approx(retention.mean().item(), rel=1e-3, abs=1e-5)
    assert figures["loss"] == pytest.approx(
        (debias + config.lam * retention).mean().item(), rel=1e-3, abs=1e-5
    )
    for parameter, expected in zip(delta.parameters(), after.gradients(), strict=True):
        assert expected.abs().max() > 1e-6
        tolerance = 2e-3 * float(expected.abs().max())
        torch.testing.assert_close(parameter.grad.T, expected, atol=tolerance, rtol=1e-3)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_each_sentence_goes_through_the_edited_model_once_a_step(tiny, monkeypatch, config):
    model, group = tiny("llama"), [2, 11, 6, 0]
    trained, delta, seen = triple_model(model, config), dense_delta(model), []
    run = trained.runner

    def counted(rows):
        if torch.is_grad_enabled():
            seen.extend(rows)
        return run(rows)

    monkeypatch.setattr(trained, "runner", counted)
    trained.backward(delta, group)
    assert len(seen) == len(set(seen))
    assert {row // 3 for row in seen} == set(group)


@pytest.mark.parametrize("kind", KINDS)
def test_measured_figures_are_those_of_edited_weights_sentence_by_sentence(tiny, folder, kind):
    model, group = tiny(kind), [0, 3, 5, 1]
    measured = triple_model(model, OWN, DEV)
    found = {
        "edited": measured.measure(dense_delta(model), group),
        "unedited": measured.measure(None, group),
    }
    plain = Twin(kind, folder)
    for name, twin in (("edited", Twin(kind, folder, random_shifts(model))), ("unedited", plain)):
        rows = []
        with torch.no_grad():
            for number in group:
                row = []
                for label in LABELS:
                    ids = measured.triples.sequences[measured.triples.index(number, label)]
                    logprobs = twin.logits(ids)[0].double().log_softmax(-1)
                    row.append(
                        np.mean([float(logprobs[j - 1, ids[j]]) for j in range(1, len(ids))])
                    )
                rows.append(row)
            debias = np.mean([float(slow_debias(twin, measured.triples, n, OWN)) for n in group])
            retention = np.mean(
                [float(slow_retention(plain, twin, measured.triples, n, OWN)) for n in group]
            )
        st, an, un = np.array(rows).T
        expected = {
            "loss": debias + OWN.lam * retention,
            "debias": debias,
            "retention": retention,
            "ss": 100 * np.mean(st > an),
            "lms": 50 * np.mean(st > un) + 50 * np.mean(an > un),
            "gap": np.mean(st - an),
        }
        assert found[name] == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert found["edited"]["retention"] > 0.01
    assert found["unedited"]["retention"] == 0


def test_out_of_memory_in_a_later_chunk_changes_neither_figures_nor_gradients(tiny, monkeypatch):
    model, group = tiny("llama"), [2, 11, 6, 0, 5]
    config = OWN.replace(batch_size=2)
    enough, delta = triple_model(model, config), dense_delta(model)

    def results(trained):
        yield trained.backward(delta, group)
        yield [parameter.grad.clone() for parameter in delta.parameters()]
        yield trained.measure(delta, group)
        yield [k.T @ g for k, g in zip(*trained.cached(group), strict=True)]

    expected = list(results(enough))
    delta.zero_grad()
    short, calls, run = triple_model(model, config), [], enough.runner

    def fails_in_the_second_chunk(indices):
        calls.append(len(indices))
        if (
            len(calls) == 5
        ):  # a chunk takes three passes; the first chunk has left its gradients and figures
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return run(indices)

    monkeypatch.setattr(short, "runner", fails_in_the_second_chunk)
    with pytest.warns(UserWarning, match="out of memory: 1 texts at a time"):
        found = list(results(short))
    for i in (0, 2):
        assert found[i] == pytest.approx(expected[i], rel=1e-4, abs=1e-6)
    for few, all_ in zip(found[1] + found[3], expected[1] + expected[3], strict=True):
        torch.testing.assert_close(few, all_, atol=1e-4 * float(all_.abs().max()), rtol=1e-3)
