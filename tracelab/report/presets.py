"""What ``tracelab report`` measures under each preset, and which data stand for a bias type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tracelab.errors import require_choice
from tracelab.ranges import require_limit

BIAS_TYPES = ("gender", "race", "religion", "profession")
"""Bias types a report can be made of: StereoSet's. CrowS-Pairs has no pairs on professions."""

CROWS_PAIRS = {"gender": "gender", "race": "race-color", "religion": "religion"}


@dataclass(frozen=True)
class Preset:
    """How much is measured.

    Attributes:
        prober_seeds: splits and initialisations of the probers.
        trace_pairs: pairs that are traced, a random sample of those that can be.
        trace_samples: noise samples a sentence.
        layer_step: every how many layers states are restored (the last layer always).
        limit: at most so many records of each benchmark; None for all.
        fit_records: at most so many records and texts that the learned methods are fitted on; None
            for all.
        fits: by method, fields of its configuration that are not as by default, or as in its
            ``preset``.
        choice_records: development records on which the stack is chosen.
        benchmarks: on which the edits are compared, with at most so many records each.
        thorough: whether the comparison also has off-target bias types and costs.
    """

    prober_seeds: int
    trace_pairs: int
    trace_samples: int
    layer_step: int
    limit: int | None = None
    fit_records: int | None = None
    fits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    choice_records: int = 128
    benchmarks: Mapping[str, int | None] = field(default_factory=dict)
    thorough: bool = False

    def settings(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)

    def trace_layers(self, n_layers: int) -> list[int]:
        """Layers at which states are restored."""
        return sorted({*range(0, n_layers, self.layer_step), n_layers - 1})


PRESETS = {
    "quick": Preset(
        prober_seeds=2,
        trace_pairs=12,
        trace_samples=3,
        layer_step=4,
        fit_records=96,
        fits={
            "biasedit": {
                "preset": "direct",
                "steps": 8,
                "eval_every": 8,
                "n_query": 8,
                "delta_lr": 1e-3,
                "n_dev": 12,
            },
            "klaad": {"n_dev": 12},
        },
        choice_records=32,
        benchmarks={"stereoset": 96, "crows-pairs": 48, "local-bias": None, "perplexity": 32},
    ),
    "full": Preset(
        prober_seeds=5,
        trace_pairs=60,
        trace_samples=10,
        layer_step=1,
        fits={"biasedit": {"preset": "direct"}},
        benchmarks={
            "stereoset": None,
            "crows-pairs": None,
            "bbq": 400,
            "local-bias": None,
            "attention": None,
            "perplexity": 200,
        },
        thorough=True,
    ),
}


def preset_of(name: str, limit: int | None) -> Preset:
    """The named preset, with at most ``limit`` records of each benchmark.

    Raises:
        TracelabError: unknown name, or a limit under 1.
    """
    require_choice("preset", name, PRESETS)
    require_limit(limit)
    chosen = PRESETS[name]
    if limit is None:
        return chosen
    benchmarks = {each: min(limit, most or limit) for each, most in chosen.benchmarks.items()}
    return replace(chosen, limit=limit, benchmarks=benchmarks)
