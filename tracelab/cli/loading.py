"""The model and the edits that a command names."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.utils import logging

from tracelab.errors import TracelabError
from tracelab.interventions.base import Intervention
from tracelab.interventions.methods import load_intervention
from tracelab.interventions.stack import Stack
from tracelab.model.load import load
from tracelab.shards.spec import EditSpec


def load_model(options: argparse.Namespace) -> Any:
    """The model of ``--model``."""
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    trusted = options.trust_remote_code
    return load(
        options.model,
        dtype=options.dtype,
        device=options.device,
        revision=options.revision,
        trust_remote_code=trusted,
    )


def strengths(options: argparse.Namespace, n: int) -> list[float]:
    """What ``--strength`` says for each of ``n`` edits: one for all, or one each.

    Raises:
        TracelabError: other numbers of them, or no edit.
    """
    given = options.strength or [1.0]
    if options.strength and not n:
        raise TracelabError("--strength is that of edits: name them with --edit")
    if len(given) not in (1, n):
        raise TracelabError(
            f"--strength stands {len(given)} times beside {n} edits: give it once for all, or once "
            "for each in their order"
        )
    return given * n if len(given) == 1 else given


def load_edit(path: str, options: argparse.Namespace, strength: float) -> Intervention:
    """A bundle at a strength."""
    edit = load_intervention(path, allow_mismatch=options.allow_mismatch)
    return edit if strength == 1 else edit.scaled(strength)


def edits_of(options: argparse.Namespace) -> list[Intervention]:
    """The bundles of ``--edit``."""
    scales = strengths(options, len(options.edit))
    return [load_edit(path, options, each) for path, each in zip(options.edit, scales, strict=True)]


def here(path: str) -> str:
    """A path that leads somewhere from here as one that does so from anywhere; a hub id as it
    is."""
    return os.path.abspath(path) if os.path.exists(path) else path


def edit_specs(options: argparse.Namespace, paths: Sequence[str]) -> list[EditSpec]:
    """Bundles as a worker loads them, each at its strength."""
    scales = strengths(options, len(paths))
    return [
        EditSpec(here(path), strength, options.allow_mismatch)
        for path, strength in zip(paths, scales, strict=True)
    ]


def one_edit(options: argparse.Namespace) -> Intervention:
    """The one edit, or the stack of several, that ``--edit`` names."""
    edits = edits_of(options)
    return edits[0] if len(edits) == 1 else Stack(edits)


def row(
    path: str,
    options: argparse.Namespace,
    strength: float = 1.0,
    known: Mapping[str, Intervention] | None = None,
) -> dict[str, Intervention]:
    """A bundle under its folder's name, with its strength where that is another than 1.

    Raises:
        TracelabError: one of that name is known.
    """
    name = (Path(path).name or path) + ("" if strength == 1 else f" × {strength:g}")
    if name in (known or {}):
        raise TracelabError(
            f"two bundles are called {name!r}: rows take the folders' names, rename one"
        )
    return {name: load_edit(path, options, strength)}


def require_default_source(options: argparse.Namespace) -> None:
    """Refuse ``--source`` beside ``--data`` of one's own.

    Raises:
        TracelabError: both are given.
    """
    if options.source != "wheel":
        raise TracelabError("--data is what is measured on: leave --source out")
