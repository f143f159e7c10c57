"""What the pages of the site take from the code, so that it is not written twice.

A page says where, in a comment that a reader of the file does not see:

    <!-- fields: ErasureConfig -->     the fields of a configuration: default and description
    <!-- metrics: ss lms icat -->      label, unit and ideal value of metrics
    <!-- help: score -->               what a verb of the command line says of itself

and figures and tables of ``figures/`` are files of the site beside the pages, which link them where
they are in the repository, so that both are complete.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic_core import PydanticUndefined

import tracelab
from tracelab.cli.parser import make_parser
from tracelab.metrics import METRICS

ROOT = Path(__file__).parent.parent


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is in ``figures/``."""
    for path in sorted((ROOT / "figures").rglob("*")):
        if path.suffix in (".png", ".csv"):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put tables and texts in the place of the comments that ask for them, and find figures."""
    return filled(markdown).replace("](../figures/", "](figures/")


def filled(markdown: str) -> str:
    """A page with what its comments ask for.

    Raises:
        KeyError, AttributeError: a comment that asks for what is not there.
    """

    def made(match: re.Match[str]) -> str:
        return MAKERS[match[1]](match[2].split())

    return re.sub(r"^<!-- (\w+): (.*?) -->$", made, markdown, flags=re.M)


def fields(names: list[str]) -> str:
    """The fields of configurations as a table."""
    rows = []
    for name in names:
        for field, about in getattr(tracelab, name).model_fields.items():
            default = about.default
            shown = "" if default is PydanticUndefined else _code(default)
            rows.append((f"`{field}`", shown, about.description or ""))
    return _table(rows, ("field", "default", "what it is"))


def metrics(names: list[str]) -> str:
    """Metrics as a table."""
    rows = []
    for name in names:
        metric = METRICS[name]
        best = "" if metric.ideal is None else f"{metric.ideal:g}"
        rows.append((f"`{name}`", metric.label, metric.unit, best))
    return _table(rows, ("in tables", "is", "unit", "ideal"))


def help_of(words: list[str]) -> str:
    """What ``tracelab WORDS --help`` says."""
    parser: argparse.ArgumentParser = make_parser()
    for word in words:
        (verbs,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
        parser = verbs.choices[word]
    parser.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=88)
    return f"```text\n{parser.format_help()}```"


MAKERS: dict[str, Callable[[list[str]], str]] = {
    "fields": fields,
    "metrics": metrics,
    "help": help_of,
}


def _code(value: Any) -> str:
    return f"`{value:.4g}`" if isinstance(value, float) else f"`{value!r}`"


def _table(rows: list[tuple[str, ...]], columns: tuple[str, ...]) -> str:
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return pd.DataFrame(escaped, columns=list(columns)).to_markdown(index=False)
