"""Does an attribution trace rank states as the exact trace does?

Spearman and Pearson correlation of the indirect effects of the same states under the same noise,
pooled over pairs. Intervals are of a bootstrap over pairs, whose states go together; ranks are
those of all pairs and are not taken anew in each resample. Effects are of the gap, the difference
of a pair's sentences.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from tracelab.errors import TracelabError
from tracelab.ranges import require_seed
from tracelab.statistics import percentile_interval, resample_counts

MOVED = 1e-4
"""Nats: an effect below this is the rounding of a state that changes nothing."""
STATE = ["case", "component", "column", "layer"]


def effects_of_both(states: pd.DataFrame, exact: pd.DataFrame) -> pd.DataFrame:
    """A row a state that either moves: what it is, ``ie`` and ``ie_exact``.

    Args:
        states, exact: of two traces, with their effect ``ie``.

    Raises:
        TracelabError: there is no such state.
    """
    both = states.merge(exact[[*STATE, "ie"]], on=STATE, suffixes=("", "_exact"))
    both = both[both[["ie", "ie_exact"]].abs().max(axis=1) > MOVED]
    if both.empty:
        raise TracelabError("the traces have no state in common that either of them moves")
    return both.assign(same_sign=np.sign(both["ie"]) == np.sign(both["ie_exact"]))


def agreement_table(both: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """As :meth:`CausalTrace.agreement`, of the effects of both traces."""
    require_seed(seed)
    rows = []
    for component, table in both.groupby("component", sort=False):
        groups = [("all", "all", table)]
        groups += [
            (of, value, part) for of in ("role", "layer") for value, part in table.groupby(of)
        ]
        for of, value, part in groups:
            row = {"component": component, "of": of, "value": str(value)}
            effects = part[["ie", "ie_exact"]]
            for name, pair in (("spearman", effects.rank()), ("pearson", effects)):
                numbers = _correlation(pair.to_numpy(float), part["case"].to_numpy(), seed)
                row |= dict(zip((name, f"{name}_low", f"{name}_high"), numbers, strict=True))
            sizes = effects.abs().mean()
            row |= {
                "same_sign": part["same_sign"].mean(),
                "size": sizes["ie"] / sizes["ie_exact"],
                "n_states": len(part),
                "n_cases": part["case"].nunique(),
            }
            rows.append(row)
    return pd.DataFrame(rows)


def most_wrong_states(both: pd.DataFrame, n: int) -> pd.DataFrame:
    """As :meth:`CausalTrace.most_wrong`, of the effects of both traces."""
    ranks = both.groupby("component")[["ie", "ie_exact"]].rank(pct=True)
    table = both.assign(rank_difference=ranks["ie"] - ranks["ie_exact"])
    order = table["rank_difference"].abs().sort_values(ascending=False, kind="stable").index
    columns = ["case", "component", "column", "role", "token", "layer"]
    columns += ["ie", "ie_exact", "rank_difference", "same_sign"]
    return table.loc[order[:n], columns].reset_index(drop=True)


def _correlation(values: np.ndarray, cases: np.ndarray, seed: int) -> tuple[float, float, float]:
    """Of two columns, with its interval over cases; nan where there is none."""
    _, which = np.unique(cases, return_inverse=True)
    n_cases = int(which.max()) + 1
    x, y = (values - values.mean(axis=0)).T
    products = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y])
    sums = np.stack([np.bincount(which, row, n_cases) for row in products])  # moments by case

    def of(weights: np.ndarray) -> np.ndarray:
        n, sx, sy, sxx, syy, sxy = sums @ weights.T
        with np.errstate(invalid="ignore", divide="ignore"):
            return (n * sxy - sx * sy) / np.sqrt((n * sxx - sx**2) * (n * syy - sy**2))

    (value,) = of(np.ones((1, n_cases))).tolist()
    if n_cases < 2:
        return value, np.nan, np.nan
    low, high = percentile_interval(of(resample_counts(n_cases, seed=seed)))
    return value, low, high
