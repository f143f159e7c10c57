from __future__ import annotations

import csv
import re
from collections import Counter

import datasets as hf_datasets
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from tracelab.datasets import crows_pairs
from tracelab.datasets.crows_pairs import BIAS_TYPES, DIRECTIONS, HUB_ID
from tracelab.errors import TracelabError
from tracelab.model import assets

COUNTS = {
    "age": 87,
    "disability": 60,
    "gender": 262,
    "nationality": 159,
    "physical-appearance": 63,
    "race-color": 516,
    "religion": 105,
    "sexual-orientation": 84,
    "socioeconomic": 172,
}
HEADER = ",sent_more,sent_less,stereo_antistereo,bias_type,annotations\n"
ROW = "{},Women are weak.,Men are weak.,stereo,gender,[]\n"


@pytest.fixture(scope="module")
def raw():
    path = assets.data_dir() / "CrowS-Pairs/data/crows_pairs_anonymized.csv"
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "own.csv"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_every_pair_is_read():
    pairs = crows_pairs()
    assert len(pairs) == 1508
    assert Counter(pair.bias_type for pair in pairs) == COUNTS
    assert Counter(pair.direction for pair in pairs) == {"stereo": 1290, "antistereo": 218}
    assert set(COUNTS) == set(BIAS_TYPES)


def test_texts_are_those_of_the_file(raw):
    for row, pair in zip(raw, crows_pairs(), strict=True):
        assert pair.sent_more == row["sent_more"].strip()
        assert pair.sent_less == row["sent_less"].strip()
        assert (pair.bias_type, pair.direction) == (row["bias_type"], row["stereo_antistereo"])
        assert pair.id == row[""]


@pytest.mark.parametrize("bias", BIAS_TYPES)
def test_a_bias_type_selects_its_pairs(bias):
    assert {pair.bias_type for pair in crows_pairs(bias)} == {bias}
    assert len(crows_pairs(bias)) == COUNTS[bias]


def test_race_is_taken_for_race_color():
    assert crows_pairs("race") == crows_pairs("race-color")


def test_differing_words_are_where_the_sentences_differ():
    for pair in crows_pairs():
        rest = []
        for text, spans in ((pair.sent_more, pair.more_words), (pair.sent_less, pair.less_words)):
            for span in reversed(spans):
                assert text[span.start : span.end].strip() == text[span.start : span.end] != ""
                text = f"{text[: span.start]} {text[span.end :]}"
            rest.append(re.findall(r"\w+(?:['’]\w+)*|[^\w\s]", text))
        assert rest[0] == rest[1]
        assert pair.more_words or pair.less_words


def test_the_first_gender_pair_differs_in_its_gendered_words():
    pair = crows_pairs("gender")[0]
    more = [pair.sent_more[s.start : s.end] for s in pair.more_words]
    less = [pair.sent_less[s.start : s.end] for s in pair.less_words]
    assert (more, less) == (["he"], ["she"])


def test_a_pair_names_the_more_stereotypical_sentence_stereotype():
    crows = next(pair for pair in crows_pairs("gender") if pair.direction == "antistereo")
    pair = crows.pair()
    assert (pair.stereotype, pair.anti_stereotype) == (crows.sent_more, crows.sent_less)
    assert (pair.stereotype_words, pair.anti_stereotype_words) == (
        crows.more_words,
        crows.less_words,
    )
    assert (pair.id, pair.bias_type) == (crows.id, "gender")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bias": "sex"}, f"unknown bias type 'sex': choose one of {', '.join(BIAS_TYPES)}"),
        (
            {"source": "/no/file"},
            'no CrowS-Pairs file at \'/no/file\': give a path, "wheel" or "hub"',
        ),
        ({"bias": "age", "limit": 0}, "no record of CrowS-Pairs is left (bias=age, limit=0)"),
    ],
)
def test_a_wrong_request_is_refused_with_the_choices(arguments, message):
    with pytest.raises(TracelabError, match=re.escape(message)):
        crows_pairs(**arguments)


def test_a_file_of_ones_own_is_read(written):
    (pair,) = crows_pairs(source=written(HEADER + ROW.format(3)))
    assert (pair.id, pair.sent_more, pair.sent_less) == ("3", "Women are weak.", "Men are weak.")


@pytest.mark.parametrize(
    "content", ["", "a,b\n1,2\n", '{"data": {}}', HEADER + "0,,,stereo,gender,[]\n"]
)
def test_another_file_is_not_taken_for_crows_pairs(written, content):
    with pytest.raises(TracelabError, match=r"own\.csv (is not the benchmark|holds no records)"):
        crows_pairs(source=written(content))


def test_a_pair_that_stands_twice_is_refused(written):
    with pytest.raises(TracelabError, match=r"own\.csv.*(stand twice|must be unique)"):
        crows_pairs(source=written(HEADER + ROW.format(3) + ROW.format(4) + ROW.format(4)))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",gender,", ",,", "pair 1 has no bias type (line 2, of "),
        (",stereo,", ",pro,", "unknown direction 'pro': choose one of stereo, antistereo"),
    ],
)
def test_unknown_values_in_a_file_are_refused(written, old, new, message):
    with pytest.raises(TracelabError, match=re.escape(message)):
        crows_pairs(source=written(HEADER + ROW.format(1).replace(old, new)))


def test_a_fake_hub_data_set_in_the_hubs_form_gives_the_files_records(monkeypatch, raw):
    # The hub numbers bias types in an order of its own, which only its class labels tell.
    types = ["race-color", "socioeconomic", "gender", "disability", "nationality"]
    types += ["sexual-orientation", "physical-appearance", "religion", "age"]
    features = Features(
        {
            "id": Value("int32"),
            "sent_more": Value("string"),
            "sent_less": Value("string"),
            "stereo_antistereo": ClassLabel(names=["stereo", "antistereo"]),
            "bias_type": ClassLabel(names=types),
        }
    )
    rows = [{name: row[name] for name in features if name != "id"} for row in raw[:60]]
    asked = []

    def fake_load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        made = [{"id": number, **row} for number, row in enumerate(rows)]
        return Dataset.from_list(made, features=features)

    monkeypatch.setattr(hf_datasets, "load_dataset", fake_load_dataset)
    assert crows_pairs(source="hub") == crows_pairs()[:60]
    # The repository itself holds a loading script, which `datasets` no longer runs.
    assert asked == [((HUB_ID,), {"split": "test", "revision": "refs/convert/parquet"})]
    assert features["stereo_antistereo"].names == list(DIRECTIONS)


def test_a_hub_out_of_reach_is_one_error():
    with pytest.raises(TracelabError, match=f"cannot load {HUB_ID} from the hub"):
        crows_pairs(source="hub")
