from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tracelab.errors import TracelabError
from tracelab.storage import files
from tracelab.storage.files import atomic_file, atomic_folder
from tracelab.storage.ownership import require_replaceable


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


# --- links, devices, modes
# ------------------------------------------------------------------------------------------


def put(target: Path, text: str = "new") -> None:
    with atomic_file(target) as temporary:
        temporary.write_text(text)


def test_a_link_stays_a_link_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there/real").write_text("old")
    (tmp_path / "link").symlink_to("there/real")
    put(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there/real").read_text() == "new"


def test_a_linked_folder_is_replaced_where_it_is(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "linked").symlink_to("real")
    with atomic_folder(tmp_path / "linked") as made:
        (made / "x").write_text("y")
    assert (tmp_path / "linked").is_symlink()
    assert (tmp_path / "real/x").read_text() == "y"
    assert names(tmp_path) == ["linked", "real"]


def test_a_pipe_is_written_to(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor() as pool:
        read = pool.submit((tmp_path / "pipe").read_text)
        put(tmp_path / "pipe", "x" * 200_000)
        assert read.result() == "x" * 200_000
    assert (tmp_path / "pipe").is_fifo()


def test_a_pipe_that_nobody_reads_is_given_up_with_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_READER_SECONDS", 0.1)
    os.mkfifo(tmp_path / "pipe")
    with pytest.warns(UserWarning, match="nobody reads the pipe"):
        put(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


def test_a_device_is_written_to():
    before = os.stat("/dev/null")
    put(Path("/dev/null"))
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert os.stat("/dev/null").st_ino == before.st_ino


def test_an_open_file_of_a_process_is_written_to_and_not_replaced(tmp_path):
    code = "from tracelab.storage.files import atomic_file\n"
    code += "with atomic_file('/dev/stdout') as path: path.write_text('new')"
    with (tmp_path / "out").open("wb") as out:
        subprocess.run([sys.executable, "-c", LIGHT + code], check=True, stdout=out, cwd=ROOT)
        assert (tmp_path / "out").read_text() == "new"
        assert os.fstat(out.fileno()).st_ino == (tmp_path / "out").stat().st_ino
    assert Path("/dev/stdout").is_symlink()


@pytest.mark.parametrize(
    ("umask", "file", "folder"), [(0o077, 0o600, 0o700), (0o002, 0o664, 0o775)]
)
def test_modes_are_those_of_the_umask_and_a_replaced_file_keeps_its_own(
    tmp_path, umask, file, folder
):
    (tmp_path / "old").write_text("x")
    (tmp_path / "old").chmod(0o640)
    before = os.umask(umask)
    try:
        for name in ("new", "old"):
            put(tmp_path / name)
        with atomic_folder(tmp_path / "made") as made:
            (made / "private").touch(mode=0o600)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes == {"new": file, "old": 0o640, "made": folder, "private": file}


# --- interruptions
# --------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parent.parent
LIGHT = (  # without the package's imports, which take seconds
    "import sys, types; package = types.ModuleType('tracelab'); package.__path__ = ['tracelab']\n"
    "sys.modules['tracelab'] = package\n"
)


def killed(code: str, *arguments: str) -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT + code, *arguments], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL


IN_THE_BLOCK = """
import os, signal
from pathlib import Path
from tracelab.storage.files import atomic_file, atomic_folder
with atomic_folder(Path(sys.argv[1], "folder")) as made, atomic_file(Path(sys.argv[1], "file")) as path:
    (made / "x").write_text("half")
    path.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""  # noqa: E501


def test_what_a_killed_process_left_is_cleared_by_the_next_writer(tmp_path):
    killed(IN_THE_BLOCK, str(tmp_path))
    assert len(names(tmp_path)) == 2
    put(tmp_path / "file")
    assert names(tmp_path) == ["file"]


def test_what_a_living_process_is_writing_is_left(tmp_path):
    with atomic_folder(tmp_path / "a") as first, atomic_folder(tmp_path / "b"):
        put(tmp_path / "c")
        assert first.is_dir()
    assert names(tmp_path) == ["a", "b", "c"]


BETWEEN = """
import os, signal
from pathlib import Path
from tracelab.storage import files
if sys.argv[2] == "two steps":
    files._exchanged = lambda first, second: False
calls = 0
real = {name: getattr(os, name) for name in ("replace", "rename", "unlink", "rmdir")}
def counting(name):
    def call(*arguments, **options):
        global calls
        if calls == int(sys.argv[3]):
            real_kill(os.getpid(), signal.SIGKILL)
        calls += 1
        return real[name](*arguments, **options)
    return call
real_kill = os.kill
for name in real:
    setattr(os, name, counting(name))
with files.atomic_folder(Path(sys.argv[1], "folder")) as made:
    (made / "x").write_text("new")
real_kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("how", ["one step", "two steps"])
@pytest.mark.parametrize("step", range(4))
def test_a_kill_at_any_step_leaves_a_whole_folder_under_the_name(tmp_path, how, step):
    with atomic_folder(tmp_path / "folder") as made:
        (made / "x").write_text("old")
    killed(BETWEEN, str(tmp_path), how, str(step))
    if how == "one step":
        assert (tmp_path / "folder/x").read_text() in ("old", "new")
    files.recover(tmp_path / "folder")
    assert (tmp_path / "folder/x").read_text() in ("old", "new")
    with atomic_folder(tmp_path / "folder") as made:
        (made / "x").write_text("newer")
    assert (tmp_path / "folder/x").read_text() == "newer"
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("call", ["replace", "fsync", "open"])
def test_a_full_disk_at_any_call_leaves_the_old_file_and_folder(tmp_path, monkeypatch, call):
    put(tmp_path / "file", "old")
    with atomic_folder(tmp_path / "folder") as made:
        (made / "x").write_text("old")

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    for place, write in ((tmp_path / "file", put), (tmp_path / "folder", replace_folder)):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            if call == "replace":
                patch.setattr(files, "_exchanged", lambda first, second: False)
            if call != "open" or place.name == "file":
                with pytest.raises(OSError, match="No space"):
                    write(place)
    assert (tmp_path / "file").read_text() == "old"
    assert (tmp_path / "folder/x").read_text() == "old"
    assert names(tmp_path) == ["file", "folder"]


def replace_folder(target: Path) -> None:
    with atomic_folder(target) as made:
        (made / "x").write_text("new")


def test_what_is_written_is_brought_to_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(files, "sync", lambda path: order.append(path.name))
    real = os.replace
    monkeypatch.setattr(os, "replace", lambda *given: (order.append("renamed"), real(*given)))
    put(tmp_path / "file")
    assert order[0].startswith(".tmp-")
    assert order[1:] == ["renamed", tmp_path.name]


@pytest.mark.parametrize("name", [".", "..", "/", "a/.."])
def test_a_folder_without_a_name_of_its_own_is_never_replaced(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        TracelabError, match="cannot be replaced by a new folder: name one inside it"
    ):
        require_replaceable(Path(name), ["*"], marker="x")
