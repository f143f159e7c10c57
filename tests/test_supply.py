"""What is installed is what was locked, file by file; what is released says what it is made of."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires, version

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from supply import audit
from supply.lock import CUDA, OTHER_BUILDS
from supply.locked import CUDA_LOCK, LOCK, ROOT, read
from supply.sbom import bill
from tests import toy_wheel

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT = PYPROJECT["project"]
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
SECURITY = (ROOT / "SECURITY.md").read_text("utf-8")
LOCKED = {package.name: package for path in (LOCK, CUDA_LOCK) for package in read(path)}


# --- the lock -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [LOCK, CUDA_LOCK], ids=lambda path: path.name)
def test_every_package_of_a_lock_has_one_version_and_hashes(path):
    packages = read(path)
    assert len({package.name for package in packages}) == len(packages) > 10
    for package in packages:
        assert package.hashes, package.name
        assert len(set(package.hashes)) == len(package.hashes) == package.text.count("--hash")


def test_a_line_that_pins_nothing_is_an_error(tmp_path):
    (tmp_path / "x.lock").write_text("numpy>=2 \\\n    --hash=sha256:" + "0" * 64 + "\n")
    with pytest.raises(ValueError, match=r"x\.lock does not pin numpy"):
        read(tmp_path / "x.lock")


def test_what_the_project_asks_for_is_locked_in_a_version_that_it_takes():
    asked = [*PROJECT["dependencies"], *PYPROJECT["build-system"]["requires"]]
    asked += [text for extra in PROJECT["optional-dependencies"].values() for text in extra]
    for text in asked:
        wanted = Requirement(text)
        if wanted.name != "tracelab":
            locked = LOCKED[canonicalize_name(wanted.name)]
            assert locked.version in wanted.specifier, text


def test_what_locked_packages_ask_for_is_locked_too():
    """Since pip installs the lock and nothing besides (``--no-deps``)."""
    looked_at = 0
    for package in LOCKED.values():
        try:
            asked = requires(package.name) or [] if package.wanted_here else []
            looked_at += version(package.name).split("+")[0] == package.version
        except PackageNotFoundError:  # CUDA's, where torch is a build for CPUs
            continue
        for text in asked:
            wanted = Requirement(text)
            here = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
            if here and wanted.name != "pip":
                locked = LOCKED[canonicalize_name(wanted.name)]
                assert wanted.specifier.contains(locked.version, prereleases=True), text
    assert looked_at > 200


def test_what_belongs_to_cuda_is_in_the_lock_of_its_own():
    assert all(package.name.startswith(CUDA) for package in read(CUDA_LOCK))
    assert not any(package.name.startswith(CUDA) for package in read(LOCK))


def test_the_lock_knows_the_builds_that_the_package_index_does_not_list():
    for (name, of_version), hashes in OTHER_BUILDS.items():
        assert LOCKED[name].version == of_version, "take the hashes of the new version's builds"
        assert set(hashes) < set(LOCKED[name].hashes)


@pytest.mark.parametrize("right", [True, False])
def test_pip_as_the_makefile_calls_it_takes_no_file_of_another_hash(tmp_path, right):
    sha256 = toy_wheel.build(tmp_path / "index")
    lock = tmp_path / "toy.lock"
    lock.write_text(f"{toy_wheel.REQUIREMENT} --hash=sha256:{sha256 if right else '0' * 64}\n")
    (options,) = re.findall(r"^LOCKED := (.*)$", MAKEFILE, re.M)
    assert MAKEFILE.count("$(LOCKED)") == MAKEFILE.count("-r ") == 3
    command = [sys.executable, "-m", "pip", *options.split(), "-r", str(lock), "--no-index"]
    command += ["--find-links", str(tmp_path / "index"), "--target", str(tmp_path / "made")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode == 0) == right
    assert (tmp_path / "made/tracetoy").exists() == right
    assert right or "DO NOT MATCH THE HASHES" in done.stderr


# --- the audit ------------------------------------------------------------------------------------

KNOWN = {"name": "jinja2", "version": "2.4.1", "vulns": [{"id": "PYSEC-0", "fix_versions": ["9"]}]}
FOUND = {"name": "numpy", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": []}]}
CLEAN = {"name": "torch", "version": "2", "vulns": []}
SKIPPED = {"name": "torch", "skip_reason": "Dependency not found"}


def answering(monkeypatch, *answers):
    waiting = list(answers)
    monkeypatch.setattr(audit, "ask", lambda pins, seconds: waiting.pop(0))


@pytest.mark.parametrize("canary", [None, [SKIPPED], [CLEAN]], ids=["silent", "mirror", "blind"])
def test_where_no_service_knows_vulnerabilities_nothing_is_called_audited(monkeypatch, canary):
    answering(monkeypatch, canary)
    assert audit.audit() == (0, "not audited: no vulnerability service can be reached from here")


def test_a_known_vulnerability_fails_unless_it_is_accepted(monkeypatch):
    answering(monkeypatch, [KNOWN], [FOUND, CLEAN])
    said = "2 locked packages audited, 1 vulnerabilities\nnumpy 1: PYSEC-1, fixed in no version"
    assert audit.audit() == (1, said)
    monkeypatch.setitem(audit.ACCEPTED, "PYSEC-1", "not called")
    answering(monkeypatch, [KNOWN], [FOUND, SKIPPED])
    said = "1 locked packages audited, 0 vulnerabilities; not known to the service: torch"
    assert audit.audit() == (0, said)


def test_a_service_that_falls_silent_is_no_clean_audit(monkeypatch):
    answering(monkeypatch, [KNOWN], None)
    assert audit.audit() == (0, "not audited: the vulnerability service stopped answering")


def test_an_audit_asks_for_every_locked_package(monkeypatch):
    asked = []
    monkeypatch.setattr(audit, "ask", lambda pins, seconds: asked.append(pins) or [KNOWN])
    audit.audit()
    assert set(asked[1]) == {f"{name}=={package.version}" for name, package in LOCKED.items()}


def test_pip_audit_without_a_network_gives_no_answer_and_soon(monkeypatch):
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens
    assert not any(package.get("vulns") for package in audit.ask([audit.CANARY], 60) or [])


# --- the bill of materials ------------------------------------------------------------------------


def test_the_bill_of_materials_has_what_is_locked_and_is_valid():
    text = bill(list(LOCKED.values()))
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    content = json.loads(text)
    assert content["metadata"]["component"]["version"] == PROJECT["version"]
    parts = {part["name"]: part for part in content["components"]}
    assert parts.keys() == LOCKED.keys()
    for name in ("torch", "transformers", "transformer-lens"):
        assert parts[name]["version"] == LOCKED[name].version
        assert {each["content"] for each in parts[name]["hashes"]} == set(LOCKED[name].hashes)
        assert parts[name]["scope"] == "required"
    assert parts["pytest"]["scope"] == "optional"
    (own,) = [each for each in content["dependencies"] if each["ref"].startswith("tracelab==")]
    assert f"torch=={LOCKED['torch'].version}" in own["dependsOn"]


# --- what is said of it ---------------------------------------------------------------------------


def test_what_the_security_policy_names_is_there():
    named = re.findall(r"`((?:tests|tracelab|docs)/[\w/.]+|[\w-]+\.lock)`", SECURITY)
    assert len(named) > 8
    for path in named:
        assert (ROOT / path).exists(), path
    for target in re.findall(r"`make (\w+)", SECURITY):
        assert re.search(rf"^{target}:", MAKEFILE, re.M), target


def test_the_security_policy_is_linked():
    assert "(SECURITY.md)" in (ROOT / "README.md").read_text("utf-8")
    assert "security.md" in (ROOT / "docs/responsible_use.md").read_text("utf-8")
