"""The folder of a report: a page of somebody's own is refused, a report of 0.1 is resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tracelab.errors import TracelabError
from tracelab.report.place import require_report_folder
from tracelab.storage.files import own_file
from tracelab.storage.ownership import is_ours


@pytest.fixture
def of_0_1(tmp_path) -> Path:
    """What 0.1 left: parts with their requests, tables, figures and the page, and no list."""
    for name in (
        "index.html",
        "tables/headline.csv",
        "figures/a.html",
        "parts/stereoset/result.json",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("made by 0.1")
    (tmp_path / "parts/stereoset.key").write_text(
        json.dumps({"versions": {"tracelab": "0.1.0"}, "seed": 0})
    )
    return tmp_path


def test_a_report_of_0_1_may_be_written_again(of_0_1):
    require_report_folder(of_0_1)
    for name in ("index.html", "tables/headline.csv", "figures/a.html"):
        with own_file(of_0_1 / name) as path:
            path.write_text("new")
    assert is_ours(of_0_1 / "parts")
    require_report_folder(of_0_1)


@pytest.mark.parametrize("key", ["mine", "null", '{"versions": {"torch": "2"}}', None])
def test_without_a_request_of_ours_it_is_somebodys(of_0_1, key):
    file = of_0_1 / "parts/stereoset.key"
    file.unlink() if key is None else file.write_text(key)
    with pytest.raises(TracelabError, match="index.html' was not written by tracelab"):
        require_report_folder(of_0_1)
    assert not (of_0_1 / ".tracelab").exists()


def test_a_new_or_an_empty_folder_is_as_it_was_after_asking(tmp_path):
    require_report_folder(tmp_path / "new")
    require_report_folder(tmp_path)
    assert not list(tmp_path.iterdir())
