"""The code of ``CONTRIBUTING.md`` runs as it stands, in order, on a small model and small data."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import tracelab
from tests.small_cache import make_small_cache

ROOT = Path(tracelab.__file__).parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))
WITH_CODE = {
    title: blocks
    for title, text in SECTIONS.items()
    if (blocks := re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S))
}


@pytest.fixture(scope="module")
def small_cache(tmp_path_factory) -> Path:
    return make_small_cache(tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("title", WITH_CODE)
def test_the_code_of_a_section_runs_from_top_to_bottom(title, small_cache, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACELAB_CACHE", str(small_cache))
    monkeypatch.chdir(tmp_path)
    module = ModuleType("contributed")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for number, block in enumerate(WITH_CODE[title]):
        exec(compile(block, f"CONTRIBUTING.md, {title}, block {number}", "exec"), vars(module))
    assert not module.model.list_hooks()


def test_the_sections_that_promise_code_have_it():
    promised = {"A new benchmark", "A new localiser", "A new intervention in 40 lines"}
    assert promised <= WITH_CODE.keys()


def test_the_code_passes_the_linter_that_it_asks_for(tmp_path):
    for number, block in enumerate(block for blocks in WITH_CODE.values() for block in blocks):
        (tmp_path / f"block_{number}.py").write_text(block, encoding="utf-8")
    rules = ["--config", str(ROOT / "pyproject.toml"), "--no-cache"]
    # Names of an earlier block, docstrings that the page itself gives, a table shown at the end.
    rules += ["--ignore", "F821,D1,B018,I001"]
    command = [sys.executable, "-m", "ruff", "check", *rules, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_files_and_targets_that_the_page_names_are_there():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make ([\w-]+)", PAGE, re.M):
        assert re.search(rf"^{target}:", makefile, re.M)
    for path in re.findall(r"`((?:tests|tracelab|docs)/[\w/]*(?:\.\w+)?)`", PAGE):
        assert (ROOT / path).exists(), path
