"""How much faster tracing with shared caches is than one forward pass a state, on the embedded
model.

    python analyses/speed/tracing.py [--pairs 2] [--samples 10] [--layer-step 6]

Both run in this process on the same pairs and the same noise; the plain way is what the reference
implementations do (ROME, BiasEdit: every state is a forward pass of the whole model). Prints
seconds, the ratio and the largest difference of a restored gap. The ratio grows with the number of
layers traced (--layer-step 1 traces all).
"""

import argparse
import time

import tracelab


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--layer-step", type=int, default=6)
    options = parser.parse_args()
    model = tracelab.load()
    records = tracelab.datasets.stereoset("gender")
    print("component  pairs  states  plain_s  fast_s  ratio  max_difference")
    for component in ("resid", "mlp", "attn"):
        seconds, results = {}, {}
        for run in ("fast", "plain"):
            started = time.perf_counter()
            results[run] = tracelab.causal_trace(
                model,
                records,
                components=[component],
                layers=range(0, model.cfg.n_layers, options.layer_step),
                n_samples=options.samples,
                max_cases=options.pairs,
                run=run,
            )
            seconds[run] = time.perf_counter() - started
        states = results["fast"].states
        difference = (states["gap"] - results["plain"].states["gap"]).abs().max()
        print(
            f"{component:9}  {options.pairs:5}  {len(states):6}  {seconds['plain']:7.1f}  "
            f"{seconds['fast']:6.1f}  "
            f"{seconds['plain'] / seconds['fast']:5.2f}  {difference:.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
