from __future__ import annotations

import json
import re

import pytest

from tracelab.datasets.records import subsample
from tracelab.datasets.templates import ATTRIBUTES, bracketed, templates
from tracelab.errors import TracelabError


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_every_concept_meets_every_template_once(attribute):
    corpus = templates(attribute)
    concepts = {prompt.concept for prompt in corpus.prompts}
    forms = {prompt.template for prompt in corpus.prompts}
    assert len(concepts) >= 48
    assert len(forms) >= 8
    assert len(corpus.prompts) == len(concepts) * len(forms)
    assert len({prompt.id for prompt in corpus.prompts}) == len(corpus.prompts)
    assert len({prompt.text for prompt in corpus.prompts}) == len(corpus.prompts)
    assert {prompt.bias_type for prompt in corpus.prompts} == {attribute}


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_prompts_end_before_the_group_slot(attribute):
    corpus = templates(attribute)
    words = {word.lower() for _, group in corpus.groups for word in group}
    any_group_word = re.compile(rf"(?<!\w)({'|'.join(map(re.escape, words))})(?!\w)", re.IGNORECASE)
    for prompt in corpus.prompts:
        assert prompt.template.count("{concept}") == 1
        assert prompt.concept.lower() in prompt.text.lower()
        assert "{" not in prompt.text
        assert prompt.text[0].isupper() or not prompt.text[0].isalpha()
        # the next token begins with a space, as group words do
        assert re.search(r"\w$", prompt.text)
        assert not any_group_word.search(prompt.text)


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_no_word_stands_for_two_groups(attribute):
    groups = templates(attribute).groups
    words = [word for _, group in groups for word in group]
    assert len(groups) >= 2
    assert all(group for _, group in groups)
    assert len(set(words)) == len(words)
    assert templates(attribute).group_names == tuple(sorted(name for name, _ in groups))


def test_a_limit_spreads_over_the_concepts():
    full = list(dict.fromkeys(prompt.concept for prompt in templates("gender").prompts))
    few = list(dict.fromkeys(prompt.concept for prompt in templates("gender", limit=8).prompts))
    assert few == subsample(full, 8)
    assert full.index(few[-1]) >= len(full) * 3 / 4
    assert templates("gender", limit=10**6) == templates("gender")


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_without_concepts_is_refused(limit):
    with pytest.raises(TracelabError, match=f"limit={limit}"):
        templates("gender", limit=limit)


def test_an_unknown_attribute_is_refused_with_the_choices():
    with pytest.raises(
        TracelabError, match="unknown attribute 'zodiac': choose one of age, disability"
    ):
        templates("zodiac")


GROUPS = {"male": ["man", "men"], "female": ["woman"]}


@pytest.fixture
def written(tmp_path):
    def write(content):
        path = tmp_path / "corpus.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def test_a_bracketed_corpus_ends_before_its_second_bracket(written):
    path = written(
        {
            "cooking": [
                "People link [Cooking] to a [woman] at home.",
                "Only [cooking] here.",  # one bracket
                "[cooking], [men] and [women]",  # three
                "[sewing] is for [women]",  # another concept
            ],
            "war": ["[war] is for the [man]"],
        }
    )
    corpus = bracketed(path, "gender", GROUPS)
    assert [prompt.text for prompt in corpus.prompts] == [
        "People link cooking to a",
        "war is for the",
    ]
    assert [prompt.template for prompt in corpus.prompts] == [
        "People link {concept} to a",
        "{concept} is for the",
    ]
    assert [prompt.concept for prompt in corpus.prompts] == ["cooking", "war"]
    assert corpus.groups == (("female", ("woman",)), ("male", ("man", "men")))
    assert corpus.attribute == "gender"


def test_equal_sentences_of_a_bracketed_corpus_stay_apart(written):
    corpus = bracketed(written({"war": ["[war] is for the [man]"] * 2}), "gender", GROUPS)
    assert len({prompt.id for prompt in corpus.prompts}) == 2


@pytest.mark.parametrize("content", ["", "[]", '{"war": 3}', '["war"]'])
def test_another_file_is_not_taken_for_a_bracketed_corpus(written, content):
    with pytest.raises(
        TracelabError,
        match=r"is not the benchmark it claims to be|a list of sentences is needed, not 3 \(.*corpus\.json\)",  # noqa: E501
    ):
        bracketed(written(content), "gender", GROUPS)


def test_a_bracketed_corpus_without_a_usable_sentence_is_refused(written):
    with pytest.raises(TracelabError, match="none of 1 sentences of .* can be used"):
        bracketed(written({"war": ["no bracket"]}), "gender", GROUPS)


def test_a_missing_corpus_file_is_named():
    with pytest.raises(TracelabError, match="no corpus file at '/no/file'"):
        bracketed("/no/file", "gender", GROUPS)
