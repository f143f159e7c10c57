"""Edits of a model as hooks: applied, composed, saved, and taken elsewhere.

Names are imported on first use: a configuration needs no torch.
"""

from typing import TYPE_CHECKING

from tracelab.lazy import names_from

if TYPE_CHECKING:
    from tracelab.config import Config
    from tracelab.interventions.activation_edit import ActivationEdit
    from tracelab.interventions.base import Intervention
    from tracelab.interventions.biasedit.biasedit import BiasEdit
    from tracelab.interventions.biasedit.config import BiasEditConfig
    from tracelab.interventions.erasure.config import ErasureConfig
    from tracelab.interventions.erasure.erasure import Erasure
    from tracelab.interventions.experts.config import ExpertsConfig, FinetuneConfig
    from tracelab.interventions.experts.experts import Experts
    from tracelab.interventions.export import to_merged, to_peft
    from tracelab.interventions.fairmed.config import FairMedConfig
    from tracelab.interventions.fairmed.fairmed import FairMed
    from tracelab.interventions.klaad.config import KLAADConfig
    from tracelab.interventions.klaad.klaad import KLAAD
    from tracelab.interventions.method import Method
    from tracelab.interventions.methods import load_intervention
    from tracelab.interventions.point_edit import PointEdit
    from tracelab.interventions.stack import Stack
    from tracelab.interventions.weight_delta import WeightDelta

_HOMES = {
    "KLAAD": "klaad.klaad",
    "ActivationEdit": "activation_edit",
    "BiasEdit": "biasedit.biasedit",
    "BiasEditConfig": "biasedit.config",
    "Erasure": "erasure.erasure",
    "ErasureConfig": "erasure.config",
    "Experts": "experts.experts",
    "ExpertsConfig": "experts.config",
    "FairMed": "fairmed.fairmed",
    "FairMedConfig": "fairmed.config",
    "FinetuneConfig": "experts.config",
    "Intervention": "base",
    "KLAADConfig": "klaad.config",
    "Method": "method",
    "PointEdit": "point_edit",
    "Stack": "stack",
    "WeightDelta": "weight_delta",
    "load_intervention": "methods",
    "to_merged": "export",
    "to_peft": "export",
}

__all__ = [
    "KLAAD",
    "ActivationEdit",
    "BiasEdit",
    "BiasEditConfig",
    "Config",
    "Erasure",
    "ErasureConfig",
    "Experts",
    "ExpertsConfig",
    "FairMed",
    "FairMedConfig",
    "FinetuneConfig",
    "Intervention",
    "KLAADConfig",
    "Method",
    "PointEdit",
    "Stack",
    "WeightDelta",
    "load_intervention",
    "to_merged",
    "to_peft",
]
_OWN = {name: f"{__name__}.{home}" for name, home in _HOMES.items()}
__getattr__, __dir__ = names_from(__name__, _OWN | {"Config": "tracelab.config"})
