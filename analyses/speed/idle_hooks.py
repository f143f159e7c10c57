"""What a bridge costs where nothing is read or edited: its hook points, and idle hooks on them.

    python analyses/speed/idle_hooks.py [--quick] [--rounds 5]

- ``idle_hooks.no_op``: a forward pass (16 x 24 tokens) with a hook that does nothing on the
  residual stream after each of the 30 layers, against the bridge without.
- ``idle_hooks.batch``, ``.text``, ``.greedy``: the bridge without hooks against plain
  ``transformers`` with its fused attention (sdpa), which cannot show an attention pattern: 16 x 24
  tokens, one text of 12, 64 tokens written greedily after it with a cache.

All are costs, at most 1.05 times where no attention pattern is needed: the goal is 1 / 1.05.
"""

from __future__ import annotations

import torch
from comparison import compare, options, say
from transformers import AutoModelForCausalLM

import tracelab
from tracelab.model import assets

GOAL = 1 / 1.05
CLOSE = 5e-3  # logits are of the order of ten; sdpa and eager attention differ by rounding


def logit_gap(ours, theirs) -> float:
    """Largest difference of a logit."""
    return float((ours - theirs).abs().max())


def tokens_apart(ours, theirs) -> int:
    """How many tokens differ."""
    return int((ours != theirs).sum())


@torch.no_grad()
def greedy(hf_model, tokens, new: int):
    """Continued with a cache."""
    return hf_model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=new,
        min_new_tokens=new,
        do_sample=False,
        pad_token_id=0,
    )


def main() -> None:
    """Print the rounds, then the last line."""
    chosen = options(__doc__, rounds=5)
    model = tracelab.load()
    plain = AutoModelForCausalLM.from_pretrained(
        assets.model_dir(), dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    for each in (plain, model.original_model):
        each.generation_config.eos_token_id = None
    draw = torch.Generator().manual_seed(0)
    batch = torch.randint(100, model.cfg.d_vocab, (16, 24), generator=draw)
    text = torch.randint(100, model.cfg.d_vocab, (1, 12), generator=draw)
    idle = [
        (f"blocks.{layer}.hook_resid_post", lambda value, hook: None)
        for layer in range(model.cfg.n_layers)
    ]
    rounds, new = chosen.rounds, 16 if chosen.quick else 64

    @torch.no_grad()
    def bridged(tokens):
        return model(tokens)

    @torch.no_grad()
    def hooked(tokens):
        with model.hooks(fwd_hooks=idle):
            return model(tokens)

    @torch.no_grad()
    def plainly(tokens):
        return plain(tokens).logits

    def batched(name: str, ours, reference, tokens, difference, close, times: int = 1):
        """Repeated, where one run is too short to time."""

        def repeated(way):
            return lambda: [way(tokens) for _ in range(times)][-1]

        return compare(
            f"idle_hooks.{name}",
            GOAL,
            repeated(ours),
            repeated(reference),
            difference,
            rounds=rounds,
            close=close,
        )

    def written(hf_model):
        return lambda tokens: greedy(hf_model, tokens, new)

    say(
        batched("no_op", hooked, bridged, batch, logit_gap, 0),
        batched("batch", bridged, plainly, batch, logit_gap, CLOSE),
        batched("text", bridged, plainly, text, logit_gap, CLOSE, times=5),
        batched("greedy", written(model.original_model), written(plain), text, tokens_apart, 0),
    )


if __name__ == "__main__":
    main()
