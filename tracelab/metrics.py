"""What figures and pages call things: every metric by its name in tables, with its unit and its
value for an unbiased, capable model; methods and models as papers write them."""

from __future__ import annotations

import re
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


METHODS = {
    "fairmed": "FairMed",
    "biasedit": "BiasEdit",
    "klaad": "KLAAD",
    "experts": "Experts",
    "erasure": "Erasure",
}
"""Methods by their name in code, as their papers write them."""
BENCHMARKS = {
    "stereoset": "StereoSet",
    "crows-pairs": "CrowS-Pairs",
    "winobias": "WinoBias",
    "bbq": "BBQ",
    "bold": "BOLD",
    "local-bias": "local bias",
    "swap-consistency": "swap consistency",
}
"""Benchmarks by their name in tables, as their papers write them."""
_METHOD = re.compile(rf"(?:(?<=^)|(?<= \+ ))({'|'.join(METHODS)})(?=$|[ (:])")
_BITS = re.compile(r"[-.]Q(\d)(_\w+)?$")


def paper_name(edit: str) -> str:
    """An edit's name with its methods as papers write them; a name of your own stays.

    >>> paper_name("fairmed + klaad"), paper_name("erasure (words seen)"), paper_name("my_klaad")
    ('FairMed + KLAAD', 'Erasure (words seen)', 'my_klaad')
    """
    return _METHOD.sub(lambda found: METHODS[found[1]], edit)


def paper_model(model_id: str) -> str:
    """A model's name as papers write it: without its owner on the Hub, and with its bits.

    >>> paper_model("SmolLM2-135M-Instruct-Q4_1"), paper_model("EleutherAI/pythia-70m")
    ('SmolLM2-135M-Instruct 4-bit', 'pythia-70m')
    """
    name = model_id.rpartition("/")[2] if re.fullmatch(r"[\w-]+/[\w.-]+", model_id) else model_id
    return _BITS.sub(r" \1-bit", name)


def label(metric: str) -> str:
    """What figures call a metric, its unit included; an unknown one by its name."""
    return str(METRICS.get(metric, metric))


def ideal(metric: str) -> float | None:
    """The ideal value of a metric, if it has one."""
    return METRICS[metric].ideal if metric in METRICS else None
