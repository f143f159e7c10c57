"""Every example that tracelab shows runs: those of docstrings, of the README, of the page on the
command line, and of ``--help``. Other pages are in :mod:`tests.test_docs_code`.

They run as they stand, on a cache in which the model and the benchmarks are small
(:mod:`tests.small_cache`). A docstring's example sees the names of its own module and

    tracelab, model, hf_model       the package; the default model, as a bridge and plain
    tokens, edit                    a prompt's tokens, and an edit of the default model

An example that shows no output says nothing of it; one that does is held to it.
"""

from __future__ import annotations

import contextlib
import doctest
import importlib
import io
import itertools
import json
import pkgutil
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import tracelab
from tests.small_cache import make_small_cache
from tracelab.cli import main
from tracelab.cli.parser import make_parser
from tracelab.model import assets

PACKAGE = Path(tracelab.__file__).parent
README, COMMAND_LINE, IN_PYTHON = (
    PACKAGE.parent / page for page in ("README.md", "docs/command_line.md", "docs/in_python.md")
)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def docstring_examples() -> Iterator[doctest.DocTest]:
    finder = doctest.DocTestFinder()
    modules = [module.name for module in pkgutil.walk_packages(tracelab.__path__, "tracelab.")]
    for name in ["tracelab", *modules]:
        if not name.endswith("__main__"):
            module = importlib.import_module(name)
            yield from (test for test in finder.find(module, name) if test.examples)


EXAMPLES = {test.name: test for test in docstring_examples()}


class Checker(doctest.OutputChecker):
    """Takes any output where none is shown."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return not want or super().check_output(want, got, optionflags)


@pytest.fixture(scope="module")
def small_cache(tmp_path_factory) -> Path:
    return make_small_cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def small(small_cache, tmp_path, monkeypatch) -> None:
    """The small cache is the cache, and an empty folder the working one."""
    monkeypatch.setenv("TRACELAB_CACHE", str(small_cache))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def names(small_cache) -> dict[str, Any]:
    """What an example may take for granted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACELAB_CACHE", str(small_cache))
        model = tracelab.load()
        hf_model = AutoModelForCausalLM.from_pretrained(assets.model_dir(), dtype=torch.float32)
    tokens = model.to_tokens("The nurse said that she was tired", prepend_bos=False)
    edit = tracelab.WeightDelta.low_rank(model, layers=[2], modules=["mlp.out"], rank=2)
    return {
        "tracelab": tracelab,
        "model": model,
        "hf_model": hf_model.eval(),
        "tokens": tokens,
        "edit": edit,
    }


def run_docstring(test: doctest.DocTest, names: dict[str, Any]) -> None:
    test.globs = test.globs | names
    failures = io.StringIO()
    result = doctest.DocTestRunner(Checker(), verbose=False, optionflags=FLAGS).run(
        test, out=failures.write
    )
    assert result.failed == 0, failures.getvalue()


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_of_the_docstring_runs(name, names, small):
    run_docstring(EXAMPLES[name], names)
    assert not names["model"].list_hooks()
    assert all(parameter.grad is None for parameter in names["model"].parameters())


def test_no_docstring_keeps_an_example_from_being_found():
    """A nested function, or a string that is no docstring, would."""
    written = sum(
        len(re.findall(r"^\s*>>> ", file.read_text(encoding="utf-8"), re.MULTILINE))
        for file in PACKAGE.rglob("*.py")
    )
    assert written == sum(len(test.examples) for test in EXAMPLES.values())


@pytest.mark.slow
def test_the_example_of_the_front_door_runs_on_the_embedded_model():
    run_docstring(EXAMPLES["tracelab"], {})


# The README and the page on the command line


def blocks(page: Path, language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    return [text for name, text in found if name == language]


def commands(page: Path) -> list[str]:
    """The lines of its blocks, those that go on after a backslash joined, comments taken off."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [line for each in lines if (line := re.sub(r"\s+#.*", "", each).strip())]


COMMANDS = commands(COMMAND_LINE)
LONG = ("report", "compare")  # also on a small model


def test_every_block_of_the_readme_is_of_a_kind_that_is_tried():
    languages = re.findall(r"^```(\w*)\n.*?^```$", README.read_text("utf-8"), re.M | re.S)
    assert set(languages) == {"python", "bash"}


def test_the_python_of_the_readme_runs_from_top_to_bottom(small):
    found: dict[str, Any] = {}
    for number, block in enumerate(blocks(README, "python")):
        exec(compile(block, f"README.md, Python block {number}", "exec"), found)
    assert not found["model"].list_hooks()


def test_what_a_page_says_can_be_typed_instead_is_the_example_of_a_docstring():
    shown = {each.source.strip() for test in EXAMPLES.values() for each in test.examples}
    instead = re.findall(r"^# or tracelab\.(.*)$", "".join(blocks(IN_PYTHON, "python")), re.M)
    assert len(instead) == 3
    assert {f"edit = {line}" for line in instead} <= shown


def test_the_commands_of_the_readme_are_understood():
    text = README.read_text("utf-8")
    makefile = (README.parent / "Makefile").read_text("utf-8")
    named = [*commands(README), *re.findall(r"`((?:make|pip|tracelab) [^`]+)`", text)]
    assert {line.split()[0] for line in named} == {"make", "pip", "tracelab"}
    for program, *words in map(shlex.split, named):
        if program == "tracelab":
            make_parser().parse_args(words)
        elif program == "make":
            assert re.search(rf"^{words[0]}:", makefile, re.M)
        else:
            (extras,) = re.findall(r"\.\[(.*)\]", words[-1])
            project = tomllib.loads((README.parent / "pyproject.toml").read_text("utf-8"))
            assert set(extras.split(",")) <= project["project"]["optional-dependencies"].keys()


def test_the_links_of_the_readme_lead_to_files():
    for link in re.findall(r"\]\(([^)#]+)", README.read_text("utf-8")):
        assert (README.parent / link).exists(), link


@pytest.mark.parametrize("all_of_them", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_commands_of_the_page_run_one_after_the_other(all_of_them, small):
    ran = set()
    for line in COMMANDS:
        _, verb, *words = shlex.split(line)
        if all_of_them or verb not in LONG:
            assert main([verb, *words]) == 0
            ran.add(verb)
    assert ran | set(LONG) == {verb for verb, _ in USAGE}


def usage() -> list[tuple[str, str]]:
    """The verbs of the overview, each with what follows it."""
    (text,) = blocks(COMMAND_LINE, "text")
    lines = re.sub(r"\n\s+", " ", text).splitlines()
    return [(line.split()[1], line.split(maxsplit=2)[2]) for line in lines]


USAGE = usage()


def help_of(*words: str) -> str:
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code == 0
    return shown.getvalue()


@pytest.mark.parametrize(("verb", "rest"), USAGE)
def test_the_overview_names_options_and_choices_that_exist(verb, rest):
    alternatives = [group.split("|") for group in re.findall(r"[\w-]+(?:\|[\w-]+)+", rest)]
    methods = alternatives[0] if verb == "fit" else []
    shown = " ".join([help_of(verb), *(help_of(verb, method) for method in methods)])
    for word in [*itertools.chain(*alternatives), *re.findall(r"--[\w-]+", rest)]:
        assert re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", shown), f"{verb}: {word}"


@pytest.mark.parametrize("verb", [verb for verb, _ in USAGE])
def test_the_example_in_the_help_is_understood(verb):
    (example,) = re.findall(r"example: tracelab (.*)", " ".join(help_of(verb).split()))
    make_parser().parse_args(shlex.split(example))


def test_the_json_of_the_page_has_the_fields_that_are_written(small):
    (text,) = blocks(COMMAND_LINE, "json")
    assert main(["score", "stereoset", "--bias", "gender", "--json", "out.json"]) == 0
    written = json.loads(Path("out.json").read_text("utf-8"))
    assert set(re.findall(r'"(\w+)":', text)) == {
        *written,
        *(written["settings"].keys() & {"model", "data_hash", "seed", "versions"}),
        *written["results"][0],
    }
