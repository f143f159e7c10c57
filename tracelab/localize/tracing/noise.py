"""The noise that corrupts a run: how much of it, and the draws, one a case.

Noise has some times the standard deviation of the attribute words' own embeddings, over all cases
(ROME, Meng et al., 2022), and is drawn from the seed and the case's id: a case has the same noise
whichever others are traced.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from math import prod
from operator import xor

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities.statistics import derive_generator

from tracelab.errors import TracelabError
from tracelab.gradients import measuring
from tracelab.localize.tracing.cases import Case
from tracelab.model.load import require_hook
from tracelab.model.scoring import BATCH_TOKENS
from tracelab.model.tokens import length_batches, pad
from tracelab.ranges import require_memory, require_seed


@measuring()
def attribute_embedding_std(model: TransformerBridge, cases: Sequence[Case]) -> float:
    """Standard deviation of all entries of the attribute words' embeddings, where noise will be
    added."""
    name = require_hook(model, "embed")
    found = []
    for batch in length_batches((len(case.stereotype.ids) for case in cases), BATCH_TOKENS):
        tokens, _ = pad(model, [cases[i].stereotype.ids for i in batch])
        _, cache = model.run_with_cache(tokens, names_filter=[name], stop_at_layer=1)
        for row, i in enumerate(batch):
            found.append(
                cache[name][row, [cases[i].columns[c][0] for c in cases[i].noised]].float()
            )
    return float(torch.cat(found).std())


def noise_draws(
    model: TransformerBridge,
    cases: Sequence[Case],
    noise: Mapping[str, Tensor] | None,
    noise_std: float | None,
    n_samples: int,
    *,
    seed: int,
) -> dict[str, Tensor]:
    """Noise by case: given, or drawn with a standard deviation from the seed and the case's id."""
    require_seed(seed)
    shapes = {case.id: (n_samples, len(case.noised), model.cfg.d_model) for case in cases}
    if noise is None:
        assert noise_std is not None
        require_memory(
            f"{n_samples} noise samples of {len(cases)} pairs", 4 * sum(map(prod, shapes.values()))
        )
        return {
            key: noise_std
            * torch.randn(
                shape,
                generator=derive_generator(seed, "noise", key),
                dtype=torch.float32,
                device="cpu",
            )
            for key, shape in shapes.items()
        }
    for key, shape in shapes.items():
        found = tuple(noise[key].shape) if key in noise else "nothing"
        if found != shape:
            raise TracelabError(f"noise of record {key} must have the shape {shape}, found {found}")
    return {key: noise[key] for key in shapes}


def hash_of(draws: Mapping[str, Tensor]) -> str:
    """16 hexadecimal digits of all noise, so that a resumed run cannot mix two draws; of the noise
    of several runs on different cases it is :func:`joined_hash`."""
    each = (
        hashlib.sha256(key.encode() + values.float().cpu().numpy().tobytes()).hexdigest()[:16]
        for key, values in draws.items()
    )
    return joined_hash(each)


def joined_hash(hashes: Iterable[str]) -> str:
    """That of all draws together, in whatever order."""
    return f"{reduce(xor, (int(digits, 16) for digits in hashes), 0):016x}"
