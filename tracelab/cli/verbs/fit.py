"""``tracelab fit``: an intervention as a bundle."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from tracelab.cli import loading
from tracelab.cli.arguments import integer, number, parse_layers
from tracelab.cli.output import say, write_json
from tracelab.errors import TracelabError, require_choice
from tracelab.evaluate.tuning import BOUNDS, tune
from tracelab.interventions.base import Intervention
from tracelab.interventions.method import Method
from tracelab.interventions.names import MANIFEST
from tracelab.interventions.registry import listed
from tracelab.interventions.training.config import Bounds
from tracelab.ranges import shown
from tracelab.results import require_result_folder

BOUND_NAMES = ("kl", "lms_loss", "perplexity")


def run(options: argparse.Namespace) -> None:
    """``tracelab fit``: writes a bundle into ``--out``; ``--json`` gets its manifest. With
    ``--tune`` what was tried is written beside it, into ``BUNDLE.tuning``."""
    if options.out is None:
        raise TracelabError("fit needs a folder to write the bundle into: add --out BUNDLE")
    method: type[Method] = listed(options.method).method_class()
    if options.bounds and options.tune is None:
        raise TracelabError("--bounds is of --tune: a fit by itself chooses nothing")
    if options.data is not None and (options.tune is not None or options.source != "wheel"):
        raise TracelabError("--data is what is fitted on: leave --tune and --source out")
    layers = _layers_or_words(method, options.layers)
    if options.tune is not None:
        edit = _tuned(method, layers, options)
    else:
        data = _data(method, options)
        model, checkpoint = loading.load_model(options), options.checkpoint
        edit = method.fit(model, data, options.config, layers=layers, checkpoint=checkpoint)
    bundle = edit.save(options.out)
    if options.json is not None:
        write_json(
            options, json.loads((bundle / MANIFEST).read_text(encoding="utf-8")), pd.DataFrame()
        )
    say(str(bundle), options)


def _data(method: type[Method], options: argparse.Namespace) -> Any:
    if options.data is not None:
        return method.own_data(options.data, options.bias, options.limit)
    return method.training_data(options.bias, source=options.source, limit=options.limit)


def _tuned(
    method: type[Method], layers: list[int] | str | None, options: argparse.Namespace
) -> Intervention:
    """The edit that ``--tune`` chooses.

    Raises:
        TracelabError: nothing tried is worth its cost; the table is printed and kept.
    """
    values = [_values(method, text) for text in options.tune]
    if layers is not None:
        values.append(("layers", [layers]))
    given = dict(values)
    if len(given) < len(values):
        raise TracelabError("a field stands twice in --tune, or layers there and in --layers")
    place = Path(f"{os.path.normpath(options.out)}.tuning")
    require_result_folder(place)
    if options.bias not in method.biases:
        raise TracelabError(
            f"{method.kind} has data of {', '.join(method.biases)}, not of {shown(options.bias)}"
        )

    def data(without: Collection[str]) -> Any:
        return method.training_data(options.bias, source=options.source, without=without)

    edit, tuning = tune(
        loading.load_model(options),
        method,
        data,
        given or None,
        config=options.config,
        bounds=_bounds(options.bounds),
        bias=options.bias,
        limit=options.limit,
        folder=options.checkpoint,
        seed=options.seed,
    )
    tuning.save(place)
    say(tuning.text(), options)
    if edit is None:
        raise TracelabError(f"no edit within the bounds: {place} holds what was tried")
    return edit


def _values(method: type[Method], text: str) -> tuple[str, list[Any]]:
    """``"rank=1/2/4"`` as a field and its values."""
    name, _, values = text.partition("=")
    if name != "layers" and name not in method.Config.model_fields:
        known = ", ".join(["layers", *method.Config.model_fields])
        raise TracelabError(f"--tune: {method.kind} has no field {shown(name)}: it has {known}")
    if not values:
        raise TracelabError(f"--tune: no values in {shown(text)}: write {name}=V or {name}=V/V/V")
    read = _layers_of(method) if name == "layers" else _value
    return name, [read(value) for value in values.split("/")]


def _layers_of(method: type[Method]) -> Callable[[str], Any]:
    return lambda text: _layers_or_words(method, text)


def _value(text: str) -> Any:
    """A number or truth value as such, else a word; the configuration refuses what it cannot be."""
    if text.lower() in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[text.lower()]
    for read in (integer, number):
        with suppress(argparse.ArgumentTypeError):
            return read(text)
    return text


def _bounds(texts: list[str] | None) -> Bounds:
    """``["kl=0.1", "lms_loss=2"]``: those that are not given stay as they are."""
    changes = {}
    for text in texts or ():
        name, _, value = text.partition("=")
        require_choice("bound", name, BOUND_NAMES)
        try:
            changes[f"max_{name}"] = number(value)
        except argparse.ArgumentTypeError as error:
            raise TracelabError(f"--bounds: {name}: {error}") from None
    return replace(BOUNDS, **changes)


def _layers_or_words(method: type[Method], text: str | None) -> list[int] | str | None:
    """Numbers, or words that the method understands."""
    return method.require_layer_words(text) if text and text[0].isalpha() else parse_layers(text)
