"""The floors of the house: a file imports only from floors below its own, and nothing imports in a
circle.

The imports of all files are read, those inside functions and those for type checkers included; the
latter make no circle.
"""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import tracelab

ROOT = Path(tracelab.__file__).parent

FLOORS = {
    "tracelab.cli": 9,
    "tracelab.report": 8,
    "tracelab.shards": 8,
    "tracelab.evaluate": 7,
    "tracelab.inspection": 7,
    "tracelab.interventions": 6,
    "tracelab.localize": 5,
    "tracelab.datasets": 4,
    "tracelab.model": 3,
    "tracelab.figures": 2.5,
    "tracelab.results": 2.5,
    "tracelab.storage": 2,
    "tracelab.escaping": 1,
    "tracelab.config": 1,
    "tracelab.metrics": 1,
    "tracelab.ranges": 0.5,
    "tracelab.gradients": 0.5,
    "tracelab.threads": 0.5,
    "tracelab.statistics": 1,
    "tracelab.progress": 1,
    "tracelab.errors": 0,
    "tracelab.span": 0,
    "tracelab.lazy": 0,
    "tracelab.moved": 0,
}
"""By room: a room imports from lower floors, its own files from each other.

Figures are beside the results: they draw tables, and neither knows the other.
"""

BESIDE = {("tracelab.interventions", "tracelab.localize")}
"""FairMed takes the probers, and a method may ask the tracer for layers."""


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(file): file for file in sorted(ROOT.rglob("*.py"))}


def for_type_checkers(node: ast.If) -> bool:
    return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports_of(module: str, *, typing: bool) -> set[str]:
    """The modules of the package that a module imports, wherever in it; with ``typing`` also those
    for type checkers only."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and for_type_checkers(node) and not typing:
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in FILES else node.module)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(FILES[module].read_text(encoding="utf-8")))
    return {name for name in found if name.split(".")[0] == "tracelab"} - {module}


IMPORTS = {module: imports_of(module, typing=False) for module in FILES}
NAMED = {module: imports_of(module, typing=True) for module in FILES}


def room(module: str) -> str:
    return ".".join(module.split(".")[:2])


def test_every_file_is_in_a_room():
    assert {room(module) for module in FILES} - {"tracelab"} == FLOORS.keys()


def test_no_import_runs_upwards():
    up = [
        f"{module} imports {name}"
        for module, names in NAMED.items()
        for name in names
        if "tracelab" not in (module, name)  # the front door
        and room(module) != room(name)
        and FLOORS[room(module)] <= FLOORS[room(name)]
        and (room(module), room(name)) not in BESIDE
    ]
    assert not up


def test_figures_know_no_result_and_no_model():
    drawn = {
        room(name)
        for module in FILES
        if room(module) == "tracelab.figures"
        for name in NAMED[module]
    }
    assert drawn <= {
        "tracelab.errors",
        "tracelab.figures",
        "tracelab.metrics",
        "tracelab.storage",
    }


def test_nothing_imports_the_front_door():
    assert [module for module, names in IMPORTS.items() if "tracelab" in names] == []


def test_no_files_import_each_other_in_a_circle():
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None
