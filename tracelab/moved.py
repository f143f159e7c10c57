"""Module names of 0.1: they still import what they named, with a warning that says where it is now.

Only ``tracelab``'s own names are promised to stay; scripts and notebooks import from its modules
all the same. A few names inside them are gone or renamed: CHANGELOG.md has them.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED = {
    "assets": "model.assets",
    "calls": "model.forward_pass",
    "continuations": "model.continuations",
    "evaluate.attention": "evaluate.benchmarks.attention",
    "evaluate.bbq": "evaluate.benchmarks.bbq",
    "evaluate.bbq_metrics": "evaluate.benchmarks.bbq_metrics",
    "evaluate.cells": "evaluate.scoreboard.cells",
    "evaluate.classifiers": "evaluate.bold.classifiers",
    "evaluate.costs": "evaluate.scoreboard.costs",
    "evaluate.crows_pairs": "evaluate.benchmarks.crows_pairs",
    "evaluate.group_bias": "evaluate.benchmarks.group_bias",
    "evaluate.hellinger": "evaluate.benchmarks.hellinger",
    "evaluate.interference": "evaluate.scoreboard.interference",
    "evaluate.lexica": "evaluate.bold.lexica",
    "evaluate.lm_eval": "evaluate.benchmarks.lm_eval",
    "evaluate.perplexity": "evaluate.benchmarks.perplexity",
    "evaluate.stereoset": "evaluate.benchmarks.stereoset",
    "evaluate.text_scorers": "evaluate.bold.text_scorers",
    "evaluate.transductive": "evaluate.benchmarks.transductive",
    "evaluate.winobias": "evaluate.benchmarks.winobias",
    "files": "storage.files",
    "forward": "model.partial_forward",
    "generation": "model.generation",
    "hook_points": "model.hook_points",
    "interventions.biasedit_config": "interventions.biasedit.config",
    "interventions.biasedit_shift": "interventions.biasedit.shift",
    "interventions.biasedit_training": "interventions.biasedit.triple_model",
    "interventions.editor": "interventions.biasedit.editor",
    "interventions.expert_runner": "interventions.experts.runner",
    "interventions.finetune": "interventions.training.finetune",
    "interventions.klaad_losses": "interventions.klaad.losses",
    "interventions.neutraliser": "interventions.fairmed.neutraliser",
    "interventions.triple_losses": "interventions.training.triple_losses",
    "interventions.triples": "interventions.training.triples",
    "kept": "storage.checkpoint",
    "localize.attention_gap": "localize.attention.attention_gap",
    "localize.causal_trace": "localize.tracing.causal_trace",
    "localize.harvest": "localize.probing.harvest",
    "localize.neutral_swap": "localize.attention.neutral_swap",
    "localize.prober": "localize.probing.prober",
    "localize.probes": "localize.probing.probes",
    "localize.trace_cases": "localize.tracing.cases",
    "localize.trace_result": "localize.tracing.result",
    "localize.trace_sentence": "localize.tracing.sentence",
    "scoring": "model.scoring",
    "tokens": "model.tokens",
    "weight_directions": "inspection.weight_directions",
}
"""By the name in 0.1, both inside ``tracelab``."""


class _OldNames(MetaPathFinder, Loader):
    """Asked after all other finders: gives the module of today under its old name."""

    def __init__(self) -> None:
        self._specs: dict[str, ModuleSpec | None] = {}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        package, _, rest = name.partition(".")
        return ModuleSpec(name, self) if package == "tracelab" and rest in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        today = f"tracelab.{MOVED[spec.name.removeprefix('tracelab.')]}"
        warnings.warn(f"{spec.name} is now {today}", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(today)
        self._specs[spec.name] = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The import system has put the old name's spec on it.
        old = "" if module.__spec__ is None else module.__spec__.name
        module.__spec__ = self._specs.pop(old, module.__spec__)


def install() -> None:
    """Let the old names be imported."""
    if not any(isinstance(finder, _OldNames) for finder in sys.meta_path):
        sys.meta_path.append(_OldNames())


def names_of(package: str, module: str) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package that was a module in 0.1, whose names are in ``module``
    now."""

    def get(name: str) -> Any:
        if name.startswith("__") or importlib.util.find_spec(f"{package}.{name}") is not None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(module), name)

    return get
