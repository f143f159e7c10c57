"""What the project says of itself in several places is the same."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import pandas as pd
import pytest
import yaml

import tracelab
from docs.draw_results import NAMES, PLACE, TABLE

ROOT = Path(tracelab.__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
README = (ROOT / "README.md").read_text("utf-8")


def test_the_version_is_the_same_in_each_place():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    (newest, *_) = re.findall(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert PROJECT["version"] == citation["version"] == newest
    assert tracelab.__version__ == version("tracelab")


def test_the_citation_has_what_its_format_asks_for():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert {"cff-version", "message", "title", "authors", "license"} <= citation.keys()
    assert citation["license"] == PROJECT["license"]


def test_types_are_marked_for_who_installs_it():
    assert (files("tracelab") / "py.typed").is_file()


def test_the_readme_is_short_and_shows_a_picture():
    assert len(README.splitlines()) <= 90
    assert len(re.findall(r"^!\[", README, re.M)) == 1


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        (README, {"gap": 3, "local": 4, "perplexity": 5}),
        ((ROOT / "docs/results.md").read_text("utf-8"), {"gap": 2, "local": 3, "perplexity": 8}),
    ],
    ids=["README", "results"],
)
def test_the_numbers_of_the_methods_are_those_of_the_table(text, columns):
    table = pd.read_csv(TABLE)
    wanted = {"gap": ("stereoset", "gap_group", 4), "local": ("local-bias", "hellinger", 3)}
    found = 0
    for line in text.splitlines():
        parts = [part.strip() for part in line.split("|")]
        name = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", parts[1]).casefold() if len(parts) > 5 else ""
        if name not in NAMES:
            continue
        found += 1
        rows = table[table["edit"] == name].set_index(["benchmark", "metric"])
        for column, (benchmark, metric, digits) in wanted.items():
            row = rows.loc[(benchmark, metric)]
            change, low, high = row[PLACE]
            shown = f"{change:+.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
            star = "*" if row["p_holm"] < 0.05 else ""
            assert parts[columns[column]] == shown + star, (name, column)
        row = rows.loc[("perplexity", "perplexity")]
        before = row["value"] - row["difference"]
        star = "*" if row["p_holm"] < 0.05 else ""
        assert parts[columns["perplexity"]] == f"{100 * row['difference'] / before:+.1f} %{star}"
    assert found >= 5


def test_the_picture_of_the_readme_has_every_edit_of_the_table():
    assert {*NAMES, "unedited"} == {*pd.read_csv(TABLE)["edit"]}
