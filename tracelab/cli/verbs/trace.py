"""``tracelab trace``: causal tracing."""

from __future__ import annotations

import argparse

from tracelab.cli import loading, workers
from tracelab.cli.arguments import parse_layers
from tracelab.datasets import pairs, stereoset
from tracelab.errors import TracelabError, require_choice
from tracelab.localize import causal_trace
from tracelab.localize.tracing.causal_trace import METHODS, POSITIONS
from tracelab.localize.tracing.sentence import COMPONENTS
from tracelab.results import Result


def run(options: argparse.Namespace) -> Result:
    """``tracelab trace``."""
    if options.component is not None:
        require_choice("component", options.component, COMPONENTS)
    require_choice("positions", options.positions, POSITIONS)
    require_choice("method", options.method, METHODS)
    if options.ig_steps != 1 and options.method == "exact":
        raise TracelabError("--ig-steps is of attribution: add --method attribution")
    layers = parse_layers(options.layers)
    if options.window is not None and options.component == "resid":
        raise TracelabError("--window is of mlp and attn: resid is restored a layer at a time")
    if options.data is not None:
        loading.require_default_source(options)
        records = pairs(options.data, bias=options.bias)
    elif options.bias is None:
        raise TracelabError("trace needs a bias type: add --bias, or --data with pairs of your own")
    else:
        records = stereoset(options.bias, source=options.source)
    how = {
        "method": options.method,
        "ig_steps": options.ig_steps,
        "components": [options.component] if options.component else list(COMPONENTS),
        "positions": options.positions,
        "layers": layers,
        "n_samples": options.samples,
        "window": options.window,
        "max_cases": options.limit,
    }
    if options.engine is not None:
        return workers.measured(options, (workers.spec_of(options, "trace", how), records))[0]
    model = loading.load_model(options)
    return causal_trace(model, records, checkpoint=options.checkpoint, seed=options.seed, **how)
