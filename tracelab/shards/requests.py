"""Cutting requests into shards, resuming those that are there, joining all of them.

The cut depends on the request alone, not on who works or how many: so every engine makes the same
shards, with the same batches in them, and the joined tables are equal to the last bit where the
machines compute alike.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from tracelab.datasets.records import Sentence
from tracelab.errors import TracelabError
from tracelab.evaluate.benchmarks.lm_eval import PREFIX
from tracelab.localize.tracing.pieces import TracePlan
from tracelab.model.settings import LAYOUT
from tracelab.progress import progress
from tracelab.ranges import require_int
from tracelab.results import Result
from tracelab.shards.engines import Engine
from tracelab.shards.engines.process import Process
from tracelab.shards.measurements import joined, measurement, require_alike
from tracelab.shards.spec import ModelSpec, Spec
from tracelab.shards.worker import Refused, Task, unpack
from tracelab.storage.checkpoint import open_entry
from tracelab.storage.data_hash import data_hash
from tracelab.storage.locks import locked
from tracelab.storage.ownership import file_name

VERSIONED = ("tracelab", "torch", "transformers", "transformer-lens")


@dataclass(frozen=True)
class Request:
    """A specification, the records that it is asked of, and how many of them make a shard.

    Attributes:
        told: settings of the joined result that no shard can tell.
    """

    spec: Spec
    records: Sequence[Any]
    shard_size: int | None = None
    told: Mapping[str, Any] = field(default_factory=dict)

    def tasks(self) -> list[Task]:
        """The shards, in the order of the records."""
        size = self.shard_size if measurement(self.spec).size else None
        size = size or measurement(self.spec).size or len(self.records)
        n, edits = len(self.records), [edit.key() for edit in self.spec.edits]
        count = -(-n // size)  # of nearly one size, so that the last is no rest of one record
        bounds = [k * n // count for k in range(count + 1)]
        return [
            Task(self.spec, self.records[first:last], edits) for first, last in pairwise(bounds)
        ]


def measure(
    spec: Spec,
    records: Sequence[Any],
    *,
    engine: Engine | None = None,
    folder: Path | str | None = None,
    shard_size: int | None = None,
) -> Any:
    """Measure records in shards; a causal trace of them is planned first.

    Args:
        records: what the measuring function takes.
        engine: who works; default: this process.
        folder: where finished shards are kept; an equal request goes on from them.
        shard_size: records a shard; the default depends on the measurement.

    Returns:
        What the measuring function itself returns: scores, a trace, an attention gap.

    Raises:
        TracelabError: no records, an unknown measurement, what a worker refused, or shards that
            were measured on different weights.
    """
    (result,) = measure_all([Request(spec, records, shard_size)], engine=engine, folder=folder)
    return result


def measure_all(
    requests: Sequence[Request],
    *,
    engine: Engine | None = None,
    folder: Path | str | None = None,
    go_on: bool = False,
    entries: list[str] | None = None,
) -> list[Any]:
    """Several requests at once, so that nobody waits for the last shard of one.

    Args:
        go_on: whether the others are measured when one is refused.
        entries: gets the names under which shards are kept.

    Returns:
        Of each request what :func:`measure` returns; with ``go_on`` it may be
        :class:`~tracelab.shards.worker.Refused`.

    Raises:
        TracelabError: as :func:`measure`.
    """
    for request in requests:
        if request.shard_size is not None:
            require_int("shard_size", request.shard_size)
        if not request.records:
            raise TracelabError(f"no records for {request.spec.measurement}")
        measurement(request.spec)  # refuses an unknown one
    with _folder(folder) as place:
        shelf = _Shelf(engine or Process(), place, go_on, entries if entries is not None else [])
        planned = [_planned(request, shelf) for request in requests]
        tasks = [[] if isinstance(each, Refused) else each.tasks() for each in planned]
        made = iter(shelf.answers([task for each in tasks for task in each]))
        found = [
            request if isinstance(request, Refused) else _whole(request, [next(made) for _ in each])
            for request, each in zip(planned, tasks, strict=True)
        ]
    _require_one_model(requests, found)
    return found


def _require_one_model(requests: Sequence[Request], found: Sequence[Result | Refused]) -> None:
    """Refuse results of one specification of a model that were measured on different weights."""
    known: dict[ModelSpec, Result] = {}
    for request, result in zip(requests, found, strict=True):
        if isinstance(result, Result):
            require_alike(known.setdefault(request.spec.model, result), result)


def _whole(request: Request, answers: Sequence[Result | Refused]) -> Result | Refused:
    parts = [each for each in answers if isinstance(each, Result)]
    refused = [each for each in answers if isinstance(each, Refused)]
    if refused:
        return refused[0]
    result = joined(request.spec, parts, request.records)
    told = {"data_hash": _records_hash(request.records)} if len(parts) > 1 else {}
    return replace(result, settings=result.settings | told | dict(request.told))


@contextmanager
def _folder(folder: Path | str | None) -> Iterator[Path]:
    if folder is None:
        with tempfile.TemporaryDirectory() as made:
            yield Path(made)
    else:
        with locked(folder):
            yield Path(folder)


def _planned(request: Request, shelf: _Shelf) -> Request | Refused:
    """A trace as one of the pairs that the plan names, with the noise that it says."""
    if request.spec.measurement != "trace":
        return request
    planning = replace(request.spec, measurement="trace-plan")
    (plan,) = shelf.answers(replace(request, spec=planning).tasks())
    if isinstance(plan, Refused):
        return plan
    assert isinstance(plan, TracePlan)
    chosen = set(plan.cases["case"])
    options = dict(request.spec.options) | {"max_cases": None, "noise_std": plan.noise_std}
    names = ("data_hash", "max_cases", "n_pairs", "n_traceable", "skipped")
    return replace(
        request,
        spec=replace(request.spec, options=options),
        records=[record for record in request.records if record.id in chosen],
        told={name: plan.settings[name] for name in names},
    )


@dataclass(frozen=True)
class _Shelf:
    """Where the answers to tasks are kept, and who gives those that are not there.

    Attributes:
        names: of the entries that were asked for.
    """

    engine: Engine
    folder: Path
    go_on: bool
    names: list[str]

    def answers(self, tasks: Sequence[Task]) -> list[Result | Refused]:
        """The answer to each task: those that are kept, then those that the engine makes.

        Raises:
            TracelabError: one was refused and the others are not to be measured, or none came.
        """
        entries = [_entry(task) for task in tasks]  # before an edit's files can change
        self.names.extend(name for name, _ in entries)
        found: dict[int, Result | Refused] = {}
        for number, task in enumerate(tasks):
            if (kept := self._kept(task, entries[number])) is not None:
                found[number] = kept
        missing = [number for number in range(len(tasks)) if number not in found]
        with progress(total=len(tasks), what="shards", unit="shard") as bar:
            bar.update(len(found))
            for place, answer in self.engine.run([tasks[number] for number in missing]):
                number = missing[place]
                if not isinstance(answer, Refused):
                    found[number] = self._keep(tasks[number], entries[number], answer)
                elif self.go_on:
                    found[number] = answer
                else:
                    raise TracelabError(answer.reason)
                bar.update()
        if len(found) < len(tasks):
            raise TracelabError(f"{len(tasks) - len(found)} shards were lost: run it again")
        return [found[number] for number in range(len(tasks))]

    def _kept(self, task: Task, entry: tuple[str, dict[str, Any]]) -> Result | None:
        with open_entry(self.folder, *entry) as opened:
            return opened.load(measurement(task.spec).kind.load)

    def _keep(self, task: Task, entry: tuple[str, dict[str, Any]], archive: bytes) -> Result:
        with open_entry(self.folder, *entry) as opened:
            opened.save(lambda path: unpack(archive, path))
            result = opened.load(measurement(task.spec).kind.load)
        if result is None:
            raise TracelabError(
                f"a shard of {task.spec.measurement} came back damaged: run it again"
            )
        return result


def _entry(task: Task) -> tuple[str, dict[str, Any]]:
    """The name under which a shard is stored, and the request that it answers."""
    of_harness = ("lm_eval",) if PREFIX in task.spec.measurement else ()
    request = {
        "spec": task.spec.key(),
        "data_hash": _records_hash(task.records),
        "versions": {name: version(name) for name in (*VERSIONED, *of_harness)},
        "layout": LAYOUT,
    }
    digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:16]
    return file_name(f"{task.spec.measurement.replace('/', '-')}-{digest}"), request


def _records_hash(records: Sequence[Any]) -> str:
    """As results of one call have it."""
    numbered = enumerate(records)
    return data_hash(Sentence(str(k), r) if isinstance(r, str) else r for k, r in numbered)
