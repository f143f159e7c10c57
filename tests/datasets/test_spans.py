from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracelab.datasets import spans as where
from tracelab.datasets import stereoset
from tracelab.datasets.spans import differing_words, filler_spans, find_words


def cut(text: str, spans) -> list[str]:
    return [text[span.start : span.end] for span in spans]


def test_words_are_found_on_word_boundaries_only():
    text = "The hero heard her: he, not she, is the thief."
    assert cut(text, find_words(text, ["he"])) == ["he"]
    assert cut(text, find_words(text, ["her", "he", "she"])) == ["her", "he", "she"]


def test_plurals_and_possessives_are_mentions():
    text = "Mothers, a mother's and the mother’s coat; the motherly and the grandmother; bosses."
    assert cut(text, find_words(text, ["mother", "boss"])) == [
        "Mothers",
        "mother's",
        "mother’s",
        "bosses",
    ]


def test_the_longer_of_two_overlapping_mentions_wins():
    text = "A chess player and a player."
    assert cut(text, find_words(text, ["player", "chess player"])) == ["chess player", "player"]
    assert cut(text, find_words(text, ["chess", "chess player"])) == ["chess player"]


def test_case_is_ignored_and_special_characters_are_literal():
    assert cut(
        "An ETHIOPIAN (U.S.) man", find_words("An ETHIOPIAN (U.S.) man", ["Ethiopian", "U.S."])
    )
    assert find_words("USA", ["U.A"]) == ()


@pytest.mark.parametrize("words", [[], [""], ["  "]])
def test_without_words_nothing_is_found(words):
    assert find_words("some text", words) == ()


@given(st.lists(st.sampled_from(["he", "the", "she", "her", "hers", "a man", "woman"]), max_size=8))
def test_single_words_are_those_of_a_slow_split(parts):
    text = " ".join(parts)
    slow = [
        m.group() for m in re.finditer(r"\w+", text) if m.group() in ("he", "hes", "her", "hers")
    ]
    assert cut(text, find_words(text, ["he", "her"])) == slow


@pytest.mark.parametrize(
    ("context", "sentence", "fillers"),
    [
        ("The chess player was BLANK.", "The chess player was hispanic.", ["hispanic"]),
        ("BLANK is very kind", "She is very kind", ["She"]),
        ("The grandfather BLANKed him.", "The grandfather attacked him.", ["attack"]),
        ("My Boss is a BLANK.", "my boss is a jerk.", ["jerk"]),
        ("He is a blank.", "He is a chess player.", ["chess player"]),
        ("It is very BLANK and about BLANK", "It is very nice and about nice", ["nice", "nice"]),
        (" A (BLANK)? ", "  A (dog)? ", ["dog"]),
        ("It is BLANK in BLANK.", "It is hot in cold.", []),
        ("The man is BLANK.", "The woman is kind.", []),
        ("no gap here", "no gap here", []),
        ("He is BLANK", "He is ", []),
    ],
)
def test_fillers_stand_where_the_context_has_blank(context, sentence, fillers):
    assert cut(sentence, filler_spans(context, sentence)) == fillers


@given(
    st.lists(st.sampled_from(["the", "a.", "(x)", "né", "BLANKET"]), max_size=4),
    st.lists(st.sampled_from(["is", "?", "the"]), max_size=4),
    st.sampled_from(["she", "very poor", "né"]),
)
def test_a_filler_put_back_into_its_context_gives_the_sentence(before, after, filler):
    before = [word for word in before if word != "BLANKET"]
    context = " ".join([*before, "BLANK", *after])
    sentence = context.replace("BLANK", filler)
    (span,) = filler_spans(context, sentence)
    assert sentence[: span.start] + "BLANK" + sentence[span.end :] == context


def test_differing_words_are_those_the_other_lacks():
    more, less = "Women are bad drivers.", "Men are bad drivers."
    assert differing_words(more, less) == (find_words(more, ["Women"]), find_words(less, ["Men"]))


def test_neighbouring_differing_words_are_one_span():
    first, second = differing_words("He is a very old man.", "He is a child.")
    assert cut("He is a very old man.", first) == ["very old man"]
    assert cut("He is a child.", second) == ["child"]


def test_words_that_one_sentence_has_alone_have_no_counterpart():
    first, second = differing_words("He isn't very kind.", "He isn't kind.")
    assert cut("He isn't very kind.", first) == ["very"]
    assert second == ()


def test_equal_sentences_do_not_differ():
    assert differing_words("A man.", "A man.") == ((), ())


@given(*[st.lists(st.sampled_from(["a", "b", "she's", ","]), max_size=7) for _ in range(2)])
def test_the_words_outside_the_differing_spans_are_the_same(first, second):
    texts = [" ".join(first), " ".join(second)]
    kept = []
    for text, spans in zip(texts, differing_words(*texts), strict=True):
        for span in reversed(spans):
            text = text[: span.start] + text[span.end :]
        kept.append(text.split())
    assert kept[0] == kept[1]


def test_where_one_blank_is_letter_by_letter_is_where_the_pattern_finds_it(monkeypatch):
    records = stereoset(None, split="dev", limit=300)
    examples = [
        (record.context, sentence.text)
        for record in records
        for sentence in (record.stereotype, record.anti_stereotype, record.unrelated)
    ] + [
        ("He is BLANK.", "he is  very   kind."),
        ("He is BLANK.", "He is  kind ."),
        ("He is BLANK.", "He is ."),
        ("He is BLANK.", " He is kind."),
        ("He is BLANK", "He isn't"),
        ("BLANK's son", "Anna’s son"),
        ("blank is here", "KIM IS HERE"),
        ("An aBLANKa here", "an a a here"),
        ("aBLANKa", "a"),
        ("aBLANKa", "aa"),
    ]
    quick = [filler_spans(*each) for each in examples]
    monkeypatch.setattr(where, "_only_blank", lambda parts, sentence: None)
    assert quick == [filler_spans(*each) for each in examples]
    assert sum(map(bool, quick)) > 900


def test_words_that_share_their_surroundings_are_found_as_each_alone():
    words = ["son", "sons in law", "mother", "mother in law", "أم", "어머니", "母", "a.b"]
    texts = [
        "Mothers' sons in law and the mother in laws, a.b's, axb, person, son’s.",
        "의 어머니는 母の son والأم",
    ]
    for text in texts:
        alone = {span for word in words for span in find_words(text, [word])}
        found = find_words(text, words)
        assert set(found) <= alone
        longest = {
            span
            for span in alone
            if not any(o != span and o.start <= span.start and o.end >= span.end for o in alone)
        }
        assert set(found) == longest
