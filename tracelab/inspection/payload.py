"""What the inspector shows, as plain JSON: the same for the widget and for a page that stands alone.

Numbers are rounded to what is drawn: three digits, attention to 1/10000 (a patterns' lower triangle,
row by row, and its change, as whole numbers). So a layer of a small model is a few kilobytes, and a
cell of a notebook stays far below 2 MB.

    view    of one prompt and edit: tokens, sensitive (positions), positions (that have a list of
            tokens), kl (a position), top {position: {promoted, demoted: [token, p before, p after]}},
            maps {quantity: [layer][position]}
    heads   layer, before and change: [head][lower triangle]
    texts   seed, before and after: [text, whether it differs]
"""  # noqa: E501

from __future__ import annotations

import json
import math
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tracelab.figures.style import model_name
from tracelab.inspection.before_after import BeforeAfter
from tracelab.inspection.continuations import marked
from tracelab.inspection.moves import MOVES, head_maps, layers_by_change

UNIT = 10_000
"""Whole numbers of attention are of 1/UNIT."""


def view_of(result: BeforeAfter, edit: str, prompt: int = 0) -> dict[str, Any]:
    """What is drawn of one prompt under one edit but for heads and continuations."""
    moves, positions, tokens = (
        _of(table, edit, prompt) for table in (result.moves, result.positions, result.tokens)
    )
    kl = dict(zip(positions["position"], positions["kl"], strict=True))
    texts = list(moves.drop_duplicates("position").sort_values("position")["token"])
    tokens = tokens[tokens["direction"] != "named"]
    return {
        "prompt": result.settings["prompts"][prompt],
        "tokens": texts,
        "sensitive": list(result.settings["sensitive"][prompt]),
        "positions": sorted(int(position) for position in kl),
        "kl": [_rounded(kl.get(position)) for position in range(len(texts))],
        "top": {
            str(position): {
                direction: [
                    [row.token, _rounded(row.p_before), _rounded(row.p_after)]
                    for row in part[part["direction"] == direction].itertuples()
                ]
                for direction in ("promoted", "demoted")
            }
            for position, part in tokens.groupby("position")
        },
        "maps": {
            name: [[_rounded(value) for value in row] for row in grid.to_numpy().tolist()]
            for name in (*MOVES, "lens_kl")
            if name in moves and moves[name].notna().any()
            for grid in [moves.pivot(index="layer", columns="position", values=name)]
        },
    }


def heads_of_layer(
    result: BeforeAfter, edit: str, prompt: int, layer: int
) -> dict[str, Any] | None:
    """The attention heads of a layer; None where there are no patterns."""
    number = list(result.settings["edits"]).index(edit)
    maps = head_maps(result.heads, number, prompt, layer)
    if maps is None:
        return None
    before, after = (_whole(pattern) for pattern in maps)
    return {"layer": layer, "before": before.tolist(), "change": (after - before).tolist()}


def pieces_of(before: str, after: str) -> dict[str, Any]:
    """Two continuations in pieces that are alike and that differ."""
    old, new = marked(before, after)
    return {"before": old, "after": new}


def page_of(result: BeforeAfter, *, most_bytes: int = 4_000_000) -> dict[str, Any]:
    """Everything that a stand-alone page shows: each prompt under each edit.

    Args:
        most_bytes: of the heads' maps; of what is more, the layers that moved most are kept.
    """
    settings = result.settings
    names, prompts = list(settings["edits"]), range(len(settings["prompts"]))
    each = most_bytes // (len(names) * len(prompts))
    cases = [
        {
            "prompt": prompt,
            "edit": name,
            "view": view_of(result, name, prompt),
            "heads": _held_heads(result, name, prompt, each),
            "texts": _texts(result, name, prompt),
        }
        for prompt in prompts
        for name in names
    ]
    return {"setup": setup_of(settings), "cases": cases}


def setup_of(settings: dict[str, Any]) -> dict[str, Any]:
    """What does not change with the prompt, of a result's settings."""
    return {"model": model_name(settings), "n_layers": settings["model"]["n_layers"]}


def compact(value: Any) -> str:
    """JSON without spaces."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _of(table: pd.DataFrame, edit: str, prompt: int) -> pd.DataFrame:
    return table[(table["edit"] == edit) & (table["prompt"] == prompt)]


def _held_heads(
    result: BeforeAfter, edit: str, prompt: int, most_bytes: int
) -> dict[str, Any] | None:
    number = list(result.settings["edits"]).index(edit)
    ranked = layers_by_change(result.heads, number, prompt)
    held: dict[int, Any] = {}
    for layer in ranked:
        heads = heads_of_layer(result, edit, prompt, layer)
        most_bytes -= len(compact(heads))
        if heads is None or (most_bytes < 0 and held):
            break
        held[layer] = heads
    return {"first": ranked[0], "layers": dict(sorted(held.items()))} if held else None


def _texts(result: BeforeAfter, edit: str, prompt: int) -> dict[str, Any] | None:
    rows = list(_of(result.texts, edit, prompt).itertuples())
    if not rows:
        return None
    return {"seed": result.settings["seed"]} | pieces_of(rows[0].before, rows[0].after)


def _whole(pattern: Float[Tensor, "head query key"]) -> Int[Tensor, "head pairs"]:
    """Lower triangles in whole numbers of 1/UNIT."""
    rows, columns = torch.tril_indices(*pattern.shape[1:]).unbind()
    return (pattern[:, rows, columns] * UNIT).round().int()


def _rounded(value: float | None) -> float | None:
    """To three digits; None for what is no number."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.3g}")
