"""The rows of :class:`~tracelab.inspection.before_after.BeforeAfter`'s tables, of two passes of a
prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import kl_div
from transformer_lens.model_bridge import TransformerBridge

from tracelab.inspection.passes import Pass
from tracelab.interventions.base import LOGITS
from tracelab.model.tokens import token_texts

LAYER_MEASURES = ("resid_post", "mlp_out", "pattern")


def token_rows(
    model: TransformerBridge,
    where: dict[str, Any],
    before: Pass,
    after: Pass,
    top: int,
    rank_by: str,
    named: Sequence[int],
) -> list[dict[str, Any]]:
    """The tokens most promoted and demoted at a position, and those named."""
    position = where["position"]
    logit = before.logits[position], after.logits[position]
    p = logit[0].softmax(dim=-1), logit[1].softmax(dim=-1)
    change = p[1] - p[0] if rank_by == "probability" else logit[1] - logit[0]
    ranked = change.argsort(descending=True)
    listed = [("promoted", int(i)) for i in ranked[:top]] + [
        ("demoted", int(i)) for i in ranked.flip(0)[:top]
    ]
    # Of a stack with several pairs of experts, the last.
    mixed = {told.label: told.after for told in after.told if told.quantity == LOGITS}
    rows = []
    for direction, token in [*listed, *(("named", i) for i in named)]:
        row = where | {
            "direction": direction,
            "token": token_texts(model, [token])[0],
            "token_id": token,
            "logit_before": float(logit[0][token]),
            "logit_after": float(logit[1][token]),
            "p_before": float(p[0][token]),
            "p_after": float(p[1][token]),
        }
        rows.append(
            row | {name: float(logits[0, position, token]) for name, logits in mixed.items()}
        )
    return rows


def position_row(where: dict[str, Any], text: str, before: Pass, after: Pass) -> dict[str, Any]:
    """KL and entropies of the next-token distributions at a position, in nats."""
    log_p, log_q = (
        run.logits[where["position"]].double().log_softmax(dim=-1) for run in (before, after)
    )
    return where | {
        "token": text,
        "kl": float(kl_div(log_q, log_p, reduction="sum", log_target=True).clamp(min=0)),
        "entropy_before": float(torch.special.entr(log_p.exp()).sum()),
        "entropy_after": float(torch.special.entr(log_q.exp()).sum()),
    }


def layer_rows(where: dict[str, Any], before: Pass, after: Pass) -> list[dict[str, Any]]:
    """Relative norms of the change at a position, a row a layer."""
    position = where["position"]

    def moved(kind: str, layer: int) -> float:
        if (kind, layer) not in before.seen:
            return float("nan")
        old, new = before.seen[kind, layer], after.seen[kind, layer]
        # [head, query, key] of a pattern, [pos, d_model] of the others
        old, new = (
            (old[:, position], new[:, position])
            if kind == "pattern"
            else (old[position], new[position])
        )
        return float((new - old).norm() / old.norm().clamp_min(1e-12))

    layers = sorted({layer for _, layer in before.seen})
    return [
        where | {"layer": layer} | {kind: moved(kind, layer) for kind in LAYER_MEASURES}
        for layer in layers
    ]


def attention_rows(
    where: dict[str, Any], texts: list[str], before: Pass, after: Pass
) -> list[dict[str, Any]]:
    """What the last layer attends to, mean over heads."""
    if not (seen := before.layers("pattern")):
        return []
    old, new = (run.seen["pattern", max(seen)].mean(dim=0).tolist() for run in (before, after))
    return [
        where
        | {
            "query": query,
            "key": key,
            "token": texts[key],
            "before": old[query][key],
            "after": new[query][key],
        }
        for query in range(len(texts))
        for key in range(query + 1)
    ]
