"""Writes a bill of materials beside a release: ``make sbom``, or ``python -m supply.sbom FILE``.

CycloneDX, as JSON: tracelab, and each locked package with its version, its place in the package
index and the SHA-256 of every file of it. A package that tracelab needs itself is ``required``;
what only an extra or development needs is ``optional``. What depends on what is as the packages
that are installed here say.
"""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from supply.locked import CUDA_LOCK, LOCK, ROOT, Locked, read


def bill(locked: list[Locked]) -> str:
    """The bill of tracelab and these packages, as JSON."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    needed = closure(project["dependencies"])
    root = Component(
        name=project["name"],
        version=project["version"],
        type=ComponentType.LIBRARY,
        description=project["description"],
        bom_ref=f"{project['name']}=={project['version']}",
    )
    bom = Bom()
    bom.metadata.component = root
    parts = {package.name: _component(package, package.name in needed) for package in locked}
    bom.components.update(parts.values())
    for name, part in parts.items():
        bom.register_dependency(part, [parts[n] for n in _direct(name) if n in parts])
    own = names(project["dependencies"])
    bom.register_dependency(root, [part for name, part in parts.items() if name in own])
    return JsonV1Dot6(bom).output_as_string(indent=1)


def closure(requirements: list[str]) -> set[str]:
    """What these requirements need, and what that needs, in this environment."""
    found: set[str] = set()
    queue = list(names(requirements))
    while queue:
        name = queue.pop()
        if name not in found:
            found.add(name)
            queue += _direct(name)
    return found


def names(requirements: list[str]) -> set[str]:
    """The packages of requirements whose markers hold here, no extra asked for."""
    parsed = [Requirement(text) for text in requirements]
    return {
        canonicalize_name(each.name)
        for each in parsed
        if each.marker is None or each.marker.evaluate({"extra": ""})
    }


def _direct(name: str) -> set[str]:
    try:
        return names(requires(name) or [])
    except PackageNotFoundError:  # locked for another platform
        return set()


def _component(package: Locked, needed: bool) -> Component:
    return Component(
        name=package.name,
        version=package.version,
        type=ComponentType.LIBRARY,
        scope=ComponentScope.REQUIRED if needed else ComponentScope.OPTIONAL,
        purl=PackageURL("pypi", name=package.name, version=package.version),
        bom_ref=f"{package.name}=={package.version}",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=each) for each in package.hashes],
    )


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(bill(read(LOCK) + read(CUDA_LOCK)), encoding="utf-8")
    print(target)
