"""Gender records with the gender words exchanged."""

from __future__ import annotations

import pytest

from tracelab.datasets import gender_swapped, gender_twins, stereoset
from tracelab.datasets.gender_swap import swap_gender_words
from tracelab.errors import TracelabError


@pytest.mark.parametrize(
    ("text", "swapped"),
    [
        ("He said that his sister saw him.", "She said that her brother saw her."),
        ("She lost her keys; we saw her.", "He lost his keys; we saw him."),
        ("We told her to go.", "We told him to go."),
        ("The human herded sheep.", "The human herded sheep."),
        ("HE and Father", "SHE and Mother"),
    ],
)
def test_whole_words_are_exchanged_and_case_is_kept(text, swapped):
    assert swap_gender_words(text) == swapped


def test_labels_are_exchanged_with_the_words_and_fillers_are_found_again():
    records = {record.id: record for record in stereoset("gender")}
    mirrored = gender_swapped(list(records.values()))
    assert 100 < len(mirrored) <= len(records)
    for record in mirrored:
        original = records[record.id.removesuffix("-swapped")]
        assert record.target == original.target
        assert record.context == swap_gender_words(original.context) != original.context
        assert record.stereotype.text == swap_gender_words(original.anti_stereotype.text)
        assert record.unrelated.text == swap_gender_words(original.unrelated.text)
        for new, old in (
            (record.stereotype, original.anti_stereotype),
            (record.anti_stereotype, original.stereotype),
        ):
            words = [new.text[span.start : span.end] for span in new.filler]
            assert words == [
                swap_gender_words(old.text[span.start : span.end]) for span in old.filler
            ]


def test_records_without_gender_words_are_refused():
    none = [r for r in stereoset("religion") if swap_gender_words(r.context) == r.context][:5]
    with pytest.raises(TracelabError, match="none of 5 records"):
        gender_swapped(none)


def test_a_twin_differs_in_the_gender_named_and_in_nothing_that_is_said_of_it():
    records = stereoset("gender", split="test")
    twins = gender_twins(records)
    assert 600 < len(twins) < len(records)
    for record, twin in twins:
        assert twin.context == swap_gender_words(record.context) != record.context
        for old, new in (
            (record.stereotype, twin.anti_stereotype),
            (record.anti_stereotype, twin.stereotype),
        ):
            fillers = [s.text[s.filler[0].start : s.filler[0].end].casefold() for s in (old, new)]
            assert fillers[0] == fillers[1]
            assert swap_gender_words(fillers[0]) == fillers[0]


def test_continuations_that_name_other_genders_have_no_twin():
    records = stereoset("gender", split="test", task="intersentence")
    twins = dict(gender_twins(records))
    assert 200 < len(twins) < len(records)
    assert all(not twin.stereotype.filler for twin in twins.values())
    only_one = [
        record
        for record in records
        if ("she" in record.stereotype.text.lower().split())
        != ("she" in record.anti_stereotype.text.lower().split())
    ]
    assert only_one
    assert not any(record in twins for record in only_one)
