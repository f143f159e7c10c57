"""What a scoreboard tells of one edit, as an edit keeps it in its notes and shows it on its
card."""

from __future__ import annotations

from typing import Any

import pandas as pd

from tracelab.errors import TracelabError
from tracelab.evaluate.scoreboard.scoreboard import Scoreboard
from tracelab.metrics import UNEDITED

_KEPT = [
    *("benchmark", "bias", "metric", "value", "low", "high", "n"),
    *("difference", "difference_low", "difference_high", "p_holm"),
]


def metrics_of(board: Scoreboard, edit: str) -> list[dict[str, Any]]:
    """What was measured of an edit, with intervals: ``edit.notes["metrics"] = metrics_of(board,
    "mine")``.

    Args:
        edit: the name of its row.

    Raises:
        TracelabError: no such edit, or nothing was measured of it.
    """
    rows = board.table[(board.table["edit"] == edit) & (board.table["reason"] == "")]
    if rows.empty or edit == UNEDITED:
        raise TracelabError(f"nothing was measured of an edit {edit!r} on this scoreboard")
    return [
        {key: value for key, value in row.items() if not pd.isna(value) and value != ""}
        for row in rows[_KEPT].astype(object).to_dict("records")
    ]
