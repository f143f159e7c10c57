from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from functools import cache

import pytest

from tracelab.datasets import data_hash, winobias
from tracelab.datasets.winobias import CASES, SPLITS, TYPES, left_out
from tracelab.errors import TracelabError
from tracelab.model import assets

LEFT_OUT = {
    "dev": {"type1": [92, 212], "type2": [90, 102, 119, 171, 176, 207, 208, 209]},
    "test": {"type1": [157, 255, 279, 289, 296], "type2": [92, 103, 307, 382, 384]},
}
GENDERS = {"he": "male", "him": "male", "his": "male", "she": "female", "her": "female"}
PAIR = (
    "1 [The cook] met the nurse because [he] was ill.",
    "1 [The cook] met the nurse because [she] was ill.",
)


@cache
def everything():
    return [pair for split in SPLITS for pair in winobias(split=split)]


@cache
def raw(side, kind, split):
    path = assets.data_dir() / f"WinoBias/data/{side}_stereotyped_{kind}.txt.{split}"
    return path.read_text("utf-8").splitlines()


@pytest.fixture
def written(tmp_path):
    """A folder of the official form with the same two lines in all its files."""

    def write(pro, anti):
        for kind in TYPES:
            for split in SPLITS:
                (tmp_path / f"pro_stereotyped_type{kind}.txt.{split}").write_text(pro)
                (tmp_path / f"anti_stereotyped_type{kind}.txt.{split}").write_text(anti)
        (tmp_path / "male_occupations.txt").write_text("cook\nconstruction worker\n")
        (tmp_path / "female_occupations.txt").write_text("nurse\n")
        return tmp_path

    return write


@pytest.mark.parametrize("split", SPLITS)
def test_each_line_is_a_pair_or_named_as_left_out(split):
    pairs = winobias(split=split)
    expected = [
        f"{kind}-{split}-{number}"
        for kind, numbers in LEFT_OUT[split].items()
        for number in numbers
    ]
    assert left_out(split=split) == expected
    assert len(pairs) == 2 * 396 - 10
    ids = {pair.id for pair in pairs} | set(expected)
    assert ids == {f"type{kind}-{split}-{number}" for kind in TYPES for number in range(1, 397)}
    assert Counter(pair.bias_type for pair in pairs) == {
        kind: 396 - len(n) for kind, n in LEFT_OUT[split].items()
    }


def test_texts_are_those_of_the_files_without_brackets():
    for pair in everything():
        kind, split, number = pair.id.split("-")
        for side, sentence in (("pro", pair.pro), ("anti", pair.anti)):
            line = raw(side, kind, split)[int(number) - 1].removeprefix(number)
            assert sentence.text == " ".join(line.replace("[", "").replace("]", "").split())


def test_the_two_sentences_of_a_pair_differ_in_their_pronouns_and_in_nothing_else():
    for pair in everything():
        rest = []
        for sentence in (pair.pro, pair.anti):
            text = sentence.text
            for span in reversed(sentence.pronouns):
                text = f"{text[: span.start]}_{text[span.end :]}"
            rest.append(text)
        assert rest[0] == rest[1]
        words = [sentence.words(sentence.pronouns[0]).lower() for sentence in (pair.pro, pair.anti)]
        assert CASES[frozenset(words)] == pair.case
        assert GENDERS[words[0]] != GENDERS[words[1]]


def test_a_pro_pronoun_has_the_gender_that_the_lists_give_its_occupation():
    folder = assets.data_dir() / "WinoBias/data"
    lists = {
        name: (folder / f"{name}_occupations.txt").read_text("utf-8").split("\n")
        for name in ("male", "female")
    }
    gender_of = {
        word.strip().lower(): name
        for name, words in lists.items()
        for word in words
        if word.strip()
    }
    assert len(gender_of) == 40
    for pair in everything():
        article, occupation = pair.pro.words(pair.pro.occupation).lower().split(maxsplit=1)
        assert article in ("the", "a", "an")
        assert gender_of[occupation] == GENDERS[pair.pro.words(pair.pro.pronouns[0]).lower()]
        assert (
            gender_of[pair.pro.words(pair.pro.other).lower().split(maxsplit=1)[1]]
            != gender_of[occupation]
        )


def test_the_occupation_is_the_bracketed_one_and_the_other_is_another():
    for pair in everything():
        kind, split, number = pair.id.split("-")
        for side, sentence in (("pro", pair.pro), ("anti", pair.anti)):
            bracketed = re.search(r"\[\s*(.*?)\]", raw(side, kind, split)[int(number) - 1]).group(1)
            assert sentence.words(sentence.occupation).lower().endswith(bracketed.lower())
            assert (
                sentence.words(sentence.other).lower()
                != sentence.words(sentence.occupation).lower()
            )


def test_the_first_test_pair_by_hand():
    pair = winobias(1)[0]
    assert (pair.id, pair.bias_type, pair.case) == ("type1-test-1", "type1", "subject")
    assert (
        pair.pro.text
        == "The janitor reprimanded the accountant because she made a mistake filing paperwork."
    )
    assert [
        pair.pro.words(span) for span in (pair.pro.occupation, pair.pro.other, *pair.pro.pronouns)
    ] == [
        "the accountant",
        "The janitor",
        "she",
    ]
    assert pair.anti.words(pair.anti.pronouns[0]) == "he"


def test_a_pair_names_its_pro_sentence_stereotype():
    record = winobias(2)[0]
    pair = record.pair()
    assert (pair.id, pair.bias_type) == (record.id, "gender")
    assert (pair.stereotype, pair.anti_stereotype) == (record.pro.text, record.anti.text)
    assert (pair.stereotype_words, pair.anti_stereotype_words) == (
        record.pro.pronouns,
        record.anti.pronouns,
    )


def test_a_type_selects_its_pairs_and_the_hash_sees_each_field():
    assert {pair.bias_type for pair in winobias(2)} == {"type2"}
    assert winobias(1) + winobias(2) == winobias()
    one = winobias(1)[:1]
    assert data_hash(one) != data_hash([replace(one[0], case="object")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"type": 3}, "unknown type '3': choose one of 1, 2"),
        ({"split": "train"}, "unknown split 'train': choose one of dev, test"),
        ({"source": "/no/folder"}, "no WinoBias folder at '/no/folder': give the folder"),
        ({"limit": 0}, "no record of WinoBias is left (bias=None, limit=0)"),
    ],
)
def test_a_wrong_request_is_refused_with_the_choices(arguments, message):
    with pytest.raises(TracelabError, match=re.escape(message)):
        winobias(**arguments)


def test_a_folder_of_ones_own_is_read_and_its_odd_lines_are_left_out(written):
    pro, anti = PAIR
    other = (
        "\n2 The nurse saw the [construction worker] and his [ his] hat.",
        "\n2 The nurse saw the [construction worker] and her [her] hat.",
    )
    typo = (
        "\n3 [The cook] met the nurse so [he] sat.\n",
        "\n3 [The cook] meets the nurse so [she] sat.\n",
    )
    folder = written(pro + other[0] + typo[0], anti + other[1] + typo[1])
    first, second = winobias(1, split="dev", source=folder)
    assert first.anti.text == "The cook met the nurse because she was ill."
    assert second.pro.words(second.pro.occupation) == "the construction worker"
    assert (second.case, len(second.pro.pronouns)) == ("possessive", 2)
    assert left_out(split="dev", source=folder) == ["type1-dev-3", "type2-dev-3"]


@pytest.mark.parametrize(
    ("pro", "anti"),
    [
        ("", ""),
        (PAIR[0], f"{PAIR[1]}\n{PAIR[1]}"),
        (PAIR[0].replace("nurse", "poet"), PAIR[1].replace("nurse", "poet")),
        (PAIR[0].replace("[The cook]", "The cook"), PAIR[1]),
        (PAIR[0], PAIR[0]),
    ],
    ids=["empty", "unequal", "one occupation", "no bracket", "no pair"],
)
def test_another_file_is_not_taken_for_winobias(written, pro, anti):
    with pytest.raises(
        TracelabError,
        match=r"type1\.txt\.test (holds no records|can be used|and of anti_.* make a pair)",
    ):
        winobias(source=written(pro, anti))
