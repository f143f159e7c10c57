"""What the page leads with: what each edit moved, what that cost, and what did not move."""

from __future__ import annotations

from typing import Any

import pandas as pd

from tracelab.evaluate.scoreboard.scoreboard import Scoreboard
from tracelab.metrics import label

BIAS = ("gap_group", "gap", "hellinger", "ss", "crows_sum")
COST = ("lms", "perplexity")
HOME = {
    "gap_group": "stereoset",
    "gap": "stereoset",
    "hellinger": "local-bias",
    "ss": "stereoset",
    "crows_sum": "crows-pairs",
    "lms": "stereoset",
    "perplexity": "perplexity",
}
"""The benchmark whose number leads, of those that have one of that name."""


def what_moved(board: Scoreboard) -> pd.DataFrame:
    """One row an edit and quantity: ``edit, quantity, role`` (bias or cost), ``before, after,
    difference, low, high, p_holm, up, down, n, note`` and ``moved``: whether the paired interval
    excludes 0."""
    table = board.table
    own = table[table["bias"].isin([board.settings["bias"], ""]) & (table["reason"] == "")]
    before = own[own["difference"].isna()].set_index(["benchmark", "metric"])["value"]
    rows: list[dict[str, Any]] = []
    for row in own[own["difference"].notna()].to_dict("records"):
        key = (row["benchmark"], row["metric"])
        if row["benchmark"] != HOME.get(row["metric"]):
            continue
        low, high = row["difference_low"], row["difference_high"]
        rows.append(
            {
                "edit": row["edit"],
                "quantity": label(row["metric"]),
                "metric": row["metric"],
                "role": "bias" if row["metric"] in BIAS else "cost",
                "before": before[key],
                "after": row["value"],
                "difference": row["difference"],
                "low": low,
                "high": high,
                "p_holm": row["p_holm"],
                "up": row["up"],
                "down": row["down"],
                "n": row["n"],
                "note": row["difference_note"],
                "moved": bool(low > 0 or high < 0),
            }
        )
    made = pd.DataFrame(rows)
    order = [*BIAS, *COST]
    return made.sort_values("metric", key=lambda names: names.map(order.index), kind="stable")


def sentences(moved: pd.DataFrame) -> list[str]:
    """One sentence an edit: which bias scores moved by how much, and the cost."""
    return [_sentence(str(edit), rows) for edit, rows in moved.groupby("edit", sort=False)]


def _sentence(edit: str, rows: pd.DataFrame) -> str:
    bias = [r for r in rows.to_dict("records") if r["role"] == "bias"]
    told = [
        f"{r['quantity']} {r['before']:.3g} → {r['after']:.3g}"
        f" ({r['difference']:+.3g} [{r['low']:.3g}, {r['high']:.3g}])"
        for r in bias
        if r["moved"]
    ]
    costs = rows[rows["metric"] == "perplexity"].to_dict("records")
    cost = "".join(f"; perplexity {100 * (r['after'] / r['before'] - 1):+.1f} %" for r in costs)
    still = ", ".join(r["quantity"] for r in bias if not r["moved"])
    said = f"{edit}: {', '.join(told) if told else 'moves no bias score beyond chance'}{cost}."
    return said + (f" Not moved: {still}." if told and still else "")
