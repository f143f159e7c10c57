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
from pathlib import Path
from typing import Any

from tracelab.errors import TracelabError
from tracelab.localize.tracing.pieces import TracePlan
from tracelab.model.settings import LAYOUT
from tracelab.progress import progress
from tracelab.ranges import require_int
from tracelab.results import Result
from tracelab.shards.engines import Engine
from tracelab.shards.engines.process import Process
from tracelab.shards.measurements import joined, measurement
from tracelab.shards.spec import Spec
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
        starts = range(0, len(self.records), size)
        return [Task(self.spec, self.records[start : start + size]) for start in starts]


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
    if isinstance(result, Refused):
        raise TracelabError(result.reason)
    return result


def measure_all(
    requests: Sequence[Request],
    *,
    engine: Engine | None = None,
    folder: Path | str | None = None,
) -> list[Result | Refused]:
    """Several requests at once, so that nobody waits for the last shard of one.

    Returns:
        Of each request what :func:`measure` returns, or why it was refused.

    Raises:
        TracelabError: no records, an unknown measurement, or shards measured on different weights.
    """
    for request in requests:
        if request.shard_size is not None:
            require_int("shard_size", request.shard_size)
        if not request.records:
            raise TracelabError(f"no records for {request.spec.measurement}")
    engine = engine or Process()
    with _folder(folder) as place:
        planned = [_planned(request, engine, place) for request in requests]
        tasks = [[] if isinstance(each, Refused) else each.tasks() for each in planned]
        made = iter(_measured([task for each in tasks for task in each], engine, place))
        return [
            request if isinstance(request, Refused) else _whole(request, [next(made) for _ in each])
            for request, each in zip(planned, tasks, strict=True)
        ]


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


def _planned(request: Request, engine: Engine, folder: Path) -> Request | Refused:
    """A trace as one of the pairs that the plan names, with the noise that it says."""
    if request.spec.measurement != "trace":
        return request
    planning = replace(request.spec, measurement="trace-plan")
    (plan,) = _measured([Task(planning, request.records)], engine, folder)
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


def _measured(tasks: Sequence[Task], engine: Engine, folder: Path) -> list[Result | Refused]:
    """The answer to each task: those that are stored, then those that the engine makes."""
    found: list[Result | Refused | None] = [_stored(task, folder) for task in tasks]
    missing = [number for number, result in enumerate(found) if result is None]
    with progress(total=len(tasks), what="shards", unit="shard") as bar:
        bar.update(len(tasks) - len(missing))
        for place, answer in engine.run([tasks[number] for number in missing]):
            number = missing[place]
            if not isinstance(answer, Refused):
                found[number] = _store(tasks[number], answer, folder)
            else:
                found[number] = answer
            bar.update()
    return [result for result in found if result is not None]


def _stored(task: Task, folder: Path) -> Result | None:
    with open_entry(folder, *_entry(task)) as entry:
        return entry.load(measurement(task.spec).kind.load)


def _store(task: Task, archive: bytes, folder: Path) -> Result:
    with open_entry(folder, *_entry(task)) as entry:
        entry.save(lambda path: unpack(archive, path))
        result = entry.load(measurement(task.spec).kind.load)
    if result is None:
        raise TracelabError(f"a shard of {task.spec.measurement} came back damaged: run it again")
    return result


def _entry(task: Task) -> tuple[str, dict[str, Any]]:
    """The name under which a shard is stored, and the request that it answers."""
    request = {
        "spec": task.spec.key(),
        "data_hash": _records_hash(task.records),
        "versions": {name: version(name) for name in VERSIONED},
        "layout": LAYOUT,
    }
    digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:16]
    return file_name(f"{task.spec.measurement.replace('/', '-')}-{digest}"), request


def _records_hash(records: Sequence[Any]) -> str:
    if all(isinstance(record, str) for record in records):
        return hashlib.sha256(json.dumps(list(records)).encode()).hexdigest()[:16]
    return data_hash(records)
