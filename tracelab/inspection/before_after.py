"""What did an edit do? Before and after, token by token and layer by layer.

:func:`inspect` runs each prompt once unedited and once under each edit and compares, at the last
position or at all:

    tokens      the next tokens most promoted and demoted, with logit and probability before and after
    positions   KL(before ‖ after) of the next-token distribution, in nats
    layers      how far the residual stream, the MLP output and the attention pattern moved: ‖after - before‖ / ‖before‖
    told        what the edit itself tells: FairMed its probers' distribution and the steps it took
    attention   what the last layer attends to, before and after
    weights     weight deltas: their size, and the tokens that their largest directions write (on any prompt)

A moved distribution says that the edit acts, not that it removes a bias: compare with a control
edit of the same size.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import kl_div
from transformer_lens.model_bridge import TransformerBridge

from tracelab.errors import TracelabError, require_choice
from tracelab.figures import before_after
from tracelab.gradients import measuring
from tracelab.inspection.told import COLUMNS as TOLD_COLUMNS
from tracelab.inspection.told import groups_of, told_rows
from tracelab.inspection.weight_directions import DIRECTION_COLUMNS, weight_directions
from tracelab.interventions.base import LOGITS, Intervention, Told
from tracelab.interventions.stack import Stack
from tracelab.model.finite import require_finite_logits
from tracelab.model.forward_pass import reading
from tracelab.model.hook_points import LINEAR_MAPS, hook_name
from tracelab.model.hooked import require_unedited
from tracelab.model.load import model_facts
from tracelab.model.settings import run_settings
from tracelab.model.texts import Texts, as_texts
from tracelab.model.tokens import encode, first_token, require_context, token_texts
from tracelab.ranges import require_int
from tracelab.results import Result

POSITIONS = ("last", "all")
RANKINGS = ("probability", "logit")
VIEWS = ("tokens", "positions", "layers", "groups", "logits", "attention", "weights")
_MEASURED = ("resid_post", "mlp_out", "pattern")
_PLACE = ("edit", "prompt", "position")
_COLUMNS = {
    "tokens": (
        *_PLACE,
        "direction",
        "token",
        "token_id",
        "logit_before",
        "logit_after",
        "p_before",
        "p_after",
    ),
    "positions": (*_PLACE, "token", "kl", "entropy_before", "entropy_after"),
    "layers": (*_PLACE, "layer", *_MEASURED),
    "told": (*_PLACE, *TOLD_COLUMNS),
    "attention": ("edit", "prompt", "query", "key", "token", "before", "after"),
    "weights": ("edit", *DIRECTION_COLUMNS),
}
"""Of each table; experts add some to the tokens."""

Edits = Intervention | Sequence[Intervention] | Mapping[str, Intervention]


@dataclass(frozen=True)
class BeforeAfter(Result):
    """What edits did to prompts. Tables have ``edit``, ``prompt`` (its number) and ``position``
    (from 0) but as said.

    Attributes:
        tokens: ``direction`` (promoted, demoted, named), ``token``, ``token_id``, ``logit_before``,
            ``logit_after``, ``p_before``, ``p_after``; for experts also ``z``, ``z_plus`` and
            ``z_minus``.
        positions: ``token`` (at the position), ``kl`` (nats), ``entropy_before``,
            ``entropy_after``.
        layers: ``layer``, ``resid_post``, ``mlp_out``, ``pattern``: relative norms of the change.
        told: what edits tell of themselves: ``layer``, ``teller`` (which edit of a stack),
            ``quantity``, ``label`` (of what, where there are several), ``before`` and ``after`` (a
            number; before: none of a new quantity).
            FairMed tells ``p`` of ``attribute: group``, and of ``attribute`` the ``kl`` from
            uniform, whether the position is ``edited``, ``steps``, and ``size`` (‖δ‖ / ‖a‖).
        attention: of the last layer, mean over heads: no ``position`` but ``query``, ``key``
            (positions, the key not after the query), ``token`` (the key's), ``before``, ``after``;
            empty where the model shows no patterns.
        weights: of weight deltas, whatever the prompt: ``edit`` and the columns of
            :func:`~tracelab.inspection.weight_directions.weight_directions`.
    """

    tokens: pd.DataFrame
    positions: pd.DataFrame
    layers: pd.DataFrame
    told: pd.DataFrame
    attention: pd.DataFrame
    weights: pd.DataFrame

    @property
    def frame(self) -> pd.DataFrame:
        """The table of tokens."""
        return self.tokens

    @property
    def groups(self) -> pd.DataFrame:
        """Group probabilities that edits told: :func:`~tracelab.inspection.told.groups_of`."""
        return groups_of(self.told, _PLACE)

    def headline(self) -> str:
        """How many edits and prompts, and how far a distribution moved at most."""
        edits, prompts = (len(self.settings[name]) for name in ("edits", "prompts"))
        return f"{edits} edits, n = {prompts} prompts, KL up to {self.positions['kl'].max():.3g}"

    def plot(self, view: str = "tokens", *, prompt: int = 0) -> go.Figure:
        """One view of one prompt, the edits side by side.

        Args:
            view: one of :data:`VIEWS`: ``groups`` is of FairMed, ``logits`` of experts, ``weights``
                of weight deltas and the same for every prompt.

        Raises:
            TracelabError: unknown view or prompt, a view of a method that is not among the edits,
                or of attention where the model shows none.
        """
        require_choice("view", view, VIEWS)
        tables = self.tables() | ({"groups": self.groups} if view == "groups" else {})
        return before_after(tables, self.settings, view, prompt, modules=LINEAR_MAPS)

    def figures(self) -> dict[str, go.Figure]:
        """Every view of every prompt that has it, by ``<view>-<prompt>``, and ``weights`` once."""
        empty = {
            "groups": self.groups.empty,
            "logits": "z_plus" not in self.tokens,
            "attention": self.attention.empty,
            "weights": True,
        }
        prompts, views = self.settings["prompts"], [v for v in VIEWS if not empty.get(v)]
        drawn = {f"{v}-{n}": self.plot(v, prompt=n) for n in range(len(prompts)) for v in views}
        return drawn if self.weights.empty else drawn | {"weights": self.plot("weights")}


@measuring()
def inspect(
    model: TransformerBridge,
    interventions: Edits,
    prompts: Texts,
    *,
    positions: str = "last",
    top: int = 10,
    rank_by: str = "probability",
    tokens: Texts = (),
    top_directions: int = 3,
    prepend_bos: bool | None = None,
    allow_hooks: bool = False,
) -> BeforeAfter:
    """Compare a model with and without edits on prompts.

    Args:
        interventions: one edit or several, each applied alone (a stack is one edit), or a mapping
            from names.
        positions: ``"last"``: after the whole prompt, as when it is continued; ``"all"``: after
            each of its tokens, as when it is scored. An edit that depends on what is read (FairMed)
            acts accordingly.
        top: how many promoted and how many demoted tokens.
        rank_by: what change ranks tokens: of ``"probability"`` or of ``"logit"``.
        tokens: words whose (first) tokens are always shown, as continuations after a space.
        top_directions: how many directions of each weight delta.
        allow_hooks: take a model with hooks on, as it is with them, for the one before the edit.

    Raises:
        TracelabError: no prompt, no edit, an edit of another model, or hooks on the model; a prompt
            beyond the model's context, or one after which the logits are not finite.
    """
    require_unedited(model, "inspect", allow_hooks=allow_hooks)
    require_choice("positions", positions, POSITIONS)
    require_choice("rank_by", rank_by, RANKINGS)
    prompts = as_texts(prompts, "prompt")
    edits = _named(interventions)
    require_int("top", top)
    require_int("top_directions", top_directions)
    if not prompts or not edits:
        raise TracelabError("inspect needs at least one prompt and one edit")
    for edit in edits.values():
        edit.hooks(model)  # refuses before any work
    named = [first_token(model, word) for word in as_texts(tokens, "token")]
    encoded = [encode(model, prompt, prepend_bos=prepend_bos).ids for prompt in prompts]
    require_context(model, map(len, encoded), what="prompt")
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in _COLUMNS}
    for name, edit in edits.items():
        rows["weights"] += [
            {"edit": name} | row for row in weight_directions(model, edit, top=top_directions)
        ]
    for number, ids in enumerate(encoded):
        texts = token_texts(model, ids)
        chosen = range(len(ids)) if positions == "all" else [len(ids) - 1]
        # As when the first token is generated, or as when every token of the prompt is scored.
        first, generating = (0, False) if positions == "all" else (len(ids) - 1, True)
        with reading(first, generating=generating):
            before = _measure(model, ids, None)
            runs = {name: _measure(model, ids, edit) for name, edit in edits.items()}
        require_finite_logits(before.logits[None], [number], "prompt")
        for name, after in runs.items():
            require_finite_logits(after.logits[None], [number], f"{name} and prompt")
        for name, after in runs.items():
            for position in chosen:
                where = {"edit": name, "prompt": number, "position": position}
                rows["tokens"] += _token_rows(model, where, before, after, top, rank_by, named)
                rows["positions"].append(_position_row(where, texts[position], before, after))
                rows["layers"] += _layer_rows(where, before, after)
                rows["told"] += told_rows(where, after.told)
            rows["attention"] += _attention_rows(
                {"edit": name, "prompt": number}, texts, before, after
            )
    tables = {
        name: pd.DataFrame(found, columns=None if found else _COLUMNS[name])
        for name, found in rows.items()
    }
    settings = run_settings(
        model,
        prompts=prompts,
        edits={name: edit.settings() for name, edit in edits.items()},
        positions=positions,
        top=top,
        rank_by=rank_by,
        top_directions=top_directions,
        prepend_bos=model_facts(model).prepend_bos if prepend_bos is None else prepend_bos,
    )
    return BeforeAfter(settings, **tables)


def _named(interventions: Edits) -> dict[str, Intervention]:
    if isinstance(interventions, Mapping):
        return dict(interventions)
    listed = [interventions] if isinstance(interventions, Intervention) else list(interventions)
    names = [edit.name for edit in listed]
    twice = {name for name in names if names.count(name) > 1}
    return {
        f"{name} #{i + 1}" if name in twice else name: edit
        for i, (name, edit) in enumerate(zip(names, listed, strict=True))
    }


@dataclass
class _Run:
    """One forward pass: fp32 logits ``[pos, vocab]``, activations by (kind, layer), what edits
    told."""

    logits: Float[Tensor, "pos vocab"]
    seen: dict[tuple[str, int], Tensor]
    told: list[Told]


def _measure(model: TransformerBridge, ids: Sequence[int], edit: Intervention | None) -> _Run:
    info, seen = model_facts(model), {}

    def reader(kind: str, layer: int):
        def read(value: Tensor, hook: object) -> None:
            seen[kind, layer] = value[0].float()

        return read

    kinds = [kind for kind in _MEASURED if kind not in info.faults]
    # After the edit's hooks at the same point: what is read is what the model goes on with.
    readers = [
        (hook_name(kind, layer), reader(kind, layer))
        for kind in kinds
        for layer in range(info.n_layers)
    ]
    tokens = torch.tensor([ids], device=model.cfg.device)
    edit = edit or Stack([])
    with edit.observed() as told, edit.applied(model), model.hooks(fwd_hooks=readers):
        logits = model(tokens)[0].float()
    return _Run(logits, seen, told)


def _token_rows(
    model: TransformerBridge,
    where: dict[str, Any],
    before: _Run,
    after: _Run,
    top: int,
    rank_by: str,
    named: Sequence[int],
) -> list[dict[str, Any]]:
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


def _position_row(where: dict[str, Any], text: str, before: _Run, after: _Run) -> dict[str, Any]:
    log_p, log_q = (
        run.logits[where["position"]].double().log_softmax(dim=-1) for run in (before, after)
    )
    return where | {
        "token": text,
        "kl": float(kl_div(log_q, log_p, reduction="sum", log_target=True).clamp(min=0)),
        "entropy_before": float(torch.special.entr(log_p.exp()).sum()),
        "entropy_after": float(torch.special.entr(log_q.exp()).sum()),
    }


def _layer_rows(where: dict[str, Any], before: _Run, after: _Run) -> list[dict[str, Any]]:
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
        where | {"layer": layer} | {kind: moved(kind, layer) for kind in _MEASURED}
        for layer in layers
    ]


def _attention_rows(
    where: dict[str, Any], texts: list[str], before: _Run, after: _Run
) -> list[dict[str, Any]]:
    if not (seen := [layer for kind, layer in before.seen if kind == "pattern"]):
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
