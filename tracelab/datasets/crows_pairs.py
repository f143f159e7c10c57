"""CrowS-Pairs (Nangia et al., 2020): sentence pairs that differ in the group they speak of.

``sent_more`` is the more stereotypical sentence of a pair, whatever its direction (``stereo``: it expresses
a stereotype of a disadvantaged group; ``antistereo``: the other sentence violates one). The data
statement forbids training on it. Licence of the data: CC BY-SA 4.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from tracelab import assets
from tracelab.datasets.records import Pair, parse, select
from tracelab.datasets.spans import differing_words
from tracelab.errors import TracelabError, require_choice
from tracelab.tokens import Span

BIAS_TYPES = (
    "age",
    "disability",
    "gender",
    "nationality",
    "physical-appearance",
    "race-color",
    "religion",
    "sexual-orientation",
    "socioeconomic",
)
DIRECTIONS = ("stereo", "antistereo")  # in the order of the hub's class labels
HUB_ID = "nyu-mll/crows_pairs"


@dataclass(frozen=True)
class CrowsPair:
    """One pair; ``more_words`` and ``less_words`` are the spans of the words in which they differ."""

    id: str
    bias_type: str
    direction: str
    sent_more: str
    sent_less: str
    more_words: tuple[Span, ...]
    less_words: tuple[Span, ...]

    def pair(self) -> Pair:
        """The pair in the stereotype / anti-stereotype naming that the localisers take."""
        return Pair(self.id, self.bias_type, self.sent_more, self.sent_less, self.more_words, self.less_words)


def crows_pairs(bias: str | None = None, *, source: str | Path = "wheel", limit: int | None = None) -> list[CrowsPair]:
    """Read CrowS-Pairs.

    Args:
        bias: one of :data:`BIAS_TYPES` ("race" is taken for "race-color"), or None for all.
        source: ``"wheel"`` (the embedded copy), ``"hub"``, or a path to the official CSV file.
        limit: at most so many pairs.

    Raises:
        TracelabError: unknown bias type; a file that is not CrowS-Pairs.
    """
    if bias is not None:
        bias = require_choice("bias type", {"race": "race-color"}.get(bias, bias), BIAS_TYPES)
    records = list(_hub() if source == "hub" else _read(_path(source)))
    return select(records, bias, limit, what="CrowS-Pairs")


def _path(source: str | Path) -> Path:
    if source == "wheel":
        return assets.data_dir() / "CrowS-Pairs/data/crows_pairs_anonymized.csv"
    path = Path(source).expanduser()
    if not path.is_file():
        raise TracelabError(f'no CrowS-Pairs file at {str(source)!r}: give a path, "wheel" or "hub"')
    return path


def _read(path: Path) -> tuple[CrowsPair, ...]:
    return _file(path, path.stat().st_mtime_ns)  # a changed file is read again


@lru_cache(maxsize=2)
def _file(path: Path, changed: int) -> tuple[CrowsPair, ...]:
    def read() -> list[CrowsPair]:
        rows = pd.read_csv(path, index_col=0).to_dict("index")
        return [_record(str(key), row) for key, row in rows.items()]

    return tuple(parse(str(path), read))


def _hub() -> list[CrowsPair]:
    from datasets import load_dataset

    try:
        # The repository holds a loading script, which `datasets` no longer runs: take the hub's own conversion.
        rows = load_dataset(HUB_ID, split="test", revision="refs/convert/parquet")
    except (OSError, ValueError, RuntimeError) as error:
        raise TracelabError(f"cannot load {HUB_ID} from the hub: {error}") from error
    types = rows.features["bias_type"]

    def rename(row: dict[str, Any]) -> dict[str, Any]:
        direction = DIRECTIONS[row["stereo_antistereo"]]
        return {
            **row,
            "bias_type": types.int2str(row["bias_type"]),
            "stereo_antistereo": direction,
        }

    return parse(HUB_ID, lambda: [_record(str(row["id"]), rename(row)) for row in rows])


def _record(key: str, row: dict[str, Any]) -> CrowsPair:
    more, less = row["sent_more"].strip(), row["sent_less"].strip()
    return CrowsPair(
        id=key,
        bias_type=require_choice("bias type", row["bias_type"], BIAS_TYPES),
        direction=require_choice("direction", row["stereo_antistereo"], DIRECTIONS),
        sent_more=more,
        sent_less=less,
        more_words=differing_words(more, less)[0],
        less_words=differing_words(more, less)[1],
    )
