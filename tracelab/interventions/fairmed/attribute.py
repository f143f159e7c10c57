"""The probers of one social attribute: what a bundle says of them, and their tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from tracelab.datasets.templates import Corpus
from tracelab.errors import TracelabError
from tracelab.interventions.fairmed.neutraliser import LayerProber
from tracelab.localize.probing.harvest import group_token_ids, harvest
from tracelab.localize.probing.probes import LayerProbes, scored_groups


class AttributeSpec(BaseModel):
    """The probers of one attribute: its groups, those of them that enter F1, the layers, the
    sizes; and the first tokens of each group's words."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    attribute: str
    groups: tuple[str, ...]
    scored: tuple[str, ...]
    words: tuple[tuple[NonNegativeInt, ...], ...] = ()
    layers: tuple[NonNegativeInt, ...]
    d_model: PositiveInt
    hidden: PositiveInt

    @classmethod
    def of(cls, made: LayerProbes, layers: Sequence[int] | None) -> Self:
        """Of probes, at their best layers or at these."""
        _, d_model, hidden = made.probers["w1"].shape
        return cls(
            attribute=made.settings["attribute"],
            groups=tuple(made.settings["groups"]),
            scored=tuple(made.settings["groups_scored"]),
            words=tuple(tuple(ids) for ids in made.settings.get("group_tokens", ())),
            layers=tuple(sorted(made.top_layers if layers is None else set(layers))),
            d_model=d_model,
            hidden=hidden,
        )

    @classmethod
    def unprobed(cls, model: TransformerBridge, data: Corpus | LayerProbes) -> Self:
        """Of an attribute whose probers are not needed: its groups and their words.

        Raises:
            TracelabError: probes of an earlier version, or only one group is ever likely.
        """
        if isinstance(data, LayerProbes):
            return cls.of(data, []).model_copy(update={"hidden": 1})
        words = group_token_ids(model, data)
        scored = scored_groups(harvest(model, data, words).labels, data)
        return cls(
            attribute=data.attribute,
            groups=data.group_names,
            scored=tuple(n for n, yes in zip(data.group_names, scored, strict=True) if yes),
            words=tuple(tuple(ids.tolist()) for ids in words),
            layers=(),
            d_model=model.cfg.d_model,
            hidden=1,
        )

    def among(self, groups: str | Sequence[str]) -> list[int]:
        """Places of the groups between which the distribution is to be even; of an attribute of
        which none is named, all."""
        names = (
            {"all": self.groups, "scored": self.scored}[groups]
            if isinstance(groups, str)
            else groups
        )
        return [i for i, name in enumerate(self.groups) if name in names] or list(
            range(len(self.groups))
        )

    def words_among(self, groups: str | Sequence[str]) -> list[Tensor]:
        """Their words' token ids.

        Raises:
            TracelabError: they are not known: the probes were made by an earlier version.
        """
        if len(self.words) != len(self.groups):
            raise TracelabError(
                f"the probers of {self.attribute} do not say which tokens stand for its groups: "
                "fit on a corpus, or probe again"
            )
        return [torch.tensor(self.words[i]) for i in self.among(groups)]


class AttributeProbers(nn.Module):
    """Probers of one attribute, one row a layer of ``spec.layers``."""

    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    norm_std: Tensor

    def __init__(self, spec: AttributeSpec) -> None:
        super().__init__()
        n, d, hidden, groups = len(spec.layers), spec.d_model, spec.hidden, len(spec.groups)
        shapes = {
            "w1": (n, d, hidden),
            "b1": (n, 1, hidden),
            "w2": (n, hidden, groups),
            "b2": (n, 1, groups),
        }
        for name, shape in {**shapes, "norm_std": (n,)}.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float32))
        self.spec = spec

    def layer(
        self,
        layer: int,
        groups: str | Sequence[str] = "all",
        device: torch.device | None = None,
    ) -> LayerProber:
        """The prober of a layer, on a device (None: where it is); among some groups only, its
        distribution is the softmax of their logits."""
        row, chosen = self.spec.layers.index(layer), self.spec.among(groups)
        parts = (self.w1, self.b1, self.w2, self.b2)
        w1, b1, w2, b2 = (each[row].to(device or each.device) for each in parts)
        if len(chosen) < len(self.spec.groups):  # else no copy at each token
            w2, b2 = w2[:, chosen], b2[:, chosen]
        return LayerProber(w1, b1, w2, b2)

    def std(self, layer: int) -> float:
        """Standard deviation of the layer's activation norm over training prompts."""
        return float(self.norm_std[self.spec.layers.index(layer)])
