"""The processes that ``torchrun`` started, without anything else to install.

    torchrun --no-python --nproc-per-node 2 tracelab score bbq --engine torchrun --out scores/

The first process asks, stores and prints; the others only measure. They work in rounds, a shard
each, so a slow one holds up its round; whatever round was finished is stored. A process that dies
ends all of them: the same command goes on where it was, ``--max-restarts`` lets torchrun do so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from tracelab.errors import TracelabError
from tracelab.shards.worker import Refused, Task, Worker

PATIENCE = timedelta(days=7)
"""How long a process waits for the others: the first reads data, the slowest measures."""


class Torchrun:
    """The engine of the process group that ``torchrun`` describes.

    Raises:
        TracelabError: this process was not started by ``torchrun``.
    """

    def __init__(self) -> None:
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            raise TracelabError(
                "the engine torchrun needs processes that torchrun started: torchrun --no-python "
                "--nproc-per-node 2 tracelab … --engine torchrun"
            )
        dist.init_process_group("gloo", timeout=PATIENCE)  # archives are exchanged, no tensors
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else None
        self.worker = Worker(device)
        self._in_a_round = False

    @property
    def is_first(self) -> bool:
        """Whether this is the process that asks; the others :meth:`serve` it."""
        return dist.get_rank() == 0

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, bytes | Refused]]:
        """See :class:`~tracelab.shards.engines.Engine`; of the first process."""
        size = dist.get_world_size()
        for first in range(0, len(tasks), size):
            handed: list[Task | None] = [*tasks[first : first + size]]
            answers = self._exchange(handed + [None] * (size - len(handed)))
            yield from enumerate(answers[: len(handed)], start=first)

    def serve(self) -> None:
        """Measure what the first process asks, until it says that it is done."""
        while self._exchange(None) is not None:
            pass

    def close(self) -> None:
        """End the group; the first process tells the others. Where a round was broken off they
        wait for what does not come: torchrun ends them with this process."""
        if self._in_a_round:
            return
        if self.is_first:
            dist.scatter_object_list([None], [DONE] * dist.get_world_size())
        dist.destroy_process_group()

    def _exchange(self, tasks: list[Task | None] | None) -> Any:
        """One round: hand out, measure, collect. Of a serving process None when all is done."""
        received: list[Any] = [None]
        self._in_a_round = True
        dist.scatter_object_list(received, tasks)
        if received[0] == DONE:
            self._in_a_round = False
            return None
        answers: list[Any] | None = [None] * dist.get_world_size() if self.is_first else None
        answer = None if received[0] is None else self.worker(received[0])
        dist.gather_object(answer, answers)
        self._in_a_round = False
        return answers if self.is_first else True


DONE = "done"
