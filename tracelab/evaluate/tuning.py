"""One rule for choosing what a method edits and how far.

    >>> edit, tuning = tracelab.tune(model, tracelab.Erasure, "gender", limit=100)
    >>> tuning.plot()

Every combination of a grid is fitted once a fold, without the fold's target terms, and scored on them
(:mod:`.crossfit`). Chosen is

    of those within the bounds whose |association| is within one standard error of the least,
    the one with the least KL                                  (rule="one_se", Breiman et al. 1984)

or plainly the least |association| (``rule="least"``), association being the group-dependent gap where the group can be exchanged, else the gap
(:mod:`.association`), and the costs KL and perplexity on neutral text that nothing is fitted on or reported
of, and LMS on the same folds. The one that is chosen is then fitted on all training terms. What the
benchmarks of a scoreboard say has no part in it; the best of many tried looks better here than it is, so
report it on records that nothing was chosen by.
"""  # noqa: E501

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from transformer_lens.model_bridge import TransformerBridge

from tracelab.config import Config
from tracelab.datasets.bold import development_sentences
from tracelab.errors import TracelabError, require_choice, warn
from tracelab.evaluate.benchmarks.stereoset import LABELS, StereoSetScores
from tracelab.evaluate.crossfit import (
    FOLDS,
    HeldOut,
    bias_of,
    folds_of,
    hash_of,
    training_data,
    with_sentences,
)
from tracelab.evaluate.grid import Grid, combinations, in_words
from tracelab.evaluate.paired import paired
from tracelab.figures.tuning import tuning as figure
from tracelab.interventions.drift import drift
from tracelab.interventions.method import Method
from tracelab.interventions.training.config import Bounds
from tracelab.metrics import UNEDITED
from tracelab.model.hooked import require_unedited
from tracelab.model.settings import request_of, run_settings
from tracelab.progress import progress
from tracelab.ranges import require_int, require_seed, shown
from tracelab.results import Result
from tracelab.statistics import t_interval
from tracelab.storage.checkpoint import resumed
from tracelab.storage.ownership import require_folder

N_NEUTRAL = 60
RULES = ("one_se", "least")
BOUNDS = Bounds(max_kl=0.2, max_lms_loss=1.0, max_perplexity=5.0)
"""At most so much by default: nats a token, points, percent."""


@dataclass(frozen=True)
class Tuning(Result):
    """Everything that was tried.

    Attributes:
        table: one row a combination, ``unedited`` first: ``tried`` (its name) and the ``fields`` as
            JSON; the ``association`` and its ``difference`` to the unedited model with the paired
            interval ``low, high``; ``gap_blind``, ``gap``, ``ss`` and ``lms``; ``lms_loss``
            (points), ``kl`` (nats a token) and ``perplexity_change`` (%) on neutral text;
            ``per_kl``, the fall of |association| per nat; ``allowed`` by the bounds, ``chosen``;
            ``n`` records; ``reason`` why a combination could not be fitted or scored; with several
            seeds ``seed_low, seed_high`` of the difference, a t
            interval over them.
        sentences: the scores of each record under each combination, as in
            :class:`~tracelab.evaluate.benchmarks.stereoset.StereoSetScores`.
    """

    table: pd.DataFrame
    sentences: pd.DataFrame

    @property
    def frame(self) -> pd.DataFrame:
        """One row a combination."""
        return self.table

    @property
    def choice(self) -> dict[str, Any]:
        """The fields that were chosen, ``layers`` among them if they were tried; empty if nothing
        tried was better than no edit within the bounds."""
        chosen = self.table.loc[self.table["chosen"], "fields"]
        return json.loads(chosen.iloc[0]) if len(chosen) else {}

    def headline(self) -> str:
        """What was chosen, and what it does."""
        of = f"of {len(self.table) - 1} tried, n = {int(self.table['n'].iloc[0])}"
        chosen = self.table[self.table["chosen"]].to_dict("records")
        if not chosen:
            return f"none {of}"
        row = chosen[0]
        change = f"{row['difference']:+.3g} [{row['low']:.3g}, {row['high']:.3g}]"
        return f"{row['tried']} {of}: association {row['association']:.3g} ({change})"

    def plot(self) -> go.Figure:
        """Effect against cost, with intervals."""
        return figure(self.table, self.settings)


def tune(
    model: TransformerBridge,
    method: type[Method],
    data: Any,
    grid: Grid | None = None,
    *,
    config: Config | None = None,
    bounds: Bounds = BOUNDS,
    rule: str = "one_se",
    bias: str | None = None,
    folds: int = FOLDS,
    seeds: int = 1,
    limit: int | None = None,
    without: Collection[str] = (),
    n_neutral: int = N_NEUTRAL,
    folder: Path | str | None = None,
    seed: int = 0,
) -> tuple[Method | None, Tuning]:
    """Choose a method's fields and layers by cross-validation over target terms, and fit it.

    Args:
        data: a bias type, or data of your own (:func:`~tracelab.evaluate.crossfit.training_data`).
        grid: values to try, by field of the configuration, and under ``layers``; or several such,
            as of ``sklearn.model_selection.ParameterGrid``; default: the method's own.
        config: of the fields that are not tried.
        rule: see the module's docstring.
        bias: type whose records are scored; default: that of the data.
        folds: of the target terms of StereoSet's ``test``.
        seeds: fits of each combination, with seeds that follow one another.
        limit: at most so many records are scored.
        without: target terms that nothing is scored on.
        n_neutral: sentences on which KL and perplexity are measured.
        folder: checkpoint of what has been tried; the same call resumes from it.
        seed: of the fits and the intervals.

    Returns:
        The edit, fitted on all training terms, and what was tried. The edit is None, and a warning
        says so, if nothing tried lowers the association within the bounds.

    Raises:
        TracelabError: a grid that the method cannot have, before anything is fitted; what a fit
            refuses.
    """
    require_seed(seed)
    require_int("seeds", seeds)
    require_choice("rule", rule, RULES)
    require_unedited(model, "tune")
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise TracelabError(f"tune takes a method such as tracelab.Erasure, not {shown(method)}")
    if not isinstance(bounds, Bounds):
        raise TracelabError(
            f"bounds are a Bounds, as tracelab.Bounds(max_kl=0.1), not {shown(bounds)}"
        )
    if folder is not None:
        require_folder(folder)
    base = (config or method.Config()).seeded(seed)
    tried = list(combinations(model, method, base, method.grid(model) if grid is None else grid))
    bias = bias_of(data, bias)
    neutral = development_sentences("tune", n_neutral)
    held = HeldOut(model, folds_of(bias, folds=folds, limit=limit, without=without), seed=seed)
    known = request_of(
        model,
        [record for fold in held.folds for record in fold.records],
        data=data if isinstance(data, str) else hash_of(training_data(method, data)),
        folds=folds,
        seeds=seeds,
        neutral=n_neutral,
        seed=seed,
    )
    made: dict[str, Method] = {}
    attempt = partial(_try, held, method, data, seeds=seeds, neutral=neutral, made=made)
    rows, sentences = [_unedited(held)], [held.before.sentences.assign(tried=UNEDITED)]
    with progress(total=len(tried), what="tuning", unit="combination") as bar:
        for fields, changed, layers in tried:
            request = known | {
                "method": method.kind,
                "config": changed.settings(),
                "layers": list(layers) if isinstance(layers, range | tuple) else layers,
            }
            found = resumed(
                folder,
                f"{method.kind}-{hashlib.sha256(repr(request).encode()).hexdigest()[:12]}",
                Tuning.load,
                request,
                partial(attempt, fields, changed, layers),
            )
            rows.append(found.table)
            sentences.append(found.sentences)
            bar.update()
    table = _chosen(pd.concat(rows, ignore_index=True), bounds, rule)
    settings = run_settings(
        model,
        (),
        method=method.kind,
        bias=bias,
        bounds=vars(bounds),
        rule=rule,
        folds=folds,
        seeds=seeds,
        data_hash=held.before.settings["data_hash"],
        seed=seed,
    )
    tuning = Tuning(settings, table, pd.concat(sentences, ignore_index=True))
    if not table["chosen"].any():
        warn(
            f"nothing of {len(tried)} tried with {method.kind} lowers the association within the "
            "bounds: no edit is fitted; the table tells what each does and costs"
        )
        return None, tuning
    _, changed, layers = tried[int(table.index[table["chosen"]][0]) - 1]
    try:
        edit = held.fit_one(method, training_data(method, data), changed, layers, made)
    except TracelabError as error:
        warn(f"{tuning.choice} was chosen, but not fitted on all training terms: {error}")
        return None, tuning
    row = table[table["chosen"]].iloc[0]
    edit.notes["tuned"] = {
        name: row[name] for name in ("association", "difference", "low", "high", "kl")
    } | {"of": len(tried), "folds": folds}
    return edit, tuning


def _try(
    held: HeldOut,
    method: type[Method],
    data: Any,
    fields: dict[str, Any],
    config: Config,
    layers: Any,
    *,
    seeds: int,
    neutral: Sequence[str],
    made: dict[str, Method],
) -> Tuning:
    """One combination on all folds."""
    name = ", ".join(f"{key} {in_words(value)}" for key, value in fields.items())
    told = {"tried": name, "fields": json.dumps(fields), "reason": ""}
    try:
        row, scores, runs = _measure(
            held, method, data, config, layers, seeds=seeds, neutral=neutral, made=made
        )
    except TracelabError as error:  # a fit that diverges stops no other
        row = {"measure": "", "kl": np.nan, "perplexity_change": np.nan, "lms_loss": np.nan}
        row |= {"association": np.nan, "difference": np.nan, "fall": np.nan, "n": 0}
        return Tuning({}, pd.DataFrame([row | told | {"reason": str(error)}]), pd.DataFrame())
    if seeds > 1:
        row |= _over_seeds(held.before, runs, held.seed)
    return Tuning({}, pd.DataFrame([row | told]), scores.sentences.assign(tried=name))


def _measure(
    held: HeldOut,
    method: type[Method],
    data: Any,
    config: Config,
    layers: Any,
    *,
    seeds: int,
    neutral: Sequence[str],
    made: dict[str, Method],
) -> tuple[dict[str, Any], StereoSetScores, list[StereoSetScores]]:
    """The figures of a combination, the scores they are of, and those of each seed."""
    runs, drifts = [], []
    for number in range(seeds):
        seeded = config if seeds == 1 else config.seeded(held.seed + number)
        edits = held.fit(method, data, seeded, layers, made=made)
        runs.append(held.score(edits))
        different = list({id(edit): edit for edit in edits}.values())
        drifts += [drift(held.model, edit, neutral) for edit in different]
    scores = _mean_of(held.before, runs)
    row = _figures(held.before, scores, held.seed) | {
        "kl": float(np.mean([each.kl for each in drifts])),
        "perplexity_change": float(np.mean([each.perplexity_change for each in drifts])),
    }
    return row, scores, runs


def _figures(before: StereoSetScores, after: StereoSetScores, seed: int) -> dict[str, Any]:
    """Association and the other figures under an edit, against the unedited model."""
    table = paired(before, after, seed=seed).drop_duplicates("metric").set_index("metric")
    name = "gap_group" if "gap_group" in table.index else "gap"
    row = table.loc[name]
    found = {
        "measure": name,
        "association": row["after"],
        "difference": row["difference"],
        "low": row["low"],
        "high": row["high"],
        "fall": abs(row["before"]) - abs(row["after"]),
        "lms_loss": -table.loc["lms", "difference"],
        "n": row["n"],
    }
    others = ("gap", "gap_blind", "ss", "lms")
    return found | {each: table.loc[each, "after"] for each in others if each in table.index}


def _unedited(held: HeldOut) -> pd.DataFrame:
    row = _figures(held.before, held.before, held.seed)
    row |= {"difference": np.nan, "low": np.nan, "high": np.nan, "fall": 0.0, "lms_loss": 0.0}
    costs = {"kl": 0.0, "perplexity_change": 0.0}
    return pd.DataFrame([row | costs | {"tried": UNEDITED, "fields": "{}", "reason": ""}])


def _mean_of(before: StereoSetScores, runs: Sequence[StereoSetScores]) -> StereoSetScores:
    """Scores with the mean over seeds of each record's log-probabilities."""
    if len(runs) == 1:
        return runs[0]
    first = runs[0].sentences
    names = [name for name in first if name in LABELS or name.startswith(("gap", "swapped"))]
    means = sum(run.sentences[names] for run in runs) / len(runs)
    return with_sentences(before, first.assign(**means), "mean")


def _over_seeds(
    before: StereoSetScores, runs: Sequence[StereoSetScores], seed: int
) -> dict[str, float]:
    """A t interval over seeds of the difference."""
    found = [_figures(before, run, seed)["difference"] for run in runs]
    interval = t_interval([np.array(found)[:, None]], lambda means: means[..., 0])
    return {"seed_low": interval.low, "seed_high": interval.high}


def _chosen(table: pd.DataFrame, bounds: Bounds, rule: str = "one_se") -> pd.DataFrame:
    """The table with what the bounds allow and which is chosen: of equal ones the first."""
    allowed = [
        bounds.allow(
            kl=row["kl"], lms_loss=row["lms_loss"], perplexity_change=row["perplexity_change"]
        )
        for row in table.to_dict("records")
    ]
    table = table.assign(allowed=allowed, per_kl=table["fall"] / table["kl"].replace(0, np.nan))
    better = table[table["allowed"] & (table["fall"] > 0)]
    best = better["fall"].idxmax() if len(better) else -1
    if len(better) and rule == "one_se":
        error = (table.loc[best, "high"] - table.loc[best, "low"]) / 4  # about one standard error
        near = better[better["fall"] >= better["fall"].max() - error]
        best = near["kl"].idxmin() if len(near) else best
    return table.drop(columns="fall").assign(chosen=table.index == best)
