"""Edits of a model as hooks: applied, composed, saved, and taken elsewhere."""

from tracelab.interventions.base import Intervention
from tracelab.interventions.biasedit.biasedit import BiasEdit
from tracelab.interventions.biasedit.config import BiasEditConfig
from tracelab.interventions.erasure import Erasure, ErasureConfig
from tracelab.interventions.experts.experts import Experts, ExpertsConfig, FinetuneConfig
from tracelab.interventions.export import to_merged, to_peft
from tracelab.interventions.fairmed.fairmed import FairMed
from tracelab.interventions.fairmed.neutraliser import FairMedConfig
from tracelab.interventions.klaad.klaad import KLAAD, KLAADConfig
from tracelab.interventions.methods import load_intervention
from tracelab.interventions.stack import Stack
from tracelab.interventions.weight_delta import WeightDelta

__all__ = [
    "KLAAD",
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
    "KLAADConfig",
    "Stack",
    "WeightDelta",
    "load_intervention",
    "to_merged",
    "to_peft",
]
