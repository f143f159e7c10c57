"""``tracelab attention``: the attention gap."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from tracelab.cli import loading, workers
from tracelab.datasets import crows_pairs, pairs, stereoset
from tracelab.errors import require_choice
from tracelab.localize import attention_gap
from tracelab.localize.attention.attention_gap import REDUCTIONS
from tracelab.results import Result

READ: dict[str, Callable[..., Sequence[Any]]] = {
    "crows-pairs": crows_pairs,
    "stereoset": stereoset,
}


def run(options: argparse.Namespace) -> Result:
    """``tracelab attention``."""
    require_choice("reduction", options.reduce, REDUCTIONS)
    if (read := READ.get(options.data)) is not None:
        records: Sequence[Any] = read(options.bias, source=options.source, limit=options.limit)
    else:
        loading.require_default_source(options)
        records = pairs(options.data, bias=options.bias, limit=options.limit)
    how: dict[str, Any] = {
        "layer": options.layer,
        "heads": "mean" if options.head is None else [options.head],
        "reduce": options.reduce,
    }
    if options.batch_tokens is not None:
        how["batch_tokens"] = options.batch_tokens
    if options.engine is not None:
        return workers.measured(options, (workers.spec_of(options, "attention", how), records))[0]
    return attention_gap(loading.load_model(options), records, seed=options.seed, **how)
