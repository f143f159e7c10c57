"""Scoring by the tree of what sequences share: equal to one sequence a row, and left where not."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoTokenizer

from tests.interventions.edits import (
    bridged,
    random_delta,
    random_erasure,
    random_experts,
    random_fairmed,
)
from tests.tiny import MORE_KINDS, tiny_hf
from tracelab.datasets import stereoset
from tracelab.interventions import Stack
from tracelab.model import assets, packed
from tracelab.model.load import from_hf
from tracelab.model.packed import scoring_by_tree, tree_batches, tree_of
from tracelab.model.scoring import logprobs_within, row_logprobs
from tracelab.model.tokens import encode

SEQUENCES = [
    (9, 40, 41, 42, 43),
    (9, 40, 41, 52, 53, 54, 55),
    (9, 40, 41, 52, 53, 64),
    (7, 8),
    (9,),
    (9, 40, 41, 42, 43),
    (70, 71, 72, 73, 74, 75, 76, 77, 78, 79, 80, 81),
    (70, 71, 72, 40),
    (9, 40, 33, 34, 35),
]
FIRSTS = [1] * len(SEQUENCES)


def both_ways(model, sequences=SEQUENCES, firsts=FIRSTS, *, batch_tokens=1024):
    return (
        logprobs_within(model, sequences, firsts, batch_tokens=batch_tokens, by_tree=way)
        for way in (None, False)
    )


def by_tree(model, sequences=SEQUENCES, firsts=FIRSTS):
    """Whether they are scored by their trees."""

    def one_a_row(batch):
        return row_logprobs(model, [sequences[i] for i in batch], [firsts[i] for i in batch])

    with scoring_by_tree(model, sequences, firsts, one_a_row, 1024) as quick:
        return quick is not None


def require_equal(found, expected, *, atol=1e-5):
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=atol)


def test_a_tree_has_a_node_a_beginning_and_attends_to_what_came_before():
    order = next(tree_batches(SEQUENCES, FIRSTS, 1000))
    sequences = [SEQUENCES[i] for i in order]
    tree = tree_of(sequences, [1] * len(sequences))
    beginnings = {ids[:n] for ids in SEQUENCES for n in range(1, len(ids))}
    assert len(tree.tokens) == len(beginnings)
    for ids, path in zip(sequences, tree.paths, strict=True):
        assert [tree.tokens[node] for node in path] == list(ids[:-1])
        assert [tree.depths[node] for node in path] == list(range(len(path)))
        for depth, node in enumerate(path):
            assert tree.sees[node].nonzero()[0].tolist() == sorted(path[: depth + 1])


@pytest.mark.parametrize("most", [1, 6, 9, 1000])
def test_batches_hold_every_sequence_once_and_no_more_nodes_than_asked(most):
    batches = list(tree_batches(SEQUENCES, FIRSTS, most))
    assert sorted(i for batch in batches for i in batch) == list(range(len(SEQUENCES)))
    for batch in batches:
        tree = tree_of([SEQUENCES[i] for i in batch], [1] * len(batch))
        assert len(tree.tokens) <= most or len({SEQUENCES[i] for i in batch}) == 1


@pytest.mark.parametrize("batch_tokens", [1, 6, 1024])
def test_the_tree_gives_what_one_sequence_a_row_gives(tiny_model, batch_tokens):
    require_equal(*both_ways(tiny_model("llama"), batch_tokens=batch_tokens))


@pytest.mark.parametrize("kind", MORE_KINDS)
def test_on_every_architecture_the_numbers_are_those_of_a_sequence_a_row(kind):
    own = AutoTokenizer.from_pretrained(assets.model_dir())
    model = from_hf(tiny_hf(kind, len(own)), own, model_id=f"own-{kind}")
    require_equal(*both_ways(model))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
def test_common_architectures_are_scored_by_the_tree(tiny_model, kind):
    assert by_tree(tiny_model(kind))


@pytest.mark.parametrize("firsts", [FIRSTS, [3, 3, 2, 1, 1, 4, 6, 2, 1]])
@pytest.mark.parametrize(
    "make",
    [
        random_delta,
        random_erasure,
        random_fairmed,
        lambda model: random_fairmed(model, positions="published", lam=3.0),
        lambda model: random_fairmed(model, positions="predictive", lam=3.0),
        lambda model: Stack([random_delta(model), random_erasure(model)]),
        lambda model: random_delta(model).scaled(0.3),
        lambda model: random_experts(model, alpha=0.7),
        lambda model: random_experts(model, alpha=0.7, filter_order="base_first", top_p=0.5),
    ],
)
def test_an_edit_is_on_the_tree_as_on_the_model(tiny_model, make, firsts):
    model = tiny_model("llama")
    unedited, _ = both_ways(model, firsts=firsts)
    with make(model).applied(model):
        assert by_tree(model, firsts=firsts)
        found, expected = both_ways(model, firsts=firsts)
    require_equal(found, expected)
    assert max((a - b).abs().max() for a, b in zip(found, unedited, strict=True) if len(a)) > 1e-3
    again, _ = both_ways(model, firsts=firsts)
    assert all(torch.equal(a, b) for a, b in zip(unedited, again, strict=True))


def test_edits_within_each_other_and_positions_that_are_one_search_are_scored_a_text_a_row(
    tiny_model,
):
    model = tiny_model("llama")
    with random_delta(model).applied(model), random_erasure(model).applied(model):
        assert not by_tree(model)
        require_equal(*both_ways(model))
    tied = random_fairmed(model, norm="code", positions="published", lam=3.0)
    assert tied.needs_rows
    assert Stack([random_delta(model), tied]).needs_rows
    with tied.applied(model):
        assert not by_tree(model)
    delta = random_delta(model)
    with delta.observed():
        assert delta.needs_rows
    assert not delta.needs_rows


def test_what_shares_nothing_is_few_or_in_half_precision_is_scored_a_text_a_row(tokenizer):
    model = bridged(len(tokenizer), 6, "half")
    assert by_tree(model)
    assert not by_tree(model, SEQUENCES[:4], FIRSTS[:4])
    path = [tuple(range(30, 32 + n)) for n in range(10)]
    assert not by_tree(model, path, [1] * 10)  # one path: no mask would be tried
    model.to(torch.bfloat16)
    assert not by_tree(model)


def test_a_tree_that_cannot_be_run_is_scored_a_text_a_row(tiny_model, monkeypatch):
    model, real, ran = tiny_model("llama"), packed.tree_logprobs, []

    def full(hf_model, sequences, firsts):
        ran.append(len(sequences))
        if len(ran) > 2:  # those that were compared
            raise torch.OutOfMemoryError("full")
        return real(hf_model, sequences, firsts)

    monkeypatch.setattr(packed, "tree_logprobs", full)
    require_equal(*both_ways(model, batch_tokens=6))
    assert len(ran) > 2


def test_columns_beyond_a_local_window_are_seen_to_differ(tokenizer):
    """GPT-Neo's local layers count columns, not positions."""
    own = AutoTokenizer.from_pretrained(assets.model_dir())
    hf_model = tiny_hf("gpt_neo", len(tokenizer), window_size=8)
    model = from_hf(hf_model, own, model_id="neo")
    sequences = [(9, 40, 50 + n, 60, 61) for n in range(12)]
    assert not by_tree(model, sequences, [1] * 12)
    require_equal(*both_ways(model, sequences, [1] * 12))


def test_the_twin_holds_no_weights_after_scoring(tokenizer):
    model = bridged(len(tokenizer), 7, "moved")
    assert by_tree(model)
    _, twin, _ = packed._TWINS[model]
    assert all(parameter.numel() == 0 for parameter in twin.parameters())
    require_equal(*both_ways(model))


def test_a_hook_of_ones_own_acts(tiny_model):
    model = tiny_model("llama")
    unedited, _ = both_ways(model)
    with model.hooks(fwd_hooks=[("blocks.1.hook_mlp_out", lambda value, hook: value * 2)]):
        assert not by_tree(model)
        found, expected = both_ways(model)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not torch.allclose(found[0], unedited[0], atol=1e-3)


def test_a_part_of_an_edits_hooks_is_not_taken_for_the_edit(tiny_model):
    model = tiny_model("llama")
    hooks = random_delta(model).hooks(model)
    with model.hooks(fwd_hooks=hooks[: len(hooks) // 2]):
        assert not by_tree(model)


class _Nothing(nn.Module):
    """In the place of an MLP."""

    def forward(self, x):
        return torch.zeros_like(x)


def test_weights_that_change_and_modules_that_are_exchanged_are_seen(tokenizer):
    model = bridged(len(tokenizer), 5, "changing")
    unchanged, _ = both_ways(model)
    with torch.no_grad():
        model.blocks[0].mlp.out.weight.mul_(3)
    found, expected = both_ways(model)
    require_equal(found, expected)
    assert not torch.allclose(found[0], unchanged[0], atol=1e-3)
    model.to(torch.bfloat16)
    require_equal(*both_ways(model), atol=0.1)
    model.to(torch.float32)
    model.original_model.model.layers[1].mlp = _Nothing()
    assert not by_tree(model)
    require_equal(*both_ways(model))


def test_on_the_real_model_records_are_scored_as_a_sentence_a_row(real_model):
    records = stereoset("gender", limit=8)
    texts = [s.text for r in records for s in (r.stereotype, r.anti_stereotype, r.unrelated)]
    sequences = [encode(real_model, text, prepend_bos=True).ids for text in texts]
    firsts = [1] * len(sequences)
    assert by_tree(real_model, sequences, firsts)
    require_equal(*both_ways(real_model, sequences, firsts), atol=1e-4)
