"""``tracelab attention``: the attention gap."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from tracelab.cli import loading
from tracelab.datasets import crows_pairs, stereoset
from tracelab.errors import require_choice
from tracelab.localize import attention_gap
from tracelab.localize.attention.attention_gap import REDUCTIONS
from tracelab.results import Result


def run(options: argparse.Namespace) -> Result:
    """``tracelab attention``."""
    require_choice("reduction", options.reduce, REDUCTIONS)
    read = crows_pairs if options.data == "crows-pairs" else stereoset
    pairs: Sequence[Any] = read(options.bias, source=options.source, limit=options.limit)
    return attention_gap(
        loading.load_model(options),
        pairs,
        layer=options.layer,
        heads="mean" if options.head is None else [options.head],
        reduce=options.reduce,
        seed=options.seed,
    )
