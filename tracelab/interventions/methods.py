"""The methods as classes, and how one is loaded; :mod:`.registry` lists them.

A method of your own needs no place there: ``load_intervention(path, kinds=(Mine,))``.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tracelab.interventions.base import Intervention
from tracelab.interventions.bundle import read_bundle
from tracelab.interventions.method import Method
from tracelab.interventions.registry import LISTED, known, with_own

METHODS: tuple[type[Method], ...] = tuple(method.method_class() for method in LISTED)
"""What can be fitted."""
KINDS: tuple[type[Intervention], ...] = known()
"""What a bundle can hold."""


def load_intervention(
    path_or_hub_id: Path | str,
    *,
    kinds: type[Intervention] | Iterable[type[Intervention]] = (),
    revision: str | None = None,
    token: str | bool | None = None,
    allow_mismatch: bool = False,
) -> Intervention:
    """Read a bundle from a folder or a hub repository.

    Args:
        kinds: class or classes of your own that it may hold, besides tracelab's (:data:`KINDS`).
        revision: branch, tag or commit of a hub repository.
        token: of the hub, for a repository that needs one.
        allow_mismatch: accept a model with other weights than the one the edit was made for (never
            other shapes).

    Raises:
        TracelabError: no bundle there, or one that is damaged, altered, of an unknown kind, or from
            a newer version.
    """
    return read_bundle(
        path_or_hub_id,
        with_own(kinds),
        revision=revision,
        token=token,
        allow_mismatch=allow_mismatch,
    )
