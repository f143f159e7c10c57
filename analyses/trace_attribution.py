"""How well does attribution tracing follow the exact trace, and where not?

    python analyses/trace_attribution.py [--limit 16] [--samples 3] [--step 5]

Traces a random sample of StereoSet's gender pairs on the embedded model exactly, then by
attribution with one and with five gradients a noise sample, under the same noise. Writes
``figures/trace_attribution.csv``: rank and linear correlation of the indirect effects by
component, role and layer, of all pairs and of those whose first token is noised (the attention
sink) or is not; prints them, and the states that are most wrong.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch

import tracelab

FIGURES = Path(__file__).parents[1] / "figures"
IG_STEPS = (1, 5)


def main() -> None:
    """Trace, compare, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--limit", type=int, default=16, help="pairs")
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--step", type=int, default=5, help="every so many layers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = tracelab.load()
    records = tracelab.datasets.stereoset("gender")
    layers = range(0, model.cfg.n_layers, options.step)
    choices = {"max_cases": options.limit, "n_samples": options.samples, "layers": layers}
    exact = tracelab.causal_trace(model, records, **choices)
    tables = []
    for ig_steps in IG_STEPS:
        trace = tracelab.causal_trace(
            model, records, method="attribution", ig_steps=ig_steps, **choices
        )
        for pairs, found, true in (
            ("all", trace, exact),
            *(
                (name, trace.of_first_token(first), exact.of_first_token(first))
                for name, first in (("first token noised", True), ("later words noised", False))
            ),
        ):
            table = found.agreement(true)
            tables.append(table.assign(ig_steps=ig_steps, pairs=pairs))
        wrong = trace.most_wrong(exact, 15)
        print(f"ig_steps={ig_steps}, most wrong:\n{wrong.round(2).to_string()}")
        share = trace.most_wrong(exact, int(0.05 * len(trace.states)))
        counts = share.groupby(["component", "role"]).size()
        print(f"the 5 % that are most wrong, by component and role:\n{counts.to_string()}")
    table = pd.concat(tables, ignore_index=True)
    table.round(4).to_csv(FIGURES / "trace_attribution.csv", index=False)
    print(table[table["of"] != "layer"].round(2).to_string())


if __name__ == "__main__":
    main()
