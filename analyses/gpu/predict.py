"""What a model of any size takes, by the formulas: weights, passes, and tokens a second.

    python analyses/gpu/predict.py --layers 80 --width 8192 --inner 28672 --heads 64 --kv-heads 8 \\
        --vocabulary 128256 --gpus 64 --gpus-per-copy 4 --share 0.4 --peak 790 --memory 80

Memory is by :class:`tracelab.model.memory.Sizes`. Time is

    tokens a second  =  copies · share · peak / (2 N + 4 L d n),   N: parameters of matrices

``share`` is what the check measured of the peak of one large product (``plain_forward_pass``); it
is an assumption wherever it was not measured, as is that several copies do not slow each other. A
model over several GPUs runs them one after the other, so a copy has the speed of one GPU.
Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json

from tracelab.model.memory import Sizes

GIB = 2**30


def parameters(chosen: argparse.Namespace) -> tuple[int, int]:
    """Of the whole model, and of the matrices that every token is multiplied by (a Llama's)."""
    d, keys = chosen.width, chosen.width // chosen.heads * chosen.kv_heads
    block = 2 * d * d + 2 * d * keys + 3 * d * chosen.inner
    matrices = chosen.layers * block + chosen.vocabulary * d
    return matrices + (0 if chosen.tied else chosen.vocabulary * d), matrices


def predicted(chosen: argparse.Namespace) -> dict[str, float]:
    """The facts, each with its unit in its name."""
    whole, matrices = parameters(chosen)
    sizes = Sizes(
        layers=chosen.layers,
        width=chosen.width,
        inner=chosen.inner,
        heads=chosen.heads,
        keys=chosen.width // chosen.heads * chosen.kv_heads,
        repeats=chosen.heads // chosen.kv_heads if chosen.kv_heads < chosen.heads else 0,
        vocabulary=chosen.vocabulary,
        number=chosen.bytes,
    )
    texts = max(1, chosen.batch_tokens // chosen.length)
    weights = whole * chosen.bytes
    works = {
        "scoring": sizes.scoring(texts, chosen.length),
        "harvest": sizes.harvest(texts, chosen.length),
        "fit": sizes.fit(8, chosen.length, chosen.layers),
        "trace": sizes.trace(10, chosen.length, 3, 1024),
    }
    flops = 2 * matrices + 4 * chosen.layers * chosen.width * chosen.length
    copies = max(1, chosen.gpus // chosen.gpus_per_copy)
    return {
        "parameters": whole,
        "weights_gib": round(weights / GIB, 1),
        **{f"{name}_gib": round(value / GIB, 2) for name, value in works.items()},
        "probers_main_memory_gib": round(sizes.probers(1024) / GIB, 2),
        "gpus_for_weights_and_a_fit": -(-(weights + works["fit"]) // int(chosen.memory * GIB)),
        "copies": copies,
        "tokens_a_second": round(copies * chosen.share * chosen.peak * 1e12 / flops),
    }


def main() -> None:
    """Print the line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("layers", "width", "inner", "heads", "kv-heads", "vocabulary"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--tied", action="store_true", help="one matrix embeds and unembeds")
    parser.add_argument("--bytes", type=int, default=2, help="of a number; 2 is bf16")
    parser.add_argument("--length", type=int, default=64, help="tokens of a text")
    parser.add_argument("--batch-tokens", type=int, default=1024, help="of a pass")
    parser.add_argument("--gpus", type=int, default=1, help="of all nodes")
    parser.add_argument("--gpus-per-copy", type=int, default=1, help="over which a copy is spread")
    parser.add_argument("--memory", type=float, default=80, help="GiB of a GPU")
    parser.add_argument("--share", type=float, required=True, help="of the peak, as measured")
    parser.add_argument("--peak", type=float, required=True, help="TFLOP/s of one large product")
    print(json.dumps(predicted(parser.parse_args())))


if __name__ == "__main__":
    main()
