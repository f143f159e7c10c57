"""Pairs of texts that differ in the group they name, from either benchmark."""

from __future__ import annotations

import pytest

from tracelab.datasets import crows_pairs, group_pairs, stereoset
from tracelab.errors import TracelabError


@pytest.mark.parametrize("bias", ["race", "religion", "gender"])
def test_crows_pairs_give_pairs_with_the_disadvantaged_group_first(bias):
    found = group_pairs(bias, data="crows-pairs")
    pairs = crows_pairs(bias)
    assert found.bias == bias
    assert len(found.pairs) == len(pairs)
    for (first, second), pair in zip(found.pairs, pairs, strict=True):
        assert {first, second} == {pair.sent_more, pair.sent_less}
        assert (first == pair.sent_more) == (pair.direction == "stereo") or first == second
    assert group_pairs(bias, data="crows-pairs", limit=5).pairs[0] in found.pairs


def test_black_people_are_named_first():
    firsts = [first for first, _ in group_pairs("race", data="crows-pairs").pairs]
    seconds = [second for _, second in group_pairs("race", data="crows-pairs").pairs]
    named = [sum(" black " in f" {text.lower()} " for text in side) for side in (firsts, seconds)]
    assert named[0] > 5 * named[1]


def test_pairs_without_target_terms_are_some_of_all():
    terms = {record.target for record in stereoset("gender", split="test")}
    left_out = sorted(terms)[:10]
    everything, part = group_pairs("gender").pairs, group_pairs("gender", without=left_out).pairs
    assert 0 < len(part) < len(everything)
    assert set(part) < set(everything)


def test_a_bias_type_that_stereoset_has_no_pairs_of_is_told_where_to_find_them():
    with pytest.raises(TracelabError, match=r'group_pairs\(.race., data="crows-pairs"\)'):
        group_pairs("race")
    with pytest.raises(TracelabError, match="unknown data of pairs 'bbq'"):
        group_pairs("race", data="bbq")
