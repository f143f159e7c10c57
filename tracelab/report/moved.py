"""What the page leads with: what each edit moved, what that cost, and what did not move."""

from __future__ import annotations

from typing import Any

import pandas as pd

from tracelab.evaluate.scoreboard.scoreboard import Scoreboard
from tracelab.metrics import BENCHMARKS, ideal, label, paper_name

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


FIELDS = [
    *("edit", "quantity", "metric", "role", "before", "after", "difference", "low", "high"),
    *("p_holm", "up", "down", "n", "note", "moved"),
]


def what_moved(board: Scoreboard) -> pd.DataFrame:
    """One row an edit and quantity, the edit that moved a bias score furthest first.

    Returns:
        ``edit, quantity, metric, role`` (bias or cost), ``before, after, difference, low, high,
        p_holm, up, down, n, note`` and ``moved``: whether the paired interval excludes 0, which is
        not corrected for how many are looked at; ``p_holm`` is.
    """
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
    made = pd.DataFrame(rows, columns=FIELDS)
    order = [*BIAS, *COST]
    made = made.sort_values("metric", key=lambda names: names.map(order.index), kind="stable")
    first = sorted(made["edit"].unique(), key=lambda edit: -_largest(made[made["edit"] == edit]))
    return made.sort_values("edit", key=lambda names: names.map(first.index), kind="stable")


def _largest(rows: pd.DataFrame) -> float:
    """By which share of its distance from the ideal value the bias score that changed most did, of
    those that did."""
    told = rows[(rows["role"] == "bias") & rows["moved"]]
    away = (told["before"] - [ideal(metric) or 0.0 for metric in told["metric"]]).abs()
    return float((told["difference"].abs() / away.where(away > 0)).max()) if len(told) else 0.0


def sentences(moved: pd.DataFrame) -> list[str]:
    """One sentence an edit: which scores changed by how much, the cost, and what cannot be told
    from no change."""
    return [_sentence(str(edit), rows) for edit, rows in moved.groupby("edit", sort=False)]


def _sentence(edit: str, rows: pd.DataFrame) -> str:
    told = [_change(row) for row in rows.to_dict("records") if row["moved"]]
    costs = rows[rows["metric"] == "perplexity"].to_dict("records")
    cost = "".join(f" Perplexity {relative(row)}." for row in costs)
    still = [row["quantity"] for row in rows.to_dict("records") if not row["moved"]]
    said = (
        f"{paper_name(edit)}: {'; '.join(told) if told else 'no change can be told from 0'}.{cost}"
    )
    if not (told and still):
        return said
    several = f"the other {len(still)} scores"
    return f"{said} Not told from 0: {', '.join(still) if len(still) < 3 else several}."


def _change(row: dict[str, Any]) -> str:
    """A score before and after, its paired interval, and whether it went the wrong way."""
    star = "*" if row["p_holm"] < 0.05 else ""
    return (
        f"{row['quantity']} {row['before']:.3g} → {row['after']:.3g} "
        f"({row['difference']:+.3g}{star} [{row['low']:.3g}, {row['high']:.3g}]){away(row)}"
    )


def away(row: dict[str, Any]) -> str:
    """Whether a score went the wrong way, from its ideal value; nothing where it did not."""
    best = ideal(row["metric"])
    wrong = best is not None and abs(row["after"] - best) > abs(row["before"] - best)
    return f", further from {best:g}" if wrong else ""


def relative(row: dict[str, Any]) -> str:
    """A score's change as a share of what it was; what rounds to nothing has no sign."""
    share = 100 * (row["after"] / row["before"] - 1)
    return f"{0.0 if abs(share) < 0.05 else share:+.1f} %"


def quantity(row: dict[str, Any], bias: str) -> str:
    """A score with its benchmark where its name does not tell it, and a bias type that is not the
    report's."""
    name, benchmark = label(row["metric"]), str(row["benchmark"])
    source = BENCHMARKS.get(benchmark, benchmark)
    told = name.lower().startswith(source.lower())
    other = "" if row["bias"] in (bias, "") else f", {row['bias']}"
    return f"{name if told else f'{source}: {name}'}{other}"
