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
    random   as paired, with U drawn at random: the control, which says nothing of a group

Coordinates are clipped where one percent of those seen are larger, so that an unusual text is moved
no further than usual ones. It makes a group hard to read at these layers, which is no evidence that
the model does not use it elsewhere: compare with random directions of the same rank, and read the
cost (KL and perplexity of neutral text, in the notes of a fit) beside the effect.

How far it carries over: on target terms of StereoSet's ``test`` that no text of the fit names the
group-dependent gap of the embedded model falls by a sixth to two fifths, where the fit has their words by
two thirds (``figures/scoreboard_gender_tuning.csv``, ``figures/erasure_grid.csv``). So for use fit on all words
(``group_pairs(words="all")``), and say so beside scores on the same words; which layers, rank and method is
for :func:`tracelab.tune`. mean and pca ruin the embedded model.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tracelab.datasets.group_pairs import BIAS_TYPES, GroupPairs, group_pairs
from tracelab.datasets.own import are_records, as_group_pairs
from tracelab.errors import TracelabError
from tracelab.interventions.activation_edit import ActivationEdit
from tracelab.interventions.drift import drift
from tracelab.interventions.erasure.config import ErasureConfig
from tracelab.model.load import model_facts
from tracelab.model.partial_forward import LayerStates
from tracelab.model.texts import as_texts
from tracelab.model.tokens import encode, require_context

LOW_LAYERS = 8
"""Of thirty: below them a text's group is still where it was named, above them it has been used."""
COST = ("kl", "perplexity_change")
"""Notes on what an edit does to neutral text: nats a token, percent."""
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
    measured = (*ActivationEdit.measured, *COST)
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
    def grid(cls, model: TransformerBridge) -> list[dict[str, Any]]:
        """LEACE, and one or two directions of pairs, at the lowest six and eight of thirty."""
        n_layers = model_facts(model).n_layers
        layers = [range(n) for n in sorted({max(1, round(k * n_layers / 30)) for k in (6, 8)})]
        return [
            {"method": ["leace"], "layers": layers},
            {"method": ["paired"], "rank": [1, 2], "layers": layers},
        ]

    @classmethod
    def training_data(
        cls,
        bias: str,
        *,
        source: str | Path = "wheel",
        limit: int | None = None,
        without: Collection[str] = (),
    ) -> GroupPairs:
        """Openings of StereoSet's ``test`` sentences that name one group and the other."""
        return group_pairs(bias, source=source, limit=limit, without=without)

    @classmethod
    def accepted(cls, data: Any) -> Any:
        """Pairs of sentences, which should differ in the group that they name."""
        return as_group_pairs(data) if are_records(data) else data

    def learn(self, model: TransformerBridge, data: GroupPairs) -> None:
        """Closed form, layer by layer: each is fitted on states from which the layers before it are
        erased already. Where the data have held-out text, its KL and change of perplexity are
        noted.

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
        sequences = [a for a, _, _ in pairs], [b for _, b, _ in pairs], neutral
        texts = [LayerStates(model, each) for each in sequences]
        for layer in self.layers:
            states = [each.after(layer) for each in texts]
            a, b = (
                torch.cat([x[k:] for x, (_, _, k) in zip(xs, pairs, strict=True)])
                for xs in states[:2]
            )
            found = _directions(a, b, [x[1:] for x in states[2]], self.config, layer)
            self.set_(layer, **found)
            for each, xs in zip(texts, states, strict=True):
                each.leave([self.change(x[None], **found)[0] for x in xs])
        self.notes |= {"n_pairs": len(pairs), "left_out": left_out, "n_neutral": len(neutral)}
        if held_out := getattr(data, "held_out", ()):
            cost = drift(model, self, held_out)
            numbers = (round(cost.kl, 5), round(cost.perplexity_change, 2))
            self.notes |= dict(zip(COST, numbers, strict=True))

    def with_strength(self, strength: float) -> Erasure:
        """The same directions, removed by another share. Notes on its cost are left out."""
        return self._with(self.config.replace(strength=strength), self.layers)

    def up_to(self, layer: int) -> Erasure:
        """The edit of its layers up to this one, which is what a fit of them alone gives: a layer
        is fitted after those before it. Notes on its cost are left out.

        Raises:
            TracelabError: no layer is left.
        """
        kept = tuple(each for each in self.layers if each <= layer)
        return self._with(self.config, kept)

    def _with(self, config: ErasureConfig, layers: Sequence[int]) -> Erasure:
        spec = self._spec.model_copy(update={"config": config, "layers": tuple(layers)})
        notes = {k: v for k, v in self.notes.items() if k not in self.measured}
        origin = self.origin
        if origin is not None:
            points = {str(self.point_at(layer)) for layer in layers}
            paths = {point: path for point, path in origin.paths.items() if point in points}
            origin = origin.model_copy(update={"paths": paths})
        edit = type(self)(spec, origin, notes)
        edit.allow_mismatch = self.allow_mismatch
        edit.set_strength(self.strength)
        for layer in layers:
            edit.set_(layer, **{name: self.get_buffer(f"{name}_{layer}") for name in self.shape})
        return edit.to(self.get_buffer(f"mu_{self.layers[0]}").device)


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
    layer: int = 0,
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
        if config.method == "random":
            generator = torch.Generator().manual_seed(hash((config.seed, layer)))
            rows = torch.randn(config.rank, len(mu), dtype=torch.float64, generator=generator)
        u = torch.linalg.svd(rows, full_matrices=False)[2][: config.rank]
        read, write = u @ inverse, u @ root
    most = ((both - mu) @ read.T).abs().quantile(_CLIP, dim=0)
    return {"read": read.float(), "write": write.float(), "mu": mu.float(), "most": most.float()}
