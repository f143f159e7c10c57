"""One forward pass of a prompt, with or without an edit, and what ``inspect`` compares of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tracelab.interventions.base import Intervention, Told
from tracelab.interventions.stack import Stack
from tracelab.model.hook_points import hook_name
from tracelab.model.load import model_facts

READ = ("resid_post", "mlp_out", "attn_out", "pattern")
"""Kinds of hook points that are read, at every layer."""


@dataclass
class Pass:
    """One forward pass: fp32 logits, activations by (kind, layer), what edits told.

    Of a kind of :data:`READ` that the architecture does not show there is nothing in ``seen``; a
    pattern is ``[head, query, key]``, the others are ``[pos, d_model]``.
    """

    logits: Float[Tensor, "pos vocab"]
    seen: dict[tuple[str, int], Tensor]
    told: list[Told]

    def layers(self, kind: str) -> list[int]:
        """The layers of which this kind was seen."""
        return sorted(layer for found, layer in self.seen if found == kind)


def run_pass(model: TransformerBridge, ids: Sequence[int], edit: Intervention | None) -> Pass:
    """Run the model on a prompt, under an edit if one is given."""
    info = model_facts(model)
    seen: dict[tuple[str, int], Tensor] = {}

    def reader(kind: str, layer: int):
        def read(value: Tensor, hook: object) -> None:
            seen[kind, layer] = value[0].float()

        return read

    # After the edit's hooks at the same point: what is read is what the model goes on with.
    readers = [
        (hook_name(kind, layer), reader(kind, layer))
        for kind in READ
        if kind not in info.faults
        for layer in range(info.n_layers)
    ]
    tokens = torch.tensor([ids], device=model.cfg.device)
    edit = edit or Stack([])
    with edit.observed() as told, edit.applied(model), model.hooks(fwd_hooks=readers):
        logits = model(tokens)[0].float()
    return Pass(logits, seen, told)
