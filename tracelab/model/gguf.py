"""GGUF files, converted to safetensors once: reading one takes a minute of CPU and gigabytes of
memory each time.

    converted(Path("model.Q4_1.gguf"))    a folder of the cache, under the file's SHA-256

The weights are de-quantised to fp32, so that they can be loaded in every dtype. The hash of a file
is remembered with its size, times and place, so that a large one is read once; a file that has
changed is another and gets its own folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from tracelab.storage.cache import cached_folder, file_hash
from tracelab.storage.files import atomic_file


def converted(gguf: Path, cache: Path) -> Path:
    """The folder with a GGUF file's config, weights and tokenizer; made on first use.

    Raises:
        OSError: the cache cannot be written.
        Exception: whatever a broken file makes its reader raise.
    """
    digest = _known_hash(gguf, cache / "gguf")

    def make(folder: Path) -> None:
        convert(gguf, folder)
        note = json.dumps({"file": gguf.name, "sha256": digest}, indent=1)
        (folder / "source.json").write_text(note, encoding="utf-8")

    return cached_folder(cache / "gguf" / digest, make, f"converting {gguf.name}, once,")


def convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF file's config, weights in fp32 and tokenizer into ``folder``.

    ``save_pretrained`` refuses a model loaded from GGUF, so the state dict is copied into a model
    made from the config without its ``quantization_config``.
    """
    import torch  # here, as the embedded data are read without it
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    source = {"gguf_file": gguf.name, "trust_remote_code": False}
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **source)
    config = loaded.config.to_dict()
    config.pop("quantization_config", None)
    config["architectures"] = [type(loaded).__name__]
    plain = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    plain.load_state_dict(loaded.state_dict(), strict=True)
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, **source).save_pretrained(folder)


def _known_hash(gguf: Path, folder: Path) -> str:
    """SHA-256 of a file, from memory if it is the one that was hashed before."""
    status = os.stat(gguf)
    identity = [
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_ino,
        status.st_dev,
    ]
    name = hashlib.sha256(os.fsencode(os.path.realpath(gguf))).hexdigest()[:16]
    memory = folder / "hashes" / f"{name}.json"
    try:
        noted = json.loads(memory.read_text(encoding="utf-8"))
        if noted["identity"] == identity and len(noted["sha256"]) == 64:
            return str(noted["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    digest = file_hash(gguf)
    with atomic_file(memory) as path:
        path.write_text(json.dumps({"identity": identity, "sha256": digest}), encoding="utf-8")
    return digest
