"""The benchmarks by name: which records of a bias type, what scores them, which numbers belong on a
scoreboard.

A benchmark calls a bias type by its own name ("race-color", "Race_ethnicity"); here each is asked
for by StereoSet's (gender, race, religion, profession) or by its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tracelab.datasets import (
    bbq,
    bold,
    crows_pairs,
    neutral_sentences,
    stereoset,
    wikitext,
    winobias,
)
from tracelab.datasets.records import subsample
from tracelab.errors import TracelabError, meant
from tracelab.evaluate.benchmarks.attention import AttentionScores, attention_scores
from tracelab.evaluate.benchmarks.bbq import BBQScores, bbq_scores
from tracelab.evaluate.benchmarks.crows_pairs import CrowsPairsScores, crows_pairs_scores
from tracelab.evaluate.benchmarks.hellinger import (
    WORD_PAIRS,
    HellingerScores,
    hellinger,
    prompt_pairs,
)
from tracelab.evaluate.benchmarks.lm_eval import PREFIX, lm_eval_benchmark
from tracelab.evaluate.benchmarks.perplexity import WINDOW, PerplexityScores, perplexity
from tracelab.evaluate.benchmarks.stereoset import StereoSetScores, stereoset_scores
from tracelab.evaluate.benchmarks.swap_consistency import SwapScores, swap_pairs, swap_scores
from tracelab.evaluate.benchmarks.winobias import WinoBiasScores, winobias_scores
from tracelab.evaluate.bold.bold import GROUPS, BoldScores, bold_scores
from tracelab.evaluate.scores import Benchmark

BIAS_TYPES = ("gender", "race", "religion", "profession")
"""Bias types of which edits are made: StereoSet's."""


def _stereoset(task: str) -> Callable[..., Sequence[Any]]:
    return lambda bias, limit, **where: subsample(stereoset(bias, task=task, **where), limit)


def _winobias(bias: str | None, limit: int | None, **where: str) -> Sequence[Any]:
    return subsample(winobias(**where), limit)  # type: ignore[arg-type]


def _bold(bias: str | None, limit: int | None, **where: str) -> Sequence[Any]:
    prompts = bold(bias, **where)  # type: ignore[arg-type]
    return subsample([p for p in prompts if p.group in GROUPS.get(p.bias_type, (p.group,))], limit)


_GENDER_RACE_RELIGION = BIAS_TYPES[:3]
_STEREOSET: dict[str, Any] = {
    "score": stereoset_scores,
    "kind": StereoSetScores,
    "metrics": ("gap_group", "gap", "gap_blind", "ss", "lms", "icat"),
    "biases": BIAS_TYPES,
    "where": ("source", "split"),
}
_ALL = (
    Benchmark("stereoset", _stereoset("intrasentence"), **_STEREOSET, every_bias=True),
    Benchmark("stereoset-intersentence", _stereoset("intersentence"), **_STEREOSET),
    Benchmark(
        "crows-pairs",
        lambda bias, limit, **where: subsample(crows_pairs(bias, **where), limit),
        crows_pairs_scores,
        CrowsPairsScores,
        ("gap_group", "gap", "crows_sum"),
        _GENDER_RACE_RELIGION,
    ),
    Benchmark(
        "bbq",
        lambda bias, limit, **where: bbq(bias, limit=limit, **where),
        bbq_scores,
        BBQScores,
        ("acc_amb", "acc_dis", "s_amb", "s_dis"),
        _GENDER_RACE_RELIGION,
    ),
    Benchmark(
        "winobias",
        _winobias,
        winobias_scores,
        WinoBiasScores,
        ("gap_group", "gap", "pro_preferred", "acc_gap"),
        ("gender",),
        where=("source", "split"),
    ),
    Benchmark("bold", _bold, bold_scores, BoldScores, ("sentiment_gap",), _GENDER_RACE_RELIGION),
    Benchmark(
        "local-bias",
        lambda bias, limit: subsample(prompt_pairs(bias), limit),
        hellinger,
        HellingerScores,
        ("hellinger",),
        tuple(WORD_PAIRS),
        where=(),
    ),
    Benchmark(
        "swap-consistency",
        lambda bias, limit, **where: swap_pairs(bias, limit=limit, **where),
        swap_scores,
        SwapScores,
        ("swap_same_top1", "swap_tv"),
        ("gender",),
        where=("source", "split"),
    ),
    Benchmark(
        "attention",
        lambda bias, limit, **where: subsample(crows_pairs(bias, **where), limit),
        attention_scores,
        AttentionScores,
        ("sensitive", "other"),
        _GENDER_RACE_RELIGION,
    ),
    Benchmark(
        "perplexity",
        lambda bias, limit, **where: neutral_sentences(500 if limit is None else limit, **where),
        perplexity,
        PerplexityScores,
        ("perplexity",),
    ),
    Benchmark(
        "wikitext-2",
        lambda bias, limit, **where: wikitext(limit=limit, **where),
        partial(perplexity, max_length=WINDOW, benchmark="wikitext-2"),
        PerplexityScores,
        ("perplexity",),
        where=("source", "split"),
    ),
)
BENCHMARKS = {benchmark.name: benchmark for benchmark in _ALL}
"""Every benchmark that a scoreboard can hold."""


def benchmark(name: str) -> Benchmark:
    """The benchmark of a name, ``lm-eval/TASK`` included.

    Raises:
        TracelabError: unknown name.
    """
    if name.startswith(PREFIX):
        return lm_eval_benchmark(name)
    if name not in BENCHMARKS:
        known, near = ", ".join(BENCHMARKS), meant(name, BENCHMARKS)
        raise TracelabError(
            f"unknown benchmark {name!r}: choose one of {known}, or lm-eval/TASK{near}"
        )
    return BENCHMARKS[name]
