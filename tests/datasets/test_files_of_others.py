"""Files that are not the official ones: other languages, other programs' habits, and what is no
such file at all."""

from __future__ import annotations

import json
import unicodedata
import warnings

import pandas as pd
import pytest

from tracelab.datasets import (
    bbq,
    bold,
    bracketed,
    crows_pairs,
    redditbias,
    stereoset,
    wikitext,
    winobias,
)
from tracelab.datasets.bbq import BBQItem, blocks
from tracelab.datasets.sources import is_named
from tracelab.datasets.spans import differing_words, filler_spans, find_words
from tracelab.datasets.stereoset import _attribute_words, attribute_words
from tracelab.errors import TracelabError

HEADER = ("sent_more", "sent_less", "stereo_antistereo", "bias_type")
FRENCH = [
    ("Les femmes cuisinent mal.", "Les hommes cuisinent mal.", "stereo", "gender"),
    ("L’élève du nord crie.", "L’élève du sud crie.", "antistereo", "autre"),
]


def cut(text, spans):
    return [text[span.start : span.end] for span in spans]


def table(path, rows, mark=",", *, numbered=True, encoding="utf-8"):
    lines = [mark.join([*([""] if numbered else []), *HEADER])]
    lines += [mark.join([*([str(k)] if numbered else []), *row]) for k, row in enumerate(rows)]
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


# --- CrowS-Pairs
# ------------------------------------------------------------------------------------------------------  # noqa: E501


@pytest.mark.parametrize("mark", [",", "\t", ";"])
@pytest.mark.parametrize("numbered", [True, False])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_pair_is_the_same_whatever_parts_the_columns(tmp_path, mark, numbered, encoding):
    path = table(tmp_path / "a.csv", FRENCH, mark, numbered=numbered, encoding=encoding)
    first, second = crows_pairs(source=path)
    assert (first.id, first.sent_more, first.sent_less, first.direction) == ("0", *FRENCH[0][:3])
    assert cut(second.sent_more, second.more_words) == ["nord"]


def test_a_bias_type_of_the_files_own_is_kept_and_can_be_asked_for(tmp_path):
    path = table(tmp_path / "a.csv", FRENCH)
    assert [pair.bias_type for pair in crows_pairs("autre", source=path)] == ["autre"]
    with pytest.raises(
        TracelabError, match="unknown bias type 'age': choose one of autre, gender$"
    ):
        crows_pairs("age", source=path)


def test_a_table_without_a_column_is_told_with_the_columns_it_has(tmp_path):
    (tmp_path / "a.csv").write_text("plus;moins;bias_type\na;b;c\n")
    with pytest.raises(
        TracelabError,
        match=r"no column sent_more, sent_less, .* among 'plus', 'moins', 'bias_type'",
    ):
        crows_pairs(source=tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("a", "b", "pro", "gender"), "unknown direction 'pro'.*line 4"),
        (("a", "b"), "line 4 of .* has 3 cells"),
    ],
)
def test_a_wrong_row_is_told_with_its_line(tmp_path, row, message):
    with pytest.raises(TracelabError, match=message):
        crows_pairs(source=table(tmp_path / "a.csv", [*FRENCH, row]))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (("", "He sings.", "stereo", "gender"), "an empty sentence, left out: 1"),
        (("He sings.", "He sings.", "stereo", "gender"), "no difference between the sentences: 1"),
        (("XXX sings.", "He sings.", "stereo", "gender"), "a placeholder left: 1"),
    ],
)
def test_many_pairs_that_say_nothing_are_said_aloud_and_few_are_not(tmp_path, row, reason):
    with pytest.warns(
        UserWarning, match=f"1 of 3 pairs of .* say nothing of a stereotype .{reason}"
    ):
        crows_pairs(source=table(tmp_path / "a.csv", [*FRENCH, row]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(crows_pairs(source=table(tmp_path / "b.csv", [*FRENCH * 10, row]))) >= 20


# --- BBQ
# --------------------------------------------------------------------------------------------------------------  # noqa: E501

KINDS = [
    (condition, polarity) for condition in ("ambig", "disambig") for polarity in ("neg", "nonneg")
]


def item(name, condition, polarity, **changes):
    fields = {
        "id": name,
        "bias_type": "Age",
        "question_index": "edad",
        "question_polarity": polarity,
        "context_condition": condition,
        "context": "The boy and the man wait."
        + (" The man is slow." if condition == "disambig" else ""),
        "question": "Who is slow?" if polarity == "neg" else "Who is quick?",
        "answers": ("the boy", "the man", "unknown"),
        "label": 2 if condition == "ambig" else 1,
        "unknown": 2,
        "target_loc": 1,
        "named": False,
    }
    return BBQItem(**fields | changes)


@pytest.mark.parametrize(
    "names", [["a-amb-bsd", "a-amb-cnt", "b", "item 4"], ["x-9", "x-2", "x-17", "x-1"]]
)
def test_a_block_is_what_belongs_together_whatever_the_ids(names):
    four = [item(name, *kind) for name, kind in zip(names, KINDS, strict=True)]
    people = {
        "context": "The girl and the woman wait.",
        "answers": ("unknown", "the girl", "the woman"),
        "unknown": 0,
    }
    other = item("other", "ambig", "neg", **people, label=0)
    assert blocks([four[2], other, four[0], four[3], four[1]]) == [
        names[2],
        "other",
        *[names[2]] * 3,
    ]


def test_a_block_that_stands_twice_is_two():
    eight = [item(f"{copy}{k}", *kind) for copy in "ab" for k, kind in enumerate(KINDS)]
    assert blocks(eight) == ["a0"] * 4 + ["b0"] * 4


def row(example_id, condition, polarity, **changes):
    made = item("", condition, polarity)
    return {
        "example_id": example_id,
        "category": "Edad",
        "question_index": "1a",
        "question_polarity": polarity,
        "context_condition": condition,
        "answer_info": {
            f"ans{k}": [a, g]
            for k, (a, g) in enumerate(zip(made.answers, ("joven", "viejo", "ns"), strict=True))
        },
        "context": made.context,
        "question": made.question,
        **{f"ans{k}": answer for k, answer in enumerate(made.answers)},
        "label": made.label,
        **changes,
    }


def test_a_set_of_another_language_is_read_by_the_names_it_has(tmp_path):
    rows = [row(f"edad-{k}", *kind, target_loc=1) for k, kind in enumerate(KINDS)]
    path = tmp_path / "Edad.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8-sig")
    items = bbq("Edad", source=tmp_path)
    assert [(i.id, i.bias_type, i.unknown, i.target_loc) for i in items][:1] == [
        ("Edad-edad-0", "Edad", 2, 1)
    ]
    assert (
        items == bbq(source=tmp_path) == bbq(source=path) == bbq("Edad", source=str(path), limit=4)
    )
    with pytest.raises(TracelabError, match="unknown bias type 'age': choose one of Edad"):
        bbq("age", source=tmp_path)


def test_items_whose_biased_answer_is_nowhere_are_said_aloud(tmp_path):
    (tmp_path / "Edad.jsonl").write_text(json.dumps(row("a", "ambig", "neg")))
    with pytest.warns(UserWarning, match="1 of 1 items of .* have no biased answer"):
        (one,) = bbq("Edad", source=tmp_path)
    assert one.target_loc is None


# --- every reader
# ---------------------------------------------------------------------------------------------------  # noqa: E501

FILES = {
    "crows_pairs": lambda path: crows_pairs(source=path),
    "stereoset": lambda path: stereoset(source=path),
    "wikitext": lambda path: wikitext(source=path),
    "bracketed": lambda path: bracketed(path, "gender", {"male": ["man"], "female": ["woman"]}),
    "bbq": lambda path: bbq(source=path),
}
FOLDERS = {"bbq": bbq, "bold": bold, "redditbias": redditbias, "winobias": winobias}


@pytest.mark.parametrize("reader", FILES)
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "holds no records|no valid JSON|no text"),
        ("sent_more,sent_less".encode("utf-16"), "UTF-16"),
        (b"\x89PNG\0\0", "is not a text file"),
        ("é".encode("latin-1"), "is not a text file in UTF-8 .byte 1.: save it as UTF-8"),
    ],
    ids=["empty", "UTF-16", "binary", "Latin-1"],
)
def test_what_is_no_utf8_text_is_one_sentence_at_every_reader(tmp_path, reader, content, reason):
    path = tmp_path / "file.jsonl"
    path.write_bytes(content)
    with pytest.raises(TracelabError, match=reason) as caught:
        FILES[reader](path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reader", FILES)
def test_a_place_without_the_file_is_one_sentence_at_every_reader(tmp_path, reader, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in (
        "~/none.jsonl",
        str(tmp_path / "none.jsonl"),
        tmp_path / "none.jsonl",
        f"{'x' * 300}.jsonl",
        "a\0.jsonl",
    ):
        with pytest.raises(TracelabError, match="no .* file at"):
            FILES[reader](path)


@pytest.mark.parametrize("reader", FOLDERS)
def test_a_file_in_the_place_of_a_folder_and_the_hub_are_one_sentence(tmp_path, reader):
    (tmp_path / "file").write_text("x")
    for source in (tmp_path / "file", "hub", "~nobody-here/x", ""):
        with pytest.raises(
            TracelabError, match='give the folder of .* or "wheel"|cannot tell where|no place'
        ):
            FOLDERS[reader](source=source)


@pytest.mark.filterwarnings("ignore")  # about attribute words
def test_a_text_that_no_tokenizer_takes_is_refused_where_it_is_read(tmp_path):
    bad = {
        "data": {
            "intrasentence": [{"id": "a", "target": "t", "bias_type": "x", "context": "BLANK"}]
        }
    }
    for text, reason in (
        ("\ud800", "lone surrogate"),
        (None, "not a text"),
        (float("nan"), "not a text"),
    ):
        labels = ("stereotype", "anti-stereotype", "unrelated")
        bad["data"]["intrasentence"][0]["sentences"] = [
            {"id": label, "gold_label": label, "sentence": text} for label in labels
        ]
        (tmp_path / "dev.json").write_text(json.dumps(bad))
        with pytest.raises(TracelabError, match=f"{reason}.*record 1"):
            stereoset(source=tmp_path)


# --- words
# ------------------------------------------------------------------------------------------------------------  # noqa: E501


@pytest.mark.parametrize(
    ("text", "word", "mention"),
    [
        ("Je crois que l’homme dort.", "homme", "homme"),
        ("C'est l'élève d'une amie.", "élève", "élève"),
        ("他是医生。", "医生", "医生"),
        ("彼女は医者です。", "医者", "医者"),
        ("ผู้หญิงขับรถ", "ผู้หญิง", "ผู้หญิง"),
        ("그 여자는 운다.", "여자", "여자는"),
        ("يعمل الرجل هنا", "رجل", "الرجل"),
        ("והאישה שרה", "אישה", "והאישה"),
        ("Doktor kadının yanında.", "kadın", "kadının"),
        ("Ayşe'nin evi büyük.", "Ayşe", "Ayşe'nin"),
        ("वह महिला है", "महिला", "महिला"),
        ("The nurse's coat.", "nurse", "nurse's"),
    ],
)
def test_a_word_is_found_as_its_language_writes_it_in_either_form_of_accents(text, word, mention):
    for form in ("NFC", "NFD"):
        own = unicodedata.normalize(form, text)
        for asked in (word, unicodedata.normalize("NFD", word)):
            assert [
                unicodedata.normalize("NFC", found) for found in cut(own, find_words(own, [asked]))
            ] == [mention]


def test_part_of_a_word_is_no_mention():
    assert find_words("Das Mädchen", ["Madchen"]) == ()
    assert find_words(unicodedata.normalize("NFD", "Das Mädchen"), ["Ma"]) == ()
    assert find_words("महिलाएँ", ["मह"]) == ()


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ("他是医生。", "她是医生。", (["他"], ["她"])),
        ("L'homme crie.", "L'enfant crie.", (["homme"], ["enfant"])),
        ("Les élèves crient.", unicodedata.normalize("NFD", "Les élèves crient."), ([], [])),
        ("वह पुरुष है", "वह महिला है", (["पुरुष"], ["महिला"])),
    ],
)
def test_sentences_differ_in_words_and_not_in_how_they_are_written(first, second, words):
    assert (
        tuple(
            cut(text, spans)
            for text, spans in zip((first, second), differing_words(first, second), strict=True)
        )
        == words
    )


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_filler_is_found_in_either_form_of_accents_and_spaces(forms):
    context = unicodedata.normalize(forms[0], "L'élève est BLANK !")
    sentence = unicodedata.normalize(forms[1], "L’élève est né\u00a0!")
    (filler,) = cut(sentence, filler_spans(context, sentence))
    assert unicodedata.normalize("NFC", filler) == "né"


# --- tables as programs and people write them
# -------------------------------------------------------------------------


def written_table(tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    return [
        (pair.id, pair.sent_more, pair.sent_less) for pair in crows_pairs(source=tmp_path / "a.csv")
    ]


def test_a_nameless_column_that_numbers_nothing_is_no_numbering(tmp_path):
    head = ",".join(HEADER)
    found = written_table(
        tmp_path, f"{head},\na man,a woman,stereo,gender,\nan old man,a man,stereo,age,\n"
    )
    assert found == [("0", "a man", "a woman"), ("1", "an old man", "a man")]


def test_spaces_after_commas_empty_lines_first_and_empty_cells_last_are_no_content(tmp_path):
    found = written_table(
        tmp_path, f'\n\n{", ".join(HEADER)}\n"he, too", "she, too", stereo, gender,,\n'
    )
    assert found == [("0", "he, too", "she, too")]


def test_quotation_marks_between_tabs_are_the_texts_own_where_nothing_is_quoted(tmp_path):
    rows = [
        '"Oui", dit-il.\t"Oui", dit-elle.\tstereo\tgender',
        '"Un homme\t"Une femme\tstereo\tgender',
    ]
    found = written_table(tmp_path, "\n".join(["\t".join(HEADER), *rows, ""]))
    assert found == [("0", '"Oui", dit-il.', '"Oui", dit-elle.'), ("1", '"Un homme', '"Une femme')]


def test_a_quotation_mark_that_is_never_closed_does_not_swallow_the_rest_of_a_table(tmp_path):
    text = f'{",".join(HEADER)},note\na man,a woman,stereo,gender,"half\na boy,a girl,stereo,gender,x\n'  # noqa: E501
    with pytest.raises(
        TracelabError, match=r"line 2 of .*a\.csv cannot be read \(unexpected end of data\)"
    ):
        written_table(tmp_path, text)


def test_the_word_that_stands_for_no_text_is_no_text(tmp_path):
    with pytest.warns(UserWarning, match="an empty sentence, left out: 1"):
        found = written_table(
            tmp_path, f"{','.join(HEADER)}\na man,a woman,stereo,gender\nnan,NaN,stereo,gender\n"
        )
    assert len(found) == 1


def test_a_table_in_memory_is_no_name_of_a_source():
    assert not is_named(pd.DataFrame({"a": [1, 2]}), "hub")
    assert is_named("hub", "hub")


# --- JSON in other forms
# ----------------------------------------------------------------------------------------------


def test_a_json_list_of_items_is_read_as_its_lines_would_be(tmp_path):
    rows = [row(f"edad-{k}", *kind, target_loc=1) for k, kind in enumerate(KINDS)]
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "list.json").write_text(
        json.dumps([{**each, "target_loc": 1.0} for each in rows], indent=1)
    )
    assert bbq(source=tmp_path / "list.json") == bbq(source=tmp_path / "lines.jsonl")


def test_one_text_in_the_place_of_a_list_is_one_text(tmp_path):
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts/gender_prompt.json").write_text(json.dumps({"actors": {"A": "A was"}}))
    assert [text.text for text in bold("gender", source=tmp_path)] == ["A was"]
    (tmp_path / "corpus.json").write_text(json.dumps({"war": "[war] is for the [man]"}))
    corpus = bracketed(tmp_path / "corpus.json", "gender", {"male": "man"})
    assert ([prompt.text for prompt in corpus.prompts], corpus.groups) == (
        ["war is for the"],
        (("male", ("man",)),),
    )


def test_attribute_words_beside_the_data_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "bias_attribute_words.json").write_text('\ufeff{"gender": [["he", "she"]]}')
    assert attribute_words("gender", tmp_path) == ("he", "she")
    (tmp_path / "bias_attribute_words.json").write_text('["he", "she"] ')
    _attribute_words.cache_clear()
    with pytest.raises(TracelabError, match="no list of attribute words by bias type"):
        attribute_words("gender", tmp_path)


def test_lines_without_numbers_are_read_and_end_at_line_breaks_alone(tmp_path):
    folder = tmp_path
    for kind in (1, 2):
        for side, pronoun in (("pro", "he"), ("anti", "she")):
            text = f"[The cook] met the nurse because [{pronoun}] was ill.\u2028\n\n"
            (folder / f"{side}_stereotyped_type{kind}.txt.test").write_text(text)
    (folder / "male_occupations.txt").write_text("cook\n")
    (folder / "female_occupations.txt").write_text("nurse\n")
    assert [pair.pro.text for pair in winobias(1, source=folder)] == [
        "The cook met the nurse because he was ill."
    ]


def test_lines_of_running_text_end_at_line_breaks_alone(tmp_path):
    (tmp_path / "a.txt").write_bytes("a\r\n\r\nb\u2028c\x85d".encode())
    assert wikitext(source=tmp_path / "a.txt") == ["a\n", "", "b\u2028c\x85d"]
