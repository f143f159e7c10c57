"""``tracelab.json``: what a bundle says of itself, and the seal by which any change to it is found.

The file ends with a SHA-256, the *seal*, over every byte before it, and one of the fields before it
is the SHA-256 of the tensors file: one bit flipped anywhere in either file is found. The seal is no
signature: it finds damage and edits by hand, not a person who computes it anew. So all values are
checked as well, here against a schema, and by what is built from them. Bundles of tracelab 0.1
(format version 1) have no seal and are read without one.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tracelab.errors import TracelabError, cut, quoted
from tracelab.interventions.origin import Origin

FORMAT_VERSION: Literal[2] = 2
LARGEST = 2**24
"""Bytes that a manifest may have; one with long notes has some ten thousand."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Part(_Strict):
    """One intervention; a stack has members."""

    kind: str
    spec: dict[str, Any]
    origin: Origin | None
    notes: dict[str, Any] = {}
    strength: float = Field(1.0, allow_inf_nan=False, exclude_if=lambda value: value == 1)
    members: tuple[Part, ...] = ()


class TensorInfo(_Strict):
    """What the tensors file says of a tensor."""

    shape: tuple[int, ...]
    dtype: str


class _Unsealed(_Strict):
    """The content of ``tracelab.json`` as 0.1 wrote it."""

    format: Literal["tracelab"]
    format_version: Literal[1]
    part: Part
    tensors: dict[str, TensorInfo]
    sha256: str
    versions: dict[str, str]


class Manifest(_Unsealed):
    """The content of ``tracelab.json`` but for its seal."""

    format_version: Literal[2]  # type: ignore[assignment]


class _Sealed(Manifest):
    seal: str


def write(manifest: Manifest) -> bytes:
    """The file."""
    return sealed(manifest.model_dump_json(indent=1))


def sealed(text: str) -> bytes:
    """The text of a JSON object with its seal as the last field."""
    body = text.rstrip().removesuffix("}").rstrip().encode()
    return _closed(body)


def read(content: bytes, where: str) -> Manifest | _Unsealed:
    """The content of the file.

    Args:
        where: what to call it in messages.

    Raises:
        TracelabError: no manifest, one that was changed, or of a newer version.
    """
    try:
        text = content.decode("utf-8")
        version = json.loads(text, object_pairs_hook=_once)["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TracelabError(f"{where} is not the manifest of a tracelab bundle") from error
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise TracelabError(
            f"{where} has format version {quoted(version)}, this tracelab reads up to "
            f"{FORMAT_VERSION}: "
            "install a newer one"
        )
    if version == FORMAT_VERSION and _closed(content[: -len(_closed(b""))]) != content:
        raise TracelabError(
            f"{where} is not as it was written: damaged or changed by hand; load the bundle where "
            "it is whole, "
            "make the change there and save it again"
        )
    try:
        return (_Sealed if version == FORMAT_VERSION else _Unsealed).model_validate_json(text)
    except ValidationError as error:
        raise TracelabError(f"{where} is not valid: {first(error)}") from error


def first(error: ValidationError) -> str:
    """What pydantic found first, in a line."""
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    where = cut(".".join(map(str, fault["loc"])), 200) or "the whole"
    return f"{where}: {cut(fault['msg'].removeprefix('Value error, '), 400)}{more}"


def _closed(body: bytes) -> bytes:
    seal = hashlib.sha256(body).hexdigest()
    return body + f',\n "seal": "{seal}"\n}}\n'.encode()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object in which no key stands twice: readers differ in which one they take."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found
