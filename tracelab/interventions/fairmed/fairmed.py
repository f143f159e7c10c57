"""FairMed (Fairness Mediator): neutralise MLP activations against probers of social groups.

At each chosen layer the MLP's contribution to the residual stream is moved, within a bounded
distance, until the layer's prober gives every group the same probability (:mod:`.neutraliser`).
Layers are edited within one forward pass, so later ones see what earlier ones changed. Source:
arXiv 2504.07787 and its code; where this differs from the code (geometry, which positions, batches)
``FairMedConfig.published`` has the code's.

That a prober is neutral does not mean that the model is: :meth:`FairMed.agreement` has both, and so
have the notes of a fit on a corpus. Compare with ``direction="random"`` and ``target="balance"``
(:mod:`.model_groups`), look at the next-token distribution (``tracelab.inspect``), and at what the
edit costs on neutral text.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from tracelab.datasets.templates import ATTRIBUTES, Corpus, templates
from tracelab.errors import TracelabError
from tracelab.gradients import measuring
from tracelab.interventions.fairmed.attribute import AttributeProbers, AttributeSpec
from tracelab.interventions.fairmed.config import FairMedConfig
from tracelab.interventions.fairmed.data import PROBING, check_data, check_groups, held_out
from tracelab.interventions.fairmed.model_groups import (
    agreement,
    balance,
    group_logits,
    kl_from_even,
)
from tracelab.interventions.fairmed.neutraliser import LayerProber, neutralise
from tracelab.interventions.method import Method
from tracelab.interventions.origin import Origin
from tracelab.interventions.point_edit import PointEdit, share
from tracelab.localize.probing.prober import ProberConfig
from tracelab.localize.probing.probes import LayerProbes, probe_layers
from tracelab.model.forward_pass import Call, current_call
from tracelab.model.hook_points import Point
from tracelab.storage.data_hash import data_hash

_NOISE_BLOCK = 256


class FairMedSpec(BaseModel):
    """The configuration and the probers' sizes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: FairMedConfig
    attributes: tuple[AttributeSpec, ...]


class FairMed(Method):
    """The activation neutraliser.

    >>> edit = FairMed.fit(model, tracelab.datasets.templates("gender"))
    >>> with edit.applied(model):
    ...     tracelab.generate(model, "The nurse said that").frame
    """

    kind = "fairmed"
    Config = FairMedConfig
    biases = tuple(ATTRIBUTES)
    Spec = FairMedSpec
    scales_itself = True
    measured = (*Method.measured, "agreement")
    unfitted = tuple(
        name
        for name in FairMedConfig.model_fields
        if name not in (*PROBING, "standardise", "target", "seed")
    )
    tried: ClassVar = {"lam": (1.0, 3.0, 9.0), "positions": ("predictive", "all")}

    def __init__(
        self,
        config: FairMedConfig,
        attributes: Sequence[AttributeSpec],
        origin: Origin | None,
        notes: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(origin, notes)
        check_groups(config, {group for spec in attributes for group in spec.groups})
        names = [spec.attribute for spec in attributes]
        if len(set(names)) < len(names) or any(
            len(set(spec.layers)) < len(spec.layers) for spec in attributes
        ):
            raise TracelabError(f"each attribute once, and each of its layers once: not {names}")
        if len({spec.d_model for spec in attributes}) > 1 or not all(
            spec.groups for spec in attributes
        ):
            raise TracelabError(
                f"the probers of {names} need groups to tell apart, and activations of one width"
            )
        for spec in attributes:
            named = set(spec.groups) & set(() if isinstance(config.groups, str) else config.groups)
            if len(named) == 1:
                raise TracelabError(
                    f"a distribution over one group, {named.pop()!r}, is always uniform: name two "
                    "or more of "
                    f"{spec.attribute}, or none"
                )
        without = [spec.attribute for spec in attributes if not spec.layers]
        if without and config.target == "probers":
            raise TracelabError(
                f"no probers of {', '.join(without)} were trained, as this edit was fitted with "
                "target='balance': fit it with target='probers'"
            )
        if config.target == "balance":
            for spec in attributes:
                spec.words_among(config.groups)
        self.config = config
        self.attributes = tuple(attributes)
        self.probers = nn.ModuleDict(
            {spec.attribute: AttributeProbers(spec) for spec in attributes if spec.layers}
        )
        self._noise: dict[tuple[int, int], Tensor] = {}
        self._cost: dict[int, list[float]] = {}

    @classmethod
    def own_data(cls, file: Path | str, bias: str, limit: int | None = None) -> Corpus:
        """A corpus of word lists of your own."""
        return templates(bias, source=file, limit=limit)

    @classmethod
    def training_data(
        cls,
        bias: str,
        *,
        source: str | Path = "wheel",
        limit: int | None = None,
        without: Collection[str] = (),
    ) -> Corpus:
        """The template corpus of an attribute, which comes with tracelab."""
        if str(source) != "wheel":
            raise TracelabError(f"the template corpus comes with tracelab: no source {source}")
        return templates(bias, limit=limit)

    @classmethod
    def learned(
        cls,
        model: TransformerBridge,
        data: Corpus | LayerProbes | Sequence[Corpus | LayerProbes],
        config: FairMedConfig,
        *,
        layers: Sequence[int] | None,
        dev: None,
        checkpoint: Path | None,
    ) -> FairMed:
        """Train probers, or take those of :func:`~tracelab.probe_layers`, and choose the layers.

        Args:
            data: a corpus of one attribute, or its probes; several for several attributes at once.
            layers: default: for each attribute its top-k layers by F1.
        """
        items = [data] if isinstance(data, Corpus | LayerProbes) else data
        check_data(model, items, config)
        if config.target == "balance":
            return cls._balancing(model, items, config, layers)
        if layers is not None:  # a point that does not exist is refused before training
            Origin.of(model, [Point("mlp_out", layer) for layer in layers])
        options = {name: getattr(config, name) for name in (*PROBING, "seed")}
        probers = ProberConfig(standardise=config.standardise)
        probes = [
            item
            if isinstance(item, LayerProbes)
            else probe_layers(model, item, config=probers, **options)
            for item in items
        ]
        config = config.replace(**{name: probes[0].settings[name] for name in PROBING})
        specs = [AttributeSpec.of(made, layers) for made in probes]
        points = sorted({Point("mlp_out", layer) for spec in specs for layer in spec.layers})
        notes: dict[str, Any] = {
            "data_hash": [made.settings["data_hash"] for made in probes],
            "seed": probes[0].settings["seed"],
        }
        if any(isinstance(item, LayerProbes) for item in items):  # their time is not known here
            notes["fit_seconds"] = None
        edit = cls(config, specs, Origin.of(model, points), notes)
        for spec, made in zip(specs, probes, strict=True):
            rows = list(spec.layers)
            part = edit.probers[spec.attribute]
            part.load_state_dict(
                {name: made.probers[name][rows] for name in ("w1", "b1", "w2", "b2", "norm_std")}
            )
        edit = edit.to(model.cfg.device)
        if found := [
            row
            for item, made in zip(items, probes, strict=True)
            if isinstance(item, Corpus)
            for row in edit.agreement(model, held_out(item, made)).to_dict("records")
        ]:
            edit.notes["agreement"] = [
                row | {"layer": None if pd.isna(row["layer"]) else int(row["layer"])}
                for row in found
            ]
        return edit

    @classmethod
    def _balancing(
        cls,
        model: TransformerBridge,
        items: Sequence[Corpus | LayerProbes],
        config: FairMedConfig,
        layers: Sequence[int] | None,
    ) -> FairMed:
        """Without probers: which groups are compared is all that there is to find out."""
        if layers is not None:
            raise TracelabError("target='balance' acts on the logits: give no layers")
        specs = [AttributeSpec.unprobed(model, item) for item in items]
        hashes = [
            item.settings["data_hash"] if isinstance(item, LayerProbes) else data_hash([item])
            for item in items
        ]
        return cls(config, specs, Origin.of(model, [Point("logits")]), {"data_hash": hashes})

    def with_config(self, config: FairMedConfig) -> FairMed:
        """The same probers and layers, neutralising in another way."""
        # what was measured was of this configuration
        notes = {name: note for name, note in self.notes.items() if name not in self.measured}
        other = FairMed(config, self.attributes, self.origin, notes)
        other.load_state_dict(self.state_dict())
        other.allow_mismatch = self.allow_mismatch
        other.set_strength(self.strength)
        return other

    @property
    def own_name(self) -> str:
        """``fairmed(gender)``, or ``fairmed(gender, balance)``."""
        words = [spec.attribute for spec in self.attributes]
        return f"fairmed({', '.join(words + ['balance'] * (self.config.target == 'balance'))})"

    @property
    def layers(self) -> list[int]:
        """All edited layers, ascending; none where logits are."""
        if self.config.target == "balance":
            return []
        return sorted({layer for spec in self.attributes for layer in spec.layers})

    def edits(self, hf_model: nn.Module) -> list[PointEdit]:
        """One edit a layer, at the MLP's contribution to the residual stream; or one of the
        logits."""
        if self.config.target == "balance":
            return [PointEdit(Point("logits"), self._balanced)]
        d_model = self.attributes[0].d_model if self.attributes else None
        return [
            PointEdit(Point("mlp_out", layer), self._editor(hf_model, layer), d_out=d_model)
            for layer in self.layers
        ]

    def prober(self, attribute: str, layer: int) -> LayerProber:
        """The prober of an attribute at a layer, among the groups to be made even."""
        return self.probers[attribute].layer(layer, self.config.groups)  # type: ignore[operator]

    def agreement(self, model: TransformerBridge, corpus: Corpus) -> pd.DataFrame:
        """How far from even the probers and the model itself are, with and without the edit.

        Args:
            corpus: prompts of one of the attributes; those that no prober was trained on
                (``probes.unseen``).

        Returns:
            ``attribute, layer, kl_before, kl_after, n``: mean over ``n`` prompts of ``KL(U ‖ p)``
            in nats at the last token, of the model's own next-token distribution over groups (the
            row without a layer), then of each edited layer's prober.

        Raises:
            TracelabError: a corpus of another attribute, or an edit of an earlier version.
        """
        return agreement(self, model, corpus)

    def _balanced(self, logits: Float[Tensor, "batch pos vocab"]) -> Tensor:
        for spec in self.attributes:  # one after the other
            words = spec.words_among(self.config.groups)
            before, even = group_logits(logits, words), balance(logits, words)
            logits = even if self.strength == 1 else share(logits, even, self.strength)
            if self.is_observed:
                after = group_logits(logits, words)
                self.tell(
                    "model_kl", kl_from_even(before), kl_from_even(after), label=spec.attribute
                )
        return logits

    def _editor(self, hf_model: nn.Module, layer: int):
        parts = [self.probers[spec.attribute] for spec in self.attributes if layer in spec.layers]

        def edit(mlp_out: Float[Tensor, "batch pos d_model"]) -> Tensor:
            began = perf_counter()
            call = current_call(hf_model)
            mask = _positions(call, mlp_out, self.config.positions)
            with measuring():
                a = mlp_out.float()
                probers = [part.layer(layer, self.config.groups, a.device) for part in parts]  # type: ignore[operator]
                epsilon = self.config.lam * max(part.std(layer) for part in parts)  # type: ignore[operator]
                noise = (
                    self._draw(call, a, layer)
                    if "random" in (self.config.init, self.config.direction)
                    else None
                )
                found = neutralise(a, mask, probers, epsilon, self.config, noise)
                delta = self.strength * found.delta
            cost = self._cost.setdefault(layer, [0.0, 0.0, 0.0])
            cost[0] += perf_counter() - began
            cost[1] += int(mask.sum())
            cost[2] += int(found.steps.sum())
            if self.is_observed:
                self._tell(layer, mask, a, a + delta, found.steps)
            # A sum, so that gradients pass where another edit is being trained.
            return mlp_out + delta.to(mlp_out.dtype)

        return edit

    @property
    def needs_rows(self) -> bool:
        """Whether all positions of a text are one search, as in FairMed's code."""
        return super().needs_rows or self.config.norm == "code"

    def _tell(self, layer: int, mask: Tensor, a: Tensor, edited: Tensor, steps: Tensor) -> None:
        size = (edited - a).norm(dim=-1) / a.norm(dim=-1).clamp_min(1e-12)
        for spec in self.attributes:
            if layer not in spec.layers:
                continue
            part = self.probers[spec.attribute]
            prober, own = (part.layer(layer, g, a.device) for g in ("all", self.config.groups))  # type: ignore[operator]
            tell = partial(self.tell, layer=layer)
            before, after = prober.log_probs(a).exp(), prober.log_probs(edited).exp()
            for i, group in enumerate(spec.groups):
                label = f"{spec.attribute}: {group}"
                tell("p", before[..., i], after[..., i], label=label)
            tell("kl", own.kl(a), own.kl(edited), label=spec.attribute)
            tell("edited", None, mask, label=spec.attribute)
            tell("steps", None, steps, label=spec.attribute)
            tell("size", None, size, label=spec.attribute)

    def _draw(self, call: Call, a: Float[Tensor, "batch pos d_model"], layer: int) -> Tensor:
        """Standard normal noise that depends on layer and place in the text only: the same in any
        batch and step."""
        index = call.index(a.shape, a.device)
        blocks = range(int(index.max()) // _NOISE_BLOCK + 1)
        for block in blocks:
            if (layer, block) not in self._noise:
                generator = torch.Generator().manual_seed(hash((self.config.seed, layer, block)))
                self._noise[layer, block] = torch.randn(
                    _NOISE_BLOCK,
                    a.shape[-1],
                    generator=generator,
                    dtype=torch.float32,
                    device="cpu",
                )
        table = torch.cat([self._noise[layer, block] for block in blocks]).to(a.device)
        return table[index]

    def cost(self) -> pd.DataFrame:
        """What the edit has cost since it was made: ``layer, positions, ms_per_position,
        steps_per_position``."""
        rows = [
            {
                "layer": layer,
                "positions": int(n),
                "ms_per_position": 1000 * seconds / max(n, 1),
                "steps_per_position": steps / max(n, 1),
            }
            for layer, (seconds, n, steps) in sorted(self._cost.items())
        ]
        return pd.DataFrame(
            rows, columns=["layer", "positions", "ms_per_position", "steps_per_position"]
        )

    def __getstate__(self) -> dict[str, Any]:
        """Without the noise, which is drawn again, and what the edit has cost in this process."""
        return super().__getstate__() | {"_noise": {}, "_cost": {}}

    def spec(self) -> FairMedSpec:
        """The configuration and the probers' sizes."""
        return FairMedSpec(config=self.config, attributes=self.attributes)

    @classmethod
    def build(cls, spec: FairMedSpec, origin: Origin | None) -> FairMed:
        """With empty probers. An edit of before there was a choice of steps has fixed ones."""
        config = spec.config
        if "step" not in config.model_fields_set:
            config = config.replace(step="fixed", standardise=False)
        return cls(config, spec.attributes, origin)


def _positions(call: Call, mlp_out: Float[Tensor, "batch pos d_model"], rule: str) -> Tensor:
    """Which positions are edited; never padding."""
    if rule == "all" or call.reading is None:
        return call.real(mlp_out.shape, mlp_out.device)
    if rule == "predictive":
        return call.read(mlp_out.shape, mlp_out.device)
    # Published: the answer's own tokens, or the last three of the prompt and each new one.
    return call.read(mlp_out.shape, mlp_out.device, shift=-2 if call.reading.generating else 1)
