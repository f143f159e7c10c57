from __future__ import annotations

import numpy as np
import pytest
import torch

from tracelab.datasets.gender_swap import swap_gender_words
from tracelab.datasets.stereoset import attribute_word_pairs, stereoset
from tracelab.errors import TracelabError
from tracelab.evaluate.benchmarks import swap_consistency
from tracelab.evaluate.benchmarks.gender_tokens import gender_token_maps
from tracelab.evaluate.benchmarks.swap_consistency import (
    METRICS,
    SwapPair,
    SwapScores,
    swap_pairs,
    swap_scores,
)

PAIRS = [
    SwapPair("a", "gender", "mother", "My mother said that", "My father said that"),
    SwapPair("b", "gender", "mother", "His wife has a job as a", "Her husband has a job as a"),
    SwapPair("c", "gender", "boy", "The boy is very", "The girl is very"),
]


def token(model, word: str) -> int:
    (only,) = model.tokenizer(word, add_special_tokens=False).input_ids
    return only


def test_each_opening_ends_before_the_filler_and_its_twin_has_the_other_words():
    pairs, by_id = swap_pairs(), {record.id: record for record in stereoset("gender")}
    assert len({(pair.opening, pair.swapped) for pair in pairs}) == len(pairs) > 100
    for pair in pairs:
        record = by_id[pair.id]
        assert record.target == pair.target
        assert record.stereotype.text.startswith(pair.opening + " ")
        assert len(pair.opening) <= record.stereotype.filler[0].start
        assert swap_gender_words(record.stereotype.text).startswith(pair.swapped)
        assert len(pair.swapped.split()) == len(pair.opening.split())


def test_only_gender_can_be_exchanged():
    assert swap_pairs(None, limit=3) == swap_pairs("gender", limit=3)
    with pytest.raises(TracelabError, match="swap-consistency has no bias type 'race'"):
        swap_pairs("race")


def test_exchanging_the_words_twice_changes_nothing(real_model):
    same, partner = gender_token_maps(real_model, real_model.cfg.d_vocab)
    assert torch.equal(same[same], same)
    assert torch.equal(partner[partner], same)
    assert torch.equal(same[partner], partner)
    assert 50 < (same != partner).sum() < 4 * sum(map(len, attribute_word_pairs("gender")))


@pytest.mark.parametrize(
    ("word", "other"), [(" he", " she"), ("She", "He"), (" his", " her"), (" him", " her")]
)
def test_a_word_and_its_partner_stand_for_each_other(real_model, word, other):
    same, partner = gender_token_maps(real_model, real_model.cfg.d_vocab)
    first, second = (token(real_model, each) for each in (word, other))
    assert partner[first] == same[second]
    assert partner[second] == same[first]
    assert same[first] != same[second]


def test_scores_are_those_of_a_slow_loop_over_the_plain_model(real_model, plain_model, tokenizer):
    result = swap_scores(real_model, PAIRS)
    classes = {" he": "M1", " she": "F1"} | {" his": "M2", " him": "M2", " her": "F2"}
    for pair, row in zip(PAIRS, result.openings.to_dict("records"), strict=True):
        p, q = (
            plain_model(**tokenizer(text, return_tensors="pt"))
            .logits[0, -1]
            .detach()
            .double()
            .softmax(-1)
            for text in (pair.opening, pair.swapped)
        )
        assert row["swap_tv_plain"] == pytest.approx(float((p - q).abs().sum() / 2), abs=1e-4)
        assert row["swap_same_top1_plain"] == 100.0 * bool(p.argmax() == q.argmax())
        assert row["top"] == tokenizer.decode([int(p.argmax())])
        assert row["top_swapped"] == tokenizer.decode([int(q.argmax())])
        ids = {tokenizer(word).input_ids[0]: name for word, name in classes.items()}
        other = {"M1": "F1", "F1": "M1", "M2": "F2", "F2": "M2"}
        mine = dict.fromkeys(other, 0.0)
        theirs = dict.fromkeys(other, 0.0)
        rest = float((p - q).abs().sum())
        for token, name in ids.items():
            mine[name] += float(p[token])
            theirs[other[name]] += float(q[token])
            rest -= float((p[token] - q[token]).abs())
        expected = (rest + sum(abs(mine[name] - theirs[name]) for name in other)) / 2
        # The other gender words are unlikely here and change the sum by less than this.
        assert row["swap_tv"] == pytest.approx(expected, abs=0.02)
    assert result.openings["swap_tv"].iloc[0] < result.openings["swap_tv_plain"].iloc[0] - 0.05


def test_the_exchange_is_that_of_a_dictionary(real_model, monkeypatch):
    size = real_model.cfg.d_vocab
    words = (" he", " she", " his", " him", " her", " doctor", " cook")
    tokens = {word: token(real_model, word) for word in words}

    def logits(**probabilities: float) -> torch.Tensor:
        made = torch.full((size,), -60.0)
        for word, p in probabilities.items():
            made[tokens[f" {word}"]] = float(np.log(p))
        return made

    cases = [  # equal but for the words; the job differs; "his" and "him" are both "her"
        (logits(he=0.6, doctor=0.4), logits(she=0.6, doctor=0.4), (100, 0.0, 0, 0.6)),
        (logits(he=0.6, doctor=0.4), logits(she=0.6, cook=0.4), (100, 0.4, 0, 1.0)),
        (logits(his=0.5, him=0.3, cook=0.2), logits(her=0.8, cook=0.2), (100, 0.0, 0, 0.8)),
        (logits(he=0.7, she=0.3), logits(he=0.7, she=0.3), (0, 0.4, 100, 0.0)),
    ]
    pairs = [SwapPair(str(k), "gender", "t", f"x{k}", f"y{k}") for k in range(len(cases))]
    given = torch.stack([side for p, q, _ in cases for side in (p, q)])
    monkeypatch.setattr(swap_consistency, "next_token_logits", lambda *_: given)
    table = swap_scores(real_model, pairs).openings
    for row, (_, _, expected) in zip(table[list(METRICS)].to_numpy(), cases, strict=True):
        assert row == pytest.approx(expected, abs=1e-6)


def test_the_value_is_the_mean_over_target_terms(tiny_model, tmp_path):
    result = swap_scores(tiny_model("llama"), PAIRS, edit="mine")
    units = result.openings
    expected = (units["swap_tv"][:2].mean() + units["swap_tv"][2]) / 2
    rows = result.table.set_index("metric")
    assert list(rows.index) == list(METRICS)
    assert rows.loc["swap_tv", "value"] == pytest.approx(expected)
    assert set(rows["edit"]) == {"mine"}
    assert rows.loc["swap_tv", "n"] == 3
    assert result.settings["prepend_bos"] is False
    back = SwapScores.load(result.save(tmp_path / "kept"))
    assert back.openings.equals(units)


def test_a_model_that_does_not_see_the_opening_is_perfectly_consistent(tiny_model):
    model = tiny_model("llama")

    def blind(value, hook):
        return torch.ones_like(value)

    with model.hooks(fwd_hooks=[("blocks.3.hook_resid_post", blind)]):
        result = swap_scores(model, PAIRS)
    assert result.openings["swap_tv_plain"].max() == pytest.approx(0, abs=1e-6)
    assert (result.openings["swap_same_top1_plain"] == 100).all()


def test_nothing_to_score_is_refused(tiny_model):
    with pytest.raises(TracelabError, match="no openings to exchange the gender in"):
        swap_scores(tiny_model("llama"), [])
