"""Any task of EleutherAI's lm-evaluation-harness on a model as it is at the moment, edits included.

    tracelab.evaluate(model, edits, ["lm-eval/boolq", "stereoset"], bias="gender")

The harness runs the model inside the bridge, on which applied edits act, with its own prompts,
metrics and data (from the hub, or from where a task file of ``include_path`` says). Here its
samples become units, so that intervals and paired tests are those of every other benchmark. Only
metrics that are plain means over samples are taken; the others are left out of the table, and what
the harness itself reports is kept beside it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from torch.utils._pytree import tree_leaves
from transformer_lens.model_bridge import TransformerBridge

from tracelab.errors import TracelabError
from tracelab.evaluate.scores import Benchmark, BenchmarkScores, Sample, column, score_table
from tracelab.model.finite import CAUSE
from tracelab.model.generation import plain_generation
from tracelab.model.load import model_facts
from tracelab.model.settings import run_settings
from tracelab.ranges import require_seed

PREFIX = "lm-eval/"


@dataclass(frozen=True)
class LmEvalTask:
    """A task of the harness, at most ``limit`` documents of each of its parts."""

    id: str
    limit: int | None = None
    bias_type: str = ""


@dataclass(frozen=True)
class LmEvalScores(BenchmarkScores):
    """The harness' metrics, and its samples.

    Attributes:
        table: as for all benchmarks, in the harness' own units (accuracies are fractions); ``n``
            documents.
        documents: one row a document: ``task, doc`` and each metric.
        results: what the harness itself reports, by task.
    """

    documents: pd.DataFrame
    results: dict[str, Any]

    def samples(self) -> list[Sample]:
        """Documents, all parts of a task together."""
        return _samples(self.documents)


def lm_eval_scores(
    model: TransformerBridge,
    tasks: Sequence[LmEvalTask],
    *,
    include_path: str | None = None,
    edit: str | None = None,
    seed: int = 0,
    **options: Any,
) -> LmEvalScores:
    """Run one task of the harness on the model as it is.

    Args:
        tasks: a list of one.
        include_path: folder of further task files.
        edit: name for the table of the edit that is on the model.
        seed: kept in the settings; intervals draw nothing.
        options: for ``lm_eval.simple_evaluate``, such as ``num_fewshot``.

    Raises:
        TracelabError: the harness is not installed, has no such task, the task has no metric that
            is a mean, or log-probabilities are not finite.
    """
    require_seed(seed)
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise TracelabError(
            "lm-evaluation-harness is not installed: pip install 'tracelab[lm-eval]'"
        ) from error
    (task,) = tasks
    manager = TaskManager(include_path=include_path, include_defaults=include_path is None)
    if task.id not in manager.all_tasks and include_path is not None:
        # thousands of files, which take ten seconds to index
        manager = TaskManager(include_path=include_path)
    if task.id not in manager.all_tasks:
        raise TracelabError(f"lm-evaluation-harness has no task {task.id!r}: see lm_eval ls tasks")
    with plain_generation(model):
        found = simple_evaluate(
            model=HFLM(
                pretrained=model.original_model,
                tokenizer=model.tokenizer,
                add_bos_token=model_facts(model).prepend_bos,
                batch_size=8,
            ),
            tasks=[task.id],
            task_manager=manager,
            limit=task.limit,
            log_samples=True,
            bootstrap_iters=0,
            **options,
        )
    _require_finite(found["samples"])
    documents = _documents(found["samples"], found["results"])
    settings = run_settings(
        model,
        tasks,
        benchmark=PREFIX + task.id,
        documents=hashlib.sha256("".join(documents["doc"]).encode()).hexdigest()[:16],
        options={name: repr(value) for name, value in options.items()},
        seed=seed,
        **({"chat_template": "applied"} if options.get("apply_chat_template") else {}),
    )
    table = score_table(_samples(documents), benchmark=PREFIX + task.id, edit=edit, seed=seed)
    return LmEvalScores(
        settings, table, documents, {t: _plain(values) for t, values in found["results"].items()}
    )


def _require_finite(samples: dict[str, list[dict[str, Any]]]) -> None:
    """Refuse log-probabilities of the harness that are not finite."""
    for task, rows in samples.items():
        for row in rows:
            numbers = [
                x for x in tree_leaves(row.get("resps", [])) if isinstance(x, float | np.floating)
            ]
            if not all(map(math.isfinite, numbers)):
                raise TracelabError(
                    f"the log-probabilities of document {row['doc_id']} of {task} are not finite: "
                    f"{CAUSE}"
                )


def lm_eval_benchmark(name: str) -> Benchmark:
    """``lm-eval/TASK`` as a benchmark without bias types; its scoreboard shows every metric."""
    task = name.removeprefix(PREFIX)
    return Benchmark(
        name,
        lambda bias, limit: [LmEvalTask(task, limit)],
        lm_eval_scores,
        LmEvalScores,
        metrics=(),
        where=(),
    )


def _documents(
    samples: dict[str, list[dict[str, Any]]], results: dict[str, dict[str, Any]]
) -> pd.DataFrame:
    """Each document's metrics, of those whose mean over a task is what the harness reports.

    A task with several filters has a row a document and filter; their metrics become columns of one
    document.
    """
    tables = []
    for task, rows in sorted(samples.items()):
        documents: dict[int, dict[str, Any]] = {}
        for row in rows:
            document = documents.setdefault(row["doc_id"], {"task": task, "doc": row["doc_hash"]})
            for name in row.get("metrics", ()):
                if isinstance(row[name], int | float | np.number):
                    document[f"{name},{row.get('filter', 'none')}"] = float(row[name])
        table = pd.DataFrame(documents.values())
        other = [
            name
            for name in table.columns.difference(["task", "doc"])
            if not np.isclose(table[name].mean(), results[task].get(name, np.nan))
        ]
        tables.append(table.drop(columns=other))
    joined = pd.concat(tables, ignore_index=True).dropna(axis="columns")
    joined = joined.rename(columns=lambda name: name.removesuffix(",none"))
    if set(joined.columns) <= {"task", "doc"}:
        raise TracelabError(f"no metric of {', '.join(samples)} is a mean over documents")
    return joined


def _samples(documents: pd.DataFrame) -> list[Sample]:
    metrics = [name for name in documents.columns if name not in ("task", "doc")]
    return [
        Sample(
            "", (documents[metrics].to_numpy(float),), {m: column(k) for k, m in enumerate(metrics)}
        )
    ]


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, str | int | float)
        and not (isinstance(value, float) and math.isnan(value))
    }
