"""What is kept is taken again only if it is whole and was asked for so; what is damaged is made
again."""

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
from tracelab.storage.checkpoint import kept


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

        return kept(folder, "part", Small.load, {"seed": number}, make, say=self.said.append)


def test_an_equal_request_takes_what_is_there_and_another_makes_it_anew(tmp_path):
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
def test_a_damaged_part_is_made_again_and_then_taken(tmp_path, name, change):
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


def test_a_kept_part_survives_an_error_at_any_write(tmp_path, monkeypatch):
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
from tracelab.storage.checkpoint import kept
def make():
    time.sleep(0.3)
    return small(int(sys.argv[2]))
for _ in range(3):
    found = kept(Path(sys.argv[1]), "part", Small.load, {"seed": int(sys.argv[2])}, make)
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
