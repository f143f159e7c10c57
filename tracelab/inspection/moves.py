"""Where in the model an edit acts: a map of layers x positions, and every attention head.

    moved(l, i) = ‖after - before‖ / ‖before‖       of the residual stream after block l, of the MLP's
                                                    and of the attention's output, at position i
    lens(l, i)  = KL(p ‖ q),  p, q = softmax(head(resid_post(l, i)))   before and after, in nats

``head`` is the model's own final norm and unembedding: the *logit lens* (nostalgebraist 2020) reads
the residual stream as if block ``l`` were the last. In the last layer it is the KL of the next-token
distribution, but for an edit of the logits themselves, which comes after it. In early layers the
lens is a poor guess of what the model will say: there a KL of 0 is not "nothing has happened".

A large relative norm says that a vector is another one, not that it matters to what the model says.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import kl_div
from transformer_lens.model_bridge import TransformerBridge

from tracelab.errors import TracelabError
from tracelab.inspection.passes import Pass
from tracelab.model.partial_forward import BlockRunner

MOVES = ("resid_post", "mlp_out", "attn_out")
"""Measures of the map by relative norm; ``lens_kl`` is there on request."""
HEADS_MOST = 256 * 2**20
"""Bytes of attention patterns that a result keeps, beyond which further prompts have none."""
MAP_MOST = 64
"""Tokens of a prompt of which the heads' maps are kept: larger ones are not legible, and grow with
its square."""


def move_rows(
    where: dict[str, Any],
    texts: Sequence[str],
    before: Pass,
    after: Pass,
    lens: Float[Tensor, "layer pos"] | None,
) -> list[dict[str, Any]]:
    """One row a layer and position: the token there and how far each of :data:`MOVES` moved."""
    layers = sorted({layer for _, layer in before.seen})
    found = {kind: _relative(kind, layers, before, after) for kind in MOVES}
    if lens is not None:
        found["lens_kl"] = lens.tolist()
    return [
        where
        | {"layer": layer, "position": position, "token": text}
        | {kind: values[row][position] for kind, values in found.items()}
        for row, layer in enumerate(layers)
        for position, text in enumerate(texts)
    ]


def _relative(kind: str, layers: list[int], before: Pass, after: Pass) -> list[list[float]]:
    n = len(before.logits)
    made = []
    for layer in layers:
        old, new = before.seen.get((kind, layer)), after.seen.get((kind, layer))
        if old is None or new is None:
            made.append([float("nan")] * n)
        else:
            made.append(((new - old).norm(dim=-1) / old.norm(dim=-1).clamp_min(1e-12)).tolist())
    return made


def lens_kl(model: TransformerBridge, before: Pass, after: Pass) -> Float[Tensor, "layer pos"]:
    """KL(before ‖ after), in nats, under the logit lens at each layer and position.

    Costs the unembedding of each residual that moved, twice; where none did the KL is 0.

    Raises:
        TracelabError: the architecture shows no residual stream.
    """
    runner, rows = BlockRunner(model), []
    for layer in before.layers("resid_post"):
        old, new = (run.seen["resid_post", layer] for run in (before, after))
        kl = torch.zeros(len(old), device=old.device)
        moved = (old != new).any(dim=-1).nonzero()[:, 0]
        if len(moved):
            both = torch.stack([old[moved], new[moved]]).to(model.cfg.dtype)
            log_p, log_q = runner.head(both).float().log_softmax(dim=-1)
            each = kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=-1)
            kl[moved] = each.clamp(min=0)
        rows.append(kl)
    if not rows:
        raise TracelabError("this architecture shows no residual stream for a logit lens")
    return torch.stack(rows)


def heads_of(run: Pass) -> Float[Tensor, "layer head query key"] | None:
    """The patterns of all heads in half precision (off by at most 0.0003); None where the
    architecture shows none, or the prompt has more than :data:`MAP_MOST` tokens."""
    layers = run.layers("pattern")
    if not layers or len(run.logits) > MAP_MOST:
        return None
    return torch.stack([run.seen["pattern", layer] for layer in layers]).half().cpu()


def head_maps(
    heads: Mapping[str, Tensor], edit: int, prompt: int, layer: int
) -> tuple[Float[Tensor, "head query key"], Float[Tensor, "head query key"]] | None:
    """A layer's patterns before and after, from :attr:`BeforeAfter.heads`; None if there are none.

    Args:
        edit: number of the edit, in the order of the settings.
    """
    before, after = heads.get(f"before/{prompt}"), heads.get(f"after/{edit}/{prompt}")
    if before is None or after is None:
        return None
    return before[layer].float(), after[layer].float()


def layers_by_change(heads: Mapping[str, Tensor], edit: int, prompt: int) -> list[int]:
    """The layers, those whose heads an edit moved most first; none where there are no patterns."""
    before, after = heads.get(f"before/{prompt}"), heads.get(f"after/{edit}/{prompt}")
    if before is None or after is None:
        return []
    moved = (after.float() - before.float()).flatten(1).norm(dim=1)
    return moved.argsort(descending=True, stable=True).tolist()


def most_moved_layer(heads: Mapping[str, Tensor], edits: Iterable[int], prompt: int) -> int:
    """The layer whose heads the edits moved most, all together; 0 where there are no patterns."""
    before = heads.get(f"before/{prompt}")
    found = [after for edit in edits if (after := heads.get(f"after/{edit}/{prompt}")) is not None]
    if before is None or not found:
        return 0
    moved = sum((after.float() - before.float()).flatten(1).norm(dim=1) for after in found)
    return int(torch.as_tensor(moved).argmax())
