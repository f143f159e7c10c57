"""The attention gap: reductions by hand, alignment, the neutral swap, and the real model."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tracelab.datasets import Pair, crows_pairs, stereoset
from tracelab.errors import TracelabError
from tracelab.localize.attention.attention_gap import (
    attention_gap,
    attention_patterns,
    reduce_gap,
    summarise,
)
from tracelab.localize.attention.neutral_swap import neutral_swaps
from tracelab.model import assets
from tracelab.model.tokens import encode

FIRST = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])
SECOND = np.array([[1.0, 0.0, 0.0], [0.9, 0.1, 0.0], [0.2, 0.2, 0.6]])


@pytest.mark.parametrize(
    ("reduce", "expected"),
    [
        ("received", [0.4 / 3, 0.5 / 3, 0.1 / 3]),
        ("received_abs", [0.4 / 3, 0.5 / 3, 0.1 / 3]),
        ("paid", [0.0, 0.8 / 3, 0.2 / 3]),
        ("both", [0.2 / 3, 0.65 / 3, 0.15 / 3]),
        ("last", [0.0, 0.1, 0.1]),
    ],
)
def test_reductions_equal_numbers_worked_out_by_hand(reduce, expected):
    np.testing.assert_allclose(reduce_gap(FIRST, SECOND, reduce), expected, atol=1e-12)


def test_received_lets_opposite_changes_cancel_and_received_abs_does_not():
    second = FIRST.copy()
    second[1, 0] += 0.1
    second[2, 0] -= 0.1
    assert reduce_gap(FIRST, second, "received")[0] == pytest.approx(0)
    assert reduce_gap(FIRST, second, "received_abs")[0] == pytest.approx(0.2 / 3)


def test_patterns_equal_transformers_own_attentions(real_model):
    ids = list(encode(real_model, "My mother fixed the old car.", prepend_bos=True).ids)
    (ours,) = attention_patterns(real_model, [ids], "blocks.29.attn.hook_pattern", None)
    plain = AutoModelForCausalLM.from_pretrained(assets.model_dir(), attn_implementation="eager")
    with torch.no_grad():
        output = plain(torch.tensor([ids]), output_attentions=True)
    theirs = output.attentions[29][0].mean(dim=0).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_allclose(ours.sum(axis=1), 1, atol=1e-5)


def test_a_batch_gives_the_maps_of_single_sentences(tiny_model):
    model = tiny_model("llama")
    texts = ["She is a doctor.", "He is a nurse who sings.", "They sat.", "She is a lawyer."]
    sequences = [encode(model, text).ids for text in texts]
    together = attention_patterns(model, sequences, "blocks.1.attn.hook_pattern", [0, 2])
    for ids, expected in zip(sequences, together, strict=True):
        (alone,) = attention_patterns(model, [ids], "blocks.1.attn.hook_pattern", [0, 2])
        np.testing.assert_allclose(alone, expected, atol=1e-6)


def test_equal_sentences_have_nothing_to_compare(tiny_model):
    pair = Pair("same", "gender", "She sat down.", "She sat down.")
    with pytest.raises(TracelabError, match="none of 1 pairs"):
        attention_gap(tiny_model("llama"), [pair])


def test_unequal_lengths_are_aligned_counted_and_kept_apart(tiny_model):
    pairs = [
        Pair("equal", "gender", "The man is here today.", "The woman is here today."),
        Pair(
            "longer",
            "gender",
            "He said that the man is very nice.",
            "She said that the man is nice.",
        ),
        Pair("insertion", "gender", "The man is here.", "The man is here now."),
    ]
    gap = attention_gap(tiny_model("llama"), pairs, control="none")
    assert gap.settings["n_equal"] == 1
    assert gap.settings["n_aligned"] == 1
    assert gap.settings["n_unusable"] == 1  # nothing was replaced: no sensitive position
    assert dict(zip(gap.pairs["pair"], gap.pairs["selection"], strict=True)) == {
        "equal": "equal",
        "longer": "aligned",
    }
    assert gap.value("pairs", "unusable").value == 1
    aligned = gap.positions[gap.positions["pair"] == "longer"]
    assert "·very" not in set(aligned["token_stereotype"])
    rows = gap.maps[gap.maps["pair"] == "longer"].groupby("query")["stereotype"].sum()
    np.testing.assert_allclose(rows, 1, atol=1e-5)


def test_a_word_of_several_tokens_against_one_is_a_single_position(tiny_model):
    pair = Pair("p", "religion", "The zoroastrian man sat down.", "The old man sat down.")
    gap = attention_gap(tiny_model("llama"), [pair], control="none", prepend_bos=False)
    row = gap.positions[gap.positions["sensitive"]]
    assert len(row) == 1
    assert row["token_stereotype"].item() == "·zoroastrian"
    assert row["token_anti_stereotype"].item() == "·old"
    maps = gap.maps.pivot(index="query", columns="key", values="stereotype").to_numpy()
    (whole,) = attention_patterns(
        tiny_model("llama"),
        [encode(tiny_model("llama"), pair.stereotype).ids],
        "blocks.3.attn.hook_pattern",
        None,
    )
    extra = len(whole) - len(maps)
    assert extra > 0
    np.testing.assert_allclose(maps[-1, 1], whole[-1, 1 : 2 + extra].sum(), atol=1e-6)
    np.testing.assert_allclose(maps[1, 0], whole[1 : 2 + extra, 0].mean(), atol=1e-6)


def test_positions_before_the_first_difference_have_no_paid_gap(tiny_model):
    pair = Pair("p", "gender", "Today the man is here.", "Today the woman is here.")
    gap = attention_gap(tiny_model("gpt2"), [pair], control="none", reduce="paid").positions
    first = int(gap["sensitive"].to_numpy().argmax())
    assert first > 0
    assert (gap["gap"][:first] < 1e-7).all()
    assert (gap["gap"][first:] > 0).any()


def test_the_neutral_swap_changes_one_other_whole_word(real_model):
    records = [pair.pair() for pair in crows_pairs("gender")]
    encoded = [
        (
            i,
            encode(real_model, p.stereotype, prepend_bos=True),
            encode(real_model, p.anti_stereotype, prepend_bos=True),
        )
        for i, p in enumerate(records)
    ]
    swaps = neutral_swaps(real_model, encoded, seed=3)
    assert len(swaps) > 50
    for i, first, second in encoded:
        if i not in swaps:
            continue
        swap = swaps[i]
        changed = [p for p, (a, b) in enumerate(zip(first.ids, swap.ids, strict=True)) if a != b]
        differing = [
            p for p, (a, b) in enumerate(zip(first.ids, second.ids, strict=True)) if a != b
        ]
        assert changed == [swap.position]
        assert swap.position not in differing
        assert len(differing) == 1
    assert swaps == neutral_swaps(real_model, encoded, seed=3)
    assert swaps != neutral_swaps(real_model, encoded, seed=4)


def test_summary_equals_scipy_and_counts_by_hand(tiny_model):
    from scipy.stats import ttest_rel

    gap = attention_gap(tiny_model("llama"), crows_pairs("gender", limit=60))
    equal = gap.pairs[gap.pairs["selection"] == "equal"]
    assert gap.value("hit_rate").value == pytest.approx(100 * equal["hit"].mean())
    test = ttest_rel(equal["sensitive"], equal["other"])
    assert gap.value("t").value == pytest.approx(test.statistic)
    assert gap.value("dof").value == len(equal) - 1
    real = gap.value("hit_rate", "control_real").value
    neutral = gap.value("hit_rate", "control_neutral").value
    assert gap.value("hit_rate", "excess").value == pytest.approx(real - neutral)
    again = summarise(gap.pairs, seed=0)
    assert again["value"].tolist() == pytest.approx(gap.summary["value"].tolist(), nan_ok=True)


@pytest.mark.slow
def test_on_the_real_model_sensitive_positions_stand_out(real_model):
    gap = attention_gap(real_model, crows_pairs("gender", limit=80))
    assert gap.value("hit_rate").low > gap.value("chance").value
    assert gap.value("p").value < 1e-3
    assert gap.settings["layer"] == 29


def test_stereoset_records_are_pairs_too(tiny_model):
    gap = attention_gap(tiny_model("qwen2"), stereoset("profession", limit=30))
    assert gap.settings["n_pairs"] == 30


def test_no_hook_is_left(tiny_model):
    model = tiny_model("llama")
    attention_gap(model, crows_pairs("gender", limit=10))
    assert not model.list_hooks()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 4}, "out of range"),
        ({"heads": [9]}, "heads 0 to 3"),
        ({"reduce": "sum"}, "unknown reduction"),
        ({"control": "random"}, "unknown control"),
    ],
)
def test_bad_options_are_refused(tiny_model, options, message):
    with pytest.raises(TracelabError, match=message):
        attention_gap(tiny_model("llama"), crows_pairs("gender", limit=4), **options)
