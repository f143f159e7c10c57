"""What edits tell of themselves, as tidy rows; which method tells what is not known here."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from typing import Any

import pandas as pd

from tracelab.interventions.base import LOGITS, Told

COLUMNS = ("layer", "teller", "quantity", "label", "before", "after")


def told_rows(where: dict[str, Any], told: Sequence[Told]) -> list[dict[str, Any]]:
    """:data:`COLUMNS` at ``where["position"]`` of the first text; ``teller`` numbers the edits of a
    stack that told something."""
    position = where["position"]
    tellers = list(dict.fromkeys(each.teller for each in told))
    return [
        where
        | {
            "layer": each.layer,
            "teller": tellers.index(each.teller),
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
    p_after``, and what else the same edit told of the attribute at the layer."""
    place = [*place, "layer", "teller", "attribute"]
    rows = told[told["quantity"] == "p"]
    if rows.empty:
        return pd.DataFrame(columns=[*place, "group", "p_before", "p_after"]).drop(columns="teller")
    label = rows["label"].str.partition(": ")
    rows = rows.assign(attribute=label[0], group=label[2], p_before=rows["before"])
    rows = rows.assign(p_after=rows["after"])[[*place, "group", "p_before", "p_after"]]
    others = told[told["quantity"] != "p"].rename(columns={"label": "attribute"})
    others = others.merge(rows[place].drop_duplicates(), on=place)
    for quantity, part in others.groupby("quantity", sort=False):
        names = {"before": f"{quantity}_before", "after": f"{quantity}_after"}
        if part["before"].isna().all():
            names = {"after": str(quantity)}
        part = part.rename(columns=names)[[*place, *names.values()]]
        rows = rows.merge(part, on=place, how="left", validate="many_to_one")
    return rows.drop(columns="teller")
