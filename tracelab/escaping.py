"""Text from models, data and files, written where something would read it as more than text.

A model id, a token, a note may hold anything: a tag that a browser runs, a bar that ends a cell of
a Markdown table, a line break, a formula that a spreadsheet computes. Each function here makes a
text stand for itself in one such place. Plotly's figures, which read a few tags, have their own in
:mod:`tracelab.figures.style`.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from tracelab.errors import cut, one_line

_MARKDOWN = re.compile(r"[\\`|]|\](?=[(\[:])")
"""A closing bracket only where it would make a link: ``61 [58, 64]`` stays as it is."""
_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
)
_FORMULA = ("=", "+", "-", "@", "\t", "\n")


def for_html(text: str) -> str:
    """In the text or an attribute of a page."""
    return html.escape(one_line(text))


def for_markdown(text: str) -> str:
    """In a line or in a table's cell of Markdown."""
    return _MARKDOWN.sub(r"\\\g<0>", one_line(text)).replace("<", "&lt;")


def code_for_markdown(text: str) -> str:
    """As code in a line of Markdown: between more backticks than stand together in it."""
    text = one_line(text)
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if "`" in text else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"


def for_latex(text: str) -> str:
    """In a line or in a table's cell of LaTeX; ``[`` or ``*`` first would belong to the ``\\\\`` of
    the row before."""
    text = one_line(text).translate(_LATEX)
    return f"{{{text[0]}}}{text[1:]}" if text.startswith(("[", "*")) else text


def lines(table: pd.DataFrame) -> pd.DataFrame:
    """A table whose texts are one line each, for a terminal."""
    return _map_texts(table, one_line)


def markdown_table(table: pd.DataFrame, **options: Any) -> str:
    """A table as Markdown; ``options`` are those of ``DataFrame.to_markdown``."""
    return str(_map_texts(table, for_markdown).to_markdown(**options))


def latex_table(table: pd.DataFrame) -> str:
    """A table as a LaTeX ``tabular`` for ``booktabs``."""
    return str(_map_texts(table, for_latex).to_latex(escape=False))


READ = 9
"""Columns of a table that a person reads at a glance."""
_HIDDEN = re.compile(r"(^|_)(id|hash|fingerprint)$|^teller$")


def readable(table: pd.DataFrame, columns: Sequence[str] = (), *, rows: int = 12) -> pd.DataFrame:
    """The beginning of a table as a person reads it: texts, at most :data:`READ` columns.

    Numbers have four digits; bounds stand with their value (``61.2 [58.1, 64]``); ids, and columns
    in which nothing stands, are left out.

    Args:
        columns: that are shown; default: the first.
    """
    table = table.head(rows).reset_index(drop=True)
    table.columns = table.columns.map(str)
    records, bounds = table.to_dict("records"), _bounds(table)
    hidden = {each for pair in bounds.values() for each in pair}
    made: dict[str, list[str]] = {}
    for name in columns or table.columns:
        texts = [_cell(row, name, bounds.get(name)) for row in records]
        if name not in hidden and not _HIDDEN.search(name) and any(texts) and len(made) < READ:
            made[name] = texts
    return pd.DataFrame(made, index=table.index)


def _bounds(table: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """The columns that bound a column of numbers: ``f1_low, f1_high``; plain ``low, high`` are of
    the first that has none of its own."""
    found: dict[str, tuple[str, str]] = {}
    for name in table.select_dtypes("float").columns:
        taken = {each for pair in found.values() for each in pair}
        pairs = [(f"{name}_low", f"{name}_high"), ("low", "high")]
        free = [pair for pair in pairs if {*pair} <= {*table.columns} - taken - {name}]
        if free and name not in taken and name not in ("low", "high"):
            found[name] = free[0]
    return found


def _cell(row: dict[Any, Any], name: str, bounds: tuple[str, str] | None) -> str:
    texts = [_number(row[each]) for each in (name, *(bounds or ()))]
    return f"{texts[0]} [{texts[1]}, {texts[2]}]" if bounds and all(texts) else texts[0]


def _number(value: Any) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return ""
    return f"{value:.4g}" if isinstance(value, float) else cut(str(value), 80)


def csv_table(table: pd.DataFrame) -> str:
    """A table as CSV that a spreadsheet reads as values.

    A text that it would compute (``=``, ``+``, ``-`` or ``@`` first, and no number) has an
    apostrophe before it, which spreadsheets do not show. What reads CSV otherwise sees it; a
    result's Parquet file has the text as it is.
    """
    return _map_texts(table, _for_spreadsheet).to_csv(index=False)


def _for_spreadsheet(text: str) -> str:
    # csv writers do not quote a bare \r, which begins a row
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.startswith(_FORMULA):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def _map_texts(table: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    """The table with every text in it, in the names of its columns and in its index changed."""

    def changed(value: Any) -> Any:
        return change(value) if isinstance(value, str) else value

    made = table.copy()
    for name, kind in table.dtypes.items():
        if not pd.api.types.is_numeric_dtype(kind):
            made[name] = [changed(value) for value in table[name]]
    made.columns = [changed(name) for name in table.columns]
    if not pd.api.types.is_numeric_dtype(table.index.dtype):
        made.index = [changed(name) for name in table.index]
    return made.rename_axis(index=changed(table.index.name), columns=changed(table.columns.name))
