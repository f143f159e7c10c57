"""Many workers: who they are, as a command says it, and what a verb asks of them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tracelab.cli.loading import here
from tracelab.errors import TracelabError
from tracelab.shards.engines.process import Process
from tracelab.shards.engines.ray import Ray
from tracelab.shards.engines.torchrun import Torchrun
from tracelab.shards.requests import Request, measure_all
from tracelab.shards.spec import EditSpec, ModelSpec, Spec


def engine_of(options: argparse.Namespace) -> Any:
    """The engine that was asked for; None for the plain way.

    Raises:
        TracelabError: options that are another engine's, or an engine that is not there.
    """
    engine = getattr(options, "engine", None)
    of_ray = {
        name: value
        for name in ("workers", "gpus_per_worker", "address")
        if (value := getattr(options, name, None)) is not None
    }
    if of_ray and engine != "ray":
        raise TracelabError(f"{_words(of_ray)}: of --engine ray only")
    if engine is None:
        if getattr(options, "shard_size", None) is not None:
            raise TracelabError("--shard-size is of --engine: name one of process, ray, torchrun")
        return None
    if engine == "ray":
        return Ray(**of_ray)
    return Torchrun() if engine == "torchrun" else Process()


@contextmanager
def serving(engine: Any) -> Iterator[bool]:
    """Whether this process only measures what another one asks; it has done so when the block
    begins."""
    if not hasattr(engine, "serve"):
        yield False
        return
    try:
        if not engine.is_first:
            engine.serve()
        yield not engine.is_first
    finally:
        engine.close()


def spec_of(
    options: argparse.Namespace,
    measurement: str,
    choices: Mapping[str, Any],
    edits: Sequence[EditSpec] = (),
    edit_name: str | None = None,
) -> Spec:
    """A request for the model and the seed of a command; ``choices`` are the measuring function's
    other arguments."""
    model = ModelSpec(
        None if options.model is None else here(options.model),
        dtype=options.dtype,
        device=options.device,
        revision=options.revision,
        trust_remote_code=options.trust_remote_code,
    )
    return Spec(measurement, model, tuple(edits), edit_name, dict(choices), options.seed)


def measured(options: argparse.Namespace, *requests: tuple[Spec, Sequence[Any]]) -> list[Any]:
    """The results of requests by the engine of a command.

    Raises:
        TracelabError: what was refused.
    """
    return _asked(options, requests, go_on=False)


def answers(options: argparse.Namespace, *requests: tuple[Spec, Sequence[Any]]) -> list[Any]:
    """The same, with why a request was refused in its result's place."""
    return _asked(options, requests, go_on=True)


def _asked(
    options: argparse.Namespace, requests: Sequence[tuple[Spec, Sequence[Any]]], *, go_on: bool
) -> list[Any]:
    return measure_all(
        [Request(spec, records, options.shard_size) for spec, records in requests],
        engine=options.engine,
        folder=options.checkpoint,
        go_on=go_on,
        entries=options.shards,
    )


def share_model(options: argparse.Namespace, model: Any) -> None:
    """Let the worker in this process use the model that a verb has loaded."""
    if worker := getattr(options.engine, "worker", None):
        worker.use(spec_of(options, "", {}).model, model)


def _words(names: Sequence[str] | dict[str, Any]) -> str:
    return " and ".join(f"--{name.replace('_', '-')}" for name in names)
