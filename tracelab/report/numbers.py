"""The tables of the page: every number to quote, the scoreboard row by row, what edits cost, and
what is written before and after."""

from __future__ import annotations

from typing import Any

import pandas as pd

from tracelab.evaluate.scoreboard.scoreboard import UNEDITED, Scoreboard
from tracelab.figures.localize import COMPONENT_NAMES, ROLE_NAMES
from tracelab.metrics import label
from tracelab.report.moved import quantity, what_moved
from tracelab.report.parts import Parts
from tracelab.report.sections import best_layer

COSTS = {
    "added_parameters": ("numbers kept", "{:,.0f}"),
    "fit_seconds": ("seconds to fit", "{:.3g}"),
    "latency_scoring": ("time to score, × unedited", "{:.3g}"),
    "latency_decode": ("time to write, × unedited", "{:.3g}"),
    "activation_mib": ("memory of a pass (MiB)", "{:.3g}"),
}
"""Columns of :attr:`Scoreboard.costs` that the page shows, what it calls them, and how."""


def headline(parts: Parts) -> pd.DataFrame:
    """The numbers to quote: ``question, number, value, low, high, n, ideal`` (value in percent or
    as named)."""
    rows: list[dict[str, Any]] = []

    def add(question: str, number: str, row: pd.Series | dict[str, Any], ideal: str) -> None:
        values = {key: row[key] for key in ("value", "low", "high", "n")}
        rows.append({"question": question, "number": number, **values, "ideal": ideal})

    scores = parts.stereoset.table.set_index("metric")
    for metric in ("gap_group", "gap_blind", "gap"):
        if metric in scores.index:
            ideal = "" if metric == "gap_blind" else "0"
            add("How biased?", f"StereoSet, {label(metric)}", scores.loc[metric], ideal)
    for metric, ideal in (("ss", "50"), ("lms", "100"), ("icat", "100")):
        add("How biased?", f"StereoSet {metric.upper()} (%)", scores.loc[metric], ideal)
    if parts.crows is not None:
        row = parts.crows.table.set_index("metric").loc["crows_sum"]
        add("How biased?", "CrowS-Pairs, summed log-probability (%)", row, "50")
    best = best_layer(parts)
    base = {"value": best["f1"], "low": best["low"], "high": best["high"], "n": best["n_test"]}
    add("Where can it be read?", f"best F1, layer {best['layer']}", base, "1")
    control = {
        "value": best["f1_control"],
        "low": best["control_low"],
        "high": best["control_high"],
    }
    add(
        "Where can it be read?",
        f"control, layer {best['layer']}",
        control | {"n": best["n_test"]},
        "",
    )
    totals = parts.trace.totals.set_index("quantity")
    add("Where does it act?", "mean |total effect| of the noise (nats)", totals.loc["|te|"], "")
    effects = parts.trace.effects
    for component in dict.fromkeys(effects.loc[effects["nie"].notna(), "component"]):
        peak = parts.trace.peak(component)
        name = (
            f"{COMPONENT_NAMES[component]}: {ROLE_NAMES[peak['role']]}, layer {peak['layer']} (NIE)"
        )
        values = {"value": peak["nie"], "low": peak["nie_low"], "high": peak["nie_high"]}
        add("Where does it act?", name, values | {"n": peak["n_nie"]}, "1")
    hit, chance = (parts.attention.value(metric) for metric in ("hit_rate", "chance"))
    add("Where does attention differ?", "hit rate on differing words (%)", hit, "")
    add("Where does attention differ?", "chance (%)", chance, "")
    if "excess" in set(parts.attention.summary["selection"]):
        excess = parts.attention.value("hit_rate", "excess")
        add("Where does attention differ?", "excess over a neutral swap (points)", excess, "0")
    if parts.scoreboard is not None:
        for row in what_moved(parts.scoreboard).to_dict("records"):
            change = {"value": row["difference"], "low": row["low"], "high": row["high"]}
            name = f"{row['edit']}: change of {row['quantity']}"
            add("What do edits change?", name, change | {"n": row["n"]}, "")
    return pd.DataFrame(rows)


def score_rows(board: Scoreboard) -> list[dict[str, Any]]:
    """Every change of the scoreboard, those of the report's bias type first: the fields of its row,
    ``quantity``, ``before`` and whether it ``moved``."""
    table = board.table
    key = ["benchmark", "bias", "metric"]
    before = table[table["edit"] == UNEDITED].set_index(key)["value"]
    own = table["bias"].isin([board.settings["bias"], ""])
    rows = []
    for part in (table[own], table[~own]):
        for row in part[part["difference"].notna()].to_dict("records"):
            low, high = row["difference_low"], row["difference_high"]
            rows.append(
                row
                | {
                    "quantity": quantity(row, board.settings["bias"]),
                    "before": before[tuple(row[name] for name in key)],
                    "moved": bool(low > 0 or high < 0),
                }
            )
    return rows


def cost_table(board: Scoreboard) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """What edits cost: names of the columns, and for each edit their texts; none where nothing is
    known."""
    columns = [name for name in COSTS if name in board.costs]
    rows = []
    for row in board.costs.to_dict("records"):
        texts = ["–" if row[c] != row[c] else COSTS[c][1].format(row[c]) for c in columns]
        rows.append((str(row["edit"]), texts))
    return [COSTS[name][0] for name in columns], rows


def written(texts: pd.DataFrame) -> list[tuple[str, list[dict[str, Any]], list[str]]]:
    """Each prompt with what is written after it by the unedited model and by the edits that write
    something else, and the names of those that do not."""
    found = []
    for prompt, part in texts.groupby("prompt", sort=False):
        first, *others = part.to_dict("records")
        kept = [row for row in others if row["text"] != first["text"]]
        same = [row["edit"] for row in others if row["text"] == first["text"]]
        found.append((str(prompt), [first, *kept], same))
    return found
