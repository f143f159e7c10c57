"""What the lock files say: a package a block, its version, where it is wanted, and the SHA-256 of
each of its files.

    name==version ; marker \\
        --hash=sha256:… \\
        --hash=sha256:…

``requirements.lock`` is what every machine installs. ``requirements-cuda.lock`` has the libraries
that torch's build for CUDA asks for besides; a build for CPUs does not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
LOCK = ROOT / "requirements.lock"
CUDA_LOCK = ROOT / "requirements-cuda.lock"

_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})(?=\s|$)")


@dataclass(frozen=True)
class Locked:
    """A package of a lock file."""

    name: str  # in its one canonical spelling: "typing-extensions"
    version: str
    hashes: tuple[str, ...]  # SHA-256 of the files that may be installed, in hexadecimal
    text: str  # its lines

    @property
    def wanted_here(self) -> bool:
        """Whether its marker holds for this interpreter on this machine."""
        marker = requirement(self.text).marker
        return marker is None or marker.evaluate()


def requirement(text: str) -> Requirement:
    """What stands before the hashes of a block."""
    return Requirement(text.partition("--hash")[0].replace("\\\n", " ").strip())


def read(path: Path) -> list[Locked]:
    """The packages of a lock file, in its order.

    Raises:
        ValueError: a line that pins no version.
    """
    lines = [line for line in path.read_text("utf-8").splitlines() if line[:1] not in ("#", "")]
    found = []
    for text in "\n".join(lines).replace("\\\n", "\\").split("\n"):
        text = text.replace("\\", "\\\n")
        wanted = requirement(text)
        (pin,) = wanted.specifier
        if pin.operator != "==":
            raise ValueError(f"{path.name} does not pin {wanted.name}: {wanted}")
        hashes = tuple(_HASH.findall(text))
        found.append(Locked(canonicalize_name(wanted.name), pin.version, hashes, text))
    return found
