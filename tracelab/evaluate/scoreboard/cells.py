"""One cell of a scoreboard: the scores of a benchmark on one bias type under one edit.

A cell that fails tells why and stops nothing; one that is done is stored under everything it
depends on (model, edit with its tensors, benchmark, records, options, seed, versions) and not
measured again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge

from tracelab.datasets.records import Sentence
from tracelab.errors import brief, require_choice
from tracelab.evaluate.registry import BIAS_TYPES
from tracelab.evaluate.scores import Benchmark, BenchmarkScores
from tracelab.interventions import Intervention
from tracelab.model.settings import request_of
from tracelab.storage.cache import file_hash
from tracelab.storage.checkpoint import resumed
from tracelab.storage.ownership import file_name

FAILURES = (ValueError, RuntimeError, OSError, ImportError, LookupError, TypeError, ArithmeticError)
"""What makes a cell fail: everything but being interrupted. A TracelabError is a ValueError, a full
memory a RuntimeError."""


@dataclass(frozen=True)
class Question:
    """A benchmark on one bias type: its records, or why they cannot be read.

    Attributes:
        bias: as it was asked for; empty for a benchmark without bias types.
        options: keyword arguments of the scorer.
    """

    benchmark: Benchmark
    bias: str
    records: Sequence[Any] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""

    @classmethod
    def read(
        cls, benchmark: Benchmark, bias: str, limit: int | None, options: Mapping[str, Any]
    ) -> Question:
        """Read the records; what goes wrong becomes the reason."""
        try:
            return cls(benchmark, bias, benchmark.read(bias or None, limit), options)
        except FAILURES as error:
            return cls(benchmark, bias, (), options, reason_of(error))

    def __repr__(self) -> str:
        facts = (self.benchmark.name, self.bias, f"n = {len(self.records)}", self.reason)
        return brief(self, *filter(None, facts))


def questions(
    benchmarks: Sequence[Benchmark],
    bias: str | None,
    limit: int | Mapping[str, int] | None,
    options: Mapping[str, Mapping[str, Any]],
    off_target: bool,
) -> list[Question]:
    """What is asked of each benchmark: its bias types, read.

    Raises:
        TracelabError: a bias type or a benchmark that is not there.
    """
    if bias is not None:
        require_choice("bias type", bias, BIAS_TYPES)
    names = [item.name for item in benchmarks]
    for what, given in (("limit", limit), ("options", options)):
        for name in given if isinstance(given, Mapping) else ():
            require_choice(f"benchmark in {what}", name, names)
    asked = []
    for item in benchmarks:
        most = limit.get(item.name) if isinstance(limit, Mapping) else limit
        targeted = [b for b in item.biases if bias in (None, b)]
        others = (
            [b for b in item.biases if b not in targeted] if item.every_bias and off_target else []
        )
        for each in targeted + others if item.biases else [""]:
            asked.append(Question.read(item, each, most, options.get(item.name, {})))
        if item.biases and not targeted:
            reason = f"{item.name} has no bias type {bias!r}, only {', '.join(item.biases)}"
            asked.append(Question(item, str(bias), reason=reason))
    return asked


@dataclass(frozen=True)
class Cell:
    """The scores, or the reason why there are none."""

    scores: BenchmarkScores | None
    reason: str = ""


def measure_cell(
    model: TransformerBridge,
    question: Question,
    edit: Intervention | None,
    name: str | None,
    *,
    folder: Path | str | None,
    seed: int,
) -> Cell:
    """Score the model under an edit (None: as it is), or resume the scores from ``folder``.

    Args:
        name: of the edit, for the table.
        folder: checkpoint of finished cells; None stores none.
    """
    benchmark = question.benchmark
    if question.reason:
        return Cell(None, question.reason)

    def make() -> BenchmarkScores:
        with nullcontext() if edit is None else edit.applied(model):
            return benchmark.score(
                model, question.records, edit=name, seed=seed, **question.options
            )

    try:
        if folder is None:
            return Cell(make())
        request = request_of(
            model,
            [
                Sentence(str(k), each) if isinstance(each, str) else each
                for k, each in enumerate(question.records)
            ],
            benchmark=benchmark.name,
            bias=question.bias,
            options={key: told_option(key, value) for key, value in question.options.items()},
            edit=None if edit is None else edit.identity(),
            seed=seed,
        )
        label = file_name("-".join(filter(None, (benchmark.name, question.bias))))
        print_of_request = hashlib.sha256(repr(request).encode()).hexdigest()[:12]
        name_of_cell = f"{label}-{print_of_request}"
        return Cell(resumed(folder, name_of_cell, benchmark.kind.load, request, make))
    except FAILURES as error:
        return Cell(None, reason_of(error))


def told_option(name: str, value: Any) -> str:
    """An option as a key holds it: of a folder of task files also what they say."""
    told = repr(value)
    if name == "include_path" and value and Path(value).is_dir():
        files = [file for kind in ("yaml", "py") for file in Path(value).rglob(f"*.{kind}")]
        told += "".join(map(file_hash, sorted(files)))
    return told


def reason_of(error: BaseException) -> str:
    """Why a cell has no scores, as one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, torch.OutOfMemoryError):
        text = f"out of memory: {text}"
    return text
