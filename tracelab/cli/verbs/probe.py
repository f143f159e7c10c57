"""``tracelab probe``: F1 of a prober at each layer."""

from __future__ import annotations

import argparse

from tracelab.cli import loading
from tracelab.datasets import templates
from tracelab.errors import require_choice
from tracelab.localize import probe_layers
from tracelab.localize.probing.probes import SPLITS
from tracelab.results import Result


def run(options: argparse.Namespace) -> Result:
    """``tracelab probe``."""
    require_choice("split", options.split, SPLITS)
    corpus = templates(options.bias, source=options.data, limit=options.limit)
    more = {} if options.batch_tokens is None else {"batch_tokens": options.batch_tokens}
    return probe_layers(
        loading.load_model(options),
        corpus,
        split=options.split,
        n_seeds=options.seeds,
        top_k=options.top_k,
        seed=options.seed,
        **more,
    )
