"""What is stored is resumed only if it is whole and was asked for so; what is damaged is made
again; what is somebody's own is refused."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from tracelab.errors import TracelabError
from tracelab.results import Result
from tracelab.storage.checkpoint import discard, open_entry, require_entries, resumed


@dataclass(frozen=True)
class Small(Result):
    """A table, a tensor and a number."""

    table: pd.DataFrame
    weights: dict[str, torch.Tensor]
    number: int

    @property
    def frame(self) -> pd.DataFrame:
        return self.table


def small(number: int = 3) -> Small:
    settings = {"seed": number, "versions": {"tracelab": "0.1.0"}}
    return Small(settings, pd.DataFrame({"value": [number, 2.5]}), {"w": torch.ones(40)}, number)


class Maker:
    """Counts what it makes, and can be told to fail."""

    def __init__(self) -> None:
        self.made = 0
        self.said: list[str] = []

    def __call__(self, folder: Path, number: int = 3) -> Small:
        def make() -> Small:
            self.made += 1
            return small(number)

        return resumed(folder, "part", Small.load, {"seed": number}, make, say=self.said.append)


def test_an_equal_request_resumes_what_is_there_and_another_makes_it_anew(tmp_path):
    maker = Maker()
    assert [maker(tmp_path, number).number for number in (3, 3, 4, 4, 3)] == [3, 3, 4, 4, 3]
    assert maker.made == 3


def damaged(name: str, change: Any) -> Any:
    def damage(folder: Path) -> None:
        file = folder / name
        content = change(file.read_bytes())
        file.unlink() if content is None else file.write_bytes(content)

    return damage


CHANGES = {
    "missing": lambda content: None,
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "one byte less": lambda content: content[:-1],
    "one bit": lambda content: bytes(byte ^ (place == len(content) // 2) for place, byte in enumerate(content)),  # noqa: E501
    "an empty object": lambda content: b"{}",
    "null": lambda content: b"null",
    "no UTF-8": lambda content: b"\xff\xfe\x00{",
    "deep": lambda content: b"[" * 100_000,
}  # fmt: skip
FILES = ("part/result.json", "part/table.parquet", "part/weights.safetensors", "part.key")


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_part_is_made_again_and_then_resumed(tmp_path, name, change):
    maker = Maker()
    maker(tmp_path)
    damaged(name, CHANGES[change])(tmp_path)
    again = maker(tmp_path)
    pd.testing.assert_frame_equal(again.table, small().table)
    assert maker.made == 2
    maker(tmp_path)
    assert maker.made == 2


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", FILES[:3])
def test_a_damaged_result_is_refused_in_one_line(tmp_path, name, change):
    small().save(tmp_path / "part")
    damaged(name, CHANGES[change])(tmp_path)
    with pytest.raises(TracelabError) as caught:
        Small.load(tmp_path / "part")
    assert "\n" not in str(caught.value)
    assert any(each in str(caught.value) for each in ("damaged", "no saved result"))


@pytest.mark.parametrize(
    "values", ['{"result": "Small"}', '{"result": "Small", "settings": null, "files": null}']
)
def test_a_result_that_lacks_or_mistakes_a_field_is_damaged(tmp_path, values):
    small().save(tmp_path / "part")
    (tmp_path / "part/result.json").write_text(values)
    with pytest.raises(TracelabError, match="damaged"):
        Small.load(tmp_path / "part")


def test_somebodys_files_in_a_parts_place_are_refused_before_anything_is_made(tmp_path):
    maker = Maker()
    maker(tmp_path)
    (tmp_path / "part/notes.txt").write_text("mine")
    with pytest.raises(TracelabError, match=r"holds other files \(notes.txt\)"):
        maker(tmp_path, 4)
    assert maker.made == 1
    other = tmp_path / "other/part"
    other.mkdir(parents=True)
    for name in ("result.json", "model.safetensors"):
        (other / name).write_text("mine")
    with pytest.raises(TracelabError, match="holds other files"):
        maker(tmp_path / "other")
    assert (other / "model.safetensors").read_text() == "mine"
    assert maker.made == 1


def test_a_result_of_0_1_is_read_and_replaced_and_not_with_somebodys_file_in_it(tmp_path):
    folder = small().save(tmp_path / "part")
    marker = pd.read_json(folder / "result.json", typ="series").drop(["files", "sha256"])
    marker.to_json(folder / "result.json")
    assert Small.load(folder).number == 3
    small(4).save(folder)
    marker.to_json(folder / "result.json")
    (folder / "model.safetensors").write_text("mine")
    with pytest.raises(TracelabError, match=r"holds other files \(model.safetensors\)"):
        small().save(folder)


def test_a_stored_part_survives_an_error_at_any_write(tmp_path, monkeypatch):
    """At every rename and every file brought to the disk, in turn, the disk is full."""
    from tracelab.storage import files

    failed = 0
    for call in ("replace", "fsync"):
        for turn in range(40):
            folder = tmp_path / f"{call} {turn}"
            Maker()(folder, 4)  # what another request left
            with monkeypatch.context() as patch:
                calls = Failing(getattr(files.os, call), turn)
                patch.setattr(files.os, call, calls)
                with suppress(OSError):
                    Maker()(folder)
            if calls.count <= turn:
                break
            failed += 1
            for number in (
                4,
                3,
            ):  # nothing half made is taken for whole, nothing of one for the other
                pd.testing.assert_frame_equal(Maker()(folder, number).table, small(number).table)
            assert not [path for path in folder.rglob(".tmp-*")]
    assert failed > 8


class Failing:
    """A call that fails at one turn."""

    def __init__(self, real: Any, turn: int) -> None:
        self.real, self.turn, self.count = real, turn, 0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.count += 1
        if self.count == self.turn + 1:
            raise OSError(28, "No space left on device")
        return self.real(*arguments, **options)


ANOTHER = """
import sys, time
from pathlib import Path
from tests.test_checkpoint import small, Small
from tracelab.storage.checkpoint import discard, open_entry, require_entries, resumed
def make():
    time.sleep(0.3)
    return small(int(sys.argv[2]))
for _ in range(3):
    found = resumed(Path(sys.argv[1]), "part", Small.load, {"seed": int(sys.argv[2])}, make)
    assert found.number == int(sys.argv[2]) == found.settings["seed"], found
"""


@pytest.mark.slow
def test_processes_with_different_seeds_in_one_folder_never_swap_results(tmp_path):
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", ANOTHER, str(tmp_path), str(seed)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in (1, 2)
    ]
    said = [run.communicate()[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    seed = 1 if '"seed": 1' in (tmp_path / "part.key").read_text() else 2
    assert Small.load(tmp_path / "part").number == seed


def test_a_thread_waits_for_another_and_says_so(tmp_path, capfd):
    from concurrent.futures import ThreadPoolExecutor

    from tracelab.storage.locks import locked

    order: list[str] = []

    def second() -> None:
        with locked(tmp_path), locked(tmp_path):  # again, by the same thread
            order.append("second")

    with ThreadPoolExecutor() as pool:
        with locked(tmp_path):
            waiting = pool.submit(second)
            time.sleep(0.4)
            order.append("first")
        waiting.result(timeout=10)
    assert order == ["first", "second"]
    assert capfd.readouterr().err.count("waiting for it") == 1


def test_without_a_folder_nothing_is_stored_and_nothing_found():
    maker = Maker()
    assert [maker(None).number for _ in range(2)] == [3, 3]
    assert maker.made == 2
    with open_entry(None, "part", {}) as entry:
        entry.append({"a": 1})
        assert entry.load_lines() == []
    require_entries(None, "part")
    discard(None, "part")


def test_a_part_of_0_1_which_no_list_names_is_resumed_and_replaced(tmp_path):
    maker = Maker()
    maker(tmp_path)
    (tmp_path / ".tracelab").unlink()
    maker(tmp_path)
    assert maker.made == 1
    assert maker(tmp_path, 4).number == 4


# --- an entry that grows
# ---------------------------------------------------------------------------------------------------  # noqa: E501


def store(folder: Path, request: Any, *texts: str) -> None:
    with open_entry(folder, "state", request) as entry:
        for text in texts:
            entry.save(lambda path, text=text: path.write_text(text))


def stored(folder: Path, request: Any) -> str | None:
    with open_entry(folder, "state", request) as entry:
        return entry.load(lambda path: path.read_text(encoding="utf-8"))


def test_the_last_state_is_resumed_by_the_same_request_alone(tmp_path):
    store(tmp_path, {"lr": 0.1, "layers": (1, 2)}, "one", "two")
    assert stored(tmp_path, {"layers": [1, 2], "lr": 0.1}) == "two"
    assert stored(tmp_path, {"layers": [1, 2], "lr": 0.2}) is None


def test_a_run_killed_at_any_write_of_a_later_state_resumes_from_one_of_the_two(
    tmp_path, monkeypatch
):
    from tracelab.storage import files

    def write(path: Path, text: str) -> None:
        with files.atomic_file(path) as file:
            file.write_text(text)

    for turn in range(20):
        folder = tmp_path / str(turn)
        with open_entry(folder, "state", 1) as entry, monkeypatch.context() as patch:
            entry.save(lambda path: write(path, "one"))
            calls = Failing(files.os.replace, turn)
            patch.setattr(files.os, "replace", calls)
            with suppress(OSError):
                entry.save(lambda path: write(path, "two"))
        assert stored(folder, 1) == ("one" if calls.count > turn else "two")
        if calls.count <= turn:
            break
    assert turn > 0


def test_what_another_request_made_is_gone_before_the_first_state_is_written(tmp_path):
    store(tmp_path, 1, "one")

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), open_entry(tmp_path, "state", 2) as entry:
        entry.save(killed)
    assert [stored(tmp_path, number) for number in (1, 2)] == [None, None]


@pytest.mark.parametrize("name", ["state", "state.key"])
def test_somebodys_file_in_an_entrys_place_is_refused_and_stays(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(TracelabError, match=f"{name}' was not written by tracelab"):
        require_entries(tmp_path, "state")
    with pytest.raises(TracelabError, match=f"{name}' was not written by tracelab"):
        stored(tmp_path, "mine")
    with pytest.raises(TracelabError, match=f"{name}' was not written by tracelab"):
        store(tmp_path, 1, "one")
    discard(tmp_path, "state")
    assert (tmp_path / name).read_text() == "mine"


def test_an_entry_is_ours_even_if_damaged_and_can_be_discarded(tmp_path):
    store(tmp_path, 1, "one")
    for name in ("state", "state.key"):
        (tmp_path / name).write_bytes(b"\xff\xfe")
    require_entries(tmp_path, "state")
    assert stored(tmp_path, 1) is None
    discard(tmp_path, "state")
    assert {path.name for path in tmp_path.iterdir()} == {".tracelab", ".tracelab.lock"}


# --- lines
# ---------------------------------------------------------------------------------------------------  # noqa: E501

SETTINGS = {"seed": 0}
CASES = [{"case": name, "low": [0.1, number]} for number, name in enumerate("abc")]


def lines(folder: Path, request: Any = SETTINGS) -> list[dict[str, Any]]:
    with open_entry(folder, "cases", request) as entry:
        return entry.load_lines()


@pytest.fixture
def cases(tmp_path):
    with open_entry(tmp_path, "cases", SETTINGS) as entry:
        assert entry.load_lines() == []
        for case in CASES:
            entry.append(case)
    return tmp_path / "cases"


def test_appended_lines_come_back_to_the_same_request(cases):
    assert lines(cases.parent) == lines(cases.parent) == CASES
    assert lines(cases.parent, {"seed": 1}) == []


LINES = [b"{}", b"null", b"", b"\xff\xfe", b"[", b'{"case": "b", "low": [0.1, 1]}']


@pytest.mark.parametrize("line", LINES)
def test_a_damaged_line_costs_itself_alone(cases, line):
    found = cases.read_bytes().split(b"\n")
    found[1] = line
    cases.write_bytes(b"\n".join(found))
    assert lines(cases.parent) == [CASES[0], CASES[2]]


def test_an_altered_digit_costs_its_line(cases):
    cases.write_text(cases.read_text().replace("0.1, 1]", "0.2, 1]"))
    assert lines(cases.parent) == [CASES[0], CASES[2]]


def test_a_line_cut_by_a_kill_spoils_no_later_one(cases):
    cases.write_text(cases.read_text()[:-20])
    with open_entry(cases.parent, "cases", SETTINGS) as entry:
        assert entry.load_lines() == CASES[:2]
        entry.append(CASES[2])
    assert lines(cases.parent) == CASES


@pytest.mark.parametrize("content", [b"", b"\xff\xff", b"null"])
def test_a_damaged_file_is_begun_again(cases, content):
    cases.write_bytes(content)
    assert lines(cases.parent) == []
    assert cases.read_bytes() == b""
