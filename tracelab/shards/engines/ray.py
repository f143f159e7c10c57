"""Workers of a Ray cluster, or of a small one that is started here for the time of the work.

Ray Data starts one actor a worker, replaces one that is killed and does its shard again. A cluster
started here is told of more processors than there are, as its own tasks wait for a slot beside the
workers'; each worker gets its share of this process's threads.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from tracelab.errors import TracelabError
from tracelab.shards.worker import Refused, Task, Worker

RETRIES = 3
"""How often a worker is replaced, and a shard done again, before the work is given up."""
SPARE_SLOTS = 4
"""Processors that a cluster started here has beside one a worker: for Ray Data's own tasks."""


@dataclass(frozen=True)
class Ray:
    """The engine of Ray Data.

    Args:
        workers: processes, each with its own copy of the model.
        gpus_per_worker: devices that each gets; a share, as .5, lets workers share one.
        address: of a cluster that runs already (``auto``, ``ray://host:10001``); default: one is
            started here.

    Raises:
        TracelabError: Ray is not installed.
    """

    workers: int = 1
    gpus_per_worker: float = 0.0
    address: str | None = None

    def __post_init__(self) -> None:
        if find_spec("ray") is None:
            raise TracelabError(
                "the engine ray needs Ray: pip install 'tracelab[ray]', or take torchrun"
            )

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, bytes | Refused]]:
        """See :class:`~tracelab.shards.engines.Engine`."""
        import ray
        import ray.data

        if not tasks:
            return
        own = not ray.is_initialized()
        if own:
            _start(self)
        try:
            logging.getLogger("ray.data").setLevel(logging.ERROR)
            context = ray.data.DataContext.get_current()
            context.enable_progress_bars = False
            rows = [{"number": n, "task": pickle.dumps(task)} for n, task in enumerate(tasks)]
            done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
                _Actor,
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(
                    size=min(self.workers, len(tasks)), max_tasks_in_flight_per_actor=1
                ),
                num_cpus=1,
                num_gpus=self.gpus_per_worker or None,
                max_restarts=RETRIES,
                max_task_retries=RETRIES,
            )
            for row in done.iter_rows():
                yield int(row["number"]), pickle.loads(row["answer"])
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise TracelabError(
                f"the workers were lost ({type(error).__name__}: {reason}): finished shards are "
                "kept with --out; ask for fewer workers or smaller batches"
            ) from error
        finally:
            if own:
                ray.shutdown()


class _Actor:
    """A worker as Ray Data knows it: a batch is one task."""

    def __init__(self) -> None:
        self._work = Worker()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        answer = self._work(pickle.loads(batch["task"][0]))
        return {"number": batch["number"], "answer": [pickle.dumps(answer)]}


def _start(engine: Ray) -> None:
    import ray

    if engine.address is None:
        threads = max(1, torch.get_num_threads() // engine.workers)
        options: dict[str, Any] = {
            "num_cpus": engine.workers + SPARE_SLOTS,
            "include_dashboard": False,
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(threads)}},
        }
    else:
        options = {"address": engine.address}
    try:
        ray.init(logging_level=logging.ERROR, log_to_driver=False, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise TracelabError(
            f"no Ray cluster can be used at {engine.address or 'this machine'}: {reason}"
        ) from error
    there = ray.cluster_resources().get("GPU", 0.0)
    if engine.gpus_per_worker > there:
        ray.shutdown()
        raise TracelabError(
            f"each worker was to have {engine.gpus_per_worker:g} GPUs, and Ray sees {there:g}: a "
            "worker would wait for ever"
        )
