"""Does everything run on this GPU, and give the same numbers? One JSON line a check, within five
minutes.

    python analyses/gpu/check.py [--model NAME] [--size 1b] [--device cuda] [--only WORD …]

Two models: a small one in fp32 (``--exact``), on the GPU and on the CPU, shows that the numbers are
the same; a large one in bf16 (``--size``: random weights, or ``--model``) shows that every verb
runs at that size, in what time and memory. Neither hub nor data are needed (:mod:`stand_in`).

A line is ``check``, ``ok``, ``seconds``, ``peak_mib`` (allocated at once on the GPU, most),
``before_mib`` (allocated when the check began) and ``detail``: what was measured, or what was
wrong. The last line is a summary; the exit status is 1 if any check failed.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fits import FITS
from numbers_agree import NUMBERS
from stand_in import SIZES, make_data_folder, make_tokenizer, random_llama
from verbs import VERBS

import tracelab

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class Models:
    """The models of a run, each made on first use.

    Attributes:
        device: where the checks are about.
        folder: for files.
    """

    def __init__(self, chosen: argparse.Namespace, folder: Path) -> None:
        self.chosen, self.folder, self.device = chosen, folder, chosen.device
        self.tokenizer = make_tokenizer(chosen.size)
        self._made: dict[str, Any] = {}

    @property
    def small(self) -> Any:
        """In fp32, on the device."""
        return self._get("small", lambda: self._random(self.chosen.exact, torch.float32))

    @property
    def on_cpu(self) -> Any:
        """The small one again, on the CPU."""
        return self._get("on_cpu", self._copied)

    @property
    def large(self) -> Any:
        """As asked for, in the dtype asked for."""
        return self._get("large", self._large)

    def plain(self) -> Any:
        """The small one in plain ``transformers``, never wrapped."""
        size = SIZES[self.chosen.exact]
        made = random_llama(size, len(self.tokenizer), device=self.device, dtype=torch.float32)
        return made.requires_grad_(False)

    def _get(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def _random(self, size: str, dtype: torch.dtype) -> Any:
        plain = random_llama(SIZES[size], len(self.tokenizer), device=self.device, dtype=dtype)
        return tracelab.load(plain, tokenizer=make_tokenizer(self.chosen.size))

    def _copied(self) -> Any:
        plain = self.plain().to("cpu")
        return tracelab.load(plain, tokenizer=make_tokenizer(self.chosen.size), device="cpu")

    def _large(self) -> Any:
        if self.chosen.model:
            return tracelab.load(
                self.chosen.model, dtype=self.chosen.dtype, device=self.chosen.device
            )
        return self._random(self.chosen.size, DTYPES[self.chosen.dtype])


CHECKS = NUMBERS | VERBS | FITS


def main() -> int:
    """Run the checks, print their lines, and return the exit status."""
    chosen = _options()
    make_data_folder()
    failed = []
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        models = Models(chosen, Path(folder))
        for name, check in CHECKS.items():
            if chosen.only and not any(word in name for word in chosen.only):
                continue
            line = run(name, check, models)
            print(json.dumps(line), flush=True)
            if not line["ok"]:
                failed.append(name)
    summary = {
        "check": "summary",
        "ok": not failed,
        "seconds": round(time.perf_counter() - began, 1),
        "failed": failed,
        "device": _name(chosen.device),
        "torch": torch.__version__,
        "size": chosen.model or chosen.size,
        "dtype": chosen.dtype,
    }
    print(json.dumps(summary), flush=True)
    return int(bool(failed))


def run(name: str, check: Callable[[Models], dict[str, Any]], models: Models) -> dict[str, Any]:
    """The line of one check."""
    on_gpu = models.device.startswith("cuda")
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if on_gpu else 0
    began = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            detail, ok = check(models), True
        if on_gpu:
            torch.cuda.synchronize()
    except Exception as error:
        told = traceback.extract_tb(error.__traceback__)[-3:]
        where = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(told))
        detail, ok = {"error": f"{type(error).__name__}: {error}"[:600], "where": where}, False
    return {
        "check": name,
        "ok": ok,
        "seconds": round(time.perf_counter() - began, 2),
        "peak_mib": round(torch.cuda.max_memory_allocated() / 2**20, 1) if on_gpu else None,
        "before_mib": round(before / 2**20, 1) if on_gpu else None,
        "detail": detail,
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="hub id, folder or .gguf file; default: random weights")
    parser.add_argument("--size", choices=SIZES, default="1b", help="of the random large model")
    parser.add_argument("--exact", choices=SIZES, help="size of the model in fp32")
    parser.add_argument("--device", help="default: cuda if there is one, else cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the large model")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="checks whose names hold one")
    chosen = parser.parse_args()
    chosen.device = chosen.device or ("cuda" if torch.cuda.is_available() else "cpu")
    chosen.exact = chosen.exact or ("tiny" if chosen.size == "tiny" else "small")
    return chosen


def _name(device: str) -> str:
    return torch.cuda.get_device_name() if device.startswith("cuda") else device


if __name__ == "__main__":
    sys.exit(main())
