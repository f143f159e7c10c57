"""The result of causal tracing: effects, cases and states as tables, and how the first follow from
the others."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from tracelab.errors import TracelabError
from tracelab.figures import trace_example, trace_heatmap
from tracelab.localize.tracing.agreement import (
    agreement_table,
    effects_of_both,
    most_wrong_states,
)
from tracelab.ranges import require_int, require_seed
from tracelab.results import Result, bias_types
from tracelab.statistics import mean_interval, percentile_interval, resample_counts

TE_FLOOR = 0.1
"""Cases whose |total effect| is below this many nats do not enter NIE: noise did not move them."""


ALIKE = ("model", "prepend_bos", "mentions", "noise_hash", "window")
"""Settings in which traces must be alike to be compared."""


@dataclass(frozen=True)
class CausalTrace(Result):
    """Effects per component, role of position and layer.

    Attributes:
        effects: one row a (component, role, layer): mean ``gap`` and ``ie`` over ``n`` cases,
            ``nie`` over the ``n_nie`` cases that noise moved, ``biasedit`` over the ``n_equal``
            cases of equal length; each with ``_low`` and ``_high`` (bootstrap over cases).
        cases: one row a case: ``case, bias_type, target, stereotype, anti_stereotype, high, low,
            te, n_tokens, equal_length, first_token`` (gaps in nats; ``n_tokens``: those of the
            stereotype that have a log-probability; ``first_token``: whether the text's first token
            is noised, which is the attention sink where no BOS comes before it).
        states: one row a (case, component, column, layer): ``role, token`` and the restored
            ``gap``.
    """

    shown: ClassVar = ("component", "role", "layer", "n", "nie", "ie", "gap")
    effects: pd.DataFrame
    cases: pd.DataFrame
    states: pd.DataFrame

    @property
    def frame(self) -> pd.DataFrame:
        """The table of effects."""
        return self.effects

    def headline(self) -> str:
        """The largest normalised effect."""
        most = self.peak()
        first_order = "first-order " if self.settings.get("method") == "attribution" else ""
        return (
            f"{bias_types(self.cases)}, n = {len(self.cases)} pairs, largest {first_order}NIE "
            f"{most['nie']:.2f} of {most['component']} at {most['role']} in layer {most['layer']}"
        )

    def peak(self, component: str | None = None) -> pd.Series:
        """The row of the largest normalised effect, of one component or of all."""
        table = self.effects
        if component is not None:
            table = table[table["component"] == component]
        if table["nie"].isna().all():
            raise TracelabError(
                f"no case has a total effect of {TE_FLOOR} nats or more: noise moved nothing"
            )
        return table.loc[table["nie"].idxmax()]

    @property
    def totals(self) -> pd.DataFrame:
        """What the noise did: mean ``gap_clean``, ``gap_corrupted``, ``te``, ``|te|`` in nats, and
        the percentage of cases whose gap it shrank (|low| < |high|), each with a bootstrap interval
        over cases.
        """
        high, low = self.cases["high"], self.cases["low"]
        columns = {
            "gap_clean": high,
            "gap_corrupted": low,
            "te": high - low,
            "|te|": (high - low).abs(),
            "shrunk": 100.0 * (low.abs() < high.abs()),
        }
        rows = []
        for quantity, values in columns.items():
            bounds = mean_interval(values.to_numpy(float), seed=self.settings["seed"])
            rows.append((quantity, values.mean(), *bounds, len(values)))
        return pd.DataFrame(rows, columns=["quantity", "value", "low", "high", "n"])

    def of_first_token(self, noised: bool) -> CausalTrace:
        """The cases in which the text's first token is noised, or the others, with the effects of
        these alone.

        Raises:
            TracelabError: there is no such case.
        """
        if "first_token" not in self.cases:
            raise TracelabError("this trace was made by an earlier version: trace again")
        cases = self.cases[self.cases["first_token"] == noised].reset_index(drop=True)
        if cases.empty:
            which = "is" if noised else "is not"
            raise TracelabError(
                f"in none of {len(self.cases)} cases the first token {which} noised"
            )
        states = self.states[self.states["case"].isin(cases["case"])].reset_index(drop=True)
        effects = effect_table(cases, states, seed=self.settings["seed"])
        return replace(self, effects=effects, cases=cases, states=states)

    def example(self, case: str | None = None, component: str = "resid") -> pd.DataFrame:
        """The restored gaps of one case, a row a layer and a column a token.

        Args:
            case: id of the case; default: the one with the largest |total effect|.
        """
        _, states = self._of_one(case, component)
        return states.pivot(index="layer", columns="column", values="gap")

    def _of_one(self, case: str | None, component: str) -> tuple[pd.Series, pd.DataFrame]:
        """The row of one case, by default of the largest |total effect|, and its states."""
        if case is None:
            case = self.cases.loc[self.cases["te"].abs().idxmax(), "case"]
        states = self.states[
            (self.states["case"] == case) & (self.states["component"] == component)
        ]
        if states.empty:
            raise TracelabError(f"no states of case {case!r} and component {component!r}")
        return self.cases.set_index("case").loc[case], states

    def agreement(self, exact: CausalTrace) -> pd.DataFrame:
        """How well these effects, of ``method="attribution"``, follow those of an exact trace.

        Returns:
            A row for each component, and for each of its roles and layers (``of, value``): pooled
            over states, ``spearman`` and ``pearson`` correlation of the indirect effects, each with
            ``_low`` and ``_high`` (bootstrap over cases), ``same_sign`` (a share), ``size`` (mean
            |effect| over that of the exact trace), ``n_states`` and ``n_cases``. States that
            neither trace moves (before the noise, the last token) are left out.

        Raises:
            TracelabError: the traces differ in noise or window, or have no state in common.
        """
        return agreement_table(self._beside(exact), seed=self.settings["seed"])

    def most_wrong(self, exact: CausalTrace, n: int = 20) -> pd.DataFrame:
        """The states whose rank among the effects of their component is furthest from that in an
        exact trace.

        Returns:
            A row a state: ``case, component, column, role, token, layer``, the effects ``ie`` and
            ``ie_exact`` in nats, ``rank_difference`` (signed, 1 = from the lowest to the highest)
            and ``same_sign``.

        Raises:
            TracelabError: as :meth:`agreement`.
        """
        return most_wrong_states(self._beside(exact), require_int("n", n))

    def _beside(self, exact: CausalTrace) -> pd.DataFrame:
        """The effects of the states that both traces have."""
        for name in ALIKE:
            one, other = self.settings.get(name), exact.settings.get(name)
            if one != other:
                raise TracelabError(
                    f"these traces cannot be compared: {name} is {one!r} in one and {other!r} in "
                    "the other; trace the same pairs with the same seed, noise and window"
                )
        mine, others = (
            trace.states.merge(trace.cases[["case", "low"]], on="case").eval("ie = gap - low")
            for trace in (self, exact)
        )
        return effects_of_both(mine, others)

    def plot(self) -> go.Figure:
        """Normalised effect by layer and role of position, one panel a component."""
        return trace_heatmap(self.effects, self.cases, self.settings)

    def plot_example(self, case: str | None = None, component: str = "resid") -> go.Figure:
        """Indirect effect on one pair (default: as in :meth:`example`) by layer and token."""
        facts, states = self._of_one(case, component)
        return trace_example(states, facts, self.settings)


def effect_table(cases: pd.DataFrame, states: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Mean effects over cases by component, role and layer, with bootstrap intervals over cases.

    A case's value of a role is the mean over the role's columns; each case counts once.

    Args:
        cases, states: as in :class:`CausalTrace`.
    """
    require_seed(seed)
    facts = cases.set_index("case")
    by_case = states.groupby(["component", "role", "layer", "case"], sort=True)["gap"].mean()
    rows: list[dict[str, Any]] = []
    for (component, role), part in by_case.groupby(level=[0, 1]):
        gaps = part.droplevel([0, 1]).unstack("layer")  # cases x layers
        here = facts.loc[gaps.index]
        te, values = here["te"].to_numpy(), gaps.to_numpy()
        ie = values - here["low"].to_numpy()[:, None]
        usable = np.abs(te) >= TE_FLOOR
        numerator = np.where(usable, np.sign(te), 0.0)[:, None] * ie
        denominator = np.where(usable, np.abs(te), 0.0)
        weights = resample_counts(len(gaps), seed=seed)
        with np.errstate(invalid="ignore", divide="ignore"):
            nie = numerator.sum(axis=0) / denominator.sum()
            nie_draws = (weights @ numerator) / (weights @ denominator)[:, None]
        equal = here["equal_length"].to_numpy()
        per_token = np.abs(values) / here["n_tokens"].to_numpy()[:, None]
        draws = {
            "gap": (values.mean(axis=0), weights @ values / len(gaps)),
            "ie": (ie.mean(axis=0), weights @ ie / len(gaps)),
            "nie": (nie, nie_draws),
        }
        if equal.any():
            counts = resample_counts(int(equal.sum()), seed=seed)
            draws["biasedit"] = (
                per_token[equal].mean(axis=0),
                counts @ per_token[equal] / equal.sum(),
            )
        for column, layer in enumerate(gaps.columns):
            row = {"component": component, "role": role, "layer": int(layer), "n": len(gaps)}
            row |= {"n_nie": int(usable.sum()), "n_equal": int(equal.sum())}
            row |= dict.fromkeys(("biasedit", "biasedit_low", "biasedit_high"), math.nan)
            for name, (mean, resamples) in draws.items():
                n_units = {"nie": usable.sum(), "biasedit": equal.sum()}.get(name, len(gaps))
                bounds = (
                    percentile_interval(resamples[:, column])
                    if n_units > 1
                    else (math.nan, math.nan)
                )
                row |= {name: mean[column], f"{name}_low": bounds[0], f"{name}_high": bounds[1]}
            rows.append(row)
    return pd.DataFrame(rows)
