"""On made-up sentences; of the real data only counts and hashes, as its phrases hold slurs."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from importlib.resources import files

import pytest

from tracelab.datasets import counter_target, data_hash, expert_texts, redditbias
from tracelab.datasets.records import subsample
from tracelab.datasets.redditbias import BIAS_TYPES
from tracelab.errors import TracelabError
from tracelab.model import assets

GROUPS = {
    "female": "gender",
    "black": "race",
    "jews": "religion1",
    "muslims": "religion2",
    "lgbtq": "orientation",
}
BIASED = {"female": 2028, "black": 1273, "jews": 1200, "muslims": 1200, "lgbtq": 1200}
LEFT = {"female": 1522, "black": 766, "jews": 709, "muslims": 729, "lgbtq": 731}


def words(text: str) -> str:
    return " ".join("".join(c if c.isalnum() or c == "_" else " " for c in text.lower()).split())


def official_held_out(group: str) -> list[str]:
    folder, name = assets.data_dir() / "RedditBias/data", GROUPS[group]
    texts = []
    for split in ("valid", "test"):
        path = folder / name / f"reddit_comments_{name}_{group}_biased_{split}_reduced.csv"
        with path.open(encoding="utf-8", newline="") as file:
            texts += [row["comments_processed"] for row in csv.DictReader(file)]
    return texts


def test_every_phrase_annotated_as_biased_is_read():
    records = redditbias()
    assert Counter(record.group for record in records) == BIASED
    assert Counter(record.bias_type for record in records) == {
        bias: len(redditbias(bias)) for bias in BIAS_TYPES
    }
    assert len(redditbias("religion")) == 2400
    assert len({record.id for record in records}) == len(records)
    assert all(record.phrase and record.phrase == record.phrase.strip() for record in records)
    assert data_hash(records) == "0165976cd0787090"


@pytest.mark.parametrize("group", GROUPS)
def test_the_official_validation_and_test_phrases_are_held_out_and_the_published_number_is_left(
    group,
):
    records = [record for record in redditbias() if record.group == group]
    plain = {" ".join(record.phrase.lower().split()) for record in records}
    official = {" ".join(text.lower().split()) for text in official_held_out(group)}
    assert official <= plain
    assert len(plain - official) == LEFT[group]
    ours = {" ".join(record.phrase.lower().split()) for record in records if not record.held_out}
    assert ours <= plain - official
    # Those are left out that differ from a held-out phrase, of any bias type, in punctuation alone.
    everywhere = {words(text) for other in GROUPS for text in official_held_out(other)}
    assert all(words(text) in everywhere for text in plain - official - ours)


@pytest.mark.parametrize(
    ("bias", "training", "held_out"),
    [
        ("gender", 1519, 505),
        ("race", 766, 507),
        ("religion", 1431, 938),
        ("orientation", 730, 469),
        (None, 4446, 2419),
    ],
)
def test_expert_texts_are_parallel_and_share_nothing_with_the_held_out_ones(
    bias, training, held_out
):
    texts = expert_texts(bias)
    assert texts.bias == (bias or "all")
    assert len(texts.biased) == len(texts.anti_biased) == training
    assert len(texts.held_out_biased) == len(texts.held_out_anti_biased) == held_out
    seen = {words(text) for text in texts.biased + texts.anti_biased}
    assert not seen & {words(text) for text in texts.held_out_biased + texts.held_out_anti_biased}
    assert len({words(text) for text in texts.biased}) == training
    if bias:
        pairs = zip(texts.biased, texts.anti_biased, strict=True)
        assert all(counter_target(biased, bias) == anti for biased, anti in pairs)


def test_a_limit_is_of_training_texts():
    few = expert_texts("race", limit=10)
    assert few.biased == tuple(subsample(expert_texts("race").biased, 10))
    assert few.anti_biased == tuple(subsample(expert_texts("race").anti_biased, 10))
    assert few.held_out_biased == expert_texts("race").held_out_biased


@pytest.mark.parametrize(
    ("bias", "text", "counterpart"),
    [
        (
            "gender",
            "My mother and her sister shepherd sheep.",
            "My father and his brother shepherd sheep.",
        ),
        ("gender", "She sings; HERS is the human voice.", "He sings; HIS is the human voice."),
        ("gender", "the women's choir, the Lady, she's", "the men's choir, the Gentleman, he's"),
        ("gender", "he and she", "he and he"),  # one way
        ("gender", "a nurse and a waitress", None),  # attributes stay
        ("race", "Black and white birds", "White and black birds"),
        ("race", "African American art, AFRICAN AMERICANS", "Anglo American art, ANGLO AMERICANS"),
        ("race", "an african artist", "an american artist"),
        ("race", "a blackboard, the blacksmith", None),
        ("race", "white birds", None),  # names no minoritised group
        ("religion", "A jew, jewish songs, Judaism", "A christian, christian songs, Christianity"),
        ("religion", "christians and jews", "jews and christians"),
        ("religion", "christians and muslims", "muslims and christians"),
        ("religion", "muslims, jews and christians", "christians, christians and muslims"),
        (
            "religion",
            "jews, arabs and christian americans",
            "christians, americans and jewish americans",
        ),
        ("religion", "an islamic school", "a christian school"),
        (
            "orientation",
            "Gay singers, lesbians and a homosexual",
            "Straight singers, heterosexuals and a heterosexual",
        ),
        ("orientation", "transgender people, translated", "cisgender people, translated"),
    ],
)
def test_the_group_is_replaced_by_whole_words_in_one_pass(bias, text, counterpart):
    assert counter_target(text, bias) == counterpart


@pytest.mark.parametrize(
    ("text", "counterpart"),
    [
        ("her dog", "his dog"),
        ("Her\nold dog", "His\nold dog"),
        ("I saw her.", "I saw him."),
        ("I saw her", "I saw him"),
        ("tell her that", "tell him that"),
        ("I saw her, dog", "I saw him, dog"),
        ("her and her dog", "him and his dog"),
    ],
)
def test_her_is_his_before_a_noun_and_him_elsewhere(text, counterpart):
    assert counter_target(text, "gender") == counterpart


def test_word_lists_are_lower_case_and_a_two_way_pair_can_be_undone():
    lists = json.loads(
        (files("tracelab.datasets") / "data/counter_targets.json").read_text("utf-8")
    )
    assert set(BIAS_TYPES) == set(lists) - {"her_is_him_before"}
    for bias in BIAS_TYPES:
        for group in lists[bias].values():
            every = group["one_way"] | group["two_way"]
            assert len(every) == len(group["one_way"]) + len(group["two_way"])
            for word, other in every.items():
                assert (word, other) == (word.lower(), other.lower())
                assert counter_target(f"x {word} x", bias) == f"x {other} x"
            for word, other in group["two_way"].items():
                assert counter_target(f"{word} {other}", bias) == f"{other} {word}"


HEADER = "id,attribute_in_window,comment,phrase,bias_sent,bias_phrase\n"


@pytest.fixture
def written(tmp_path):
    """A small RedditBias folder; each group's file holds ``rows``."""

    def write(rows, held_out="no such phrase", header=HEADER):
        for group, name in GROUPS.items():
            (tmp_path / name).mkdir()
            annotated = (
                tmp_path / name / f"reddit_comments_{name}_{group}_processed_phrase_annotated.csv"
            )
            annotated.write_text(header + rows, encoding="latin-1", newline="")
            for split in ("valid", "test"):
                path = (
                    tmp_path / name / f"reddit_comments_{name}_{group}_biased_{split}_reduced.csv"
                )
                path.write_text(f"id,comments_processed\n,{held_out}\n", encoding="utf-8")
        return tmp_path

    return write


def test_only_rows_labelled_1_are_taken_and_carriage_returns_inside_a_comment_are_read(written):
    rows = (
        '1,,"one\rtwo", she hums ,1,1\n2,,c,she sings,1,0\n3,,c,she runs,1,2\n4,,c,she naps,junk,\n'
    )
    rows += "5,,c,SHE  sits.,0,1\n"
    records = redditbias("gender", source=written(rows, held_out="she sits"))
    assert [(record.id, record.phrase, record.held_out) for record in records] == [
        ("gender-0", "she hums", False),
        ("gender-4", "SHE  sits.", True),
    ]


def test_expert_texts_leave_out_what_stands_twice_and_what_does_not_change(written):
    rows = "".join(
        f"{n},,c,{text},1,1\n"
        for n, text in enumerate(["gays hum", "it hums", "Gays  hum!", "queers sing"])
    )
    texts = expert_texts("orientation", source=written(rows, held_out="no such phrase"))
    assert texts.biased == ("gays hum", "queers sing")
    assert texts.anti_biased == ("straights hum", "straights sing")
    assert texts.held_out_biased == ()


def test_a_training_phrase_whose_counterpart_is_held_out_is_left_out(written):
    rows = "".join(
        f"{n},,c,{text},1,1\n" for n, text in enumerate(["gays hum", "queers hum", "queers sing"])
    )
    texts = expert_texts("orientation", source=written(rows, held_out="gays hum"))
    assert (texts.biased, texts.held_out_biased) == (("queers sing",), ("gays hum",))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bias": "sex"}, f"unknown bias type 'sex': choose one of {', '.join(BIAS_TYPES)}"),
        ({"source": "/no/folder"}, "no RedditBias folder at '/no/folder': give the folder of"),
        ({"bias": "race", "limit": 0}, "no record of RedditBias is left (bias=race, limit=0)"),
    ],
)
def test_a_wrong_request_is_refused_with_the_choices(arguments, message):
    with pytest.raises(TracelabError, match=re.escape(message)):
        redditbias(**arguments)


def test_a_limit_without_training_texts_is_refused():
    with pytest.raises(
        TracelabError, match="no training text of RedditBias is left .bias=race, limit=0."
    ):
        expert_texts("race", limit=0)
    with pytest.raises(TracelabError, match="unknown bias type 'sex'"):
        counter_target("She sings.", "sex")


def test_another_folder_is_not_taken_for_redditbias(written, tmp_path):
    with pytest.raises(TracelabError, match=r"no RedditBias file at '.*\.csv': give the folder of"):
        redditbias(source=tmp_path)
    folder = written("1,she hums\n", header="id,phrase\n")
    with pytest.raises(
        TracelabError,
        match="is not the benchmark it claims to be: no column bias_phrase of RedditBias among 'id', 'phrase'",  # noqa: E501
    ):
        redditbias(source=folder)
