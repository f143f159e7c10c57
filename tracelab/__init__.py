"""Find where a language model keeps a social stereotype, edit it there, and see what the edit did.

>>> import tracelab
>>> model = tracelab.load()                                   # the embedded default
>>> probes = tracelab.probe_layers(model, tracelab.datasets.templates("gender"))
>>> edit = tracelab.FairMed.fit(model, probes)
>>> tracelab.inspect(model, edit, "The nurse said that").plot()
"""

from tracelab import datasets
from tracelab.errors import TracelabError
from tracelab.evaluate.scoreboard.scoreboard import Scoreboard, evaluate
from tracelab.inspection.before_after import BeforeAfter, inspect
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
from tracelab.localize.attention.attention_gap import AttentionGap
from tracelab.localize.probing.probes import LayerProbes
from tracelab.localize.tracing.result import CausalTrace
from tracelab.model.generation import generate
from tracelab.model.load import load
from tracelab.model.scoring import score
from tracelab.report import report

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
