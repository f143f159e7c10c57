"""Pairs of your own: a table of sentences becomes records that everything takes.

    stereotype                        anti_stereotype                 unrelated        target   bias_type
    The old man forgot the meeting.   The old man led the meeting.    …                man      age

The first two columns are needed. What fills the blank (the *filler*) is found by the difference of
the two sentences, word by word; ``target`` is the group that both name, whose mentions tracing
noises and over which scores are averaged. ``unrelated`` is what StereoSet's LMS, BiasEdit and KLAAD
compare with. The other way round, the functions here make what a method or a score needs of any
pairs, whichever data set they are from, and say what the pairs lack.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tracelab.datasets.bold import development_sentences
from tracelab.datasets.crows_pairs import CrowsPair
from tracelab.datasets.group_pairs import HELD_OUT, NEUTRAL, GroupPairs
from tracelab.datasets.records import (
    Pair,
    Sentence,
    check_ids,
    place,
    say_unusable,
    select,
    text_in,
)
from tracelab.datasets.redditbias import ExpertTexts
from tracelab.datasets.sources import file_at, json_objects_of, table_of
from tracelab.datasets.spans import differing_words, find_words
from tracelab.datasets.stereoset import BIAS_TYPES, StereoSetRecord, attribute_words
from tracelab.errors import TracelabError, quoted
from tracelab.model.texts import as_records
from tracelab.span import Span

NEEDED = ("stereotype", "anti_stereotype")
COLUMNS = (*NEEDED, "unrelated", "target", "bias_type", "id")
OWN = "own"
"""The bias type of pairs that tell none."""


def pairs(data: Any, *, bias: str | None = None, limit: int | None = None) -> list[StereoSetRecord]:
    """Records of pairs of your own, which tracing, attention gaps, scores and methods take.

    >>> mine = pairs([("The old man forgot it.", "The old man led it.")], bias="age")
    >>> [mine[0].stereotype.text[span.start : span.end] for span in mine[0].stereotype.filler]
    ['forgot']

    Args:
        data: a path to a CSV, TSV, JSON or JSON-lines file in UTF-8; a data frame; or a list of
            dicts, or of tuples in the order of :data:`COLUMNS`. Columns that are none of these are
            not read.
        bias: of a table with bias types, those rows; of one without, what its rows are about.
            "gender", "race" and "religion" also mark StereoSet's attribute words of that type.
        limit: at most so many records, subsampled evenly.

    Raises:
        TracelabError: no table, a column that is missing, or a row that cannot be used: without
            text, with two sentences that are the same, or said twice. The row is named.
    """
    what, rows = _table(data)
    made: list[StereoSetRecord] = []
    seen: dict[tuple[str, str], str] = {}
    for number, (where, row) in enumerate(rows):
        if lacking := [name for name in NEEDED if name not in row]:
            there = ", ".join(map(str, row)) or "none"
            raise TracelabError(
                f"{what} has no column {lacking[0]} ({where} has {there}): name two columns "
                f"{' and '.join(NEEDED)}"
            )
        record = _record(number, where, row, bias)
        said = (record.stereotype.text, record.anti_stereotype.text)
        if (first := seen.setdefault(said, where)) != where:
            raise TracelabError(f"{where} of {what} says the same as {first}: leave one out")
        made.append(record)
    if not made:
        raise TracelabError(f"{what} holds no pairs")
    check_ids(made, what)
    one_sided = [
        "one sentence only adds words"
        for record in made
        if not (record.stereotype.filler and record.anti_stereotype.filler)
    ]
    say_unusable(f"pairs of {what}", one_sided, len(made), "cannot be traced or trained on")
    return select(made, bias, limit, what=what)


def as_pairs(records: Any) -> list[Pair]:
    """The two sentences of records of any data set of pairs.

    Raises:
        TracelabError: one that is no pair.
    """
    return [_pair(record) for record in as_records(records, "pair")]


def as_crows_pairs(records: Any) -> list[CrowsPair]:
    """Pairs in CrowS-Pairs' form, the stereotype as ``sent_more``.

    Raises:
        TracelabError: as :func:`as_pairs`.
    """
    return [r if isinstance(r, CrowsPair) else _crows(_pair(r)) for r in as_records(records)]


def as_triples(records: Any, who: str, *, unrelated: bool = True) -> list[StereoSetRecord]:
    """Pairs in StereoSet's form.

    Args:
        who: needs them so, for the message.
        unrelated: whether each must have an unrelated sentence.

    Raises:
        TracelabError: as :func:`as_pairs`, or no unrelated sentence where one is needed.
    """
    made = [r if isinstance(r, StereoSetRecord) else _triple(r) for r in as_records(records)]
    for record in made if unrelated else ():
        if record.unrelated is None:
            raise TracelabError(
                f"{who} compares with an unrelated sentence, which record {quoted(record.id)} "
                "lacks: give datasets.pairs() a column unrelated"
            )
    return made


def as_expert_texts(records: Any) -> ExpertTexts:
    """What experts are tuned on: stereotypes against anti-stereotypes.

    Raises:
        TracelabError: as :func:`as_pairs`.
    """
    found = as_pairs(records)
    texts = [r.stereotype for r in found], [r.anti_stereotype for r in found]
    return ExpertTexts(_bias_of(found), *texts)


def as_group_pairs(records: Any) -> GroupPairs:
    """What an erasure is fitted on: what tells the sentences of a pair apart is erased. So the
    sentences should differ in the group that they name.

    Raises:
        TracelabError: as :func:`as_pairs`.
    """
    found = as_pairs(records)
    return GroupPairs.of(
        _bias_of(found),
        [(r.stereotype, r.anti_stereotype) for r in found],
        development_sentences("fit", NEUTRAL),
        development_sentences("choose", HELD_OUT),
    )


def are_records(data: Any) -> bool:
    """Whether data is a list of records, and none of the forms that a method has for itself."""
    return isinstance(data, list | tuple) and bool(data) and all(hasattr(r, "id") for r in data)


def _bias_of(found: Sequence[Pair]) -> str:
    return "+".join(sorted({record.bias_type for record in found}))


def _pair(record: Any) -> Pair:
    if isinstance(record, Pair):
        return record
    if not hasattr(record, "pair"):
        raise TracelabError(
            f"record {quoted(record.id)} is a {type(record).__name__}, no pair of sentences: give "
            "StereoSet, CrowS-Pairs or datasets.pairs() of your own"
        )
    return record.pair()


def _crows(pair: Pair) -> CrowsPair:
    words = pair.stereotype_words, pair.anti_stereotype_words
    if not any(words):
        words = differing_words(pair.stereotype, pair.anti_stereotype)
    return CrowsPair(
        pair.id, pair.bias_type, "stereo", pair.stereotype, pair.anti_stereotype, *words
    )


def _triple(record: Any) -> StereoSetRecord:
    pair = _pair(record)
    return _made(pair.id, pair.bias_type, "", pair.stereotype, pair.anti_stereotype, None)


def _record(number: int, where: str, row: Mapping[str, Any], bias: str | None) -> StereoSetRecord:
    stereotype, anti = (_text(row, name, where) for name in NEEDED)
    for name, text in zip(NEEDED, (stereotype, anti), strict=True):
        if not text:
            raise TracelabError(f"{where} has no text in {name}: fill it in, or leave the row out")
    if not any(differing_words(stereotype, anti)):
        raise TracelabError(
            f"{where} has the same words in {' and '.join(NEEDED)}: no filler can be found"
        )
    told = {name: _text(row, name, where) for name in COLUMNS[2:]}
    return _made(
        told["id"] or str(number),
        told["bias_type"] or bias or OWN,
        told["target"],
        stereotype,
        anti,
        told["unrelated"] or None,
    )


def _made(
    key: str, bias: str, target: str, stereotype: str, anti: str, unrelated: str | None
) -> StereoSetRecord:
    fillers = differing_words(stereotype, anti)
    words = [target, *(attribute_words(bias) if bias in BIAS_TYPES else ())]

    def sentence(label: str, text: str, filler: tuple[Span, ...]) -> Sentence:
        mentions = (
            span
            for span in find_words(text, words)
            if all(span.end <= f.start or span.start >= f.end for f in filler)
        )
        return Sentence(f"{key}-{label}", text, filler, tuple(mentions))

    other = None
    if unrelated is not None:
        other = sentence("unrelated", unrelated, differing_words(stereotype, unrelated)[1])
    return StereoSetRecord(
        id=key,
        task="intrasentence",
        bias_type=bias,
        # without a target term each pair is a unit of its own
        target=target or f"pair {key}",
        context=_blanked(stereotype, fillers[0]),
        stereotype=sentence("stereotype", stereotype, fillers[0]),
        anti_stereotype=sentence("anti-stereotype", anti, fillers[1]),
        unrelated=other,
    )


def _blanked(text: str, spans: Sequence[Span]) -> str:
    for span in reversed(spans):
        text = f"{text[: span.start]}BLANK{text[span.end :]}"
    return text


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    """The text of a cell; "" where there is none (None, NaN)."""
    value = row.get(name)
    if value is None or value != value or type(value).__name__ == "NAType":
        return ""
    if name == "id":
        return str(value).strip()
    try:
        return text_in(row, name).strip()
    except (TypeError, ValueError) as error:
        raise TracelabError(f"{where}: {error}") from error


def _table(data: Any) -> tuple[str, list[tuple[str, Mapping[str, Any]]]]:
    """What a table is called, and its rows, each with where it stands."""
    if isinstance(data, str | Path):
        path = file_at(data, "pairs", hub=False)
        return str(path), list(_file(path))
    if hasattr(data, "to_dict") and hasattr(data, "columns"):
        rows: Iterable[Any] = data.to_dict("records")
    elif isinstance(data, Iterable) and not isinstance(data, Mapping | bytes):
        rows = data
    else:
        raise TracelabError(
            f"pairs are a path, a data frame or a list of rows, not a {type(data).__name__}"
        )
    return "the table", [(f"row {n}", _row(n, row)) for n, row in enumerate(rows)]


def _row(number: int, row: Any) -> Mapping[str, Any]:
    if isinstance(row, Mapping):
        return {str(name).strip().lower(): value for name, value in row.items()}
    if isinstance(row, tuple | list) and len(row) <= len(COLUMNS):
        return dict(zip(COLUMNS, row, strict=False))
    raise TracelabError(
        f"row {number} is {quoted(row)}: give a dict, or a tuple of {', '.join(COLUMNS)}"
    )


def _file(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if path.suffix.lower() in (".json", ".jsonl"):
        try:
            for where, row in json_objects_of(path):
                yield where, _row(0, row)
        except (TypeError, ValueError) as error:
            if isinstance(error, TracelabError):
                raise
            notes = ", ".join(getattr(error, "__notes__", ()))
            raise TracelabError(f"{path} cannot be read: {error} {notes}".rstrip()) from error
        return
    for row in table_of(path, (), "pairs", optional=COLUMNS):
        with place(f"line {row['line']}"):
            yield f"line {row['line']}", {n: v for n, v in row.items() if n in COLUMNS}
