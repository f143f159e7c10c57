"""What is measured on a shard, and how the results of all shards become one.

Units (records, pairs, cases) are measured each alone, so their tables are laid one after the other
and what is made of them (means, intervals, tests) is made anew of all of them. What is drawn for
several units (BOLD's samples, the words of neutral swaps) is drawn in each shard from the seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tracelab.datasets.templates import Corpus
from tracelab.errors import TracelabError, require_choice
from tracelab.evaluate.benchmarks.lm_eval import PREFIX
from tracelab.evaluate.registry import benchmark
from tracelab.evaluate.scores import Benchmark
from tracelab.localize.attention.attention_gap import KEEP_MAPS, AttentionGap, attention_gap
from tracelab.localize.attention.pieces import joined_gaps
from tracelab.localize.probing.pieces import HarvestPart, harvest_part, joined_harvests
from tracelab.localize.tracing.causal_trace import causal_trace
from tracelab.localize.tracing.pieces import TracePlan, joined_traces, plan_trace
from tracelab.localize.tracing.result import CausalTrace
from tracelab.results import Result
from tracelab.shards.spec import Spec

SCORE, OWN = "score/", "own-"
WHOLE = ("attention", "wikitext-2")
"""Benchmarks that are measured at once: a selection or windows over all records."""

Run = Callable[[Any, Sequence[Any], Spec], Result]
Join = Callable[[Sequence[Any], Sequence[Any], Spec], Result]


@dataclass(frozen=True)
class Measurement:
    """How a measurement is made in pieces.

    Attributes:
        kind: class of the results.
        run: ``(model, records, spec)`` to the result of a shard.
        join: ``(results, records, spec)`` to that of all records, with the settings of the first.
        size: records of a shard unless the caller says otherwise; None: all of them, always.
    """

    kind: type[Result]
    run: Run
    join: Join
    size: int | None


def measurement(spec: Spec) -> Measurement:
    """The measurement that a request asks for.

    Raises:
        TracelabError: there is none of that name.
    """
    if spec.measurement.startswith(SCORE):
        return _scoring(spec.measurement.removeprefix(SCORE), "max_length" in spec.options)
    return MEASUREMENTS[require_choice("measurement", spec.measurement, MEASUREMENTS)]


def joined(spec: Spec, parts: Sequence[Result], records: Sequence[Any]) -> Result:
    """One result of those of all shards, in their order.

    Raises:
        TracelabError: they were not measured in the same way, on the same weights.
    """
    for part in parts:
        require_alike(parts[0], part)
    return parts[0] if len(parts) == 1 else measurement(spec).join(parts, records, spec)


def require_alike(first: Result, second: Result) -> None:
    """Refuse results of different weights or versions as parts of one, or for comparison.

    Raises:
        TracelabError: naming both.
    """
    for name in ("model", "versions"):
        ours, theirs = (_without_device(each.settings[name]) for each in (first, second))
        if ours != theirs:
            raise TracelabError(
                f"shards were measured by different {name}s, {ours} and {theirs}: all workers "
                "need the same; remove the folder of the shards and begin anew"
            )


def _without_device(value: dict[str, Any]) -> dict[str, Any]:
    return {name: each for name, each in value.items() if name != "device"}


def _scoring(name: str, windows: bool) -> Measurement:
    own = name.startswith(OWN)
    chosen = benchmark(name.removeprefix(OWN))
    whole = windows or chosen.name in WHOLE or chosen.name.startswith(PREFIX)

    def run(model: Any, records: Sequence[Any], spec: Spec) -> Result:
        scored: Benchmark = chosen.on(records) if own else chosen
        return scored.score(model, records, edit=spec.edit_name, seed=spec.seed, **spec.options)

    return Measurement(chosen.kind, run, _joined_scores, None if whole else 256)


def _joined_scores(parts: Sequence[Any], records: Sequence[Any], spec: Spec) -> Result:
    return parts[0].joined(parts, records)


def _trace(model: Any, records: Sequence[Any], spec: Spec) -> Result:
    return causal_trace(model, records, seed=spec.seed, **spec.options)


def _trace_plan(model: Any, records: Sequence[Any], spec: Spec) -> Result:
    return plan_trace(model, records, seed=spec.seed, **spec.options)


def _attention(model: Any, records: Sequence[Any], spec: Spec) -> Result:
    return attention_gap(model, records, seed=spec.seed, **spec.options)


def _joined_traces(parts: Sequence[Any], records: Sequence[Any], spec: Spec) -> Result:
    return joined_traces(parts)


def _joined_gaps(parts: Sequence[Any], records: Sequence[Any], spec: Spec) -> Result:
    return joined_gaps(parts, keep_maps=spec.options.get("keep_maps", KEEP_MAPS))


def _harvest(model: Any, records: Sequence[Any], spec: Spec) -> Result:
    options = dict(spec.options)
    groups = tuple((name, tuple(words)) for name, words in options.pop("groups"))
    return harvest_part(model, Corpus(options.pop("attribute"), groups, tuple(records)), **options)


def _joined_harvests(parts: Sequence[Any], records: Sequence[Any], spec: Spec) -> Result:
    return joined_harvests(parts)


def _never(parts: Sequence[Any], records: Sequence[Any], spec: Spec) -> Result:
    raise AssertionError(f"{spec.measurement} is of all records at once")


MEASUREMENTS = {
    "trace": Measurement(CausalTrace, _trace, _joined_traces, 8),
    "trace-plan": Measurement(TracePlan, _trace_plan, _never, None),
    "harvest": Measurement(HarvestPart, _harvest, _joined_harvests, 1024),
    "attention": Measurement(AttentionGap, _attention, _joined_gaps, 256),
}
