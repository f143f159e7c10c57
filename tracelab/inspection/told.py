"""What edits tell of themselves, as tidy rows; which method tells what is not known here."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from typing import Any

import pandas as pd

from tracelab.interventions.base import LOGITS, Told


def told_rows(where: dict[str, Any], told: Sequence[Told]) -> list[dict[str, Any]]:
    """``layer, quantity, label, before, after`` at ``where["position"]`` of the first text."""
    position = where["position"]
    return [
        where
        | {
            "layer": each.layer,
            "quantity": each.quantity,
            "label": each.label,
            "before": nan if each.before is None else float(each.before[0, position]),
            "after": float(each.after[0, position]),
        }
        for each in told
        if each.quantity != LOGITS
    ]


def groups_of(told: pd.DataFrame, place: Sequence[str]) -> pd.DataFrame:
    """The probabilities ``p`` of ``attribute: group``, wide: ``layer, attribute, group, p_before,
    p_after``, and what else was told of the attribute at the layer."""
    place = [*place, "layer", "attribute"]
    if told.empty:
        return pd.DataFrame(columns=[*place, "group", "p_before", "p_after"])
    told = told.assign(attribute=told["label"].str.partition(": ")[0])
    rows = told[told["quantity"] == "p"].rename(columns={"before": "p_before", "after": "p_after"})
    rows = rows.assign(group=rows["label"].str.partition(": ")[2])
    rows = rows[[*place, "group", "p_before", "p_after"]]
    for quantity, part in told[told["quantity"] != "p"].groupby("quantity", sort=False):
        names = {"before": f"{quantity}_before", "after": f"{quantity}_after"}
        if part["before"].isna().all():
            names = {"after": str(quantity)}
        rows = rows.merge(part.rename(columns=names)[[*place, *names.values()]], on=place)
    return rows
