"""Scripts that import from the modules of 0.1 still run."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from tracelab.moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_a_module_of_0_1_is_the_one_of_today(old):
    sys.modules.pop(f"tracelab.{old}", None)
    with pytest.warns(DeprecationWarning, match=f"tracelab.{old} is now tracelab.{MOVED[old]}"):
        module = importlib.import_module(f"tracelab.{old}")
    today = importlib.import_module(f"tracelab.{MOVED[old]}")
    assert module is today
    assert today.__spec__.name == today.__name__ == f"tracelab.{MOVED[old]}"


@pytest.mark.slow
def test_names_of_modules_that_became_packages_are_there():
    code = """
from tracelab import assets
from tracelab.evaluate.benchmarks import BENCHMARKS
from tracelab.evaluate.bold import bold_scores
from tracelab.evaluate.scoreboard import evaluate
from tracelab.inspection import inspect
from tracelab.interventions.biasedit import BiasEditSpec
from tracelab.interventions.experts import ExpertsConfig
from tracelab.interventions.fairmed import AttributeSpec
from tracelab.interventions.klaad import KLAADSpec
from tracelab.interventions.training import train
from tracelab.model import fingerprint, from_hf, load
import tracelab
assert callable(tracelab.evaluate)
try:
    from tracelab.model import nothing
except ImportError:
    print("right")
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "right\n"
