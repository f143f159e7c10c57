"""What did an edit do? Before and after, token by token and layer by layer.

:func:`inspect` runs each prompt once unedited and once under each edit and compares, at the last
position or at all:

    tokens      the next tokens most promoted and demoted, with logit and probability before and after
    positions   KL(before ‖ after) of the next-token distribution, in nats
    layers      how far the residual stream, the MLP output and the attention pattern moved: ‖after - before‖ / ‖before‖
    told        what the edit itself tells: FairMed its probers' distribution and the steps it took
    moves       the same at every layer x position, and KL under the logit lens on request
    heads       what every attention head attends to, before and after
    attention   what the last layer attends to, mean over heads
    texts       what the model goes on to write, with the same seed, on request
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
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tracelab.errors import TracelabError, require_choice
from tracelab.figures import before_after
from tracelab.gradients import measuring
from tracelab.inspection.continuations import marked, text_rows
from tracelab.inspection.moves import (
    HEADS_MOST,
    head_maps,
    heads_of,
    lens_kl,
    most_moved_layer,
    move_rows,
)
from tracelab.inspection.passes import run_pass
from tracelab.inspection.rows import (
    LAYER_MEASURES,
    attention_rows,
    layer_rows,
    position_row,
    token_rows,
)
from tracelab.inspection.sensitive import group_words, sensitive_positions
from tracelab.inspection.told import COLUMNS as TOLD_COLUMNS
from tracelab.inspection.told import groups_of, told_rows
from tracelab.inspection.weight_directions import DIRECTION_COLUMNS, weight_directions
from tracelab.interventions.base import Intervention
from tracelab.model.finite import require_finite_logits
from tracelab.model.forward_pass import reading
from tracelab.model.hook_points import LINEAR_MAPS
from tracelab.model.hooked import require_unedited
from tracelab.model.load import model_facts
from tracelab.model.settings import run_settings
from tracelab.model.texts import Texts, as_texts
from tracelab.model.tokens import encode, first_token, require_context, token_texts
from tracelab.ranges import require_int, require_seed
from tracelab.results import Result

POSITIONS = ("last", "all")
RANKINGS = ("probability", "logit")
VIEWS = (
    "tokens",
    "positions",
    "layers",
    "map",
    "groups",
    "logits",
    "attention",
    "heads",
    "text",
    "weights",
)
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
    "layers": (*_PLACE, "layer", *LAYER_MEASURES),
    "moves": ("edit", "prompt", "layer", "position", "token", "resid_post", "mlp_out", "attn_out"),
    "told": (*_PLACE, *TOLD_COLUMNS),
    "attention": ("edit", "prompt", "query", "key", "token", "before", "after"),
    "texts": ("edit", "prompt", "before", "after"),
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
        moves: of every position, ``layer``, ``token``, relative norms of the change of
            ``resid_post``, ``mlp_out``, ``attn_out``, and ``lens_kl`` (nats) where it was asked
            for: :mod:`tracelab.inspection.moves`.
        told: what edits tell of themselves: ``layer``, ``teller`` (which edit of a stack),
            ``quantity``, ``label`` (of what, where there are several), ``before`` and ``after`` (a
            number; before: none of a new quantity).
            FairMed tells ``p`` of ``attribute: group``, and of ``attribute`` the ``kl`` from
            uniform, whether the position is ``edited``, ``steps``, and ``size`` (‖δ‖ / ‖a‖).
        attention: of the last layer, mean over heads: no ``position`` but ``query``, ``key``
            (positions, the key not after the query), ``token`` (the key's), ``before``, ``after``;
            empty where the model shows no patterns.
        texts: what follows a prompt: ``edit``, ``prompt``, ``before``, ``after``; empty unless
            asked for.
        weights: of weight deltas, whatever the prompt: ``edit`` and the columns of
            :func:`~tracelab.inspection.weight_directions.weight_directions`.
        heads: attention patterns ``[layer, head, query, key]`` in half precision,
            ``before/<prompt>`` and ``after/<number of the edit>/<prompt>``; none of a prompt of
            more than 64 tokens, nor of those after 256 MB of them.
    """

    tokens: pd.DataFrame
    positions: pd.DataFrame
    layers: pd.DataFrame
    moves: pd.DataFrame
    told: pd.DataFrame
    attention: pd.DataFrame
    texts: pd.DataFrame
    weights: pd.DataFrame
    heads: dict[str, Tensor]

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

    def plot(self, view: str = "tokens", *, prompt: int = 0, layer: int | None = None) -> go.Figure:
        """One view of one prompt, the edits side by side.

        Args:
            view: one of :data:`VIEWS`: ``map`` is of layers x positions, ``text`` of continuations
                (if any were asked for), ``groups`` is of FairMed, ``logits`` of experts,
                ``weights`` of weight deltas and the same for every prompt.
            layer: of ``heads``; default: the one whose heads moved most.

        Raises:
            TracelabError: unknown view, prompt or layer, a view of a method that is not among the
                edits, or of attention where the model shows none.
        """
        require_choice("view", view, VIEWS)
        if layer is not None and view != "heads":
            raise TracelabError(f"the view {view!r} is not of one layer: 'heads' is")
        tables = self.tables()
        if view == "groups":
            tables["groups"] = self.groups
        if view == "text":
            pairs = [marked(row.before, row.after) for row in self.texts.itertuples()]
            tables["texts"] = self.texts.assign(pieces=pairs)
        drawn = self._heads(prompt, layer) if view == "heads" else None
        return before_after(tables, self.settings, view, prompt, modules=LINEAR_MAPS, heads=drawn)

    def _heads(self, prompt: int, layer: int | None) -> dict[str, Any]:
        """What the view of heads draws: the layer, and of each edit the maps before and after."""
        n_layers = self.settings["model"]["n_layers"]
        if layer is None:
            layer = most_moved_layer(self.heads, range(len(self.settings["edits"])), prompt)
        require_int("the layer of the view 'heads'", layer, 0, n_layers - 1)
        maps = {
            name: pair
            for number, name in enumerate(self.settings["edits"])
            if (pair := head_maps(self.heads, number, prompt, layer)) is not None
        }
        return {"layer": layer, "maps": maps}

    def figures(self) -> dict[str, go.Figure]:
        """Every view of every prompt that has it, by ``<view>-<prompt>``, and ``weights`` once."""
        prompts = range(len(self.settings["prompts"]))
        empty = {
            "groups": self.groups.empty,
            "logits": "z_plus" not in self.tokens,
            "attention": self.attention.empty,
            "text": self.texts.empty,
            "map": bool(self.moves[["resid_post", "mlp_out", "attn_out"]].isna().all(axis=None)),
            "weights": True,
        }
        drawn = {
            f"{view}-{number}": self.plot(view, prompt=number)
            for number in prompts
            for view in VIEWS
            if not (f"before/{number}" not in self.heads if view == "heads" else empty.get(view))
        }
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
    lens: bool = False,
    new_tokens: int = 0,
    seed: int = 0,
    sensitive: Texts = (),
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
        lens: whether the map has the KL under the logit lens: it costs several times the rest.
        new_tokens: how many tokens each prompt is continued by, before and after (0: none).
        seed: of the continuations, the same for all.
        sensitive: words that maps of attention mark, beside those that name groups
            (:mod:`tracelab.inspection.sensitive`).
        allow_hooks: take a model with hooks on, as it is with them, for the one before the edit.

    Raises:
        TracelabError: no prompt, no edit, an edit of another model, or hooks on the model; a prompt
            beyond the model's context, or one after which the logits are not finite.
    """
    require_seed(seed)
    require_unedited(model, "inspect", allow_hooks=allow_hooks)
    require_choice("positions", positions, POSITIONS)
    require_choice("rank_by", rank_by, RANKINGS)
    prompts = as_texts(prompts, "prompt")
    edits = named(interventions)
    require_int("top", top)
    require_int("top_directions", top_directions)
    require_int("new_tokens", new_tokens, 0)
    if not prompts or not edits:
        raise TracelabError("inspect needs at least one prompt and one edit")
    for edit in edits.values():
        edit.hooks(model)  # refuses before any work
    always = [first_token(model, word) for word in as_texts(tokens, "token")]
    encodings = [encode(model, prompt, prepend_bos=prepend_bos) for prompt in prompts]
    encoded = [encoding.ids for encoding in encodings]
    require_context(model, map(len, encoded), new_tokens=new_tokens, what="prompt")
    words = [*group_words(edits.values()), *as_texts(sensitive, "sensitive word")]
    heads: dict[str, Tensor | None] = {}
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
            before = run_pass(model, ids, None)
            runs = {name: run_pass(model, ids, edit) for name, edit in edits.items()}
        require_finite_logits(before.logits[None], [number], "prompt")
        for name, after in runs.items():
            require_finite_logits(after.logits[None], [number], f"{name} and prompt")
        room = sum(each.nbytes for each in heads.values() if each is not None) < HEADS_MOST
        heads[f"before/{number}"] = heads_of(before) if room else None
        for index, (name, after) in enumerate(runs.items()):
            for position in chosen:
                where = {"edit": name, "prompt": number, "position": position}
                rows["tokens"] += token_rows(model, where, before, after, top, rank_by, always)
                rows["positions"].append(position_row(where, texts[position], before, after))
                rows["layers"] += layer_rows(where, before, after)
                rows["told"] += told_rows(where, after.told)
            of_edit = {"edit": name, "prompt": number}
            lensed = lens_kl(model, before, after) if lens else None
            rows["moves"] += move_rows(of_edit, texts, before, after, lensed)
            rows["attention"] += attention_rows(of_edit, texts, before, after)
            heads[f"after/{index}/{number}"] = heads_of(after) if room else None
    if new_tokens:
        rows["texts"] = text_rows(
            model, edits, prompts, new_tokens, seed=seed, prepend_bos=prepend_bos
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
        lens=lens,
        new_tokens=new_tokens,
        seed=seed if new_tokens else None,
        sensitive=[sensitive_positions(encoding, words) for encoding in encodings],
        prepend_bos=model_facts(model).prepend_bos if prepend_bos is None else prepend_bos,
    )
    kept = {name: patterns for name, patterns in heads.items() if patterns is not None}
    return BeforeAfter(settings, heads=kept, **tables)


def named(interventions: Edits) -> dict[str, Intervention]:
    """Edits by their names, which a mapping gives and others have; of two that are alike the number
    is added."""
    if isinstance(interventions, Mapping):
        return dict(interventions)
    listed = [interventions] if isinstance(interventions, Intervention) else list(interventions)
    names = [edit.name for edit in listed]
    twice = {name for name in names if names.count(name) > 1}
    return {
        f"{name} #{i + 1}" if name in twice else name: edit
        for i, (name, edit) in enumerate(zip(names, listed, strict=True))
    }
