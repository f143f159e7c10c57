"""``tracelab score``: a benchmark, before and under edits."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Sequence
from typing import Any

from tracelab.cli import loading, workers
from tracelab.cli.words import PAIRED
from tracelab.datasets import pairs
from tracelab.errors import TracelabError
from tracelab.evaluate import edited_scores
from tracelab.evaluate.benchmarks.lm_eval import PREFIX
from tracelab.evaluate.edited import compared
from tracelab.evaluate.registry import benchmark
from tracelab.evaluate.scores import Benchmark
from tracelab.interventions.base import Intervention
from tracelab.results import Result
from tracelab.shards.measurements import OWN, SCORE


def run(options: argparse.Namespace) -> Result:
    """``tracelab score``: rows of the unedited model, and with edits those of the edited one and
    the differences."""
    loading.strengths(options, len(options.edit or []))
    if options.allow_mismatch and not options.edit:
        raise TracelabError("--allow-mismatch is of edits: name them with --edit")
    chosen = benchmark(options.benchmark)
    more = _scoring(chosen, options)
    edit = loading.one_edit(options) if options.edit else None
    name = chosen.name if options.data is None else f"{OWN}{chosen.name}"
    chosen, records = _records(chosen, options)
    if options.engine is not None:
        return _in_shards(options, f"{SCORE}{name}", records, edit, more)
    model = loading.load_model(options)

    def measure(name: str | None) -> Any:
        return chosen.score(model, records, edit=name, seed=options.seed, **more)

    if edit is None:
        return measure(None)
    return edited_scores(model, edit, measure, seed=options.seed)


def _in_shards(
    options: argparse.Namespace,
    measurement: str,
    records: Sequence[Any],
    edit: Intervention | None,
    more: dict[str, Any],
) -> Result:
    """The same by many workers."""
    requests = [workers.spec_of(options, measurement, more)]
    if edit is not None:
        bundles = loading.edit_specs(options, options.edit)
        requests.append(workers.spec_of(options, measurement, more, bundles))
    before, *after = workers.measured(options, *((spec, records) for spec in requests))
    return before if edit is None else compared(before, after[0], edit, seed=options.seed)


def _scoring(chosen: Benchmark, options: argparse.Namespace) -> dict[str, Any]:
    """How the benchmark is scored, as far as it was said.

    Raises:
        TracelabError: an option that means nothing to it.
    """
    found: dict[str, Any] = {}
    takes = inspect.signature(chosen.score).parameters
    if options.batch_tokens is not None:
        if "batch_tokens" not in takes:
            raise TracelabError(f"{chosen.name} has no --batch-tokens: leave it out")
        found["batch_tokens"] = options.batch_tokens
    for name, given in (
        ("include_path", options.include_path),
        ("apply_chat_template", options.apply_chat_template or None),
    ):
        if given is not None:
            if not chosen.name.startswith(PREFIX):
                raise TracelabError(f"--{name.replace('_', '-')} is of {PREFIX}TASK: leave it out")
            found[name] = given
    return found


def _records(chosen: Benchmark, options: argparse.Namespace) -> tuple[Benchmark, Sequence[Any]]:
    """The benchmark, or its measure on pairs of one's own, and the records."""
    where = {
        name: given for name in ("split", "source") if (given := getattr(options, name)) is not None
    }
    if options.data is not None:
        if chosen.name not in PAIRED:
            raise TracelabError(
                f"{chosen.name} cannot be measured on --data: {', '.join(PAIRED)} can"
            )
        if where:
            raise TracelabError(f"--data is what is scored: leave --{' and --'.join(where)} out")
        own = pairs(options.data, bias=options.bias, limit=options.limit)
        return chosen.on(own), own
    if options.bias is not None and not chosen.biases:
        raise TracelabError(f"{chosen.name} has no bias types: leave --bias out")
    refused = [f"--{name}" for name in where if name not in chosen.where]
    if refused:
        raise TracelabError(f"{chosen.name} has no {' and no '.join(refused)}")
    return chosen, chosen.read(options.bias, options.limit, **where)
