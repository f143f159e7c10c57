"""Writes the lock files anew: ``make lock``, or ``python -m supply.lock``.

``uv`` (``pip install uv``) resolves ``pyproject.toml`` with all that development needs, for every
platform at once, and takes the hashes of all files that the package index lists. What is locked
stays as it is unless ``pyproject.toml`` rules it out; ``--upgrade`` takes the newest of all, and
``--upgrade-package NAME`` of one. What belongs to CUDA goes into a file of its own, since a machine
whose torch is a build for CPUs must not fetch some gigabytes of it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from supply.locked import CUDA_LOCK, LOCK, ROOT, Locked, read

PYTHON = "3.11.5"
"""The oldest that every locked version runs on."""

CUDA = ("cuda-", "nvidia-", "triton")
"""How the names of torch's libraries for CUDA begin."""

OTHER_BUILDS = {
    ("torch", "2.13.0"): (
        # torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl
        "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",
    )
}
"""Files that the package index does not list, by package and version: torch's own builds for CPUs,
which pip takes where it is configured to find them. Another version needs other ones."""

_HEAD = (
    "# Written by `make lock`: {}\n# Every file has its SHA-256; versions are those that CI uses.\n"
)


def main(options: list[str]) -> None:
    """Resolve, and write both files; the options are uv's."""
    with TemporaryDirectory() as place:
        made = Path(place) / "both.lock"
        made.write_text(LOCK.read_text("utf-8") + CUDA_LOCK.read_text("utf-8"), "utf-8")
        command = ["uv", "pip", "compile", "--quiet", "--universal", "--python-version", PYTHON]
        command += ["--generate-hashes", "--no-annotate", "--no-header", "--no-emit-package", "pip"]
        command += ["--extra", "dev", "pyproject.toml", "--output-file", str(made), *options]
        try:
            subprocess.run(command, check=True, cwd=ROOT)
        except FileNotFoundError:
            sys.exit("uv is not here: pip install uv")
        locked = read(made)
    cuda = [package for package in locked if package.name.startswith(CUDA)]
    rest = [package for package in locked if package not in cuda]
    _write(LOCK, "what development, tests and documentation need.", rest)
    _write(CUDA_LOCK, "what torch needs besides, where it is a build for CUDA.", cuda)


def _write(path: Path, purpose: str, packages: list[Locked]) -> None:
    blocks = [
        " \\\n".join(
            [package.text.partition(" \\\n")[0]]
            + [f"    --hash=sha256:{hashed}" for hashed in sorted(_hashes(package))]
        )
        for package in packages
    ]
    path.write_text(_HEAD.format(purpose) + "\n".join(blocks) + "\n", encoding="utf-8")


def _hashes(package: Locked) -> set[str]:
    return {*package.hashes, *OTHER_BUILDS.get((package.name, package.version), ())}


if __name__ == "__main__":
    main(sys.argv[1:])
