"""A causal trace in pieces: what must be known of all pairs before one of them is traced, and the
parts joined.

A pair is traced by itself, with noise drawn for its id; only the noise's standard deviation and the
sample of pairs are of all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from tracelab.datasets.own import as_triples
from tracelab.datasets.records import Record
from tracelab.localize.tracing.cases import make_cases, sampled
from tracelab.localize.tracing.noise import attribute_embedding_std, joined_hash
from tracelab.localize.tracing.result import CausalTrace, effect_table
from tracelab.model.settings import run_settings
from tracelab.ranges import require_int, require_seed
from tracelab.results import Result


@dataclass(frozen=True)
class TracePlan(Result):
    """Which pairs are traced, with which noise.

    Attributes:
        cases: one row a pair: ``case``.
        noise_std: standard deviation of the noise.
    """

    cases: pd.DataFrame
    noise_std: float

    @property
    def frame(self) -> pd.DataFrame:
        """The pairs."""
        return self.cases

    def headline(self) -> str:
        """How many pairs, with how much noise."""
        return f"n = {len(self.cases)} pairs, noise of standard deviation {self.noise_std:.3g}"


def plan_trace(
    model: TransformerBridge,
    pairs: Iterable[Record],
    *,
    noise_factor: float = 3.0,
    noise_std: float | None = None,
    mentions: str = "all",
    max_cases: int | None = None,
    prepend_bos: bool | None = None,
    seed: int = 0,
    **choices: Any,
) -> TracePlan:
    """What :func:`~tracelab.localize.causal_trace` of the same arguments would trace.

    Args:
        choices: its other arguments, which change nothing here.

    Raises:
        TracelabError: nothing can be traced.
    """
    require_seed(seed)
    pairs = as_triples(pairs, "causal_trace", unrelated=False)
    if max_cases is not None:
        require_int("max_cases", max_cases)
    cases, skipped = make_cases(model, pairs, mentions=mentions, prepend_bos=prepend_bos)
    if noise_std is None:
        noise_std = noise_factor * attribute_embedding_std(model, cases)
    settings = run_settings(
        model,
        pairs,
        noise_factor=noise_factor,
        max_cases=max_cases,
        n_pairs=len(pairs),
        n_traceable=len(cases),
        skipped=skipped,
    )
    names = [case.id for case in sampled(cases, max_cases, seed=seed)]
    return TracePlan(settings, pd.DataFrame({"case": names}), noise_std)


def joined_traces(parts: Sequence[CausalTrace]) -> CausalTrace:
    """The trace of the cases of all parts, in their order; its settings are the first part's, but
    for the hash of all noise."""
    settings = dict(parts[0].settings)
    settings["noise_hash"] = joined_hash(part.settings["noise_hash"] for part in parts)
    cases, states = (
        pd.concat([getattr(part, name) for part in parts], ignore_index=True)
        for name in ("cases", "states")
    )
    effects = effect_table(cases, states, seed=settings["seed"])
    return CausalTrace(settings, effects, cases, states)
