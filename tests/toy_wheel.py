"""A small wheel in a local package index, and a way for other processes to fetch it.

``python -m tests.toy_wheel SHA256 LOG SECONDS`` fetches it into ``TRACELAB_CACHE``.
"""

from __future__ import annotations

import functools
import hashlib
import sys
import time
import types
import zipfile
from pathlib import Path

if (
    __name__ == "__main__"
):  # only assets.py is needed: the whole package would import torch and take seconds
    package = types.ModuleType("tracelab")
    package.__path__ = [str(Path(__file__).parent.parent / "tracelab")]
    sys.modules["tracelab"] = package

from tracelab.model import assets
from tracelab.model.assets import Wheel

REQUIREMENT = "tracetoy==1.0"
FILES = {
    "tracetoy/data/a.txt": "alpha",
    "tracetoy/data/deep/b.txt": "beta",
    "tracetoy/data/code.py": "raise SystemExit",
    "tracetoy/other/c.txt": "not asked for",
    "tracetoy-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: tracetoy\nVersion: 1.0\n",
    "tracetoy-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",  # noqa: E501
}


def build(index: Path) -> str:
    """Write the wheel into the folder ``index``; returns its SHA-256."""
    index.mkdir(exist_ok=True)
    file = index / "tracetoy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in FILES.items():
            archive.writestr(name, text)
        record = "".join(f"{name},,\n" for name in FILES)
        archive.writestr("tracetoy-1.0.dist-info/RECORD", record)
    return hashlib.sha256(file.read_bytes()).hexdigest()


def wheel(sha256: str) -> Wheel:
    return Wheel(REQUIREMENT, sha256, "toy", ("tracetoy/data/",), strip="tracetoy/")


def convert(log: Path, seconds: float, folder: Path) -> None:
    """Note the start, take a while, and leave a mark that says that all of it was done."""
    with log.open("a") as file:
        file.write("made\n")
    time.sleep(seconds)
    (folder / "converted").write_text("whole")


def fetch(sha256: str, log: Path, seconds: float = 0.0) -> Path:
    return assets._ensure(wheel(sha256), functools.partial(convert, log, seconds))


if __name__ == "__main__":
    print(fetch(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])))
