"""Results and edits kept in a folder under what was asked for, so that the same request is not carried out again.

``NAME/`` holds what was made and ``NAME.key`` the request that made it; a request that differs in anything (model,
weights, data, settings, versions, seed) finds nothing and makes it anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from tracelab.errors import TracelabError


@runtime_checkable
class Saved(Protocol):
    """What writes itself into a folder: results and interventions."""

    def save(self, path: Any, /) -> Path: ...  # noqa: D102


S = TypeVar("S", bound=Saved)


def kept(
    folder: Path,
    name: str,
    load: Callable[[Path], S],
    request: Any,
    make: Callable[[], S],
    *,
    say: Callable[[str], None] = lambda text: None,
    making: str = "measuring",
) -> S:
    """What an equal request left in ``folder / name``, or else a new one, which is left there.

    Args:
        load: reads what ``save`` wrote.
        request: JSON values that tell everything it depends on.
        say: told what happens.
        making: what making it is called.
    """
    key = json.dumps(request, sort_keys=True)
    file = folder / f"{name}.key"
    if file.is_file() and file.read_text(encoding="utf-8") == key:
        try:
            found = load(folder / name)
        except (TracelabError, OSError, ValueError, TypeError):
            say(f"{name}: what lies in {folder / name} cannot be read")
        else:
            say(f"{name}: taken from {folder / name}")
            return found
    say(f"{name}: {making}")
    made = make()
    file.unlink(missing_ok=True)  # a key never stands beside what another request made
    made.save(folder / name)
    file.write_text(key, encoding="utf-8")
    return made
