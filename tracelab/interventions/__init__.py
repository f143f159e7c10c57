"""Edits of a model as hooks: applied, composed, saved, and taken elsewhere."""

from tracelab.interventions.base import Intervention
from tracelab.interventions.bundle import load_intervention
from tracelab.interventions.experts import Experts, ExpertsConfig, FinetuneConfig
from tracelab.interventions.fairmed import FairMed
from tracelab.interventions.neutraliser import FairMedConfig
from tracelab.interventions.stack import Stack
from tracelab.interventions.weight_delta import WeightDelta

__all__ = [
    "Experts",
    "ExpertsConfig",
    "FairMed",
    "FairMedConfig",
    "FinetuneConfig",
    "Intervention",
    "Stack",
    "WeightDelta",
    "load_intervention",
]
