"""This process alone, one shard after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tracelab.shards.worker import Refused, Task, Worker


class Process:
    """The engine that needs nothing: this process."""

    def __init__(self) -> None:
        self.worker = Worker()

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, bytes | Refused]]:
        """See :class:`~tracelab.shards.engines.Engine`."""
        for number, task in enumerate(tasks):
            yield number, self.worker(task)
