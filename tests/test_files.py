from __future__ import annotations

import stat
from pathlib import Path

import pytest

from tracelab.errors import TracelabError
from tracelab.files import atomic_file, atomic_folder, require_replaceable


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_only_when_the_block_ends(tmp_path):
    target = tmp_path / "deep" / "table.csv"
    with atomic_file(target) as temporary:
        temporary.write_text("1,2")
        assert not target.exists()
    assert target.read_text() == "1,2"
    assert names(target.parent) == ["table.csv"]


def test_writers_can_read_the_format_from_the_temporary_name(tmp_path):
    with atomic_file(tmp_path / "figure.html") as temporary:
        assert temporary.suffix == ".html"
        temporary.write_text("x")


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "table.csv"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_file(target) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    assert names(tmp_path) == ["table.csv"]


def test_others_may_read_what_was_written(tmp_path):
    with atomic_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("x")
    with atomic_folder(tmp_path / "b") as made:
        (made / "c").write_text("x")
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o755


def test_a_folder_replaces_the_old_one_as_a_whole(tmp_path):
    target = tmp_path / "result"
    target.mkdir()
    (target / "stale").write_text("old")
    with atomic_folder(target) as made:
        (made / "fresh").write_text("new")
        assert names(target) == ["stale"]
    assert names(target) == ["fresh"]
    assert names(tmp_path) == ["result"]


def test_an_error_leaves_the_old_folder_and_nothing_else(tmp_path):
    target = tmp_path / "result"
    target.mkdir()
    (target / "stale").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_folder(target) as made:
        (made / "fresh").write_text("new")
        raise ZeroDivisionError
    assert names(target) == ["stale"]
    assert names(tmp_path) == ["result"]


@pytest.mark.parametrize("name", [".", "..", "/", "a/.."])
def test_a_folder_without_a_name_of_its_own_is_never_replaced(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TracelabError, match="cannot be replaced by a new folder: name one inside it"):
        require_replaceable(Path(name), ["*"], marker="x")
