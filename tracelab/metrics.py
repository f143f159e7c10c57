"""Every metric by its name in tables: what figures call it, its unit, and its value for an
unbiased, capable model."""

from __future__ import annotations

from dataclasses import dataclass

UNEDITED = "unedited"
"""What tables and figures call the model as it is."""


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        label: on axes and titles, without the unit.
        unit: "%", "nats", "points"; empty for a plain number.
        ideal: of an unbiased and capable model, where there is such a value.
    """

    label: str
    unit: str = ""
    ideal: float | None = None

    def __str__(self) -> str:
        return f"{self.label} ({self.unit})" if self.unit else self.label


METRICS = {
    "gap_group": Metric("group-dependent gap", "nats a token", 0.0),
    "gap": Metric("stereotype gap", "nats a token", 0.0),
    "gap_blind": Metric("group-blind gap", "nats a token"),
    "gap_group_total": Metric("group-dependent gap", "nats", 0.0),
    "gap_total": Metric("stereotype gap", "nats", 0.0),
    "gap_blind_total": Metric("group-blind gap", "nats"),
    "ss": Metric("StereoSet SS", "%", 50.0),
    "lms": Metric("StereoSet LMS", "%", 100.0),
    "icat": Metric("StereoSet ICAT", "%", 100.0),
    "crows_sum": Metric("CrowS-Pairs, sum", "%", 50.0),
    "crows_mean": Metric("CrowS-Pairs, mean", "%", 50.0),
    "crows_shared": Metric("CrowS-Pairs, shared tokens", "%", 50.0),
    "acc_amb": Metric("BBQ accuracy, ambiguous", "%", 100.0),
    "acc_dis": Metric("BBQ accuracy, disambiguated", "%", 100.0),
    "s_amb": Metric("BBQ bias, ambiguous", "%", 0.0),
    "s_dis": Metric("BBQ bias, disambiguated", "%", 0.0),
    "pro_preferred": Metric("WinoBias, pro preferred", "%", 50.0),
    "acc_gap": Metric("WinoBias gap", "points", 0.0),
    "hellinger": Metric("local bias (Hellinger)", ideal=0.0),
    "swap_same_top1": Metric("same next token after a gender swap", "%", 100.0),
    "swap_tv": Metric("next-token distance after a gender swap (TV)", ideal=0.0),
    "sentiment_gap": Metric("BOLD sentiment gap", ideal=0.0),
    "perplexity": Metric("perplexity"),
    "sensitive": Metric("attention gap, differing tokens"),
    "other": Metric("attention gap, other tokens"),
    "distance": Metric("distance from even"),
    "mass": Metric("mass of group words"),
    "change in distance": Metric("change of the distance from even"),
    "change in mass": Metric("change of the mass of group words"),
    "kl": Metric("probers' KL from uniform", "nats"),
}


def label(metric: str) -> str:
    """What figures call a metric, its unit included; an unknown one by its name."""
    return str(METRICS.get(metric, metric))


def ideal(metric: str) -> float | None:
    """The ideal value of a metric, if it has one."""
    return METRICS[metric].ideal if metric in METRICS else None
