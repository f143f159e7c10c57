"""What erasure moves and what it costs, by method, rank and layers, on target terms that no fit has seen.

    python analyses/erasure_grid.py [--bias gender] [--dtype bfloat16] [--out figures/erasure_grid.csv]

Every third target term of StereoSet's ``test`` is held out; nothing of ``dev`` or CrowS-Pairs is
looked at. Each row is one edit:

    local_bias              Hellinger distance of the prompts of local bias (their words are among those
                            of the pairs, their sentences are not)
    gap                     mean over records of g = l(stereotype) - l(anti-stereotype), nats a token
    gap_group, gap_blind    (g - g') / 2 and (g + g') / 2 with g' of the same fillers beside the other
                            gender; of gender only
    ss, lms                 of the same records, plain means, in percent
    kl, perplexity_change   on neutral development text: nats a token, percent
    per_nat                 fall of gap_group (without it: of local_bias) per nat of kl: the rule by which
                            layers and rank are chosen, among edits within +5 % perplexity

A difference to the unedited model has a 95 % interval: t over target terms (of local bias: over
prompt pairs). Layers up to the ninth, seventh and fifth are parts of one fit, since each layer is
fitted after those before it. A row "words" is fitted without the words that the prompts of local bias
have. Rows are kept as they come; what is there is not run again.
"""  # noqa: E501

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import stats

import tracelab
from tracelab.datasets import GroupPairs, gender_twins, group_pairs, stereoset
from tracelab.evaluate import hellinger, prompt_pairs, stereoset_scores
from tracelab.interventions import Erasure, ErasureConfig
from tracelab.interventions.drift import drift

FITS = {
    "gender": (
        ("paired", 1, (7, 5, 9)),
        ("paired", 2, (7, 5)),
        ("random", 2, (7,)),
        ("leace", 1, (7,)),
        ("paired", 4, (7,)),
        ("mean", 1, (7,)),
        ("pca", 1, (7,)),
    ),
    "race": (("paired", 1, (7,)), ("paired", 2, (7,)), ("leace", 1, (7,))),
    "religion": (("paired", 1, (7,)), ("paired", 2, (7,)), ("leace", 1, (7,))),
}
"""By bias type: method, rank, and the last layers of the edits."""
RECORDS = 80
"""Held-out records that are scored of a bias type without twins, at most about so many."""
SHARE = 2
"""Of the held-out records with twins every second is scored."""


@dataclass(frozen=True)
class Measured:
    """Columns of each record, the divergence of each prompt pair, and the terms of the records."""

    records: pd.DataFrame
    local_bias: np.ndarray


class Held:
    """The records and prompts of a bias type on which edits are compared."""

    def __init__(self, model, bias: str) -> None:
        self.model, self.bias = model, bias
        records = stereoset(bias, split="test")
        self.terms = set(sorted({record.target for record in records})[0::3])
        held = [record for record in records if record.target in self.terms]
        if bias == "gender":
            self.records, self.twins = zip(*gender_twins(held)[::SHARE], strict=True)
        else:
            self.records, self.twins = tuple(held[:: max(1, round(len(held) / RECORDS))]), ()
        self.prompts = prompt_pairs(bias)

    def measured(self) -> Measured:
        """Under whatever edit is on the model."""
        table = stereoset_scores(self.model, self.records).sentences
        s, a, u = (table[label] for label in ("stereotype", "anti_stereotype", "unrelated"))
        found = pd.DataFrame({"target": table["target"], "gap": s - a})
        if self.twins:
            twin = stereoset_scores(self.model, self.twins).sentences
            swapped = twin["anti_stereotype"] - twin["stereotype"]
            found["gap_group"], found["gap_blind"] = (s - a - swapped) / 2, (s - a + swapped) / 2
        found["ss"], found["lms"] = 100.0 * (s > a), 50.0 * (s > u) + 50.0 * (a > u)
        pairs = hellinger(self.model, self.prompts).pairs
        return Measured(found, pairs["divergence"].to_numpy())


def over_terms(values: pd.Series, terms: pd.Series) -> tuple[float, float]:
    """A 95 % interval of the mean over records: t over the terms' sums of deviations."""
    mean = values.mean()
    sums = (values - mean).groupby(terms).sum()
    n = len(sums)
    error = np.sqrt(n / (n - 1) * (sums**2).sum()) / len(values)
    half = stats.t.ppf(0.975, n - 1) * error
    return mean - half, mean + half


def compared(before: Measured, after: Measured) -> dict[str, float]:
    """Values under the edit, and differences with their intervals."""
    row = {}
    local = after.local_bias - before.local_bias
    half = stats.t.ppf(0.975, len(local) - 1) * local.std(ddof=1) / np.sqrt(len(local))
    row["local_bias"] = after.local_bias.mean()
    for name, value in (
        ("", local.mean()),
        ("_low", local.mean() - half),
        ("_high", local.mean() + half),
    ):
        row[f"local_bias_difference{name}"] = value
    for column in after.records.columns.drop("target"):
        difference = after.records[column] - before.records[column]
        low, high = over_terms(difference, after.records["target"])
        row[column] = after.records[column].mean()
        row[f"{column}_difference"] = difference.mean()
        row[f"{column}_difference_low"], row[f"{column}_difference_high"] = low, high
    return row


def without_words(data: GroupPairs, bias: str) -> GroupPairs:
    """The pairs whose texts have none of the words in which local bias' prompts differ."""
    words = {
        word
        for pair in prompt_pairs(bias)
        for word in set(pair.minoritised.split()) ^ set(pair.dominant.split())
    }
    kept = [
        pair
        for pair in data.pairs
        if not words & {word.strip(".,'").casefold() for text in pair for word in text.split()}
    ]
    return replace(data, pairs=tuple(kept))


def edits(model, held: Held) -> Iterator[tuple[str, str, int, int, Callable[[], Erasure]]]:
    """``pairs, method, rank, last layer`` and a call that gives the edit."""
    data = replace(group_pairs(held.bias, without=held.terms), held_out=())
    for method, rank, tops in FITS[held.bias]:
        config = ErasureConfig(method=method, rank=rank)
        whole = cache(partial(Erasure.fit, model, data, config, layers=range(max(tops) + 1)))
        for top in tops:
            yield "all", method, rank, top, lambda whole=whole, top=top: whole().up_to(top)
    part = without_words(data, held.bias)
    yield "words", "paired", 1, 7, partial(Erasure.fit, model, part, layers=range(8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bias", choices=sorted(FITS), default="gender")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--out", type=Path, default=Path("figures/erasure_grid.csv"))
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    model = tracelab.load(dtype=options.dtype)
    held = Held(model, options.bias)
    table = pd.read_csv(options.out) if options.out.exists() else pd.DataFrame()
    neutral = group_pairs(options.bias, limit=1).held_out

    def add(row: dict[str, object]) -> None:
        nonlocal table
        table = pd.concat([table, pd.DataFrame([row])], ignore_index=True)
        table.round(5).to_csv(options.out, index=False)
        print(row, flush=True)

    before = held.measured()
    keys = ["bias", "pairs", "method", "rank", "layers"]
    done = set() if table.empty else set(table[keys].astype(str).agg(tuple, axis=1))
    known = {"n": len(before.records), "terms": before.records["target"].nunique()}
    if (options.bias, "none", "unedited", "0", "none") not in done:
        key = dict(zip(keys, (options.bias, "none", "unedited", 0, "none"), strict=True))
        add(key | known | compared(before, before) | {"kl": 0.0, "perplexity_change": 0.0})
    for pairs, method, rank, top, fit in edits(model, held):
        key = dict(zip(keys, (options.bias, pairs, method, rank, f"0-{top}"), strict=True))
        if tuple(map(str, key.values())) in done:
            continue
        edit = fit()
        with edit.applied(model):
            row = key | known | compared(before, held.measured())
        cost = drift(model, edit, neutral)
        row |= {"kl": cost.kl, "perplexity_change": cost.perplexity_change}
        moved = row.get("gap_group_difference", row["local_bias_difference"])
        add(row | {"per_nat": -moved / cost.kl})


if __name__ == "__main__":
    main()
