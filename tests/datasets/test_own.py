"""Pairs, word lists and group words of one's own: read from wherever, taken everywhere, and what is
wrong is said with its row."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from tests.interventions.triple_records import records as triples
from tests.interventions.triple_records import save_word_tokenizer, word_model
from tracelab import (
    KLAAD,
    BiasEdit,
    Erasure,
    Experts,
    attention_gap,
    causal_trace,
    evaluate,
)
from tracelab.datasets import GroupPairs, Pair, crows_pairs, pairs, stereoset, templates
from tracelab.datasets.own import as_crows_pairs, as_triples
from tracelab.errors import TracelabError
from tracelab.evaluate import attention_scores, crows_pairs_scores, stereoset_scores
from tracelab.evaluate.registry import BENCHMARKS

JOBS = ("teacher", "driver", "cook", "nurse", "baker", "clerk", "pilot", "guard")
ROWS = [
    {
        "stereotype": f"The old {job} forgot the meeting.",
        "anti_stereotype": f"The old {job} led the meeting.",
        "unrelated": f"The old {job} banana the meeting.",
        "target": job,
        "bias_type": "age",
    }
    for job in JOBS
]


def words(sentence):
    return [sentence.text[span.start : span.end] for span in sentence.filler]


# --- where they come from -------------------------------------------------------------------------


def as_csv(folder, table, **options):
    table.to_csv(folder / "own.csv", index=False, **options)
    return folder / "own.csv"


SOURCES = {
    "data frame": lambda folder, table: table,
    "dicts": lambda folder, table: table.to_dict("records"),
    "tuples": lambda folder, table: list(table.itertuples(index=False, name=None)),
    "csv": as_csv,
    "its name": lambda folder, table: str(as_csv(folder, table)),
    "byte order mark": lambda folder, table: as_csv(folder, table, encoding="utf-8-sig"),
    "semicolons": lambda folder, table: as_csv(folder, table, sep=";"),
    "tabs": lambda folder, table: as_csv(folder, table, sep="\t"),
    "capitals": lambda folder, table: as_csv(folder, table.rename(columns=str.upper)),
    "one column more": lambda folder, table: as_csv(folder, table.assign(comment="seen")),
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_pairs_are_the_same_wherever_they_come_from(source, tmp_path):
    table = pd.DataFrame(ROWS)
    assert pairs(source(tmp_path, table)) == pairs(ROWS)


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_pairs_are_read_from_json(form, tmp_path):
    file = tmp_path / f"own.{form}"
    lines = [json.dumps(row) for row in ROWS]
    file.write_text("\n".join(lines) if form == "jsonl" else f"[{','.join(lines)}]", "utf-8")
    assert pairs(file) == pairs(ROWS)


def test_a_record_is_as_stereosets_own_of_the_same_sentences():
    for record in stereoset("profession", limit=8):
        (own,) = pairs(
            [
                {
                    "id": record.id,
                    "stereotype": record.stereotype.text,
                    "anti_stereotype": record.anti_stereotype.text,
                    "target": record.target,
                    "bias_type": "profession",
                }
            ]
        )
        if len(own.stereotype.filler) == len(own.anti_stereotype.filler) == 1:
            assert own.stereotype.filler == record.stereotype.filler
            assert own.stereotype.attribute_words == record.stereotype.attribute_words
        assert own.pair() == record.pair()


def test_the_filler_is_the_difference_and_the_rest_is_the_context():
    (record,) = pairs([("She is the nurse here.", "She is the chief surgeon here.")], bias="gender")
    assert words(record.stereotype) == ["nurse"]
    assert words(record.anti_stereotype) == ["chief surgeon"]
    assert record.context == "She is the BLANK here."
    assert record.unrelated is None
    assert record.bias_type == "gender"
    (mention,) = record.stereotype.attribute_words  # of StereoSet's list
    assert record.stereotype.text[mention.start : mention.end] == "She"


def test_a_bias_type_selects_rows_or_names_them():
    table = [{**row, "bias_type": ["age", "class"][n % 2]} for n, row in enumerate(ROWS)]
    assert {record.bias_type for record in pairs(table)} == {"age", "class"}
    assert [record.target for record in pairs(table, bias="class")] == list(JOBS[1::2])
    bare = [{**row, "bias_type": np.nan} for row in ROWS]
    assert {record.bias_type for record in pairs(bare, bias="age")} == {"age"}
    assert {record.bias_type for record in pairs(bare)} == {"own"}
    with pytest.raises(TracelabError, match=r"no bias type 'clas': .*did you mean class\?"):
        pairs(table, bias="clas")
    assert len(pairs(table, limit=3)) == 3


# --- what is wrong --------------------------------------------------------------------------------

GOOD = ("a cat sat", "a dog sat")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([GOOD, ("same", "same")], r"^row 1 has the same words in stereotype and anti_stereotype"),
        ([GOOD, ("a  b", "a b")], r"^row 1 has the same words"),
        ([GOOD, ("x", "")], r"^row 1 has no text in anti_stereotype: fill it in"),
        ([GOOD, (None, "x")], r"^row 1 has no text in stereotype"),
        ([GOOD, (np.nan, "x")], r"^row 1 has no text in stereotype"),
        ([GOOD, (3, "x")], r"^row 1: stereotype is 3, not a text"),
        ([GOOD, ("x", "\ud800")], r"^row 1: anti_stereotype holds half a character"),
        ([GOOD, GOOD], r"^row 1 of the table says the same as row 0: leave one out"),
        ([GOOD, "a cat"], r"^row 1 is 'a cat': give a dict, or a tuple of stereotype, anti_ster"),
        ([{"stereotype": "x"}], r"no column anti_stereotype \(row 0 has stereotype\)"),
        ([{"id": 1, "stereotype": "a b", "anti_stereotype": "a c"}] * 1, None),
        ([], r"^the table holds no pairs"),
        (7, r"^pairs are a path, a data frame or a list of rows, not a int"),
        ("nowhere.csv", r"^no pairs file at 'nowhere.csv': give a path"),
    ],
)
def test_what_is_wrong_is_said_with_its_row(data, message):
    if message is None:
        assert pairs(data)[0].id == "1"
        return
    with pytest.raises(TracelabError, match=message):
        pairs(data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"stereotype,anti_stereotype\na b,a c\nx,x\n", r"^line 3 has the same words"),
        (b"stereotype,anti_stereotype\na b,a c\n\n\xc3\xa9,\xff\n", r"not a text file in UTF-8"),
        ("stereotype,anti_stereotype\na b,a c\n".encode("utf-16"), "UTF-16 or UTF-32"),
        (b"stereotype,anti_stereotype\na b\n", r"line 2 of .* cannot be read \(it has 1 cells"),
        (b"stereo,anti\na b,a c\n", r"no column stereotype"),
        (b"", "holds no records"),
        (b"stereotype,anti_stereotype\n", "holds no pairs"),
        (b"id,stereotype,anti_stereotype\n4,a b,a c\n4,d e,d f\n", "1 ids stand twice"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(content, message, tmp_path):
    (tmp_path / "own.csv").write_bytes(content)
    with pytest.raises(TracelabError, match=message):
        pairs(tmp_path / "own.csv")


def test_a_pair_of_which_one_sentence_only_adds_words_is_kept_and_told():
    with pytest.warns(UserWarning, match="1 of 1 pairs .* cannot be traced or trained on"):
        (record,) = pairs([("She is not kind.", "She is kind.")])
    assert not record.anti_stereotype.filler


# --- what takes them ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mine():
    return pairs(ROWS)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A model with a vocabulary of some fifty words, on which training takes no time."""
    folder = tmp_path_factory.mktemp("words")
    save_word_tokenizer(folder)
    return word_model("llama", folder)


@pytest.fixture(scope="module")
def in_its_words():
    """Pairs in the words of that model."""
    return pairs(
        [
            {
                "stereotype": record.stereotype.text,
                "anti_stereotype": record.anti_stereotype.text,
                "unrelated": record.unrelated.text,
                "target": record.target,
                "bias_type": "age",
            }
            for record in triples(12)
        ]
    )


FITS = {
    KLAAD: {"layers": [1], "epochs": 1},
    BiasEdit: {"layers": [1], "steps": 1, "n_edits": 2},
    Experts: {"layers": [1]},
    Erasure: {"layers": [0]},
}


@pytest.mark.parametrize("method", FITS, ids=lambda method: method.kind)
def test_every_method_of_pairs_is_fitted_on_them(small, in_its_words, method):
    edit = method.fit(small, in_its_words, **FITS[method])
    assert edit.bias == "age"
    assert "data_hash" in edit.notes or method is Erasure


def test_every_measure_of_pairs_takes_them(tiny_model, mine):
    model = tiny_model("llama")
    trace = causal_trace(model, mine, components=["mlp"], n_samples=2)
    assert len(trace.cases) == len(mine)
    assert attention_gap(model, mine).settings["n_pairs"] == len(mine)
    table = stereoset_scores(model, mine).table.set_index("metric")["value"]
    assert {"ss", "lms", "icat", "gap"} <= set(table.index)
    scores = crows_pairs_scores(model, mine)
    assert scores.table["bias"].unique().tolist() == ["age"]
    # one gap by two ways: all differing and shared tokens together
    sentences = stereoset_scores(model, mine).sentences
    assert np.allclose(
        sentences["gap_total"],
        scores.pairs["crows_sum_more"] - scores.pairs["crows_sum_less"],
        atol=1e-4,
    )


def test_the_data_sets_stand_in_for_each_other(tiny_model):
    model = tiny_model("llama")
    records = stereoset("gender", limit=6)
    assert (
        crows_pairs_scores(model, records)
        .pairs["crows_sum_more"]
        .equals(crows_pairs_scores(model, [r.pair() for r in records]).pairs["crows_sum_more"])
    )
    crows = crows_pairs("age", limit=6)
    assert as_crows_pairs(crows) == crows
    assert as_triples(records, "this") == records
    assert attention_scores(model, crows).table.equals(
        attention_scores(model, as_triples(crows, "this", unrelated=False)).table
    )


LACKING = [Pair(str(n), "own", f"a {n} b", f"a {n} c") for n in range(4)]


@pytest.mark.parametrize(
    "call",
    [
        lambda model: stereoset_scores(model, LACKING),
        lambda model: KLAAD.fit(model, LACKING),
        lambda model: BiasEdit.fit(model, LACKING),
    ],
)
def test_what_needs_an_unrelated_sentence_says_which_column_to_add(tiny_model, call):
    message = r"unrelated sentence, which record '0' lacks: give datasets.pairs\(\) a column unrel"
    with pytest.raises(TracelabError, match=message):
        call(tiny_model("llama"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: causal_trace(m, LACKING), "name what both sentences speak of as their target"),
        (lambda m: attention_gap(m, pd.DataFrame(ROWS)), "make records of it: datasets.pairs"),
        (
            lambda m: crows_pairs_scores(m, templates("gender", limit=1).prompts),
            "is a Prompt, no pair of sentences: give StereoSet, CrowS-Pairs or datasets.pairs",
        ),
    ],
)
def test_data_that_cannot_serve_are_one_sentence(tiny_model, call, message):
    with pytest.raises(TracelabError, match=message):
        call(tiny_model("llama"))


def test_a_scoreboard_holds_a_measure_on_own_records_under_its_own_name(tiny_model, mine):
    model = tiny_model("llama")
    edit = Erasure.fit(model, mine, layers=[0])
    chosen = [BENCHMARKS["crows-pairs"].on(mine), BENCHMARKS["stereoset"].on(mine, "ageism")]
    board = evaluate(model, {"erasure": edit}, chosen, costs=False)
    assert not board.failures, board.failed
    assert set(board.table["benchmark"]) == {"own-crows-pairs", "ageism"}
    assert board.table["difference"].notna().any()


# --- word lists -----------------------------------------------------------------------------------

LISTS = {
    "groups": {"old": ["old", "elderly"], "young": ["young", "teenage"]},
    "concepts": ["forgetful", "reckless", "slow", "lazy"],
    "templates": ["The {concept} person was", "{concept} people are often", "They are {concept}:"],
}


def test_own_word_lists_make_a_corpus_that_is_probed(tiny_model, tmp_path):
    (tmp_path / "lists.json").write_text(json.dumps(LISTS), "utf-8-sig")
    corpus = templates("age-groups", source=tmp_path / "lists.json")
    assert corpus == templates("age-groups", source=LISTS)
    assert corpus.group_names == ("old", "young")
    assert len(corpus.prompts) == 12
    assert corpus.prompts[1].text == "Forgetful people are often"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": {"old": ["old"]}}, "words by the names of two groups or more"),
        ({"groups": ["old"]}, "words by the names of two groups or more"),
        ({"concepts": []}, "have no concepts"),
        ({"concepts": ["a", "a"]}, "'a' stands twice in concepts"),
        ({"templates": ["No slot"]}, r"template 0 of the word lists has no {concept}: 'No slot'"),
        ({"templates": None}, "list of templates is needed"),
    ],
)
def test_word_lists_that_make_no_corpus_are_refused(changes, message):
    with pytest.raises(TracelabError, match=message):
        templates("age", source=LISTS | changes)


def test_group_pairs_from_own_words():
    found = GroupPairs.from_words(
        "age",
        {"old": "young", "grandmother": "girl"},
        ["An old man said", "Young people", "the girl and the old man", "nobody", "A girl ran"],
    )
    assert found.pairs == (
        ("An old man said", "A young man said"),
        ("Old people", "Young people"),
        ("A grandmother ran", "A girl ran"),
    )
    assert found.neutral


@pytest.mark.slow
def test_own_group_words_are_found_in_stereosets_openings():
    found = GroupPairs.from_words("age", {"old": "young"})
    assert len(found.pairs) > 5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "no words of a group"),
        ({"old": "Old"}, "'old' is a word of both groups"),
        ({"xyzzy": "plugh"}, "no text names a word of one group alone"),
    ],
)
def test_group_words_that_make_no_pair_are_refused(given, message):
    with pytest.raises(TracelabError, match=message):
        GroupPairs.from_words("age", given, ["An old man said"])
