"""The methods: the one list of interventions that tracelab knows by name, and how one is loaded.

A method of your own needs no place in it: ``load_intervention(path, kinds=(Mine,))``.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tracelab.interventions.base import Intervention
from tracelab.interventions.biasedit.biasedit import BiasEdit
from tracelab.interventions.bundle import read_bundle
from tracelab.interventions.erasure import Erasure
from tracelab.interventions.experts.experts import Experts
from tracelab.interventions.fairmed.fairmed import FairMed
from tracelab.interventions.klaad.klaad import KLAAD
from tracelab.interventions.stack import Stack
from tracelab.interventions.weight_delta import WeightDelta

METHODS: tuple[type[Intervention], ...] = (FairMed, Experts, BiasEdit, KLAAD, Erasure)
"""What can be fitted."""
KINDS: tuple[type[Intervention], ...] = (*METHODS, WeightDelta, Stack)
"""What a bundle can hold."""


def load_intervention(
    path_or_hub_id: Path | str,
    *,
    kinds: Iterable[type[Intervention]] = (),
    revision: str | None = None,
    allow_mismatch: bool = False,
) -> Intervention:
    """Read a bundle from a folder or a hub repository.

    Args:
        kinds: classes of your own that it may hold, besides tracelab's (:data:`KINDS`).
        revision: branch, tag or commit of a hub repository.
        allow_mismatch: accept a model with other weights than the one the edit was made for (never
            other shapes).

    Raises:
        TracelabError: no bundle there, or one that is damaged, altered, of an unknown kind, or from
            a newer version.
    """
    return read_bundle(
        path_or_hub_id, (*KINDS, *kinds), revision=revision, allow_mismatch=allow_mismatch
    )
