"""What can be asked without loading a model library costs no time, and every public name is where
it is said to be."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import tracelab
from tracelab.cli import words
from tracelab.evaluate.registry import BENCHMARKS
from tracelab.evaluate.scoreboard.scoreboard import DEFAULT
from tracelab.interventions.methods import METHODS
from tracelab.interventions.registry import LISTED

HEAVY = (
    "torch",
    "numpy",
    "pandas",
    "plotly",
    "transformers",
    "transformer_lens",
    "sklearn",
    "scipy",
)


def loaded_by(code: str) -> list[str]:
    """Which heavy libraries a fresh process has loaded after some code."""
    report = (
        f"\nimport json, sys; print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code + report], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def command(*arguments: str) -> str:
    return f"""
import contextlib
from tracelab.cli import main
with contextlib.suppress(SystemExit):
    main({list(arguments)})
"""


@pytest.mark.parametrize(
    "code",
    [
        "import tracelab; tracelab.TracelabError; dir(tracelab)",
        "from tracelab.datasets import templates; templates('gender')",
        command("--help"),
        command("--version"),
        command("fetch", "--check", "--help"),
        command("fit", "--help"),
        command("scoer", "stereoset"),
        command("score", "stereoset", "--seed", "-1"),
        command("fit", "fairmed", "--layers", "a"),
        *(command("fit", method.kind, "--help") for method in LISTED),
        command("fit", "fairmed", "--bias", "gender", "--lam", "-1"),
        command("fit", "klaad", "--bias", "gender", "--lam1", "0", "--lam2", "0", "--lam3", "0"),
    ],
)
def test_help_words_that_are_not_understood_and_records_need_no_torch(code):
    assert loaded_by(code) == []


def test_every_public_name_is_there_and_listed_for_type_checkers():
    tree = ast.parse(Path(tracelab.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    listed = {alias.name: node.module for node in block.body for alias in node.names}
    assert listed.keys() == set(tracelab.__all__)
    assert {name: home for name, home in listed.items() if name != "datasets"} == tracelab._HOME
    for name in tracelab.__all__:
        assert getattr(tracelab, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tracelab.nothing


@pytest.mark.slow
def test_functions_stay_functions_after_the_packages_of_their_names_are_loaded():
    code = """
import tracelab, tracelab.evaluate.paired, tracelab.report.page
from tracelab.evaluate import paired
assert callable(tracelab.evaluate) and callable(tracelab.report) and callable(tracelab.inspect)
assert tracelab.errors.TracelabError is tracelab.TracelabError
"""
    assert "torch" in loaded_by(code)


def test_the_words_of_the_command_line_are_the_registries():
    assert tuple(BENCHMARKS) == words.BENCHMARKS
    assert words.COMPARED == DEFAULT
    assert [each.kind for each in LISTED] == [method.kind for method in METHODS]
    assert [each.config_class() for each in LISTED] == [method.Config for method in METHODS]
