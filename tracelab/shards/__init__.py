"""Long measurements in pieces, by one process or by many.

A *shard* is some records of a request; what is measured on it depends on the request's
:class:`~tracelab.shards.spec.Spec`, which is data (model id, paths of bundles, options, seed), and
on nothing else: a live model or hook never leaves its process. So any engine makes the same shards,
and the same table of them; a finished one is stored under its request and not made again.

>>> from tracelab.shards import ModelSpec, Process, Spec, measure
>>> pairs = tracelab.datasets.crows_pairs("gender", limit=4)
>>> measure(Spec("score/crows-pairs", ModelSpec()), pairs, engine=Process(), shard_size=2).frame

| module | what |
|---|---|
| :mod:`.spec` | what is asked |
| :mod:`.measurements` | what each measurement does on a shard, and how shards become one result |
| :mod:`.worker` | a process that measures shards, its model loaded once |
| :mod:`.requests` | cutting, resuming, joining |
| :mod:`.engines` | who works: this process, Ray, torchrun |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracelab.lazy import names_from

if TYPE_CHECKING:
    from tracelab.shards.engines import Engine
    from tracelab.shards.engines.process import Process
    from tracelab.shards.engines.ray import Ray
    from tracelab.shards.engines.torchrun import Torchrun
    from tracelab.shards.requests import Request, measure, measure_all
    from tracelab.shards.spec import EditSpec, ModelSpec, Spec

_HOMES = {
    "EditSpec": "tracelab.shards.spec",
    "Engine": "tracelab.shards.engines",
    "ModelSpec": "tracelab.shards.spec",
    "Process": "tracelab.shards.engines.process",
    "Ray": "tracelab.shards.engines.ray",
    "Request": "tracelab.shards.requests",
    "Spec": "tracelab.shards.spec",
    "Torchrun": "tracelab.shards.engines.torchrun",
    "measure": "tracelab.shards.requests",
    "measure_all": "tracelab.shards.requests",
}
__all__ = [
    "EditSpec",
    "Engine",
    "ModelSpec",
    "Process",
    "Ray",
    "Request",
    "Spec",
    "Torchrun",
    "measure",
    "measure_all",
]
__getattr__, __dir__ = names_from(__name__, _HOMES)
