"""Pairs of texts that differ in the group they name, from either benchmark."""

from __future__ import annotations

import pytest

from tracelab.datasets import GroupPairs, crows_pairs, development_sentences, group_pairs, stereoset
from tracelab.datasets.group_words import BIAS_TYPES, _replaced, _words
from tracelab.datasets.spans import find_words
from tracelab.errors import TracelabError
from tracelab.evaluate import prompt_pairs


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
    with pytest.raises(TracelabError, match=r'group_pairs\(.disability., data="crows-pairs"\)'):
        group_pairs("disability")
    with pytest.raises(TracelabError, match="unknown data of pairs 'bbq'"):
        group_pairs("race", data="bbq")


def test_neutral_text_is_development_text_and_what_the_cost_is_measured_on_is_other_text():
    for bias in ("gender", "religion"):
        data = group_pairs(bias, limit=5)
        assert set(data.neutral) < set(development_sentences("fit", 200))
        assert set(data.held_out) < set(development_sentences("choose", 200))
        assert not set(data.held_out) & set(data.neutral)


# --- of groups that have words
# ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", BIAS_TYPES)
def test_pairs_of_groups_with_words_name_the_disadvantaged_first_and_say_the_same_otherwise(bias):
    data = group_pairs(bias)
    assert len(data.pairs) >= 250
    words = _words(bias)
    sides = [
        {pair[side].casefold() for pair in words["before_people"]}
        | {word.casefold() for kind in words["exchanged"] for word in kind[name]}
        for side, name in enumerate(("first", "second"))
    ]
    assert not sides[0] & sides[1]
    for first, second in data.pairs:
        a, b = first.casefold(), second.casefold()
        assert a != b
        assert any(word in a for word in sides[0]), first
        assert any(word in b for word in sides[1]), second
        # one stretch of words differs, or each place where the group is named
        assert abs(len(a.split()) - len(b.split())) <= 2
        assert set(a.split()) & set(b.split()) or len(a.split()) <= 3


@pytest.mark.parametrize("bias", BIAS_TYPES)
def test_no_text_fitted_on_is_one_that_something_is_scored_on(bias):
    fitted = {text.casefold() for pair in group_pairs(bias).pairs for text in pair}
    scored = [text for pair in prompt_pairs() for text in (pair.minoritised, pair.dominant)]
    scored += [record.context.partition("BLANK")[0].strip() for record in stereoset(split="dev")]
    assert not fitted & {text.casefold() for text in scored}


def test_words_of_dev_target_terms_are_left_out_but_one_of_religion():
    for bias, known in (("race", set()), ("religion", {"muslim"})):
        dev = {record.target.casefold() for record in stereoset(bias)}
        words = {
            word.casefold()
            for kind in _words(bias)["exchanged"]
            for side in kind.values()
            for word in side
        } | {word.casefold() for pair in _words(bias)["before_people"] for word in pair}
        assert dev & words == known


def test_words_before_people_begin_with_a_consonant():
    for bias in BIAS_TYPES:
        for pair in _words(bias)["before_people"]:
            assert all(word[0].lower() not in "aeiou" for word in pair)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("An Irish farmer was", "A German farmer was"),
        ("irish food and an Irish song", "german food and a German song"),
        ("The Irishman is", "The Irishman is"),
    ],
)
def test_an_exchanged_word_takes_its_article_and_case_along(text, expected):
    assert _replaced(text, {"Irish": "German"}) == expected
    assert _replaced("a German town", {"German": "Irish"}) == "an Irish town"


def test_terms_left_out_are_in_no_text_as_a_target_or_as_a_partner():
    terms = sorted({record.target for record in stereoset("race", split="test")})[::3]
    part = group_pairs("race", without=terms)
    assert part == group_pairs("race", without=terms)
    dropped = {
        record.context for record in stereoset("race", split="test") if record.target in terms
    }
    assert dropped
    openings = {context.partition("BLANK")[0].rstrip() for context in dropped}
    kept = {
        record.context.partition("BLANK")[0].rstrip()
        for record in stereoset(split="test")
        if record.target not in terms
    }
    assert not {text for pair in part.pairs for text in pair} & (openings - kept)


@pytest.mark.parametrize("bias", ["gender", "race", "religion"])
def test_no_text_names_a_withheld_or_a_scored_target_term(bias):
    terms = sorted({record.target for record in stereoset(bias, split="test")})[::3]
    scored = sorted({record.target for record in stereoset(bias, split="dev")})
    given = [text for pair in group_pairs(bias, without=terms).pairs for text in pair]
    assert len(given) > 60
    assert not any(find_words(text, [*terms, *scored]) for text in given)


def test_pairs_can_be_cut_to_those_that_do_not_name_a_word():
    data = GroupPairs.of("gender", [("the woman is", "the man is"), ("his aunts", "his uncles")])
    assert data.without(["aunt"]).pairs == (("the woman is", "the man is"),)


def test_all_words_are_taken_if_they_are_asked_for():
    every, unseen = (group_pairs("gender", words=words) for words in ("all", "unseen"))
    assert set(unseen.pairs) < set(every.pairs)
    named = [pair for pair in every.pairs if any(find_words(text, ["sister"]) for text in pair)]
    assert named
    assert not set(named) & set(unseen.pairs)
    with pytest.raises(TracelabError, match="words of pairs"):
        group_pairs("gender", words="few")
