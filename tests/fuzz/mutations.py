"""What is done to a bundle in the campaign: damage to its bytes and files, and values forged in its
JSON.

A bundle is a mapping from file names to bytes. *Damage* is what disks, copies and editors do;
nobody signs it. *Forged* bundles have the checksum and the seal that belong to what they say, or
claim the version that had no seal.
"""

from __future__ import annotations

import copy
import hashlib
import json
import struct
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import save

from tracelab.interventions.bundle import MANIFEST, TENSORS, _build
from tracelab.interventions.manifest import Part, sealed
from tracelab.interventions.methods import KINDS

Files = dict[str, bytes]

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 31, 33, 1000, 2**31, 2**63, 2**70, 10**400),
    *(0.0, -0.0, 0.5, -1.5, 1e-320, 1e308, -1e308, float("nan"), float("inf"), float("-inf")),
    *(
        "",
        "x",
        "1",
        "\x00",
        "\n",
        "a\nb\x1b[31m",
        "\u202e",
        "\ud800",
        "é",
        "e\u0301",
        "=1+1",
        "<script>",
        "../..",
        "a.b",
    ),
    *(
        "__class__",
        "os.system",
        "model.norm",
        "model.layers.0",
        "lm_head",
        "mlp.out",
        "attn.q",
        "x" * 100_000,
    ),
    *([], {}, [[]], [0], [1, 1], ["x"], {"x": 1}, {"": None}, [0] * 10_000),
)
"""What is put in the place of a value."""


def nested(depth: int) -> Any:
    """A list in a list in a list …"""
    made: Any = 0
    for _ in range(depth):
        made = [made]
    return made


# --- damage
# -------------------------------------------------------------------------------------------------------  # noqa: E501


def flip(raw: bytes, random: Random) -> bytes:
    """One bit, as memory and disks do."""
    if not raw:
        return b"\x01"
    bit = random.randrange(8 * len(raw))
    changed = bytearray(raw)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def mangle(raw: bytes, random: Random) -> bytes:
    """Bytes lost, added, repeated or overwritten."""
    start = random.randrange(len(raw) + 1)
    end = min(len(raw), start + random.choice((1, 1, 2, 8, 64, 4096)))
    noise = random.randbytes(random.choice((1, 2, 16)))
    return random.choice(
        (
            raw[:start],
            raw[start:],
            raw[:start] + raw[end:],
            raw[:start] + noise + raw[start:],
            raw[:start] + raw[start:end] + raw[start:],
            raw[:start] + noise + raw[start + len(noise) :],
            raw[:start] + bytes(end - start) + raw[end:],
        )
    )


def damaged(files: Files, others: list[Files], random: Random) -> Files:
    """One file damaged, lost, or that of another bundle."""
    name = random.choice((MANIFEST, TENSORS))
    how = random.choices(("flip", "mangle", "lost", "other"), (6, 6, 1, 1))[0]
    if how == "lost":
        return {other: content for other, content in files.items() if other != name}
    if how == "other":
        return files | {name: random.choice(others)[name]}
    return files | {name: (flip if how == "flip" else mangle)(files[name], random)}


def misplaced(folder: Path, outside: Path, random: Random) -> None:
    """A folder, a link out, or a link to itself in the place of a file."""
    file = folder / random.choice((MANIFEST, TENSORS))
    content = file.read_bytes()
    file.unlink()
    how = random.choice(("folder", "out", "loop"))
    if how == "folder":
        file.mkdir()
    elif how == "out":
        outside.write_bytes(content)
        file.symlink_to(outside)
    else:
        file.symlink_to(file.name)


# --- forgery
# ------------------------------------------------------------------------------------------------------  # noqa: E501


def places(content: Any) -> list[tuple[Any, Any]]:
    """Every value in a JSON document: what holds it and under which key."""
    found: list[tuple[Any, Any]] = []
    waiting = [content]
    while waiting:
        holder = waiting.pop()
        items = holder.items() if isinstance(holder, dict) else enumerate(holder)
        for key, value in items:
            found.append((holder, key))
            if isinstance(value, dict | list):
                waiting.append(value)
    return found


def change_value(content: Any, random: Random) -> None:
    """One value of a JSON document replaced, nudged, removed, repeated or moved."""
    part = content.get("part") if isinstance(content, dict) else None
    all_places = places(part if isinstance(part, dict) and random.random() < 0.8 else content)
    if not all_places:
        return
    leaves = [(h, k) for h, k in all_places if not isinstance(h[k], dict | list)]
    holder, key = random.choice(leaves if leaves and random.random() < 0.7 else all_places)
    value = holder[key]
    how = random.choice(
        ("replace", "replace", "nudge", "nudge", "remove", "repeat", "move", "rename", "nest")
    )
    if how == "nudge" and isinstance(value, bool | int | float):
        larger = value * (1e9 if abs(value) < 1e300 else 10**9)
        holder[key] = random.choice((value + 1, value - 1, -value, value * 2, larger, not value))
    elif how == "nudge" and isinstance(value, str) and value:
        at = random.randrange(len(value))
        holder[key] = (
            value[:at] + random.choice(("", "x", "0", "3", ".", "\n", "\x00")) + value[at + 1 :]
        )
    elif how == "remove":
        del holder[key]
    elif how == "repeat" and isinstance(holder, list):
        holder.append(copy.deepcopy(value))
    elif how == "move":
        other, other_key = random.choice(all_places)
        holder[key] = copy.deepcopy(other[other_key])
    elif how == "rename" and isinstance(holder, dict):
        holder[random.choice(("x", "", "a\nb", "keys", "training", f"{key}x", "\ud800"))] = (
            holder.pop(key)
        )
    elif how == "nest":
        holder[key] = nested(random.choice((2, 50, 300)))
    else:
        holder[key] = copy.deepcopy(random.choice(VALUES))


def forged_manifest(files: Files, random: Random) -> Files:
    """Values of the manifest changed, and sealed; or in the version without a seal."""
    content = json.loads(files[MANIFEST])
    content.pop("seal", None)
    old = random.random() < 0.3
    if old:
        content["format_version"] = 1
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        change_value(content, random)
    tensors = _completed(content, random) if random.random() < 0.7 else None
    text = json.dumps(content)
    made = files | {MANIFEST: text.encode() if old else sealed(text)}
    return made if tensors is None else made | {TENSORS: tensors}


def _completed(content: Any, random: Random) -> bytes | None:
    """Tensors of the shapes that a forged manifest calls for, entered in it; None if there can be
    none."""
    try:
        with torch.device("meta"):
            wanted = _build(
                Part.model_validate_json(json.dumps(content["part"])),
                {cls.kind: cls for cls in KINDS},
            ).state_dict()
    except Exception:  # whatever a forged value does here: loading is what is tested
        return None
    if sum(value.numel() for value in wanted.values()) > 10**6:
        return None
    generator = torch.Generator().manual_seed(random.randrange(2**32))
    raw = save(
        {name: torch.rand(value.shape, generator=generator) for name, value in wanted.items()}
    )
    content["tensors"] = {
        name: {"shape": list(value.shape), "dtype": "float32"} for name, value in wanted.items()
    }
    content["sha256"] = hashlib.sha256(raw).hexdigest()
    return raw


def forged_tensors(files: Files, random: Random) -> Files:
    """The tensors' header or values changed, with their checksum and seal."""
    raw = files[TENSORS]
    (length,) = struct.unpack("<Q", raw[:8])
    if random.random() < 0.5:
        header = json.loads(raw[8 : 8 + length])
        change_value(header, random)
        text = json.dumps(header).encode()
        said = random.choice((len(text), len(text), len(text), 0, 2**40, 2**63 + 1, len(text) + 1))
        raw = struct.pack("<Q", said) + text + raw[8 + length :]
    else:
        raw = raw[: 8 + length] + random.choice((flip, mangle))(raw[8 + length :], random)
    content = json.loads(files[MANIFEST])
    content.pop("seal", None)
    content["sha256"] = hashlib.sha256(raw).hexdigest()
    return {MANIFEST: sealed(json.dumps(content)), TENSORS: raw}
