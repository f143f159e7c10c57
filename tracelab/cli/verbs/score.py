"""``tracelab score``: a benchmark, before and under edits."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from tracelab.cli import loading
from tracelab.errors import TracelabError
from tracelab.evaluate import edited_scores
from tracelab.evaluate.registry import benchmark
from tracelab.results import Result


def run(options: argparse.Namespace) -> Result:
    """``tracelab score``: rows of the unedited model, and with edits those of the edited one and
    the differences."""
    loading.strengths(options, len(options.edit or []))
    edit = loading.one_edit(options) if options.edit else None
    records = _records(options)
    model = loading.load_model(options)
    if edit is None:
        return _measure(model, records, options, None)
    return edited_scores(
        model, edit, lambda name: _measure(model, records, options, name), seed=options.seed
    )


def _records(options: argparse.Namespace) -> Sequence[Any]:

    chosen = benchmark(options.benchmark)
    if options.bias is not None and not chosen.biases:
        raise TracelabError(f"{chosen.name} has no bias types: leave --bias out")
    where = {
        name: given for name in ("split", "source") if (given := getattr(options, name)) is not None
    }
    refused = [f"--{name}" for name in where if name not in chosen.where]
    if refused:
        raise TracelabError(f"{chosen.name} has no {' and no '.join(refused)}")
    return chosen.read(options.bias, options.limit, **where)


def _measure(
    model: Any, records: Sequence[Any], options: argparse.Namespace, edit: str | None
) -> Any:

    return benchmark(options.benchmark).score(model, records, edit=edit, seed=options.seed)
