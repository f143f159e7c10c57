"""The finished cases of a causal trace, kept in a file so that an interrupted one goes on from
there.

JSON lines: the settings first, then a line a case with a hash of it, so that a line that was cut or
altered is no case.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tracelab.storage.files import atomic_file
from tracelab.storage.ownership import adopt, made_by_tracelab, require_file, require_ours


def require_cases_file(partial: Path | str) -> Path:
    """Refuse, before any work, a file that no interrupted trace left; returns it.

    Raises:
        TracelabError: it is somebody's own, or nothing can be written there.
    """
    partial = Path(partial)
    require_file(partial)
    if not made_by_tracelab(_json(_lines(partial)[0])):  # 0.1 left no mark
        require_ours(partial)
    return partial


def read_cases(partial: Path, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Finished cases of an interrupted run with the same settings; (re)writes the file to hold just
    these."""
    head = json.dumps({"settings": settings}, sort_keys=True)
    first, *lines = _lines(partial)
    done: dict[str, dict[str, Any]] = {}
    for line in lines if first == head else ():
        values = _json(line)
        if (
            isinstance(values, dict)
            and "case" in values
            and values.pop("sha256", None) == _hash(values)
        ):
            done[str(values.pop("case"))] = values
    adopt([partial])
    with atomic_file(partial) as path:
        path.write_text(
            "\n".join([head, *(_line(case, values) for case, values in done.items())]) + "\n",
            "utf-8",
        )
    return done


def add_case(partial: Path, case: str, values: dict[str, Any]) -> None:
    """Add one more finished case to the file."""
    with partial.open("a", encoding="utf-8") as file:
        file.write(_line(case, values) + "\n")


def _line(case: str, values: dict[str, Any]) -> str:
    content = {"case": case, **values}
    return json.dumps(content | {"sha256": _hash(content)})


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _lines(partial: Path) -> list[str]:
    text = partial.read_bytes().decode(errors="replace") if partial.is_file() else ""
    return text.split("\n")


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
