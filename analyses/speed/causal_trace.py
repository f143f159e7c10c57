"""How much faster causal tracing is than one forward pass a restored state, and how far it is from
what its blocks must take, on the embedded model.

    python analyses/speed/causal_trace.py [--quick] [--pairs 6] [--samples 10] [--rounds 3]

The reference is what ROME's and BiasEdit's code does, written here on a plain ``transformers``
model that was never wrapped: for each restored state one forward pass of a batch whose first row is
clean and whose others carry the noise; hooks copy the clean row's state to the others. Both trace
every position and every layer of the same pairs, of equal length as BiasEdit's are, under the same
noise. Every state is a pass of the same shape, so the reference makes a random share of them only
(as the lines before the last ones show it), and its seconds are divided by that share; the results
are compared on these.

Three comparisons: the residual stream, and windows of 10 layers of the MLP and of attention. The
check that ``run="auto"`` makes once a call is left out: it takes what a few states take the
reference.

Two more facts tell where the factor comes from. ``kernel`` is how much faster the plain model alone
becomes by oneDNN's linear maps, which ours use and the reference, as published, does not: about 2
on an AMD processor of 2025, 1 where PyTorch's default is as good. ``of_the_limit`` is the share of
our processor's seconds that a plain model's blocks and head, in large batches and with the same
linear maps, take for as many positions as restored runs must compute.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from comparison import compare, say
from tracing import WINDOW, Reference, of_all, short_pairs
from transformers import AutoModelForCausalLM

import tracelab
from tracelab.localize.tracing.cases import sentences_of
from tracelab.localize.tracing.fast import block_positions
from tracelab.localize.tracing.sentence import TracedStates
from tracelab.model import assets
from tracelab.model.plain_blocks import use_onednn

GOALS = {"attn": 5.0, "mlp": 5.0, "resid": 10.0}
QUICK_TOKENS, QUICK_STATES, QUICK_STEP = 8, 6, 3


def seconds(work, repeats: int = 3) -> float:
    """A processor's, in the shortest of some runs."""
    taken = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return min(taken)


@torch.no_grad()
def rates(model) -> tuple[float, float]:
    """Seconds a position of a block and of the head take a plain model in large batches."""
    tokens = torch.arange(128 * 8).reshape(128, 8) + 100
    body = seconds(lambda: model.model(tokens, use_cache=False))
    states = torch.randn(128, model.config.hidden_size)
    head = seconds(lambda: model.lm_head(states))
    return body / tokens.numel() / model.config.num_hidden_layers, head / len(states)


def must_compute(cases, noise, component: str, layers: range, n_layers: int) -> tuple[int, int]:
    """Positions of blocks and of the head, over all pairs."""
    total = [0, 0]
    for case in cases:
        sentences = sentences_of(case, noise[case.id], range(len(case.columns)))
        states = TracedStates(layers, [component], WINDOW)
        found = block_positions(sentences, case.first, states, component, n_layers)
        total = [a + b for a, b in zip(total, found, strict=True)]
    return total[0], total[1]


def main() -> None:
    """Print one line of JSON, of the residual stream, with the others in it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="one short pair, every third layer, one round"
    )
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--states", type=int, default=12, help="states of the reference, a pair")
    options = parser.parse_args()
    torch.set_num_threads(1)
    n_states = QUICK_STATES if options.quick else options.states
    model, reference = tracelab.load(), Reference()
    n_layers = model.cfg.n_layers
    layers = range(0, n_layers, QUICK_STEP if options.quick else 1)
    work = short_pairs(
        model,
        1 if options.quick else options.pairs,
        samples=options.samples,
        longest=QUICK_TOKENS if options.quick else None,
    )
    cases, noise = work.cases, work.noise
    for case in cases:
        print(f"{len(case.stereotype.ids)} tokens, noise at {case.noised}, filler at {case.first}")
    plain_rates = rates(reference.model)
    twin = AutoModelForCausalLM.from_pretrained(assets.model_dir(), dtype=torch.float32).eval()
    use_onednn(twin)
    own_rates = rates(twin)
    del twin
    found = []
    for component, goal in GOALS.items():
        states = work.some_states(component, layers, n_states)
        cpu_seconds: list[float] = []

        def ours(component: str = component, cpu_seconds: list[float] = cpu_seconds):
            began = time.process_time()
            trace = tracelab.causal_trace(
                model, work.records, components=[component], positions="all", layers=layers,
                noise=noise, window=WINDOW, n_samples=options.samples, run="fast",
            )  # fmt: skip
            cpu_seconds.append(time.process_time() - began)
            return trace

        def theirs(states=states):
            return [
                [reference.gap(case, noise[case.id], state) for state in some]
                for case, some in zip(cases, states, strict=True)
            ]

        def difference(trace, gaps, states=states) -> float:
            table = trace.states.set_index(["case", "component", "layer", "column"])["gap"]
            return max(
                abs(float(table[(case.id, *state)]) - gap)
                for case, some, found in zip(cases, states, gaps, strict=True)
                for state, gap in zip(some, found, strict=True)
            )

        total = sum(len(case.columns) * len(layers) for case in cases)
        facts = compare(
            f"causal_trace_{component}", goal, ours, theirs, difference,
            rounds=1 if options.quick else options.rounds, close=1e-4,
        )  # fmt: skip
        facts = of_all(facts, n_states * len(cases) / total)
        blocks, heads = must_compute(cases, noise, component, layers, n_layers)
        limit = blocks * own_rates[0] + heads * own_rates[1]
        kernel = (blocks * plain_rates[0] + heads * plain_rates[1]) / limit
        facts |= {
            "block_positions": blocks,
            "head_positions": heads,
            "limit_cpu_seconds": round(limit, 3),
            "of_the_limit": round(limit / statistics.median(cpu_seconds), 3),
            "kernel": round(kernel, 2),
        }
        found.append(facts)
    say(*reversed(found))


if __name__ == "__main__":
    main()
