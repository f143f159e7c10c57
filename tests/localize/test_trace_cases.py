from __future__ import annotations

from dataclasses import replace

import pytest

from tracelab.datasets import Sentence, StereoSetRecord, stereoset
from tracelab.datasets.spans import filler_spans, find_words
from tracelab.errors import TracelabError
from tracelab.localize.tracing.cases import KEY_ROLES, ROLES, make_cases


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model("llama")


@pytest.fixture(scope="module")
def made(model):
    """All gender records as (record, case), and the counts of what was left out."""
    records = stereoset("gender")
    cases, skipped = make_cases(model, records)
    by_id = {record.id: record for record in records}
    return [(by_id[case.id], case) for case in cases], skipped


def record(
    context: str, stereotype: str, anti: str, *, words=("mother",), key: str = "r"
) -> StereoSetRecord:
    def sentence(filler: str) -> Sentence:
        text = context.replace("BLANK", filler)
        spans = filler_spans(context, text)
        found = [
            s
            for s in find_words(text, words)
            if all(s.end <= f.start or s.start >= f.end for f in spans)
        ]
        return Sentence(f"{key}-{filler}", text, spans, tuple(found))

    return StereoSetRecord(
        key,
        "intrasentence",
        "gender",
        words[0],
        context,
        sentence(stereotype),
        sentence(anti),
        sentence("x"),
    )


def test_every_record_is_a_case_or_counted_with_a_reason(made):
    pairs, skipped = made
    assert len(pairs) + sum(skipped.values()) == 255
    assert len(pairs) > 100
    assert set(skipped) <= {
        "not_one_filler",
        "no_filler_token",
        "different_before_filler",
        "different_after_filler",
        "no_attribute_word",
        "different_attribute_words",
        "attribute_after_filler",
    }


def test_columns_align_equal_tokens_and_cover_both_sentences(made):
    for _, case in made[0]:
        stereo, anti = case.stereotype.ids, case.anti_stereotype.ids
        assert {s for s, _ in case.columns} == set(range(len(stereo)))
        assert {a for _, a in case.columns} == set(range(len(anti)))
        for (s, a), role in zip(case.columns, case.roles, strict=True):
            assert role in ROLES
            if role != "filler":
                assert stereo[s] == anti[a]
        assert case.equal_length is (len(stereo) == len(anti))


def test_filler_columns_hold_the_filler_and_scoring_starts_at_its_first_token(made, tokenizer):
    for record_, case in made[0]:
        for side, (encoding, sentence) in enumerate(
            ((case.stereotype, record_.stereotype), (case.anti_stereotype, record_.anti_stereotype))
        ):
            positions = sorted(
                {
                    c[side]
                    for c, role in zip(case.columns, case.roles, strict=True)
                    if role == "filler"
                }
            )
            (span,) = sentence.filler
            assert sentence.text[span.start : span.end] in tokenizer.decode(
                [encoding.ids[p] for p in positions]
            )
            assert positions[0] == case.first
            assert positions == list(range(positions[0], positions[-1] + 1))


def test_noised_tokens_are_those_of_the_attribute_words(made, tokenizer):
    for record_, case in made[0]:
        text = "".join(
            tokenizer.decode([case.stereotype.ids[case.columns[c][0]]]) for c in case.noised
        )
        words = [
            record_.stereotype.text[s.start : s.end] for s in record_.stereotype.attribute_words
        ]
        for word in words:
            assert word in text
        assert case.noised == tuple(c for c, role in enumerate(case.roles) if role == "attribute")
        assert case.noised[0] < case.first


def test_before_filler_is_the_token_before_it_unless_it_is_noised(made):
    for _, case in made[0]:
        assert case.roles[case.first - 1] in ("before_filler", "attribute")
        assert case.roles.count("before_filler") == (case.roles[case.first - 1] == "before_filler")


def test_a_short_fillers_last_token_stands_for_the_rest(made):
    unequal = [case for _, case in made[0] if not case.equal_length]
    assert unequal
    for case in unequal:
        fillers = [
            pair for pair, role in zip(case.columns, case.roles, strict=True) if role == "filler"
        ]
        for side, encoding in enumerate((case.stereotype, case.anti_stereotype)):
            n_own = len(encoding.ids) - sum(role != "filler" for role in case.roles)
            expected = [case.first + min(k, n_own - 1) for k in range(len(fillers))]
            assert [pair[side] for pair in fillers] == expected


def test_an_example_in_full(model, tokenizer):
    (case,), skipped = make_cases(
        model, [record("My mother is very BLANK at home, mother says.", "kind", "cruel")]
    )
    assert skipped == {}
    texts = [tokenizer.decode([case.stereotype.ids[s]]) for s, _ in case.columns]
    assert list(zip(texts, case.roles, strict=True)) == [
        ("My", "other"),
        (" mother", "attribute"),
        (" is", "other"),
        (" very", "before_filler"),
        (" kind", "filler"),
        (" at", "after_filler"),
        (" home", "after_filler"),
        (",", "after_filler"),
        (" mother", "attribute"),
        (" says", "after_filler"),
        (".", "after_filler"),
    ]
    assert case.noised == (1, 8)
    assert case.first == 4
    assert set(KEY_ROLES) <= set(case.roles)


def test_bos_takes_a_column_of_its_own(model):
    one = [record("My mother is very BLANK at home.", "kind", "cruel")]
    ((without,), _), ((with_bos,), _) = (
        make_cases(model, one, prepend_bos=bos) for bos in (False, True)
    )
    assert with_bos.columns[1:] == tuple((s + 1, a + 1) for s, a in without.columns)
    assert with_bos.roles == ("other", *without.roles)
    assert with_bos.first == without.first + 1


@pytest.mark.parametrize("bos", [False, True])
def test_a_case_tells_whether_the_texts_first_token_is_noised(model, bos):
    records = [
        record("Mother is very BLANK at home.", "kind", "cruel", words=("Mother",), key="first"),
        record("My mother is very BLANK at home.", "kind", "cruel", key="later"),
    ]
    cases, _ = make_cases(model, records, prepend_bos=bos)
    assert {case.id: case.first_token for case in cases} == {"first": True, "later": False}


def test_only_the_first_mention_is_noised_when_asked(model):
    records = [record("My mother is very BLANK, mother says.", "kind", "cruel")]
    (case,), _ = make_cases(model, records, mentions="first")
    assert case.noised == (1,)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (record("My mother is BLANK and BLANK.", "kind", "cruel"), "not_one_filler"),
        (record("My uncle is very BLANK at home.", "kind", "cruel"), "no_attribute_word"),
        (record("A BLANK woman is my mother.", "kind", "cruel"), "attribute_after_filler"),
    ],
)
def test_a_record_that_cannot_be_traced_is_counted_by_its_reason(model, bad, reason):
    good = record("My mother is very BLANK at home.", "kind", "cruel", key="good")
    cases, skipped = make_cases(model, [bad, good, bad])
    assert [case.id for case in cases] == ["good"]
    assert skipped == {reason: 2}


def test_sentences_that_differ_outside_the_filler_are_counted(model):
    good = record("My mother is very BLANK at home.", "kind", "cruel", key="good")

    def with_anti(text: str) -> StereoSetRecord:
        spans = filler_spans(text.replace("cruel", "BLANK"), text)
        return replace(
            good, anti_stereotype=Sentence("a", text, spans, tuple(find_words(text, ["mother"])))
        )

    before = with_anti("Our mother is very cruel at home.")
    after = with_anti("My mother is very cruel at work.")
    longer = with_anti("My mother is very cruel at home today.")
    words = replace(good, anti_stereotype=replace(good.anti_stereotype, attribute_words=()))
    _, skipped = make_cases(model, [good, before, after, longer, words])
    assert skipped == {
        "different_before_filler": 1,
        "different_after_filler": 2,
        "different_attribute_words": 1,
    }


def test_nothing_to_trace_is_refused_with_the_reasons(model):
    with pytest.raises(
        TracelabError, match=r"none of 1 records can be traced: {'no_attribute_word': 1}"
    ):
        make_cases(model, [record("My uncle is BLANK.", "kind", "cruel")])
