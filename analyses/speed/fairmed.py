"""What FairMed costs while text is written: its gradient steps at each new token.

    python analyses/speed/fairmed.py [--quick] [--rounds 5] [--new 64]

Greedy decoding of one text over the bridge, with a cache, under FairMed at its default
configuration (fitted on a part of the corpus of gender, one split), against the bridge without
edit. A cost: at most 1.25 times, so the goal is 1 / 1.25. What is written differs, as it should;
``agreement`` is the largest difference of a logit between the edit of strength 0 and no edit.
``steps`` is how many gradient steps an activation took (mean), ``share`` the part of the time that
went into the edit itself.
"""

from __future__ import annotations

import argparse

import torch
from comparison import compare, options, say

import tracelab
from tracelab import FairMed
from tracelab.interventions.fairmed.config import FairMedConfig
from tracelab.model.forward_pass import reading
from tracelab.model.tokens import encode

PROMPT = "The nurse who lived next door said that"


def main() -> None:
    """Print the rounds, then the last line."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--new", type=int, help="tokens written; default 64, or 16 if quick")
    chosen = options(__doc__, rounds=5, parent=parser)
    new = chosen.new or (16 if chosen.quick else 64)
    model = tracelab.load()
    corpus = tracelab.datasets.templates("gender", limit=128 if chosen.quick else 512)
    edit = FairMed.fit(model, corpus, FairMedConfig(n_seeds=1))
    model.original_model.generation_config.eos_token_id = None
    tokens = torch.tensor([encode(model, PROMPT).ids])

    @torch.no_grad()
    def plainly():
        with reading(tokens.shape[1] - 1, generating=True):
            return model.original_model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
            )

    def ours():
        with edit.applied(model):
            return plainly()

    @torch.no_grad()
    def at_rest(edited, plain) -> float:
        with edit.scaled(0).applied(model):
            still = model(plain)
        return float((still - model(plain)).abs().max())

    facts = compare(
        "fairmed.generation", 1 / 1.25, ours, plainly, at_rest, rounds=chosen.rounds, close=1e-5
    )
    cost = edit.cost()
    n = cost["positions"].sum()
    steps = (cost["positions"] * cost["steps_per_position"]).sum() / n
    seconds = (cost["positions"] * cost["ms_per_position"]).sum() / 1000
    runs = chosen.rounds + 1
    say(
        facts
        | {
            "layers": len(edit.layers),
            "steps": round(steps, 2),
            "share": round(seconds / runs / facts["seconds"], 3),
        }
    )


if __name__ == "__main__":
    main()
