"""BBQ (Parrish et al., 2022): questions on two people of different groups, one of whom a stereotype
is about.

Items come in blocks of four: a context that does not tell the answer (``ambig``) and one that does
(``disambig``), each with a question that names something harmful (``neg``) and its opposite
(``nonneg``). Of the three answers one says that it cannot be known; it is right if and only if the
context is ambiguous. Which answer is the biased one stands in a file of its own,
``additional_metadata.csv``, joined here on category and example id; it takes the question's
polarity into account already.

What is wrong with the files, and what is done about it (:func:`bbq_defects` counts it):

| defect | here |
|---|---|
| 64 metadata rows (Gender_identity, template 12) stand twice | taken once; contradicting rows are refused |
| 16 items (Gender_identity: man and boy, woman and girl) have no biased answer | ``target_loc`` is None |
| lines end in CR LF | not part of any text |
| 124 answers end in a space; "monther", "The on on welfare", items that stand twice | left as they are |
| intersectional files: 68 wrong biased answers ("African" found in "African American") | left; by name only |

Sets of the same form in other languages are read as well: with categories, ids and a name of the
unknown group of their own. Which answer is biased may then stand in the items themselves
(``target_loc``); where nothing tells it, it is None. Licence of the data: CC BY 4.0.
"""  # noqa: E501

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from os.path import commonprefix
from pathlib import Path
from typing import Any

from tracelab.datasets.records import (
    Records,
    parse,
    place,
    say_unusable,
    select,
    subsample,
    text_in,
)
from tracelab.datasets.sources import (
    changed_at,
    file_at,
    file_in,
    folder_at,
    json_objects_of,
    number_or_name,
    table_of,
)
from tracelab.errors import TracelabError, require_choice
from tracelab.ranges import require_whole_limit

CATEGORIES = (
    "Age",
    "Disability_status",
    "Gender_identity",
    "Nationality",
    "Physical_appearance",
    "Race_ethnicity",
    "Religion",
    "SES",
    "Sexual_orientation",
)
INTERSECTIONAL = ("Race_x_SES", "Race_x_gender")
ALIASES = {
    "age": "Age",
    "disability": "Disability_status",
    "gender": "Gender_identity",
    "nationality": "Nationality",
    "physical-appearance": "Physical_appearance",
    "race": "Race_ethnicity",
    "race-color": "Race_ethnicity",
    "religion": "Religion",
    "sexual-orientation": "Sexual_orientation",
    "socioeconomic": "SES",
}
"""What other benchmarks call the categories."""

POLARITIES = ("neg", "nonneg")
CONDITIONS = ("ambig", "disambig")
METADATA = "additional_metadata.csv"
_HOLDS = "the *.jsonl files"


@dataclass(frozen=True)
class BBQItem:
    """A question with its three answers.

    Attributes:
        id: category and number (or name) in it, such as ``Age-123``.
        bias_type: the category, of the official files one of :data:`CATEGORIES` or
            :data:`INTERSECTIONAL`.
        question_index: number (or name) of the template inside the category.
        question_polarity: one of :data:`POLARITIES`.
        context_condition: one of :data:`CONDITIONS`.
        answers: as in the file, some with a space at the end.
        label: index of the right answer.
        unknown: index of the answer that says it cannot be known.
        target_loc: index of the biased answer; None where the metadata has none.
        named: whether people are known by names that suggest a group (Gender, Race), not by the
            group's word.
    """

    id: str
    bias_type: str
    question_index: int | str
    question_polarity: str
    context_condition: str
    context: str
    question: str
    answers: tuple[str, str, str]
    label: int
    unknown: int
    target_loc: int | None
    named: bool

    @property
    def ambiguous(self) -> bool:
        """Whether the context leaves the answer open."""
        return self.context_condition == "ambig"


def blocks(items: Sequence[BBQItem]) -> list[str]:
    """The block of each item, named by the id of its first item.

    The (at most) four items of a block have the same people to choose from, and the ambiguous
    context is what the other one begins with. Ids tell nothing: other sets than BBQ number and name
    their items as they like. Of blocks that stand twice each takes the items in the order in which
    they come.
    """
    about = [(item.bias_type, _people(item)) for item in items]
    open_contexts: dict[Any, dict[str, None]] = {}
    for key, item in zip(about, items, strict=True):
        if item.ambiguous:
            open_contexts.setdefault(key, {})[item.context.strip()] = None
    names: dict[Any, str] = {}
    copies: Counter[Any] = Counter()
    found = []
    for key, item in zip(about, items, strict=True):
        context = _open_context(item.context.strip(), open_contexts.get(key, {}))
        kind = (key, context, item.context_condition, item.question_polarity)
        found.append(names.setdefault((key, context, copies[kind]), item.id))
        copies[kind] += 1
    return found


def _people(item: BBQItem) -> frozenset[str]:
    return frozenset(answer.strip() for k, answer in enumerate(item.answers) if k != item.unknown)


def _open_context(context: str, possible: Mapping[str, None]) -> str:
    """The ambiguous context that ``context`` begins with, or the one that is most like it; without
    any, itself."""
    if context in possible:
        return context
    beginnings = [each for each in possible if context.startswith(each)]
    if len(beginnings) == 1:
        return beginnings[0]
    known = beginnings or possible or [context]
    return max(known, key=lambda each: len(commonprefix([each, context])))  # noqa: RUF071  no paths


def bbq(
    bias: str | None = None, *, source: str | Path = "wheel", limit: int | None = None
) -> list[BBQItem]:
    """Read BBQ.

    Args:
        bias: one of :data:`CATEGORIES`, :data:`INTERSECTIONAL` or :data:`ALIASES`, or what a
            ``*.jsonl`` file of one's own is called; None for the nine categories, or all files of
            one's own. The intersectional files, whose biased answers are partly wrong, come by
            their own names only.
        source: ``"wheel"`` (the embedded copy), or a path to a folder that holds ``*.jsonl`` files
            in the official form and ``additional_metadata.csv``, or to one such file, which may be
            one JSON list as well.
        limit: at most so many items: whole blocks of four, subsampled evenly over what is read. The
            first rows would be a template or two.

    Raises:
        TracelabError: unknown category; files that are not BBQ; a limit below 4.
    """
    limit = require_whole_limit(limit)
    if isinstance(source, str | Path) and str(source).lower().endswith((".jsonl", ".json")):
        items = list(_read(file_at(source, "BBQ", hub=False)))
        known = {item.bias_type for item in items}
        items = select(
            items,
            bias if bias is None or bias in known else ALIASES.get(bias, bias),
            what=str(source),
        )
    else:
        folder = folder_at(source, "BBQ", wheel="BBQ/data", holds=_HOLDS)
        items = [
            item
            for name in _names(folder, bias)
            for item in _read(_file_in(folder, f"{name}.jsonl"))
        ]
    return Records(items if limit is None else _subsample(items, limit))


def _names(folder: Path, bias: str | None) -> tuple[str, ...]:
    """Which files of a folder are asked for."""
    there = sorted(path.stem for path in folder.glob("*.jsonl"))
    own = not set(there) <= {*CATEGORIES, *INTERSECTIONAL}
    if bias is None:
        return tuple(name for name in there if name not in INTERSECTIONAL) if own else CATEGORIES
    name = bias if bias in there else ALIASES.get(bias, bias)
    if name not in there and (own or name not in CATEGORIES + INTERSECTIONAL):
        require_choice(
            "bias type", bias, there if own else (*ALIASES, *CATEGORIES, *INTERSECTIONAL)
        )
    return (name,)


def bbq_defects(source: str | Path = "wheel") -> dict[str, int]:
    """How often each defect that the reader mends occurs: ``doubled``, ``without_target``,
    ``crlf_files``.

    Returns:
        Metadata rows that stand twice, rows without a biased answer, files whose lines end in CR
        LF.

    Raises:
        TracelabError: files that are not BBQ.
    """
    folder = folder_at(source, "BBQ", wheel="BBQ/data", holds=_HOLDS)
    path = _file_in(folder, METADATA)
    table = _metadata(path, changed_at(path))
    files = [folder / METADATA, *folder.glob("*.jsonl")]
    return {
        "doubled": table.doubled,
        "without_target": sum(target is None for target, _ in table.rows.values()),
        "crlf_files": sum(b"\r\n" in path.read_bytes() for path in files),
    }


def _subsample(items: Sequence[BBQItem], limit: int) -> list[BBQItem]:
    """Whole blocks at even distances, no more than ``limit`` items."""
    if limit < 4:
        raise TracelabError(f"no item of BBQ is left (limit={limit}): items come in blocks of four")
    by_block: dict[str, list[BBQItem]] = {}
    for item, block in zip(items, blocks(items), strict=True):
        by_block.setdefault(block, []).append(item)
    return [item for block in subsample(list(by_block.values()), limit // 4) for item in block]


@dataclass(frozen=True)
class _Metadata:
    """By category and example id: the biased answer and whether people are known by names."""

    rows: dict[tuple[str, str], tuple[int | None, bool]]
    doubled: int


@lru_cache(maxsize=2)
def _metadata(path: Path, changed: tuple[int, ...]) -> _Metadata:
    def read() -> _Metadata:
        rows: dict[tuple[str, str], tuple[int | None, bool]] = {}
        contradicting = []
        table = table_of(
            path, ("category", "example_id", "target_loc", "label_type"), "BBQ's metadata"
        )
        for row in table:
            with place(f"line {row['line']}"):
                key = (row["category"].strip(), row["example_id"].strip())
                named = (
                    require_choice("label_type", row["label_type"].strip(), ("label", "name"))
                    == "name"
                )
                value = (_target(row["target_loc"].strip()), named)
            if rows.setdefault(key, value) != value:
                contradicting.append("-".join(key))
        if contradicting:
            raise TracelabError(
                f"{path}: {len(contradicting)} rows contradict another one of the same item, the "
                "first is on "
                f"{contradicting[0]}"
            )
        return _Metadata(rows, len(table) - len(rows))

    try:
        return read()
    except (ValueError, TypeError) as error:
        if isinstance(error, TracelabError):
            raise
        raise TracelabError(
            f"{path} is not BBQ's metadata: {type(error).__name__} {error}"
        ) from error


def _target(text: str) -> int | None:
    return None if text.lower() in ("", "na", "nan", "none") else int(text.removesuffix(".0"))


def _read(path: Path) -> tuple[BBQItem, ...]:
    metadata = path.with_name(METADATA)
    return _items(path, changed_at(path, *([metadata] if metadata.is_file() else [])))


@lru_cache(maxsize=len(CATEGORIES + INTERSECTIONAL))
def _items(path: Path, changed: tuple[int, ...]) -> tuple[BBQItem, ...]:
    def read() -> list[BBQItem]:
        metadata = path.with_name(METADATA)
        known = _metadata(metadata, changed_at(metadata)).rows if metadata.is_file() else None
        rows = list(json_objects_of(path))
        unknown_group = _unknown_group([row for _, row in rows])
        items = []
        for where, row in rows:
            with place(where):
                items.append(_item(row, path.stem, known, unknown_group))
        lost = ["no target_loc in the item"] * sum(item.target_loc is None for item in items)
        say_unusable(
            f"items of {path}", lost, len(items), "have no biased answer and count in no score"
        )
        return items

    return tuple(parse(str(path), read))


def _unknown_group(rows: Sequence[Any]) -> str:
    """What the file calls the group of the answer that it cannot be known: the right one of all
    ambiguous items."""
    groups, right = [], set()
    for row in rows:
        try:
            own = [row["answer_info"][f"ans{k}"][1] for k in range(3)]
            if row["context_condition"] == "ambig":
                right.add(own[row["label"]])
        except (KeyError, TypeError, IndexError):
            return "unknown"
        groups.append(own)
    if len(right) == 1 and not any("unknown" in own for own in groups):
        (name,) = right
        if all(own.count(name) == 1 for own in groups):
            return name
    return "unknown"


def _item(
    row: dict[str, Any],
    file: str,
    known: Mapping[tuple[str, str], tuple[int | None, bool]] | None,
    unknown_group: str,
) -> BBQItem:
    official = file in CATEGORIES + INTERSECTIONAL
    category = text_in({"category": file, **row}, "category").strip() or file
    key = f"{category}-{row['example_id']}"
    if official and category != file:
        raise TracelabError(
            f"{file}.jsonl holds an item of {category!r}, number {row['example_id']}"
        )
    target, named = _target(str(row.get("target_loc"))), row.get("label_type") == "name"
    if known is not None and "target_loc" not in row:
        if (category, str(row["example_id"])) not in known:
            raise TracelabError(
                f"{METADATA} has no row on {key}: which answer is biased is not known"
            )
        target, named = known[category, str(row["example_id"])]
    groups = [row["answer_info"][f"ans{k}"][1] for k in range(3)]
    if groups.count(unknown_group) != 1:
        raise TracelabError(
            f"{key} has {groups.count(unknown_group)} answers of the group {unknown_group!r}, not "
            "one"
        )
    unknown, label = groups.index(unknown_group), row["label"]
    _require_answer(key, "label", label, range(3))
    if target is not None:
        _require_answer(key, "target_loc", target, [k for k in range(3) if k != unknown])
    condition = require_choice("context_condition", row["context_condition"], CONDITIONS)
    if (label == unknown) != (condition == "ambig"):
        raise TracelabError(
            f"the right answer of {key} cannot be {label} in a context that is {condition}"
        )
    return BBQItem(
        id=key,
        bias_type=category,
        question_index=number_or_name(row["question_index"]),
        question_polarity=require_choice("question_polarity", row["question_polarity"], POLARITIES),
        context_condition=condition,
        context=text_in(row, "context"),
        question=text_in(row, "question"),
        answers=(text_in(row, "ans0"), text_in(row, "ans1"), text_in(row, "ans2")),
        label=label,
        unknown=unknown,
        target_loc=target,
        named=named,
    )


def _require_answer(key: str, what: str, value: Any, possible: Iterable[int]) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value not in possible:
        raise TracelabError(f"{what} of {key} is {value!r}, not one of {list(possible)}")


def _file_in(folder: Path, name: str) -> Path:
    return file_in(folder, name, "BBQ", holds=_HOLDS)
