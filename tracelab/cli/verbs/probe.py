"""``tracelab probe``: F1 of a prober at each layer."""

from __future__ import annotations

import argparse
from typing import Any

from tracelab.cli import loading, workers
from tracelab.datasets import templates
from tracelab.errors import require_choice
from tracelab.localize import probe_layers
from tracelab.localize.probing.probes import SPLITS
from tracelab.results import Result


def run(options: argparse.Namespace) -> Result:
    """``tracelab probe``."""
    require_choice("split", options.split, SPLITS)
    corpus = templates(options.bias, source=options.data, limit=options.limit)
    model = loading.load_model(options)
    more: dict[str, Any] = {}
    if options.batch_tokens is not None:
        more["batch_tokens"] = options.batch_tokens
    if options.engine is not None:
        of = {"attribute": corpus.attribute, "groups": corpus.groups}
        spec = workers.spec_of(options, "harvest", of | more)
        workers.share_model(options, model)
        more["states"] = workers.measured(options, (spec, corpus.prompts))[0].harvest
    return probe_layers(
        model,
        corpus,
        split=options.split,
        n_seeds=options.seeds,
        top_k=options.top_k,
        seed=options.seed,
        **more,
    )
