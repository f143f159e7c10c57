"""Expert / anti-expert decoding: against the loop of the DExperts paper, and against the target
alone.

    python analyses/speed/expert_decoding.py [--quick] [--rounds 2] [--new 64] [--batch 5]

- ``expert_decoding.oracle``: the loop of the paper (arXiv 2105.03023), written here in the way that
  the released code is known to go: all three models read the whole sequence anew at each token,
  without a cache, give logits at every position, and the nucleus filter sorts the vocabulary at
  every one of them. It runs on plain ``transformers`` models with the experts' deltas merged.
  tracelab's hooks keep three caches, run both experts as one batch and compute the last position
  only. Greedy, so that the tokens must be equal: ``agreement`` is how many are not.
- ``expert_decoding.target``: against the bridged target without edit, cached. A cost: at most 2.2
  times, so the goal is 1 / 2.2. Both write the same number of tokens, not the same tokens.
"""

from __future__ import annotations

import argparse
import copy

import torch
from comparison import compare, options, say
from transformers import AutoModelForCausalLM
from transformers.generation.logits_process import TopPLogitsWarper

import tracelab
from tracelab import Experts, ExpertsConfig, WeightDelta
from tracelab.model import assets

PROMPT = "The woman had worked for many years as a well known"
ALPHA, TOP_P = 1.0, 0.9


def random_delta(model, seed: int) -> WeightDelta:
    """A delta large enough to change what greedy decoding picks."""
    delta = WeightDelta.low_rank(
        model, layers=range(model.cfg.n_layers), modules=["mlp.out"], rank=16, seed=seed
    )
    with torch.no_grad():
        for name, parameter in delta.named_parameters():
            if name.endswith("lora_B"):
                parameter.normal_(std=0.02, generator=torch.Generator().manual_seed(seed))
    return delta


def merged(plain, delta: WeightDelta):
    """A copy of a plain model with the delta added to its weights."""
    other = copy.deepcopy(plain)
    with torch.no_grad():
        for shape in delta.spec().maps:
            part = delta.part(shape.point)
            other.get_submodule(delta.paths()[str(shape.point)]).weight += part.lora_B @ part.lora_A
    return other


@torch.no_grad()
def oracle(models, tokens, new: int):
    """Everything again at every step, for every position."""
    keep = TopPLogitsWarper(TOP_P)
    for _ in range(new):
        z, plus, minus = (m(tokens, use_cache=False).logits for m in models)
        filtered = keep(None, z.flatten(0, 1)).reshape(z.shape)
        mixed = filtered + ALPHA * (plus - minus)
        tokens = torch.cat([tokens, mixed[:, -1].argmax(dim=-1, keepdim=True)], dim=1)
    return tokens


@torch.no_grad()
def decoded(model, tokens, new: int):
    """transformers' generate on the bridged model, with whatever hooks are on it."""
    return model.original_model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=new,
        min_new_tokens=new,
        do_sample=False,
        pad_token_id=0,
    )


def main() -> None:
    """Print the rounds, then the last line."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--new", type=int, help="tokens written; default 64, or 16 if quick")
    parser.add_argument("--batch", type=int, help="default 5, or 2 if quick")
    chosen = options(__doc__, rounds=2, parent=parser)
    new = chosen.new or (16 if chosen.quick else 64)
    batch = chosen.batch or (2 if chosen.quick else 5)
    model = tracelab.load()
    plain = AutoModelForCausalLM.from_pretrained(assets.model_dir(), dtype=torch.float32).eval()
    for each in (plain, model.original_model):
        each.generation_config.eos_token_id = None
    expert, anti = random_delta(model, 1), random_delta(model, 2)
    models = (plain, merged(plain, expert), merged(plain, anti))
    filtered = Experts(
        expert, anti, ExpertsConfig(alpha=ALPHA, filter_order="base_first", top_p=TOP_P)
    )
    edit = Experts(expert, anti, ExpertsConfig(alpha=ALPHA))
    ids = model.tokenizer(PROMPT, add_special_tokens=False).input_ids
    tokens = torch.tensor([ids] * batch)

    def ours(edit):
        with edit.applied(model):
            return decoded(model, tokens, new)

    second = compare(
        "expert_decoding.target",
        round(1 / 2.2, 3),
        lambda: ours(edit),
        lambda: decoded(model, tokens, new),
        lambda mixed, alone: abs(mixed.numel() - alone.numel()),
        rounds=2 * chosen.rounds + 1,
        close=0,
    )
    first = compare(
        "expert_decoding.oracle",
        10,
        lambda: ours(filtered),
        lambda: oracle(models, tokens, new),
        lambda mixed, plainly: int((mixed != plainly).sum()),
        rounds=1 if chosen.quick else chosen.rounds,
        close=0,
    )
    say(first, second)


if __name__ == "__main__":
    main()
