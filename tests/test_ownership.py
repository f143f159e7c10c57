"""What is somebody's own is never replaced, and what cannot be written is refused before any
work."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import plotly.graph_objects as go
import pytest
from plotly.offline import get_plotlyjs

from tracelab.errors import TracelabError
from tracelab.figures import save_figures
from tracelab.storage.files import own_file
from tracelab.storage.ownership import (
    claim,
    is_ours,
    require_file,
    require_folder,
    require_ours,
    require_replaceable,
)

PATTERNS = ["result.json", "*.parquet", "*.safetensors"]


def what_cannot_hold_a_folder(place: Path) -> dict[str, Path]:
    (place / "file").write_text("x")
    (place / "nowhere").symlink_to(place / "no such thing")
    (place / "circle").symlink_to(place / "circle")
    os.mkfifo(place / "pipe")
    return {
        "a file": place / "file",
        "under a file": place / "file/deep/er",
        "a link that leads nowhere": place / "nowhere",
        "under a link that leads nowhere": place / "nowhere/deep",
        "a link in a circle": place / "circle",
        "a pipe": place / "pipe",
        "a device": Path("/dev/null"),
        "under a device": Path("/dev/null/deep"),
        "where nobody can write": Path("/proc/deep"),
        "a name too long": place / ("x" * 300),
        "under a name too long": place / "new" / ("x" * 300) / "deep",
    }


KINDS = (
    *(
        "a file",
        "under a file",
        "a link that leads nowhere",
        "under a link that leads nowhere",
        "a link in a circle",
    ),
    *(
        "a pipe",
        "a device",
        "under a device",
        "where nobody can write",
        "a name too long",
        "under a name too long",
    ),
)


@pytest.mark.parametrize("what", KINDS)
def test_what_cannot_hold_a_folder_is_refused_in_one_line_and_nothing_is_made(tmp_path, what):
    path = what_cannot_hold_a_folder(tmp_path)[what]
    before = sorted(tmp_path.iterdir())
    with pytest.raises(TracelabError) as caught:
        require_folder(path)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


def test_an_empty_name_is_no_folder_and_no_file():
    for check in (require_folder, require_file):
        with pytest.raises(TracelabError, match="is empty: name one"):
            check("")


def test_a_folder_that_may_be_made_is_not_made_by_asking(tmp_path):
    require_folder(tmp_path / "a/b/c")
    require_file(tmp_path / "a/b/c")
    assert not list(tmp_path.iterdir())


def test_a_file_may_replace_a_file_or_go_through_a_link_a_pipe_or_a_device(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "new").symlink_to(tmp_path / "not yet")
    os.mkfifo(tmp_path / "pipe")
    for path in (*tmp_path.iterdir(), Path("/dev/null")):
        require_file(path)
    for path in (tmp_path, f"{tmp_path}/new folder/", tmp_path / "file/under"):
        with pytest.raises(TracelabError):
            require_file(path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        with pytest.raises(TracelabError, match="cannot be written to"):
            require_file(tmp_path / "socket")


# --- folders that are replaced as a whole
# ---------------------------------------------------------------------------

OURS = {
    "a result": {"result": "X", "files": {"table.parquet": "0"}, "settings": {}},
    "an export": {"edit": {}, "files": ["table.parquet"]},
    "of 0.1": {"result": "X", "settings": {"versions": {"tracelab": "0.1.0"}}},
    "a bundle": {"format": "tracelab"},
}


def folder_of(place: Path, marker: bytes | str, *others: str) -> Path:
    place.mkdir()
    (place / "result.json").write_bytes(marker if isinstance(marker, bytes) else marker.encode())
    for name in others:
        (place / name).write_text("content")
    return place


@pytest.mark.parametrize("what", OURS)
def test_a_folder_that_says_that_tracelab_wrote_it_is_replaceable_unless_more_is_in_it(
    tmp_path, what
):
    folder = folder_of(tmp_path / "ours", json.dumps(OURS[what]), "table.parquet")
    require_replaceable(folder, PATTERNS, marker="result.json")
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(
        TracelabError, match=r"holds other files \(notes.txt\): name a folder of its own"
    ):
        require_replaceable(folder, PATTERNS, marker="result.json")


@pytest.mark.parametrize("what", ["a result", "an export"])
def test_a_file_of_the_right_kind_that_is_not_listed_is_somebodys(tmp_path, what):
    folder = folder_of(
        tmp_path / "ours", json.dumps(OURS[what]), "table.parquet", "model.safetensors"
    )
    with pytest.raises(TracelabError, match=r"holds other files \(model.safetensors\)"):
        require_replaceable(folder, PATTERNS, marker="result.json")


@pytest.mark.parametrize(
    "marker",
    [
        "a user's own",
        '{"accuracy": 0.9}',
        "[]",
        "null",
        '{"files": ["x"]}',
        b"\xff{}",
        '{"settings": []}',
        "[" * 9999,
    ],
)
def test_a_marker_that_does_not_say_so_is_none(tmp_path, marker):
    folder = folder_of(tmp_path / "mine", marker, "model.safetensors", "data.parquet")
    with pytest.raises(TracelabError, match="holds other files"):
        require_replaceable(folder, PATTERNS, marker="result.json")


def test_the_folder_one_is_in_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (".", str(tmp_path), "./"):
        with pytest.raises(TracelabError, match="the folder you are in"):
            require_replaceable(name, PATTERNS, marker="result.json")


def test_a_manifest_names_files_to_the_letter(tmp_path):
    """A star in one that is not ours, or was made to look like ours, is no leave to take
    everything."""
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps({"result": "X", "files": {"*": "0"}}))
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(TracelabError, match=r"holds other files \(thesis\.tex\)"):
        require_replaceable(folder, PATTERNS, marker="result.json")


# --- files among others
# ------------------------------------------------------------------------------


def test_a_file_is_ours_from_the_moment_it_was_written_by_us(tmp_path):
    for text in ("first", "second"):
        with own_file(tmp_path / "deep" / "a\nb.csv") as path:
            path.write_text(text)
    assert (tmp_path / "deep" / "a\nb.csv").read_text() == "second"
    assert is_ours(tmp_path / "deep" / "a\nb.csv")


@pytest.mark.parametrize(
    "make", [lambda p: p.write_text("mine"), lambda p: p.symlink_to("nowhere"), os.mkfifo]
)
def test_a_file_of_somebodys_own_is_refused_and_stays(tmp_path, make):
    make(tmp_path / "a.csv")
    with (
        pytest.raises(TracelabError, match=r"a.csv' was not written by tracelab: move it away"),
        own_file(tmp_path / "a.csv"),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_a_folder_with_something_in_it_is_ours_only_if_listed(tmp_path):
    (tmp_path / "tables").mkdir()
    require_ours(tmp_path / "tables")
    (tmp_path / "tables" / "mine.csv").write_text("x")
    with pytest.raises(TracelabError, match="tables' was not written by tracelab"):
        claim(tmp_path / "tables")


def test_a_list_of_somebodys_own_names_nothing(tmp_path):
    (tmp_path / ".tracelab").write_text('"a.csv"\n')
    (tmp_path / "a.csv").write_text("mine")
    assert not is_ours(tmp_path / "a.csv")


@pytest.mark.parametrize("room", [0, 2, 100])
def test_a_disk_that_fills_up_in_the_list_leaves_it_as_it_was(tmp_path, monkeypatch, room):
    claim(tmp_path / "a").write_text("ours")
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda handle, content: write(handle, content[:room]))
        if room < 100:
            with pytest.raises(OSError, match="No space left"):
                claim(tmp_path / "b")
    claim(tmp_path / "c").write_text("ours")
    assert [is_ours(tmp_path / name) for name in "ac"] == [True, True]


# --- figures
# ------------------------------------------------------------------------------

FIGURE = {"a": go.Figure(go.Scatter(y=[1, 2]))}


def test_figures_replace_figures_of_ours_only(tmp_path):
    save_figures(FIGURE, tmp_path, png=False)
    save_figures(FIGURE, tmp_path, png=False)
    (tmp_path / "b.html").write_text("mine")
    with pytest.raises(TracelabError, match="b.html' was not written by tracelab"):
        save_figures({"c": FIGURE["a"], "b": FIGURE["a"]}, tmp_path, png=False)
    assert (tmp_path / "b.html").read_text() == "mine"
    assert not (tmp_path / "c.html").exists()


@pytest.mark.parametrize("left", [b"", b"/**\n* plotly.js v3", b"\xff" * 5_000_000, None])
def test_plotlys_script_is_whole_whatever_a_kill_has_left(tmp_path, left):
    file = tmp_path / "plotly.min.js"
    file.write_bytes(get_plotlyjs().encode()[:-1] if left is None else left)
    save_figures(FIGURE, tmp_path, png=False)
    assert file.read_text() == get_plotlyjs()
    assert 'src="plotly.min.js"' in (tmp_path / "a.html").read_text()


def test_a_script_of_somebodys_own_is_refused_and_one_of_ours_is_mended_whatever_is_left_of_it(
    tmp_path,
):
    file = tmp_path / "plotly.min.js"
    file.write_text("/* my own */")
    with pytest.raises(TracelabError, match=r"plotly.min.js' was not written by tracelab"):
        save_figures(FIGURE, tmp_path, png=False)
    assert [path.name for path in tmp_path.iterdir()] == ["plotly.min.js"]
    assert file.read_text() == "/* my own */"
    file.unlink()
    save_figures(FIGURE, tmp_path, png=False)
    file.write_text("half")
    save_figures(FIGURE, tmp_path, png=False)
    assert file.read_text() == get_plotlyjs()
