"""Asks whether what is locked has known vulnerabilities: ``make audit``, or ``python -m
supply.audit``.

``pip-audit`` asks the package index' service, one question a package. Some machines reach no such
service, and a mirror answers that it knows none of the packages, which ``pip-audit`` counts as no
vulnerability. So an old version with a known one is asked for first:

    the service knows it              every locked package is asked for; one found ends with status 1
    no answer, or it is not known     nothing is audited, said in a sentence, status 0
"""  # noqa: E501

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from supply.locked import CUDA_LOCK, LOCK, read

CANARY = "jinja2==2.4.1"
"""Ten years old, with vulnerabilities that are in every database."""

ACCEPTED: dict[str, str] = {}
"""Vulnerabilities that cannot be got rid of yet: id -> why what is at risk is not used here."""

FIRST_ANSWER, ALL_ANSWERS = 15, 180
"""Seconds to wait for."""


def audit(locks: Sequence[Path] = (LOCK, CUDA_LOCK)) -> tuple[int, str]:
    """Ask for every package of the lock files.

    Returns:
        An exit status, 1 where a vulnerability is known that is not accepted, and what to say.
    """
    canary = ask([CANARY], FIRST_ANSWER)
    if canary is None or not any(package.get("vulns") for package in canary):
        return 0, "not audited: no vulnerability service can be reached from here"
    pins = [f"{locked.name}=={locked.version}" for path in locks for locked in read(path)]
    answers = ask(pins, ALL_ANSWERS)
    if answers is None:
        return 0, "not audited: the vulnerability service stopped answering"
    found = [
        f"{package['name']} {package['version']}: {vulnerability['id']}, "
        f"fixed in {', '.join(vulnerability['fix_versions']) or 'no version'}"
        for package in answers
        for vulnerability in package.get("vulns", [])
        if vulnerability["id"] not in ACCEPTED
    ]
    unknown = [package["name"] for package in answers if "skip_reason" in package]
    said = f"{len(answers) - len(unknown)} locked packages audited, {len(found)} vulnerabilities"
    if unknown:
        said += f"; not known to the service: {', '.join(unknown)}"
    return int(bool(found)), "\n".join([said, *found])


def ask(pins: Sequence[str], seconds: float) -> list[dict[str, Any]] | None:
    """What ``pip-audit`` answers, a mapping a package; None where it got no answer in time."""
    with tempfile.TemporaryDirectory() as place:
        asked = Path(place) / "requirements.txt"
        asked.write_text("\n".join(pins) + "\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip_audit", "--requirement", str(asked), "--no-deps"]
        command += ["--disable-pip", "--format", "json", "--progress-spinner", "off"]
        command += ["--timeout", "5"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
            return json.loads(done.stdout)["dependencies"]
        except (subprocess.TimeoutExpired, json.JSONDecodeError, KeyError):
            return None


if __name__ == "__main__":
    status, said = audit()
    print(said)
    sys.exit(status)
