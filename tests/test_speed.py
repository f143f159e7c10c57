"""The comparisons in ``analyses/speed`` can be run, and the documentation has a row of each."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "analyses" / "speed"
PARTS = ("comparison", "models", "tracing")  # what the scripts share
SCRIPTS = sorted(file.stem for file in FOLDER.glob("*.py") if file.stem not in PARTS)
PAGE = (ROOT / "docs" / "speed.md").read_text("utf-8")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_says_how_it_is_run(name, monkeypatch, capsys):
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    for part in PARTS:
        monkeypatch.delitem(sys.modules, part, raising=False)
    try:
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    finally:
        for part in PARTS:
            sys.modules.pop(part, None)
    assert ended.value.code == 0
    assert f"python analyses/speed/{name}.py" in capsys.readouterr().out


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_page_names_each_script(name):
    assert f"analyses/speed/{name}.py" in PAGE


def test_the_pages_numbers_are_those_of_the_table():
    table = pd.read_csv(ROOT / "figures" / "speed" / "speed.csv").set_index("name")
    rows = re.findall(r"^\| `([\w.]+)` \| ([\d.]+)[^|]*\| ([\d.]+)", PAGE, re.MULTILINE)
    assert {name for name, *_ in rows} == set(table.index)
    for name, goal, ratio in rows:
        for said, column in ((goal, "goal"), (ratio, "ratio")):
            assert float(said) == pytest.approx(table[column][name], abs=0.051, rel=0.01)
