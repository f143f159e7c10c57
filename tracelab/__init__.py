"""Find where a language model keeps a social stereotype, edit it there, and see what the edit did.

>>> import tracelab
>>> model = tracelab.load()                                   # the embedded default
>>> gap = tracelab.attention_gap(model, tracelab.datasets.crows_pairs("gender", limit=20))
>>> edit = tracelab.Erasure.fit(model, tracelab.datasets.group_pairs("gender"))
>>> tracelab.inspect(model, edit, "The nurse said that").plot()
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tracelab import moved
from tracelab.lazy import names_from

if TYPE_CHECKING:
    from tracelab import datasets
    from tracelab.errors import TracelabError
    from tracelab.evaluate.scoreboard.scoreboard import Scoreboard, evaluate
    from tracelab.evaluate.tuning import Tuning, tune
    from tracelab.inspection.before_after import BeforeAfter, inspect
    from tracelab.inspection.inspector import inspector
    from tracelab.interventions import (
        KLAAD,
        BiasEdit,
        BiasEditConfig,
        Erasure,
        ErasureConfig,
        Experts,
        ExpertsConfig,
        FairMed,
        FairMedConfig,
        FinetuneConfig,
        Intervention,
        KLAADConfig,
        Stack,
        WeightDelta,
        load_intervention,
        to_merged,
        to_peft,
    )
    from tracelab.interventions.training.config import Bounds
    from tracelab.localize import attention_gap, causal_trace, probe_layers
    from tracelab.localize.attention.attention_gap import AttentionGap
    from tracelab.localize.probing.probes import LayerProbes
    from tracelab.localize.tracing.result import CausalTrace
    from tracelab.model.generation import generate
    from tracelab.model.load import load
    from tracelab.model.scoring import score
    from tracelab.report import report

_HOMES = {
    "tracelab.errors": ("TracelabError",),
    "tracelab.evaluate.scoreboard.scoreboard": (
        "Scoreboard",
        "evaluate",
    ),
    "tracelab.evaluate.tuning": (
        "Tuning",
        "tune",
    ),
    "tracelab.inspection.before_after": (
        "BeforeAfter",
        "inspect",
    ),
    "tracelab.inspection.inspector": ("inspector",),
    "tracelab.interventions": (
        "BiasEdit",
        "BiasEditConfig",
        "Erasure",
        "ErasureConfig",
        "Experts",
        "ExpertsConfig",
        "FairMed",
        "FairMedConfig",
        "FinetuneConfig",
        "Intervention",
        "KLAAD",
        "KLAADConfig",
        "Stack",
        "WeightDelta",
        "load_intervention",
        "to_merged",
        "to_peft",
    ),
    "tracelab.interventions.training.config": ("Bounds",),
    "tracelab.localize": (
        "attention_gap",
        "causal_trace",
        "probe_layers",
    ),
    "tracelab.localize.attention.attention_gap": ("AttentionGap",),
    "tracelab.localize.probing.probes": ("LayerProbes",),
    "tracelab.localize.tracing.result": ("CausalTrace",),
    "tracelab.model.generation": ("generate",),
    "tracelab.model.load": ("load",),
    "tracelab.model.scoring": ("score",),
    "tracelab.report": ("report",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "KLAAD",
    "AttentionGap",
    "BeforeAfter",
    "BiasEdit",
    "BiasEditConfig",
    "Bounds",
    "CausalTrace",
    "Erasure",
    "ErasureConfig",
    "Experts",
    "ExpertsConfig",
    "FairMed",
    "FairMedConfig",
    "FinetuneConfig",
    "Intervention",
    "KLAADConfig",
    "LayerProbes",
    "Scoreboard",
    "Stack",
    "TracelabError",
    "Tuning",
    "WeightDelta",
    "attention_gap",
    "causal_trace",
    "datasets",
    "evaluate",
    "generate",
    "inspect",
    "inspector",
    "load",
    "load_intervention",
    "probe_layers",
    "report",
    "score",
    "to_merged",
    "to_peft",
    "tune",
]


__getattr__, __dir__ = names_from(__name__, _HOME)


class _FrontDoor(ModuleType):
    """``tracelab.evaluate`` and ``tracelab.report`` are functions, also after the packages of that
    name are loaded."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _FrontDoor
moved.install()
