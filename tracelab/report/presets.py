"""What ``tracelab report`` measures under each preset, and which data stand for a bias type."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tracelab.errors import TracelabError, require_choice

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
    """

    prober_seeds: int
    trace_pairs: int
    trace_samples: int
    layer_step: int
    limit: int | None = None

    def settings(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)

    def trace_layers(self, n_layers: int) -> list[int]:
        """Layers at which states are restored."""
        return sorted({*range(0, n_layers, self.layer_step), n_layers - 1})


PRESETS = {
    "quick": Preset(prober_seeds=2, trace_pairs=16, trace_samples=3, layer_step=3),
    "full": Preset(prober_seeds=5, trace_pairs=60, trace_samples=10, layer_step=1),
}


def preset_of(name: str, limit: int | None) -> Preset:
    """The named preset, with at most ``limit`` records of each benchmark.

    Raises:
        TracelabError: unknown name, or a limit under 1.
    """
    require_choice("preset", name, PRESETS)
    if limit is not None and limit < 1:
        raise TracelabError(f"no record is left with limit={limit}")
    return Preset(**{**PRESETS[name].settings(), "limit": limit})
