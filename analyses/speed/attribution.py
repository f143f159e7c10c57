"""How much faster attribution tracing is than one forward pass a restored state, and how well its
map agrees with the exact one, on the embedded model.

    python analyses/speed/attribution.py [--quick] [--pairs 4] [--samples 10] [--states 4]

The reference is that of ``causal_trace.py``: for each restored state one forward pass of a plain
``transformers`` model, as ROME's and BiasEdit's code does. Every state is a pass of the same shape,
so it makes a random share of them only, and its seconds are divided by that share. Ours are all
layers, positions and components of the same pairs under the same noise, from one backward pass.

``agreement`` is no difference here: it is Spearman's rank correlation of the indirect effects of
the states that the reference made, of all components together (1: the same order); of few states it
is rough (``docs/localise_trace.md`` has that of whole maps). The scores with nothing restored are
the reference's to 1e-3 nats, or the comparison stops.

Three comparisons: all three components, ``resid`` alone, and all three with five gradients a noise
sample (``ig_steps=5``).
"""

from __future__ import annotations

import argparse

from comparison import compare, options, say
from scipy.stats import spearmanr
from tracing import WINDOW, Reference, of_all, short_pairs

import tracelab
from tracelab.localize.tracing.sentence import COMPONENTS

GOAL = 50.0
LEAST = 0.4
"""Below this rank correlation the comparison stops: it would be of something else."""
QUICK_PAIRS, QUICK_TOKENS, QUICK_STATES = 2, 8, 2


def main() -> None:
    """Print one line of JSON, of all components, with the others in it."""
    more = argparse.ArgumentParser(add_help=False)
    more.add_argument("--pairs", type=int, default=4)
    more.add_argument("--samples", type=int, default=10)
    more.add_argument(
        "--states", type=int, default=4, help="of the reference: a component and pair"
    )
    given = options(__doc__, rounds=3, parent=more)
    n_states = QUICK_STATES if given.quick else given.states
    model, reference = tracelab.load(), Reference()
    layers = range(model.cfg.n_layers)
    work = short_pairs(
        model,
        QUICK_PAIRS if given.quick else given.pairs,
        samples=given.samples,
        longest=QUICK_TOKENS if given.quick else None,
    )
    for case in work.cases:
        print(f"{len(case.stereotype.ids)} tokens, noise at {case.noised}, filler at {case.first}")
    lows = {case.id: reference.low(case, work.noise[case.id]) for case in work.cases}
    found = []
    for name, components, ig_steps in (
        ("attribution", COMPONENTS, 1),
        ("attribution.resid", ("resid",), 1),
        ("attribution.ig_5", COMPONENTS, 5),
    ):
        states = {
            case.id: list(dict.fromkeys(state for of in some for state in of))
            for case, *some in zip(
                work.cases,
                *(work.some_states(c, layers, n_states) for c in components),
                strict=True,
            )
        }

        def ours(components=components, ig_steps=ig_steps):
            return tracelab.causal_trace(
                model, work.records, method="attribution", ig_steps=ig_steps,
                components=components, positions="all", noise=work.noise, window=WINDOW,
                n_samples=given.samples,
            )  # fmt: skip

        def theirs(states=states):
            return {
                (case.id, *state): reference.gap(case, work.noise[case.id], state)
                for case in work.cases
                for state in states[case.id]
            }

        def disagreement(trace, gaps) -> float:
            low = trace.cases.set_index("case")["low"]
            for key, value in lows.items():
                if not abs(low[key] - value) < 1e-3:
                    raise SystemExit(f"the corrupted gaps are {low[key]:.4f} and {value:.4f}")
            table = trace.states.set_index(["case", "component", "layer", "column"])["gap"]
            pairs = [
                (float(table[key]) - low[key[0]], gap - lows[key[0]]) for key, gap in gaps.items()
            ]
            return 1.0 - float(spearmanr(*zip(*pairs, strict=True)).statistic)

        total = sum(len(case.columns) for case in work.cases) * len(layers) * len(components)
        made = sum(map(len, states.values()))
        facts = compare(
            name, GOAL, ours, theirs, disagreement, rounds=given.rounds, close=1.0 - LEAST
        )
        facts = of_all(facts, made / total)
        found.append(facts | {"agreement": round(1.0 - facts["agreement"], 3), "states": made})
    say(*found)


if __name__ == "__main__":
    main()
