"""Find where a language model keeps a social stereotype, edit it there, and see what the edit did.

>>> import tracelab
>>> model = tracelab.load()                                   # the embedded default
>>> probes = tracelab.probe_layers(model, tracelab.datasets.templates("gender"))
>>> edit = tracelab.FairMed.fit(model, probes)
>>> tracelab.inspect(model, edit, "The nurse said that").plot()
"""

import tracelab.starting  # noqa: F401  before the imports that take seconds
from tracelab import datasets
from tracelab.errors import TracelabError
from tracelab.evaluate.scoreboard import Scoreboard, evaluate
from tracelab.generation import generate
from tracelab.inspection import BeforeAfter, inspect
from tracelab.interventions import (
    KLAAD,
    BiasEdit,
    BiasEditConfig,
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
from tracelab.localize import attention_gap, causal_trace, probe_layers
from tracelab.localize.attention_gap import AttentionGap
from tracelab.localize.probes import LayerProbes
from tracelab.localize.trace_result import CausalTrace
from tracelab.model import load
from tracelab.report import report
from tracelab.scoring import score

__all__ = [
    "KLAAD",
    "AttentionGap",
    "BeforeAfter",
    "BiasEdit",
    "BiasEditConfig",
    "CausalTrace",
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
    "WeightDelta",
    "attention_gap",
    "causal_trace",
    "datasets",
    "evaluate",
    "generate",
    "inspect",
    "load",
    "load_intervention",
    "probe_layers",
    "report",
    "score",
    "to_merged",
    "to_peft",
]
