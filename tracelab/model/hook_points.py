"""Which hook point is which, decided once, and checked on the model itself.

TransformerLens names are uniform, their effect is not: an edit at ``hook_resid_mid`` of a bridge
misses the skip connection, and some architectures discard edits to ``hook_pattern``. So the names
tracelab uses are in one table, and :func:`check_hook_points` runs the model on a few tokens to see
that

    resid_mid + mlp_out == resid_post        (where the architecture has a resid_mid)

and that changing each edited point changes the logits. What does not hold is refused by name when
used.

A :class:`Point` says where an edit acts: an activation, the input and output of a linear map, or
the logits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components import LinearBridge, MoERouterBridge

from tracelab.errors import TracelabError, require_choice
from tracelab.gradients import measuring
from tracelab.model.finite import CAUSE

HOOKS = {
    "embed": "hook_embed",
    "resid_pre": "blocks.{layer}.hook_resid_pre",
    "resid_mid": "blocks.{layer}.hook_resid_mid",
    "resid_post": "blocks.{layer}.hook_resid_post",
    "mlp_out": "blocks.{layer}.hook_mlp_out",
    "attn_out": "blocks.{layer}.hook_attn_out",
    "pattern": "blocks.{layer}.attn.hook_pattern",
    "final_norm": "ln_final.hook_out",
    "logits": "unembed.hook_out",
}
"""Hook-point names by kind. ``mlp_out`` and ``attn_out`` are contributions to the residual
stream."""

EDITED = ("embed", "resid_post", "mlp_out", "attn_out", "logits")
"""Kinds that tracelab writes to; the others are only read."""

LINEAR_MAPS = ("mlp.in", "mlp.gate", "mlp.out", "attn.q", "attn.k", "attn.v", "attn.o")
"""Linear maps of a block that a weight delta can be added to, by TransformerLens name."""


@dataclass(frozen=True, order=True)
class Point:
    """Where an edit acts: a kind of :data:`HOOKS`, or a linear map of :data:`LINEAR_MAPS`, and its
    layer."""

    kind: str
    layer: int | None = None

    @property
    def linear(self) -> bool:
        """Whether it is a linear map: the edit then sees its input and output."""
        return self.kind in LINEAR_MAPS

    def __str__(self) -> str:
        return (
            f"blocks.{self.layer}.{self.kind}" if self.linear else hook_name(self.kind, self.layer)
        )


def module_path(model: TransformerBridge, point: Point) -> str | None:
    """Path of the module in a plain ``transformers`` model whose output is the point; None where
    there is none: the logits, and what a block computes itself (Granite scales what it adds).

    A linear map that the architecture computes together with others (query, key and value of GPT-2)
    has a path here, but no module there.
    """
    if point.kind == "logits":
        return None
    if point.linear:
        name = str(point)
    else:
        # By its own name: "hook_mlp_out" is the output of the MLP, or of the norm after it where
        # there is one (Gemma 2), "hook_embed" that of the norm after the embedding (Bloom).
        hook = model.hook_dict[str(point)].name or ""
        name, _, end = hook.rpartition(".")
        if end != "hook_out":
            return None
    return model.adapter.translate_transformer_lens_path(name)


def linear_maps(model: TransformerBridge, layer: int = 0) -> list[str]:
    """Those of :data:`LINEAR_MAPS` that a block of this model has.

    A mixture of experts has none in its MLP: what it calls ``mlp.gate`` is the router, which is
    given every token of a batch in one row and gives out no activation.
    """
    found = []
    for name in LINEAR_MAPS:
        part, own = name.split(".")
        component = getattr(getattr(model.blocks[layer], part, None), own, None)
        if isinstance(component, LinearBridge) and not isinstance(component, MoERouterBridge):
            found.append(name)
    return found


def hook_name(kind: str, layer: int | None = None) -> str:
    """The TransformerLens name of a hook point, e.g. ``blocks.3.hook_mlp_out``.

    Raises:
        TracelabError: no such kind, or one that is in every layer and none is named.
    """
    name = HOOKS[require_choice("hook point", kind, HOOKS)]
    if layer is None and "{layer}" in name:
        raise TracelabError(f"the hook point {kind!r} is in every layer: say in which")
    return name.format(layer=layer)


def require_editable(point: Point) -> None:
    """Refuse a point that edits do not act on.

    Raises:
        TracelabError: naming those that they do.
    """
    kinds = (*EDITED, *LINEAR_MAPS)
    require_choice("point of an edit", point.kind, kinds)
    if point.layer is None and point.kind not in ("embed", "logits"):
        raise TracelabError(f"the point {point.kind!r} is in every layer: say in which")


def check_hook_points(model: TransformerBridge) -> dict[str, str]:
    """Find the hook points of this model that do not do what the table says.

    Costs ``1 + len(EDITED)`` forward passes of four tokens; one a kind of hook point more where
    the architecture lacks one.

    Returns:
        The reason, by kind, for each kind of hook point that cannot be used on this model.
    """
    tokens = (torch.arange(4, device=model.cfg.device)[None] + 10) % model.cfg.d_vocab
    layer = model.cfg.n_layers // 2
    seen: dict[str, Tensor] = {}

    def reader(kind: str):
        def read(value: Tensor, hook: object) -> None:
            seen[kind] = value.detach().float()

        return read

    def add_noise(value: Float[Tensor, "..."], hook: object) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float32, device="cpu").to(
            value
        )
        return value + noise * value.float().std().to(value.dtype)

    faults: dict[str, str] = {}
    with measuring():
        readers = {kind: (hook_name(kind, layer), reader(kind)) for kind in HOOKS}
        try:
            clean = model.run_with_hooks(tokens, fwd_hooks=list(readers.values()))
        except (ValueError, KeyError):  # one of them is missing, and does not say which it is
            seen.clear()
            clean = model(tokens)
            for kind, hook in readers.items():
                try:
                    model.run_with_hooks(tokens, fwd_hooks=[hook])
                except (ValueError, KeyError):
                    faults[kind] = "this architecture has no such hook point"
        if not clean.isfinite().all():  # nothing can be told from comparisons with NaN
            reason = f"the model's logits are not finite: {CAUSE}"
            return dict.fromkeys(EDITED, reason)
        for kind in [kind for kind in HOOKS if kind not in faults]:
            if kind not in seen:
                faults[kind] = "it does not fire on this architecture"
            elif kind in EDITED:
                edited = model.run_with_hooks(
                    tokens, fwd_hooks=[(hook_name(kind, layer), add_noise)]
                )
                if torch.equal(edited, clean):
                    faults[kind] = "edits there change nothing on this architecture"
    if "logits" in seen and not torch.equal(seen["logits"], clean.float()):
        faults["logits"] = (
            "the returned logits are computed from it (a soft cap or a scale): attach the edit to "
            "model.original_model instead"
        )
    if {"resid_mid", "mlp_out", "resid_post"} <= seen.keys() - faults.keys():
        gap = (seen["resid_mid"] + seen["mlp_out"] - seen["resid_post"]).abs().max()
        # bf16 keeps 8 bits: the sum of two rounded terms may be off by that much of its size.
        if gap > torch.finfo(model.cfg.dtype).eps * 4 * seen["resid_post"].abs().max():
            faults["mlp_out"] = "resid_mid + mlp_out is not resid_post on this architecture"
    return faults
