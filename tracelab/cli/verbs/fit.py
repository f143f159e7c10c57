"""``tracelab fit``: an intervention as a bundle."""

from __future__ import annotations

import argparse
import json

import pandas as pd

from tracelab.cli import loading
from tracelab.cli.arguments import parse_layers
from tracelab.cli.output import say, write_json
from tracelab.errors import TracelabError
from tracelab.interventions.method import Method
from tracelab.interventions.names import MANIFEST
from tracelab.interventions.registry import listed


def run(options: argparse.Namespace) -> None:
    """``tracelab fit``: writes a bundle into ``--out``; ``--json`` gets its manifest."""
    if options.out is None:
        raise TracelabError("fit needs a folder to write the bundle into: add --out BUNDLE")
    method: type[Method] = listed(options.method).method_class()
    layers = _layers_or_words(method, options.layers)
    data = method.training_data(options.bias, source=options.source, limit=options.limit)
    model, checkpoint = loading.load_model(options), options.checkpoint
    edit = method.fit(model, data, options.config, layers=layers, checkpoint=checkpoint)
    bundle = edit.save(options.out)
    if options.json is not None:
        write_json(
            options, json.loads((bundle / MANIFEST).read_text(encoding="utf-8")), pd.DataFrame()
        )
    say(str(bundle), options)


def _layers_or_words(method: type[Method], text: str | None) -> list[int] | str | None:
    """Numbers, or words that the method understands."""
    return method.require_layer_words(text) if text and text[0].isalpha() else parse_layers(text)
