"""The model and the edits that a command names."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import logging

from tracelab.errors import TracelabError
from tracelab.interventions.base import Intervention
from tracelab.interventions.methods import load_intervention
from tracelab.interventions.stack import Stack
from tracelab.model.load import load


def load_model(options: argparse.Namespace) -> Any:
    """The model of ``--model``."""
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    trusted = options.trust_remote_code
    return load(
        options.model, dtype=options.dtype, device=options.device, trust_remote_code=trusted
    )


def edits_of(options: argparse.Namespace) -> list[Intervention]:
    """The bundles of ``--edit``."""
    return [load_intervention(path, allow_mismatch=options.allow_mismatch) for path in options.edit]


def one_edit(options: argparse.Namespace) -> Intervention:
    """The one edit, or the stack of several, that ``--edit`` names."""
    edits = edits_of(options)
    return edits[0] if len(edits) == 1 else Stack(edits)


def row(
    path: str, options: argparse.Namespace, known: Mapping[str, Intervention]
) -> dict[str, Intervention]:
    """A bundle under its folder's name.

    Raises:
        TracelabError: one of that name is known.
    """
    name = Path(path).name or path
    if name in known:
        raise TracelabError(
            f"two bundles are called {name!r}: rows take the folders' names, rename one"
        )
    return {name: load_intervention(path, allow_mismatch=options.allow_mismatch)}
