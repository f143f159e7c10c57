"""``tracelab compare``: edits beside each other."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tracelab.cli import loading, workers
from tracelab.cli.arguments import parse_int
from tracelab.cli.output import result_name
from tracelab.errors import TracelabError, require_choice
from tracelab.escaping import csv_table
from tracelab.evaluate.benchmarks.lm_eval import PREFIX
from tracelab.evaluate.registry import BIAS_TYPES, benchmark
from tracelab.evaluate.scoreboard.cells import Cell, Question, questions
from tracelab.evaluate.scoreboard.scoreboard import DEFAULT, evaluate
from tracelab.interventions import Intervention, Stack
from tracelab.ranges import shown
from tracelab.results import Result
from tracelab.shards.measurements import SCORE
from tracelab.shards.spec import EditSpec, Spec
from tracelab.shards.worker import Refused
from tracelab.storage.files import own_file


def run(options: argparse.Namespace) -> Result:
    """``tracelab compare``: with ``--out`` also the table as CSV, Markdown and LaTeX; finished
    cells are stored there."""
    wanted = dict(_benchmark(text) for text in options.benchmarks or DEFAULT)
    for name in wanted:
        benchmark(name)  # refuses an unknown one before the model is loaded
    if options.include_path is not None and not any(name.startswith(PREFIX) for name in wanted):
        raise TracelabError(f"--include-path is of {PREFIX}TASK: no benchmark asked for is one")
    if options.bias is not None:
        require_choice("bias type", options.bias, BIAS_TYPES)
    edits: dict[str, Intervention] = {}
    bundles: dict[str, list[EditSpec]] = {}
    alone, stacks = options.edit or [], options.stack or []
    scales = loading.strengths(options, len(alone) + len(stacks))
    for path, strength in zip(alone, scales, strict=False):
        edits |= loading.row(path, options, strength, edits)
        bundles[[*edits][-1]] = [EditSpec(loading.here(path), strength, options.allow_mismatch)]
    for paths, strength in zip(stacks, scales[len(alone) :], strict=True):
        for path in paths:
            _require_one(path, alone)
        rows = [loading.row(path, options, strength) for path in paths]
        # A member that is a row too is the same edit, so that interference can be told.
        members = [edits.get(name, edit) for row in rows for name, edit in row.items()]
        name = " + ".join(name for row in rows for name in row)
        edits[name] = Stack(members)
        bundles[name] = [
            EditSpec(loading.here(path), strength, options.allow_mismatch) for path in paths
        ]
    if not edits:
        raise TracelabError("nothing to compare: name at least one bundle with --edit")
    limits = {name: most or options.limit for name, most in wanted.items()}
    asked: dict[str, Any] = {
        "bias": options.bias,
        "limit": {name: most for name, most in limits.items() if most is not None},
        "options": {
            name: {"include_path": options.include_path}
            for name in wanted
            if options.include_path is not None and name.startswith(PREFIX)
        },
        "off_target": not options.no_off_target,
    }
    model = loading.load_model(options)
    measure = None
    if options.engine is not None:
        workers.share_model(options, model)
        found = questions([benchmark(name) for name in wanted], **asked)
        measure = _InShards(options, found, bundles)
    board = evaluate(
        model,
        edits,
        list(wanted),
        **asked,
        folder=None if options.out is None else Path(options.out) / "cells",
        measure=measure,
        seed=options.seed,
    )
    if options.out is not None:
        name = result_name(options)
        for suffix, text in (
            ("csv", csv_table(board.frame)),
            ("md", board.to_markdown() + "\n"),
            ("tex", board.to_latex()),
        ):
            with own_file(Path(options.out) / f"{name}.{suffix}") as file:
                file.write_text(text, encoding="utf-8")
    return board


class _InShards:
    """All cells of a comparison, which many workers measure when the first is asked for: by then
    whatever can be refused is."""

    def __init__(
        self,
        options: argparse.Namespace,
        asked: Sequence[Question],
        bundles: Mapping[str, Sequence[EditSpec]],
    ) -> None:
        self._options, self._asked = options, asked
        self._rows: dict[str | None, Sequence[EditSpec]] = {None: ()}
        self._rows.update(bundles)

    def __call__(self, question: Question, name: str | None) -> Cell:
        found = self._cells.get((question.benchmark.name, question.bias, name))
        return Cell(None, "no records") if found is None else found

    @cached_property
    def _cells(self) -> dict[tuple[str, str, str | None], Cell]:
        rows = [(q, name) for q in self._asked if q.records for name in self._rows]
        requests = [(self._spec(question, name), question.records) for question, name in rows]
        answers = workers.answers(self._options, *requests)
        return {
            (question.benchmark.name, question.bias, name): Cell(None, answer.reason)
            if isinstance(answer, Refused)
            else Cell(answer)
            for (question, name), answer in zip(rows, answers, strict=True)
        }

    def _spec(self, question: Question, name: str | None) -> Spec:
        measurement, bundles = f"{SCORE}{question.benchmark.name}", self._rows[name]
        return workers.spec_of(self._options, measurement, question.options, bundles, name)


def _benchmark(text: str) -> tuple[str, int | None]:
    """``"bbq=400"`` as a name and a limit."""
    name, equals, most = text.partition("=")
    try:
        return name, parse_int("N", most) if equals else None
    except TracelabError as error:
        raise TracelabError(
            f"--benchmark {shown(text)} is not understood ({error}): write NAME or NAME=N, at most "
            "so many records"
        ) from None


def _require_one(path: str, others: Sequence[str]) -> None:
    """Refuse a bundle of the same name as another's, as rows are told by names."""
    for other in others:
        if Path(other).name == Path(path).name and Path(other).resolve() != Path(path).resolve():
            raise TracelabError(
                f"two bundles are called {Path(path).name!r}, {other} and {path}: rows take the "
                "folders' names, rename one"
            )
