"""Who measures shards. An engine is given tasks and hands each one's answer back as it is done, in
any order: scheduling, retries and machines are its own affair."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

from tracelab.shards.worker import Refused, Task


@runtime_checkable
class Engine(Protocol):
    """What :func:`~tracelab.shards.requests.measure` needs of one."""

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, bytes | Refused]]:
        """The number of each task and its answer (see :class:`~tracelab.shards.worker.Worker`), as
        they are done."""
        ...
