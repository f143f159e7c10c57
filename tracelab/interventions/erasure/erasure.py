"""Erasure: take the group that a text names out of an activation, in closed form, one layer after
the other.

    h' = h - strength · clip(read (h - mu)) · write

With X the activations of texts and of their counterparts that name the other group, mu their mean,
S their covariance (shrunk, and with that of neutral text, so that what varies for other reasons is
kept) and D the differences between counterparts:

    paired   read = U' S^-1/2, write = S^1/2 U, with U the leading right singular vectors of D S^-1/2
    leace    the same with U the whitened difference of the groups' means: without shrinking or neutral text no linear
             probe then tells the groups apart on the data of the fit (Belrose et al. 2023, arXiv
             2306.03819)
    mean     read = write' = the unit difference of the groups' means
    pca      read = write' = the leading principal directions of D (SentenceDebias, Liang et al. 2020)

Coordinates are clipped where one percent of those seen are larger, so that an unusual text is moved
no further than usual ones. It makes a group hard to read at these layers, which is no evidence that
the model does not use it elsewhere: compare with a random direction of the same rank, and read the
cost in perplexity beside the effect.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tracelab.datasets.group_pairs import BIAS_TYPES, GroupPairs, group_pairs
from tracelab.errors import TracelabError
from tracelab.interventions.activation_edit import ActivationEdit
from tracelab.interventions.erasure.config import ErasureConfig
from tracelab.model.load import model_facts
from tracelab.model.states import token_states
from tracelab.model.texts import as_texts
from tracelab.model.tokens import encode, require_context

LOW_LAYERS = 8
"""Of thirty: below them a text's group is still where it was named, above them it has been used."""
_NEUTRAL_TOKENS = 24
_CLIP = 0.99


class Erasure(ActivationEdit):
    """Removes the group that a text names from the residual stream of low layers.

    >>> edit = Erasure.fit(model, tracelab.datasets.group_pairs("gender"))
    >>> with edit.applied(model):
    ...     tracelab.generate(model, "The nurse said that").frame
    """

    kind = "erasure"
    Config = ErasureConfig
    point = "resid_post"
    biases = BIAS_TYPES
    needs = ("bias", "pairs", "neutral")
    shape: ClassVar = {
        "read": ("rank", "d_model"),
        "write": ("rank", "d_model"),
        "mu": ("d_model",),
        "most": ("rank",),
    }

    def change(
        self, h: Float[Tensor, "batch pos d_model"], **tensors: Tensor
    ) -> Float[Tensor, "batch pos d_model"]:
        """Subtract the clipped coordinates along the directions."""
        coordinates = (h - tensors["mu"]) @ tensors["read"].T
        return (
            h
            - self.config.strength
            * coordinates.clamp(-tensors["most"], tensors["most"])
            @ tensors["write"]
        )

    @classmethod
    def default_layers(cls, model: TransformerBridge) -> Sequence[int]:
        """The lowest eight of thirty."""
        n_layers = model_facts(model).n_layers
        return range(max(1, round(LOW_LAYERS * n_layers / 30)))

    @classmethod
    def training_data(
        cls,
        bias: str,
        *,
        source: str | Path = "wheel",
        limit: int | None = None,
        without: Collection[str] = (),
    ) -> GroupPairs:
        """Openings of StereoSet's ``test`` sentences and their gender-swapped twins."""
        return group_pairs(bias, source=source, limit=limit, without=without)

    def learn(self, model: TransformerBridge, data: GroupPairs) -> None:
        """Closed form, layer by layer: each is fitted on states from which the layers before it are
        erased already.

        Raises:
            TracelabError: no pair whose two texts have equally many tokens, or a rank that these
                pairs cannot have.
        """
        pairs, left_out = _token_pairs(model, data)
        neutral = [
            encode(model, text).ids[:_NEUTRAL_TOKENS]
            for text in as_texts(data.neutral, "neutral text")
        ]
        most = 1 if self.config.method in ("leace", "mean") else min(len(pairs), model.cfg.d_model)
        if self.config.rank > most:
            raise TracelabError(
                f"{self.config.method} of {len(pairs)} pairs has rank {most} at most, not "
                f"{self.config.rank}"
            )
        for layer in self.layers:
            with self.applied(model):
                first, second, other = (
                    token_states(model, sequences, self.point, layer)
                    for sequences in ([a for a, _, _ in pairs], [b for _, b, _ in pairs], neutral)
                )
            a, b = (
                torch.cat([x[k:] for x, (_, _, k) in zip(xs, pairs, strict=True)])
                for xs in (first, second)
            )
            self.set_(layer, **_directions(a, b, [x[1:] for x in other], self.config))
        self.notes |= {"n_pairs": len(pairs), "left_out": left_out, "n_neutral": len(neutral)}


def _token_pairs(
    model: TransformerBridge, data: GroupPairs
) -> tuple[list[tuple[tuple[int, ...], tuple[int, ...], int]], int]:
    """Ids of both texts and the place of the first token in which they differ; of pairs of equal
    length."""
    found = []
    for texts in data.pairs:
        a, b = (encode(model, text).ids for text in as_texts(texts, "text of a pair"))
        if len(a) == len(b) and a != b:
            found.append(
                (a, b, next(i for i, (p, q) in enumerate(zip(a, b, strict=True)) if p != q))
            )
    if not found:
        raise TracelabError(
            f"none of {len(data.pairs)} pairs has two texts of equally many tokens: give other "
            "pairs"
        )
    require_context(model, [len(a) for a, _, _ in found], what="pair")
    return found, len(data.pairs) - len(found)


def _directions(
    a: Float[Tensor, "rows d_model"],
    b: Float[Tensor, "rows d_model"],
    neutral: Sequence[Float[Tensor, "_pos d_model"]],
    config: ErasureConfig,
) -> dict[str, Tensor]:
    both = torch.cat([a, b]).double()
    mu = both.mean(dim=0)
    differences, means = (a - b).double(), (a.mean(dim=0) - b.mean(dim=0)).double()[None]
    if config.method in ("mean", "pca"):
        rows = means if config.method == "mean" else differences - differences.mean(dim=0)
        read = write = torch.linalg.svd(rows, full_matrices=False)[2][: config.rank]
    else:
        values = torch.cat([both, *(x.double() for x in neutral)])
        centred = values - values.mean(dim=0)
        covariance = centred.T @ centred / len(centred)
        covariance += (
            config.shrink
            * covariance.diagonal().mean()
            * torch.eye(len(covariance), dtype=torch.float64)
        )
        variances, axes = torch.linalg.eigh(covariance)
        root, inverse = axes * variances.sqrt() @ axes.T, axes / variances.sqrt() @ axes.T
        rows = (means if config.method == "leace" else differences) @ inverse
        u = torch.linalg.svd(rows, full_matrices=False)[2][: config.rank]
        read, write = u @ inverse, u @ root
    most = ((both - mu) @ read.T).abs().quantile(_CLIP, dim=0)
    return {"read": read.float(), "write": write.float(), "mu": mu.float(), "most": most.float()}
