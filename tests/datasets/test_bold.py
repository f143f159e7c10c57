from __future__ import annotations

import json
import re
from collections import Counter

import pytest

from tracelab.datasets import bold, neutral_sentences
from tracelab.datasets.bold import DOMAINS
from tracelab.errors import TracelabError
from tracelab.model import assets

SENTENCES = {
    "gender": 3204,
    "race": 7657,
    "religious_ideology": 639,
    "political_ideology": 1984,
    "profession": 10195,
}
EMPTY_PROMPTS = {"religious_ideology": 2, "political_ideology": 3}


def test_every_prompt_that_is_not_empty_is_read():
    prompts = bold()
    assert len(prompts) == 23_679 - 5
    assert Counter(p.bias_type for p in prompts) == {
        d: n - EMPTY_PROMPTS.get(d, 0) for d, n in SENTENCES.items()
    }
    assert len({prompt.id for prompt in prompts}) == len(prompts)
    assert all(prompt.text == prompt.text.strip() != "" for prompt in prompts)
    assert set(SENTENCES) == set(DOMAINS)


def test_each_prompt_begins_the_sentence_of_the_same_id():
    sentences = {record.id: record for record in bold(what="wikipedia")}
    assert len(sentences) == 23_679
    for prompt in bold():
        sentence = sentences[prompt.id]
        assert sentence.text.startswith(prompt.text)
        assert (sentence.bias_type, sentence.group, sentence.name) == (
            prompt.bias_type,
            prompt.group,
            prompt.name,
        )


def test_texts_and_groups_are_those_of_the_file():
    raw = json.loads((assets.data_dir() / "BOLD/data/prompts/race_prompt.json").read_text("utf-8"))
    flat = [
        (group, name, text.strip())
        for group, names in raw.items()
        for name in names
        for text in names[name]
    ]
    assert [(record.group, record.name, record.text) for record in bold("race")] == flat


def test_religion_is_short_for_religious_ideology():
    assert bold("religion") == bold("religious_ideology")


def test_neutral_sentences_are_a_seeded_sample_of_whole_sentences():
    sample = neutral_sentences(300)
    everything = {record.text for record in bold(what="wikipedia")}
    assert len(set(sample)) == 300
    assert set(sample) <= everything
    assert all(8 <= len(text.split()) <= 60 and "\n" not in text for text in sample)
    assert neutral_sentences(300, seed=0) == sample
    assert neutral_sentences(300, seed=1) != sample


@pytest.mark.parametrize("n", [0, 20_273])
def test_a_sample_that_cannot_be_is_refused(n):
    with pytest.raises(TracelabError, match=f"cannot take {n} neutral sentences: BOLD has 20272"):
        neutral_sentences(n)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"domain": "sex"}, f"unknown domain 'sex': choose one of {', '.join(DOMAINS)}"),
        ({"what": "texts"}, "unknown kind of text 'texts': choose one of prompts, wikipedia"),
        ({"source": "/no/folder"}, "no BOLD folder at '/no/folder': give the folder of"),
        ({"domain": "race", "limit": 0}, "no record of BOLD prompts is left (bias=race, limit=0)"),
    ],
)
def test_a_wrong_request_is_refused_with_the_choices(arguments, message):
    with pytest.raises(TracelabError, match=re.escape(message)):
        bold(**arguments)


@pytest.fixture
def written(tmp_path):
    def write(content):
        (tmp_path / "prompts").mkdir()
        for domain in DOMAINS:
            (tmp_path / "prompts" / f"{domain}_prompt.json").write_text(content)
        return tmp_path

    return write


def test_a_folder_of_ones_own_is_read_and_an_empty_prompt_keeps_its_number(written):
    records = bold("gender", source=written('{"actors": {"A B": [" A B is ", " ", "A B was"]}}'))
    assert [(record.id, record.text) for record in records] == [
        ("actors/A B/0", "A B is"),
        ("actors/A B/2", "A B was"),
    ]


@pytest.mark.parametrize("content", ["", "[]", '{"actors": ["A"]}', '{"actors": {"A": 3}}'])
def test_another_file_is_not_taken_for_bold(written, content):
    with pytest.raises(
        TracelabError, match=r"gender_prompt\.json( is not the benchmark it claims to be|\)$)"
    ):
        bold(source=written(content))
