"""Association: how much a stereotype's likelihood depends on the group that a text names.

The *gap* of a record is the log-probability of the stereotype less that of the anti-stereotype. Part of it
is there whatever group is named: one of two words is simply the commoner. Where the group named can be
exchanged, and nothing else, the same two are compared in the exchanged text, which gives g', and

    gap            g                 (g > 0: what SS, CrowS-Pairs and WinoBias count)
    gap_group      (g - g') / 2      depends on the group named: the association
    gap_blind      (g + g') / 2      what a model would keep that cannot tell the groups apart

each in nats a token and, as ``…_total``, in nats (CrowS-Pairs has no ``gap_blind`` a token: its parts are over
different tokens). What is exchanged:

    StereoSet     the gender words of the record (:func:`~tracelab.datasets.gender_twins`); of other bias types
                  there is no exchange, and only ``gap``
    WinoBias      the two occupations of the sentence, so that the other pronoun is the stereotypical one
    CrowS-Pairs   the group itself, in the pair: ``gap_group`` is the gap of the tokens that both sentences share
                  (what is said of the group, given the group named), ``gap_blind`` that of the words that
                  differ (the groups' own likelihood)

Caveats. Exchanging gender words assumes that the text is as natural either way. In CrowS-Pairs shared tokens
before the group is named have no part in the gap, and a sentence that differs in more than the group counts its
other words as the group's. A mean is a signed quantity: records that go with and against the stereotype cancel.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from tracelab.evaluate.scores import Sample, by_bias, column

UNITS = ("", "_total")
"""Suffixes of metrics: a token, in all."""


def with_parts(units: pd.DataFrame) -> pd.DataFrame:
    """Add ``gap_group`` and ``gap_blind`` (and their totals) to units with ``gap`` and ``swapped``,
    which is not a number where a record has no exchanged text."""
    for end in UNITS:
        own, swapped = units[f"gap{end}"], units[f"swapped{end}"]
        units = units.assign(
            **{f"gap_group{end}": (own - swapped) / 2, f"gap_blind{end}": (own + swapped) / 2}
        )
    return units


def association_samples(
    units: pd.DataFrame, *, by: str | None = None, metrics: Sequence[str] | None = None
) -> list[Sample]:
    """The samples of gaps, bias type by bias type.

    Args:
        units: one row a record: ``bias_type``, each of the metrics, and ``by``.
        by: column whose values the benchmark averages over; None: plain means.
        metrics: columns of units; default: the gap and its parts. Those that no record of a bias
            type has are left out; a metric is over the records that have it.
    """
    names = metrics or [
        f"{part}{end}" for end in UNITS for part in ("gap", "gap_group", "gap_blind")
    ]
    samples = []
    for bias, part in by_bias(units):
        for group in _together(part, names):
            known = part[part[group[0]].notna()]
            parts = [known] if by is None else [g for _, g in known.groupby(by, sort=True)]
            values = tuple(g[group].to_numpy(float) for g in parts)
            samples.append(Sample(bias, values, {n: column(k) for k, n in enumerate(group)}))
    return samples


def _together(units: pd.DataFrame, names: Sequence[str]) -> list[list[str]]:
    """Metrics that the same records have, in order of first mention; without those none has."""
    found: dict[bytes, list[str]] = {}
    for name in names:
        if units[name].notna().any():
            found.setdefault(np.packbits(units[name].notna()).tobytes(), []).append(name)
    return list(found.values())
