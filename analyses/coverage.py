"""How often do 95 % intervals hold the truth, and tests at 5 % find what is not there?

    python analyses/coverage.py [--repetitions 1000] [--quick 4000]

Draws studies that have the structure of each benchmark (numbers of target terms and of records in
them as in the data, pairs, texts), with known truth, and counts for each way to make an interval
how many hold it. Terms are a sample of the terms there could be: each has its own share or mean.
Of many terms only some cases are resampled (it takes long). No model runs. Writes
figures/coverage.csv and figures/coverage_tests.csv; ``mc_error`` is the standard error of the rate
over the repetitions, ``missing`` the share without an interval (all records alike, in which there
is nothing to hold).

Intervals (``u`` are the means of terms, or the units of a benchmark without terms):

| name | made from |
|---|---|
| ``jackknife t`` | ``tracelab.statistics.t_interval``, the product's; of a mean its t interval |
| ``logit t`` | the same on the logit scale: the product's of shares of hits |
| ``two-stage`` | percentiles of a bootstrap that draws terms, then records in each (until now) |
| ``percentile`` | percentiles of a bootstrap of u |
| ``BCa`` | the same, corrected for bias and acceleration |
| ``studentised`` | bootstrap t of the jackknife's pseudo-values |
| ``t of records`` | t interval of records, as though there were no terms |
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from tracelab.datasets import crows_pairs, stereoset, winobias
from tracelab.evaluate.benchmarks.hellinger import prompt_pairs
from tracelab.evaluate.benchmarks.stereoset import icat
from tracelab.evaluate.scores import Column
from tracelab.statistics import flipped_sums, percentile_interval, t_interval, two_sided_p

Groups = list[np.ndarray]  # of each term: [records, columns]
Function = Callable[[np.ndarray], Any]

FIGURES = Path(__file__).parents[1] / "figures"
RESAMPLES = 1000
N_FLIPS = 999
TEXTS = 200
WINOBIAS_TYPE = "type1"


@dataclass(frozen=True)
class Case:
    """Studies of one structure and one statistic, and the truth they estimate."""

    structure: str
    statistic: str
    draw: Callable[[np.random.Generator], Groups]
    function: Function
    truth: float
    hit: float = 0.0
    resampled: bool = True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=1000, help="of intervals by resampling")
    parser.add_argument("--quick", type=int, default=4000, help="of intervals by formula")
    options = parser.parse_args()
    for name, rows in (
        ("coverage", coverage_rows(options.repetitions, options.quick)),
        ("coverage_tests", test_rows(options.repetitions)),
    ):
        found = []
        for row in rows:
            print(*row.values(), sep="\t", flush=True)
            found.append(row)
        pd.DataFrame(found).to_csv(FIGURES / f"{name}.csv", index=False, float_format="%.4g")


@cache
def sizes(structure: str) -> tuple[int, ...]:
    """Records of each term; one number for a benchmark without terms."""
    benchmark, _, bias = structure.partition(" ")
    if benchmark == "StereoSet":
        counts = pd.Series([record.target for record in stereoset(bias)]).value_counts()
        return tuple(counts.sort_index())
    return {
        "CrowS-Pairs": lambda: (len(crows_pairs("gender")),),
        "local": lambda: (len(prompt_pairs("gender")),),
        "perplexity": lambda: (TEXTS,),
        "WinoBias": lambda: (sum(pair.bias_type == WINOBIAS_TYPE for pair in winobias()),),
    }[benchmark]()


STEREOSET = tuple(f"StereoSet {bias}" for bias in ("gender", "race", "religion", "profession"))


def hits(structure: str, share: float, sd: float) -> Callable[..., Groups]:
    """0 or 100; of terms the share is Beta with this mean and standard deviation."""

    def draw(rng: np.random.Generator) -> Groups:
        return [
            100.0 * (rng.random((n, 1)) < p)
            for n, p in zip(sizes(structure), _beta(rng, structure, share, sd), strict=True)
        ]

    return draw


def ss_and_lms(structure: str, ss: float, lms: float, sd: float) -> Callable[..., Groups]:
    """The two columns behind ICAT; LMS is a mean of two hits."""

    def draw(rng: np.random.Generator) -> Groups:
        shares = zip(
            sizes(structure),
            _beta(rng, structure, ss, sd),
            _beta(rng, structure, lms, sd / 4),
            strict=True,
        )
        return [
            np.stack([100.0 * (rng.random(n) < p), 50.0 * rng.binomial(2, q, n)], axis=1)
            for n, p, q in shares
        ]

    return draw


def flips(structure: str, moved: float, mean: float, sd: float) -> Callable[..., Groups]:
    """Differences of hits: this share of records moves, up or down, by 100; the mean of a term is
    uniform with this mean and standard deviation."""

    def draw(rng: np.random.Generator) -> Groups:
        found = []
        for n in sizes(structure):
            tilt = mean + sd * 3**0.5 * rng.uniform(-1, 1)
            up, down = (moved + tilt) / 2, (moved - tilt) / 2
            found.append(100 * rng.choice([1.0, -1.0, 0.0], (n, 1), p=[up, down, 1 - moved]))
        return found

    return draw


def gaps(structure: str, mean: float, sd: float) -> Callable[..., Groups]:
    """Heavy tails, Student's t with 3 degrees of freedom (sd 1.73), around a term's own mean."""

    def draw(rng: np.random.Generator) -> Groups:
        return [
            mean + sd * rng.standard_normal() + rng.standard_t(3, size=(n, 1))
            for n in sizes(structure)
        ]

    return draw


def both_scores(structure: str, sd: float) -> Callable[..., Groups]:
    """SS and LMS before (.63, .92) and after, for which a tenth of the records are drawn anew
    around .58 and .92."""

    def draw(rng: np.random.Generator) -> Groups:
        first = ss_and_lms(structure, 0.63, 0.92, sd)(rng)
        anew = ss_and_lms(structure, 0.58, 0.92, sd)(rng)
        return [
            np.hstack([a, np.where(rng.random((len(a), 1)) < 0.1, b, a)])
            for a, b in zip(first, anew, strict=True)
        ]

    return draw


def divergences(rng: np.random.Generator) -> Groups:
    """Skewed values in [0, 1] with mean 1/6."""
    return [rng.beta(1, 5, size=(sizes("local bias")[0], 1))]


def divergence_changes(rng: np.random.Generator) -> Groups:
    """A skewed value shrinks to a random share of itself, of mean 2/3: mean change -1/18."""
    (n,) = sizes("local bias")
    return [-rng.beta(1, 5, size=(n, 1)) * rng.beta(1, 2, size=(n, 1))]


def texts(rng: np.random.Generator) -> Groups:
    """Negative log-likelihood and tokens of a text before, and the same after."""
    tokens = np.maximum(rng.negative_binomial(4, 4 / 24, size=TEXTS), 2)
    level = 3.4 + 0.6 * rng.standard_normal(TEXTS)
    more = 0.03 + 0.06 * rng.standard_t(4, TEXTS)
    return [np.stack([tokens * level, tokens, tokens * (level + more), tokens], axis=1)]


def _beta(rng: np.random.Generator, structure: str, mean: float, sd: float) -> np.ndarray:
    n = len(sizes(structure))
    if sd == 0:
        return np.full(n, mean)
    size = mean * (1 - mean) / sd**2 - 1
    return rng.beta(mean * size, (1 - mean) * size, n)


def of_icat(means: np.ndarray) -> Any:
    return icat(means[..., 0], means[..., 1])


def of_perplexity(means: np.ndarray) -> Any:
    return np.exp(means[..., 0] / means[..., 1])


def change(of: Function) -> Function:
    return lambda means: of(means[..., 2:]) - of(means[..., :2])


def cases() -> Iterator[Case]:
    """All studies, in the order of the table."""
    mean = Column(0)
    for name in STEREOSET:
        few = len(sizes(name)) <= 10  # where intervals are hardest; of many terms a part is enough
        for share, sd in ((0.6, 0), (0.6, 0.1), (0.95, 0.03))[0 if few else 1 :]:
            about = f"share {100 * share:g}, sd of terms {100 * sd:g}"
            yield Case(name, about, hits(name, share, sd), mean, 100 * share, 100.0, few)
        for moved, shift, sd in ((0.03, -0.01, 0), (0.1, -0.03, 0.03), (0.3, -0.05, 0.1)):
            about = f"change of SS {100 * shift:g}, {100 * moved:g} % move, sd {100 * sd:g}"
            drawn, again = flips(name, moved, shift, sd), few or moved == 0.1
            yield Case(name, about, drawn, mean, 100 * shift, resampled=again)
        for sd in (0, 0.5)[0 if few else 1 :]:
            about = f"gap .3, heavy tails, sd {sd:g}"
            yield Case(name, about, gaps(name, 0.3, sd), mean, 0.3, resampled=few)
        for ss in (0.63, 0.52)[: 2 if few else 1]:
            drawn = ss_and_lms(name, ss, 0.92, 0.08)
            true = float(icat(100 * ss, 92.0))
            yield Case(
                name, f"ICAT, SS {100 * ss:g}, LMS 92, sd 8", drawn, of_icat, true, 100.0, few
            )
        true = float(icat(100 * 0.625, 92.0) - icat(63.0, 92.0))
        drawn = both_scores(name, 0.08)
        yield Case(name, "change of ICAT, sd 8", drawn, change(of_icat), true, resampled=few)
    for name in ("CrowS-Pairs gender", "WinoBias type 1"):
        yield Case(name, "share 60", hits(name, 0.6, 0), mean, 60, 100.0)
        yield Case(name, "share 95", hits(name, 0.95, 0), mean, 95, 100.0)
        for moved, shift in ((0.03, -0.01), (0.1, -0.03)):
            about = f"change of a share {100 * shift:g}, {100 * moved:g} % move"
            yield Case(name, about, flips(name, moved, shift, 0), mean, 100 * shift)
        yield Case(name, "gap .3, heavy tails", gaps(name, 0.3, 0), mean, 0.3)
    yield Case("local bias", "mean of skewed values", divergences, mean, 1 / 6, 1.0)
    yield Case("local bias", "change of skewed values", divergence_changes, mean, -1 / 18)
    many = np.concatenate([texts(rng)[0] for rng in map(np.random.default_rng, range(20_000))])
    total = many.mean(axis=0)
    yield Case("perplexity", "value", texts, of_perplexity, of_perplexity(total))
    yield Case("perplexity", "change", texts, change(of_perplexity), change(of_perplexity)(total))


def two_stage(groups: Groups, function: Function, rng: np.random.Generator) -> tuple[float, float]:
    """Percentiles of the bootstrap in which terms are drawn, then records inside each."""
    within = np.stack(
        [g[rng.integers(len(g), size=(RESAMPLES, len(g)))].mean(axis=1) for g in groups]
    )
    drawn = rng.integers(len(groups), size=(RESAMPLES, len(groups)))
    rows = rng.integers(RESAMPLES, size=(RESAMPLES, len(groups)))
    return percentile_interval(function(within[drawn, rows].mean(axis=1)))


def resampled(
    groups: Groups, function: Function, rng: np.random.Generator
) -> dict[str, tuple[float, float]]:
    """The three intervals from one bootstrap of units."""
    units = _units(groups)
    n = len(units)
    if n > 100:  # slow as a multinomial
        drawn = rng.integers(n, size=(RESAMPLES, n)) + n * np.arange(RESAMPLES)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=RESAMPLES * n).reshape(RESAMPLES, n)
    else:
        counts = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    draws = function(counts @ units / n)
    value = float(function(units.mean(axis=0)))
    others = function((units.sum(axis=0) - units) / (n - 1))
    return {
        "percentile": percentile_interval(draws),
        "BCa": _bca(draws, value, others),
        "studentised": _studentised(counts, n * value - (n - 1) * others, value),
    }


def _bca(draws: np.ndarray, value: float, others: np.ndarray) -> tuple[float, float]:
    below = ((draws < value).mean() + (draws <= value).mean()) / 2
    centred = others.mean() - others
    spread = (centred**2).sum() ** 1.5
    if not 0 < below < 1 or spread == 0:
        return np.nan, np.nan
    z0, a = stats.norm.ppf(below), (centred**3).sum() / (6 * spread)
    z = z0 + stats.norm.ppf([0.025, 0.975])
    low, high = np.quantile(draws, stats.norm.cdf(z0 + z / (1 - a * z)))
    return float(low), float(high)


def _studentised(counts: np.ndarray, pseudo: np.ndarray, value: float) -> tuple[float, float]:
    n = len(pseudo)
    centred = pseudo - pseudo.mean()
    means = counts @ centred / n
    spread = np.sqrt(np.maximum(counts @ centred**2 / n - means**2, 0))
    whole = centred.std()
    ratios = means[spread > 1e-9 * whole] / spread[spread > 1e-9 * whole]
    if whole == 0 or not len(ratios):
        return np.nan, np.nan
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(value - high * whole), float(value - low * whole)


def by_formula(groups: Groups, case: Case) -> dict[str, tuple[float, float]]:
    """The intervals that resample nothing."""
    found = {"jackknife t": t_interval(groups, case.function)[:2]}
    if case.hit:
        found["logit t"] = t_interval(groups, case.function, hit=case.hit)[:2]
    if len(groups) > 1:
        found["t of records"] = t_interval([np.concatenate(groups)], case.function)[:2]
    return found


def _units(groups: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack([g.mean(axis=0) for g in groups]) if len(groups) > 1 else groups[0]


def coverage_rows(repetitions: int, quick: int) -> Iterator[dict[str, Any]]:
    """One row a case and kind of interval."""
    for number, case in enumerate(cases()):
        rng = np.random.default_rng([1, number])
        found: dict[str, list[tuple[float, float]]] = {}
        for repetition in range(max(repetitions, quick)):
            groups = case.draw(rng)
            made = by_formula(groups, case) if repetition < quick else {}
            if case.resampled and repetition < repetitions:
                made |= resampled(groups, case.function, rng)
                if len(groups) > 1:
                    made["two-stage"] = two_stage(groups, case.function, rng)
            for name, interval in made.items():
                found.setdefault(name, []).append(interval)
        for name, intervals in found.items():
            yield _summary(case, name, np.array(intervals))


def _summary(case: Case, name: str, intervals: np.ndarray) -> dict[str, Any]:
    there = intervals[np.isfinite(intervals).all(axis=1)]
    rate = ((there[:, 0] <= case.truth) & (case.truth <= there[:, 1])).mean()
    return {
        "structure": case.structure,
        "units": n_terms
        if (n_terms := len(sizes(case.structure))) > 1
        else sizes(case.structure)[0],
        "statistic": case.statistic,
        "interval": name,
        "coverage": rate,
        "mc_error": (rate * (1 - rate) / len(there)) ** 0.5,
        "width": (there[:, 1] - there[:, 0]).mean(),
        "missing": 1 - len(there) / len(intervals),
        "repetitions": len(intervals),
    }


def p_values(groups: Groups) -> dict[str, float]:
    """Of the hypothesis that nothing changes, by the tests there are."""
    halves = np.concatenate([g / (len(groups) * len(g)) for g in groups])
    found = {"flips of units": two_sided_p(flipped_sums(halves, n_flips=N_FLIPS)[:, 0])}
    if len(groups) > 1:
        terms = _units(groups) / len(groups)
        found["flips of terms"] = two_sided_p(flipped_sums(terms, n_flips=N_FLIPS)[:, 0])
    interval = t_interval(groups, Column(0))
    value = float(np.mean([group.mean() for group in groups]))
    found["t"] = np.nan if interval.note else interval.p(value)
    return found


def test_rows(repetitions: int) -> Iterator[dict[str, Any]]:
    """How often each test calls a change of 0 one, and finds one that is there."""
    settings = [
        ("StereoSet gender", 0.1, 0, 0),
        ("StereoSet gender", 0.1, 0, 0.04),
        ("StereoSet gender", 0.1, -0.04, 0.03),
        ("StereoSet religion", 0.1, 0, 0.04),
        ("CrowS-Pairs gender", 0.03, 0, 0),
    ]
    for number, (name, moved, shift, sd) in enumerate(settings):
        rng = np.random.default_rng([2, number])
        about = f"change {100 * shift:g}, {100 * moved:g} % move, sd {100 * sd:g}"
        draw = flips(name, moved, shift, sd)
        table = pd.DataFrame([p_values(draw(rng)) for _ in range(repetitions)])
        for test, values in table.items():
            for level in (0.05, 0.005):
                rate = (values.fillna(1) <= level).mean()
                yield {
                    "structure": name,
                    "statistic": about,
                    "test": test,
                    "level": level,
                    "rejected": rate,
                    "mc_error": (rate * (1 - rate) / repetitions) ** 0.5,
                    "repetitions": repetitions,
                }


if __name__ == "__main__":
    main()
