"""The measurements of a report, each stored as soon as it is done.

A part lies in ``DIR/parts/<name>/`` and is resumed from there by the same request (model, bias
type, preset, seed); otherwise it is measured anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from transformer_lens.model_bridge import TransformerBridge

from tracelab.datasets import Corpus, CrowsPair, StereoSetRecord, crows_pairs, stereoset
from tracelab.datasets.templates import templates
from tracelab.errors import brief
from tracelab.evaluate.benchmarks.crows_pairs import CrowsPairsScores, crows_pairs_scores
from tracelab.evaluate.benchmarks.stereoset import StereoSetScores, stereoset_scores
from tracelab.evaluate.scoreboard.scoreboard import Scoreboard
from tracelab.inspection.before_after import BeforeAfter
from tracelab.localize.attention.attention_gap import AttentionGap, attention_gap
from tracelab.localize.probing.probes import LayerProbes, probe_layers, split_rows
from tracelab.localize.tracing.causal_trace import CASES, causal_trace
from tracelab.localize.tracing.result import CausalTrace
from tracelab.model.load import model_facts
from tracelab.model.settings import request_of
from tracelab.report.editing import Choice, Texts
from tracelab.report.presets import CROWS_PAIRS, Preset
from tracelab.results import Result
from tracelab.storage.checkpoint import discard, resumed

R = TypeVar("R", bound=Result)


@dataclass(frozen=True)
class Parts:
    """All measurements of one report.

    ``crows`` is None where CrowS-Pairs lacks the bias type; the last four are None in a report
    without edits.
    """

    stereoset: StereoSetScores
    crows: CrowsPairsScores | None
    probes: LayerProbes
    attention: AttentionGap
    trace: CausalTrace
    example: CausalTrace
    choice: Choice | None = None
    scoreboard: Scoreboard | None = None
    before_after: BeforeAfter | None = None
    texts: Texts | None = None

    def named(self) -> dict[str, Result]:
        """The results by name, without those that do not exist."""
        return {name: result for name, result in vars(self).items() if result is not None}

    def __repr__(self) -> str:
        return brief(self, self.stereoset.settings["model"]["model_id"], *self.named())


@dataclass(frozen=True)
class Data:
    """What is measured on; ``crows`` is None where CrowS-Pairs lacks the bias type."""

    records: list[StereoSetRecord]
    crows: list[CrowsPair] | None
    corpus: Corpus

    @classmethod
    def read(cls, bias: str, preset: Preset, seed: int) -> Data:
        """Read it.

        Raises:
            TracelabError: a corpus too small to hold out a part.
        """
        crows = crows_pairs(CROWS_PAIRS[bias], limit=preset.limit) if bias in CROWS_PAIRS else None
        corpus = templates(bias, limit=preset.limit)
        split_rows(corpus, "concept_template", seed)
        return cls(stereoset(bias, limit=preset.limit), crows, corpus)

    def __repr__(self) -> str:
        n = f"n = {len(self.records)} of StereoSet", f"{len(self.crows or ())} of CrowS-Pairs"
        return brief(self, *n, self.corpus)


def measure(
    model: TransformerBridge,
    bias: str,
    data: Data,
    folder: Path,
    *,
    preset: Preset,
    seed: int,
    say: Callable[[str], None],
) -> Parts:
    """Make or resume every part.

    Args:
        folder: ``DIR/parts``.
        say: told what is about to be measured, for the terminal.
    """
    records, crows_records, corpus = data.records, data.crows, data.corpus
    request = request_of(
        model,
        [*records, *(crows_records or []), corpus],
        bias=bias,
        preset=preset.settings(),
        seed=seed,
    )

    def part(name: str, kind: type[R], make: Callable[[], R], *, more: Any = None) -> R:
        key = {**request, "part": name, "more": more}
        return resumed(folder, name, kind.load, key, make, say=say)

    layers = preset.trace_layers(model_facts(model).n_layers)
    pairs: Sequence[Any] = records if crows_records is None else crows_records
    scores = part("stereoset", StereoSetScores, lambda: stereoset_scores(model, records, seed=seed))
    crows = None
    if crows_records is not None:
        crows = part(
            "crows", CrowsPairsScores, lambda: crows_pairs_scores(model, crows_records, seed=seed)
        )
    probes = part(
        "probes",
        LayerProbes,
        lambda: probe_layers(
            model,
            corpus,
            n_seeds=preset.prober_seeds,
            seed=seed,
        ),
    )
    attention = part("attention", AttentionGap, lambda: attention_gap(model, pairs, seed=seed))
    trace = part(
        "trace",
        CausalTrace,
        lambda: causal_trace(
            model,
            records,
            layers=layers,
            n_samples=preset.trace_samples,
            max_cases=preset.trace_pairs,
            checkpoint=folder,
            seed=seed,
        ),
    )
    discard(folder, CASES)  # the finished trace is stored
    strongest = trace.cases.loc[trace.cases["te"].abs().idxmax(), "case"]
    example = part(
        "example",
        CausalTrace,
        lambda: causal_trace(
            model,
            [record for record in records if record.id == strongest],
            components=["resid"],
            positions="all",
            n_samples=preset.trace_samples,
            noise_std=trace.settings["noise_std"],  # the noise of this case in the trace
            seed=seed,
        ),
        more=strongest,
    )
    return Parts(scores, crows, probes, attention, trace, example)
