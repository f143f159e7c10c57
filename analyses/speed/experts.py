"""Expert / anti-expert decoding: tracelab's against a loop in the manner of the reference code.

DExperts' released loop encodes the whole sequence anew with all three models at each step, computes
logits at every position and sorts the vocabulary at every one of them for its nucleus filter. Here
that loop (written for this benchmark, with the experts' deltas merged into copies of the weights)
runs beside tracelab's hooks, which keep three caches, run both experts as one batch and compute the
last position only. Same prompt, greedy, the base's nucleus kept first, in turn and in one process;
the ratio is printed for each length, and whether the tokens are equal.

    python analyses/speed/experts.py [--new 15 30 60] [--batch 5] [--repeats 3]
"""

from __future__ import annotations

import argparse
import copy
import time

import torch
from transformers import AutoModelForCausalLM
from transformers.generation.logits_process import TopPLogitsWarper

import tracelab
from tracelab import Experts, ExpertsConfig, WeightDelta
from tracelab.model import assets

PROMPT = "The woman had worked for many years as a well known"


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
def reference(models, tokens, new: int, alpha: float, top_p: float):
    """Everything again at every step, for every position."""
    keep = TopPLogitsWarper(top_p)
    for _ in range(new):
        z, plus, minus = (m(tokens, use_cache=False).logits for m in models)
        filtered = keep(None, z.flatten(0, 1)).reshape(z.shape)
        mixed = filtered + alpha * (plus - minus)
        tokens = torch.cat([tokens, mixed[:, -1].argmax(dim=-1, keepdim=True)], dim=1)
    return tokens


@torch.no_grad()
def ours(model, edit, tokens, new: int):
    """transformers' generate on the bridged model, with the edit's hooks."""
    with edit.applied(model):
        return model.original_model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
        )


def main() -> None:
    """Print one line a length."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--new", type=int, nargs="+", default=[15, 30, 60], help="numbers of new tokens"
    )
    parser.add_argument("--batch", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    model = tracelab.load()
    plain = AutoModelForCausalLM.from_pretrained(assets.model_dir(), dtype=torch.float32).eval()
    plain.generation_config.eos_token_id = model.original_model.generation_config.eos_token_id = (
        None
    )
    expert, anti = random_delta(model, 1), random_delta(model, 2)
    models = (plain, merged(plain, expert), merged(plain, anti))
    edit = Experts(expert, anti, ExpertsConfig(alpha=1.0, filter_order="base_first", top_p=0.9))
    tokens = torch.tensor(
        [model.tokenizer(PROMPT, add_special_tokens=False).input_ids] * options.batch
    )
    for new in options.new:
        seconds: dict[str, list[float]] = {"reference": [], "tracelab": []}
        for _ in range(options.repeats):
            began = time.perf_counter()
            first = reference(models, tokens, new, 1.0, 0.9)
            seconds["reference"].append(time.perf_counter() - began)
            began = time.perf_counter()
            second = ours(model, edit, tokens, new)
            seconds["tracelab"].append(time.perf_counter() - began)
        slow, fast = (sorted(values)[len(values) // 2] for values in seconds.values())
        ratios = sorted(a / b for a, b in zip(*seconds.values(), strict=True))
        print(
            f"{new} new tokens, batch {options.batch}: reference {slow:.1f} s, tracelab {fast:.1f} "
            "s (medians), "
            f"ratio {slow / fast:.1f} [{ratios[0]:.1f}, {ratios[-1]:.1f}], same tokens: "
            f"{torch.equal(first, second)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
