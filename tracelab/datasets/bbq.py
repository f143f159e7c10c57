"""BBQ (Parrish et al., 2022): questions on two people of different groups, one of whom a stereotype is about.

Items come in blocks of four: a context that does not tell the answer (``ambig``) and one that does (``disambig``),
each with a question that names something harmful (``neg``) and its opposite (``nonneg``). Of the three answers one says
that it cannot be known; it is right if and only if the context is ambiguous. Which answer is the biased one stands in a
file of its own, ``additional_metadata.csv``, joined here on category and example id; it takes the question's polarity
into account already.

What is wrong with the files, and what is done about it (:func:`bbq_defects` counts it):

| defect | here |
|---|---|
| 64 metadata rows (Gender_identity, template 12) stand twice | taken once; contradicting rows are refused |
| 16 items (Gender_identity: man and boy, woman and girl) have no biased answer | ``target_loc`` is None |
| lines end in CR LF | not part of any text |
| 124 answers end in a space; "monther", "The on on welfare", items that stand twice | left as they are |
| intersectional files: 68 wrong biased answers ("African" found in "African American") | left; by name only |

Licence of the data: CC BY 4.0.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from tracelab import assets
from tracelab.datasets.records import parse, spread
from tracelab.errors import TracelabError, require_choice

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


@dataclass(frozen=True)
class BBQItem:
    """A question with its three answers.

    Attributes:
        id: category and number in it, such as ``Age-123``.
        bias_type: the category, one of :data:`CATEGORIES` or :data:`INTERSECTIONAL`.
        question_index: number of the template inside the category.
        question_polarity: one of :data:`POLARITIES`.
        context_condition: one of :data:`CONDITIONS`.
        answers: as in the file, some with a space at the end.
        label: index of the right answer.
        unknown: index of the answer that says it cannot be known.
        target_loc: index of the biased answer; None where the metadata has none.
        named: whether people are known by names that suggest a group (Gender, Race), not by the group's word.
    """

    id: str
    bias_type: str
    question_index: int
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

    @property
    def block(self) -> str:
        """Name of the block of four items, which differ in condition and polarity only: ``Age-30``."""
        return f"{self.bias_type}-{int(self.id.rpartition('-')[2]) // 4}"


def bbq(bias: str | None = None, *, source: str | Path = "wheel", limit: int | None = None) -> list[BBQItem]:
    """Read BBQ.

    Args:
        bias: one of :data:`CATEGORIES`, :data:`INTERSECTIONAL` or :data:`ALIASES`; None for the nine categories. The
            intersectional files, whose biased answers are partly wrong, come by their own names only.
        source: ``"wheel"`` (the embedded copy) or a path to a folder that holds the official ``*.jsonl`` files and
            ``additional_metadata.csv``.
        limit: at most so many items: whole blocks of four, spread evenly over what is read. The first rows would be
            a template or two.

    Raises:
        TracelabError: unknown category; files that are not BBQ; a limit below 4.
    """
    if bias is None:
        names: tuple[str, ...] = CATEGORIES
    else:
        bias = ALIASES.get(bias, bias)
        if bias not in CATEGORIES + INTERSECTIONAL:
            require_choice("bias type", bias, (*ALIASES, *CATEGORIES, *INTERSECTIONAL))
        names = (bias,)
    folder = _folder(source)
    items = [item for name in names for item in _read(folder, name)]
    return items if limit is None else _spread(items, limit)


def bbq_defects(source: str | Path = "wheel") -> dict[str, int]:
    """How often each defect that the reader mends occurs: ``doubled``, ``without_target``, ``crlf_files``.

    Returns:
        Metadata rows that stand twice, rows without a biased answer, files whose lines end in CR LF.

    Raises:
        TracelabError: files that are not BBQ.
    """
    folder = _folder(source)
    table = _metadata(folder)
    files = [folder / METADATA, *folder.glob("*.jsonl")]
    return {
        "doubled": table.doubled,
        "without_target": sum(target is None for target, _ in table.rows.values()),
        "crlf_files": sum(b"\r\n" in path.read_bytes() for path in files),
    }


def _folder(source: str | Path) -> Path:
    if source == "wheel":
        return assets.data_dir() / "BBQ/data"
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise TracelabError(f'no BBQ folder at {str(source)!r}: give the folder of the *.jsonl files, or "wheel"')
    return folder


def _spread(items: Sequence[BBQItem], limit: int) -> list[BBQItem]:
    """Whole blocks at even distances, no more than ``limit`` items."""
    blocks: dict[str, list[BBQItem]] = {}
    for item in items:
        blocks.setdefault(item.block, []).append(item)
    if limit < 4:
        raise TracelabError(f"no item of BBQ is left (limit={limit}): items come in blocks of four")
    return [item for block in spread(list(blocks.values()), limit // 4) for item in block]


@dataclass(frozen=True)
class _Metadata:
    """By category and example id: the biased answer and whether people are known by names."""

    rows: dict[tuple[str, int], tuple[int | None, bool]]
    doubled: int


def _metadata(folder: Path) -> _Metadata:
    path = _file_in(folder, METADATA)
    return _metadata_file(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _metadata_file(path: Path, changed: int) -> _Metadata:
    key, fields = ["category", "example_id"], ["target_loc", "label_type"]
    try:
        table = pd.read_csv(path, usecols=key + fields, low_memory=False)
        table = table.astype({"example_id": int, "target_loc": "Int64"})
    except (ValueError, TypeError) as error:
        raise TracelabError(f"{path} is not BBQ's metadata: {type(error).__name__} {error}") from error
    single = table.drop_duplicates()
    contradicting = single[single.duplicated(key)]
    if len(contradicting):
        category, number = contradicting.iloc[0][key]
        raise TracelabError(
            f"{path}: {len(contradicting)} rows contradict another one of the same item, the first is on "
            f"{category}-{number}"
        )
    for name in single["label_type"].unique():
        require_choice("label_type", name, ("label", "name"))
    rows = {
        (category, number): (None if target is pd.NA else int(target), kind == "name")
        for category, number, target, kind in single[key + fields].itertuples(index=False)
    }
    return _Metadata(rows, len(table) - len(single))


def _read(folder: Path, category: str) -> tuple[BBQItem, ...]:
    path, metadata = _file_in(folder, f"{category}.jsonl"), _file_in(folder, METADATA)
    return _items(path, path.stat().st_mtime_ns, metadata.stat().st_mtime_ns)  # a changed file is read again


@lru_cache(maxsize=len(CATEGORIES + INTERSECTIONAL))
def _items(path: Path, changed: int, metadata_changed: int) -> tuple[BBQItem, ...]:
    def read() -> list[BBQItem]:
        known = _metadata(path.parent).rows
        # Not splitlines(): a text may hold one of the other characters at which that would split.
        lines = path.read_text("utf-8").split("\n")
        return [_item(json.loads(line), path.stem, known) for line in lines if line.strip()]

    return tuple(parse(str(path), read))


def _item(row: dict[str, Any], category: str, known: dict[tuple[str, int], tuple[int | None, bool]]) -> BBQItem:
    key = f"{category}-{row['example_id']}"
    if row["category"] != category:
        raise TracelabError(f"{category}.jsonl holds an item of {row['category']!r}, number {row['example_id']}")
    if (category, row["example_id"]) not in known:
        raise TracelabError(f"{METADATA} has no row on {key}: which answer is biased is not known")
    target, named = known[category, row["example_id"]]
    groups = [row["answer_info"][f"ans{k}"][1] for k in range(3)]
    if groups.count("unknown") != 1:
        raise TracelabError(f"{key} has {groups.count('unknown')} answers of the group 'unknown', not one")
    unknown, label = groups.index("unknown"), row["label"]
    _require_answer(key, "label", label, range(3))
    if target is not None:
        _require_answer(key, "target_loc", target, [k for k in range(3) if k != unknown])
    condition = require_choice("context_condition", row["context_condition"], CONDITIONS)
    if (label == unknown) != (condition == "ambig"):
        raise TracelabError(f"the right answer of {key} cannot be {label} in a context that is {condition}")
    return BBQItem(
        id=key,
        bias_type=category,
        question_index=int(row["question_index"]),
        question_polarity=require_choice("question_polarity", row["question_polarity"], POLARITIES),
        context_condition=condition,
        context=row["context"],
        question=row["question"],
        answers=(row["ans0"], row["ans1"], row["ans2"]),
        label=label,
        unknown=unknown,
        target_loc=target,
        named=named,
    )


def _require_answer(key: str, what: str, value: int, possible: Iterable[int]) -> None:
    if value not in possible:
        raise TracelabError(f"{what} of {key} is {value}, not one of {list(possible)}")


def _file_in(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise TracelabError(f'no BBQ file at {str(path)!r}: give the folder of the *.jsonl files, or "wheel"')
    return path
