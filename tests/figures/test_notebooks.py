"""Notebooks as they are committed show their figures wherever they are opened: GitHub, nbconvert, a
mail."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from nbconvert.exporters import HTMLExporter

FOLDER = Path(__file__).parents[2] / "analyses"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MIME = "application/vnd.plotly.v1+json"


def figures(notebook: Path) -> list[dict]:
    """The outputs of a notebook that are plotly's."""
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    return [output["data"] for output in outputs if MIME in output.get("data", {})]


def test_there_are_notebooks_with_figures():
    assert sum(map(len, map(figures, NOTEBOOKS))) > 20


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_each_figure_has_a_small_picture_and_offers_no_upload(notebook):
    assert notebook.stat().st_size < 1_000_000
    for data in figures(notebook):
        assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
        assert len(data["image/png"]) < 250_000
        assert data[MIME]["config"]["showSendToCloud"] is False


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_the_page_that_nbconvert_makes_shows_each_figure(notebook):
    page, _ = HTMLExporter(template_name="basic").from_filename(str(notebook))
    shown = page.replace("\n", "")
    for data in figures(notebook):
        assert f"data:image/png;base64,{data['image/png']}".replace("\n", "") in shown
