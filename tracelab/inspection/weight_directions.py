"""What a weight delta writes: its size beside the map it changes, and its largest directions as
tokens.

    ΔW = Σ_k σ_k u_k v_kᵀ        relative = ‖ΔW‖_F / ‖W‖_F        share_k = σ_k² / Σ σ²

A map that writes to the residual stream (``mlp.out``, ``attn.o``) adds multiples of its output
directions ``u_k``. What such a step does to the logits, all later blocks left out, is ``W_U``
applied to it after the norms on its way; the tokens pushed most up and most down name the
direction. The sign of a singular vector is arbitrary: ``promoted`` and ``demoted`` say which tokens
move against which others, not which of them rise on a given text (``BeforeAfter.tokens`` says
that). A map with a norm of its own after it (Gemma 2) has that norm taken as a scaling.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from tracelab.gradients import measuring
from tracelab.interventions.base import Intervention
from tracelab.interventions.stack import Stack
from tracelab.interventions.weight_delta import WeightDelta
from tracelab.model.finite import require_finite_change
from tracelab.model.hook_points import Point
from tracelab.model.tokens import token_texts

DIRECTION_COLUMNS = (
    *("layer", "module", "direction"),
    *("norm", "relative", "singular_value", "share", "promoted", "demoted"),
)
N_TOKENS = 5
WRITERS = {"mlp.out": "hook_mlp_out", "attn.o": "hook_attn_out"}
"""Maps that write to the residual stream, and what they add to it."""
_EXACT = 1024
"""Dense deltas with a longer shorter side are not decomposed whole."""
_MORE, _ROUNDS = 16, 4
"""Directions beyond those asked for, and rounds, of the subspace iteration that is done instead."""


@measuring()
def weight_directions(
    model: TransformerBridge, edit: Intervention, *, top: int = 3
) -> list[dict[str, Any]]:
    """The ``top`` largest directions of every linear map that an edit changes by a delta, one a
    row.

    Of a stack with several deltas of a map, those of their sum. Edits that are no weight deltas
    have no rows, nor have :class:`~tracelab.interventions.Experts`, whose deltas change the
    experts' passes and not the model's.

    Returns:
        Rows of ``layer``, ``module``, ``direction`` (from 0), ``norm`` (‖ΔW‖_F), ``relative``,
        ``singular_value``, ``share`` (nan for a zero delta), ``promoted``, ``demoted`` (five tokens
        each, joined by spaces; empty for maps that do not write to the residual stream, and for
        directions of no size).

    Raises:
        TracelabError: the edit was made for another model, or overflows.
    """
    edit.require(model)
    rows: list[dict[str, Any]] = []
    written: dict[int, Float[Tensor, "d_model"]] = {}  # by row: what reaches the unembedding
    for point, parts in _parts(edit).items():
        for part in parts:
            # The norm is squared here: in fp32 that overflows before the change itself does.
            sizes = [value.detach().square().sum() for value in part.parameters()]
            require_finite_change(torch.stack(sizes).prod(), str(point))
        u, sigma, norm = _directions(parts, top)
        weight = model.blocks[point.layer].get_submodule(point.kind).weight
        relative = norm / float(torch.linalg.vector_norm(weight, dtype=torch.float32))
        for k, value in enumerate(sigma.tolist()):
            if point.kind in WRITERS and value > 1e-6 * float(
                sigma[0]
            ):  # what rounding leaves has directions too
                written[len(rows)] = _normed(model, point, u[:, k].to(model.W_U.device))
            rows.append(
                {
                    "layer": point.layer,
                    "module": point.kind,
                    "direction": k,
                    "norm": norm,
                    "relative": relative,
                    "singular_value": value,
                    "share": value**2 / norm**2 if norm else float("nan"),
                    "promoted": "",
                    "demoted": "",
                }
            )
    if written:
        for row, (up, down) in zip(
            written, _tokens(model, torch.stack(list(written.values()))), strict=True
        ):
            rows[row] |= {"promoted": up, "demoted": down}
    return rows


def _parts(edit: Intervention) -> dict[Point, list[Any]]:
    """The parts of all weight deltas of an edit by the map they change."""
    found: dict[Point, list[Any]] = {}
    if isinstance(edit, Stack):
        for member in edit:
            for point, parts in _parts(member).items():
                found.setdefault(point, []).extend(parts)
    elif isinstance(edit, WeightDelta):
        whole = edit.whole()
        found = {shape.point: [whole.part(shape.point)] for shape in whole.spec().maps}
    return found


def _directions(
    parts: list[Any], top: int
) -> tuple[Float[Tensor, "d_out k"], Float[Tensor, "k"], float]:
    """Output directions and singular values of a sum of deltas, largest first, and its Frobenius
    norm."""
    if all(hasattr(part, "lora_A") for part in parts):
        b, a = (
            torch.cat([part.lora_B for part in parts], dim=1),
            torch.cat([part.lora_A for part in parts]),
        )
        u, sigma = _of_product(b, a)
        return u[:, :top], sigma[:top], float(sigma.norm())
    whole = torch.stack([part.weight() for part in parts]).sum(dim=0)
    if min(whole.shape) <= _EXACT:
        u, sigma, _ = torch.linalg.svd(whole, full_matrices=False)
    else:
        basis = _range(whole, top + _MORE)
        u, sigma = _of_product(basis, basis.T @ whole)
    return u[:, :top], sigma[:top], float(whole.norm())


def _of_product(
    b: Float[Tensor, "d_out r"], a: Float[Tensor, "r d_in"]
) -> tuple[Float[Tensor, "d_out k"], Float[Tensor, "k"]]:
    """Left singular vectors and values of ``b @ a``, which is never made."""
    q, triangle = torch.linalg.qr(b)
    u, sigma, _ = torch.linalg.svd(triangle @ a, full_matrices=False)
    return q @ u, sigma


def _range(whole: Float[Tensor, "d_out d_in"], size: int) -> Float[Tensor, "d_out size"]:
    """An orthonormal basis that holds the largest output directions, by subspace iteration (arXiv
    0909.4061)."""
    # A generator of its own: looking at an edit must not move the user's random numbers, as
    # torch.svd_lowrank does.
    probe = torch.randn(
        whole.shape[1],
        size,
        generator=torch.Generator().manual_seed(0),
        dtype=torch.float32,
        device="cpu",
    ).to(whole)
    basis, _ = torch.linalg.qr(whole @ probe)
    for _ in range(_ROUNDS):
        basis, _ = torch.linalg.qr(whole @ torch.linalg.qr(whole.T @ basis)[0])
    return basis


def _normed(
    model: TransformerBridge, point: Point, direction: Float[Tensor, "d_model"]
) -> Float[Tensor, "d_model"]:
    """A direction that a map writes, after the norms between it and the unembedding, up to a
    positive factor."""
    block: Any = model.blocks[point.layer]
    after = block.hook_aliases.get(WRITERS[point.kind], "mlp").removesuffix(".hook_out")
    # "mlp.out" (BLOOM, MPT, OPT) is the map itself, "ln2_post" (Gemma 2) a norm after it; Granite
    # has a point of its own there, after a positive factor.
    norms = [block.get_submodule(after)] if after.partition(".")[0] not in ("mlp", "attn") else []
    norms += [model.ln_final] if hasattr(model, "ln_final") else []
    for norm in norms:
        plain: nn.Module = copy.deepcopy(norm.original_component).float()
        x = direction / direction.norm() * len(direction) ** 0.5  # far above the norm's epsilon
        # The odd part: scaled (by 1 + weight in Gemma) and centred as this architecture does it,
        # without its bias.
        direction = (plain(x) - plain(-x)) / 2
    return direction


def _tokens(model: TransformerBridge, written: Float[Tensor, "n d_model"]) -> list[tuple[str, str]]:
    """The tokens whose logits each row pushes most up, and most down."""
    # In pieces, as all of the unembedding in fp32 may be twice what the model has.
    logits = torch.cat([written @ piece.float() for piece in model.W_U.split(2**14, dim=1)], dim=1)
    ranked = [logits.topk(N_TOKENS, largest=largest).indices.tolist() for largest in (True, False)]
    return [
        (" ".join(token_texts(model, up)), " ".join(token_texts(model, down)))
        for up, down in zip(*ranked, strict=True)
    ]
