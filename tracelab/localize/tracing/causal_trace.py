"""Where does a stereotype act? Causal tracing of the gap between a stereotype and its opposite.

For the two sentences of a pair, which differ in the filler f only,

    gap = log p(stereotype from f on) − log p(anti-stereotype from f on)

is measured in a *clean* run, a *corrupted* run (noise on the embeddings of the attribute words) and
runs
*restored*: corrupted, but with one state put back to its clean value. With ``high``, ``low`` and
``gap`` these,

    total effect      TE  = high − low
    indirect effect   IE  = gap − low                     (signed: towards the stereotype)
    normalised        NIE = Σ_cases sign(TE) · IE / Σ_cases |TE|      (1 = the state carries all of it)

after ROME (Meng et al., 2022) and BiasEdit's bias tracing (arXiv 2503.08588, bias_tracing/).
BiasEdit plots ``|mean log p(anti) − mean log p(stereo)|`` over all tokens, of pairs of equal
length; as everything before the filler cancels there, it is ``|gap| / tokens``, and is reported as
``biasedit``. The sign it drops tells a restored stereotype from a restored anti-stereotype, so the
signed effects come first here.

A state is the residual stream after a block (``resid``), or the MLP's or attention's contribution
over a window of layers (``mlp``, ``attn``). Noise has 3 times the standard deviation of the
attribute words' own embeddings. A large effect of a state is evidence that it carries the
information, not that the stereotype is stored there. Nor is |TE| about the group named alone: on the
embedded model the same noise on a later word that names none moves the gap by 1.3 to 1.7 nats, on
the attribute words by 1.5 to 1.8 (``analyses/trace_bos.py``, ``figures/trace_bos.csv``: 40 pairs of
StereoSet ``test`` whose first token is noised and 40 others).

Without BOS a sentence's first token is the attention sink, and noise on it is more than noise on a
word. There, total effects with and without BOS agree at r = .73 where later words are noised and at
.34 where the first token is; noise on a first token that names no group moves the gap by 1.63 nats
[1.10, 2.22] without BOS and 1.10 [0.72, 1.59] with; the NIE of the two kinds of pairs agree over
layers and roles at r = .61 without and .83 with. So cases tell ``first_token``,
:meth:`CausalTrace.of_first_token` averages each kind alone, and ``prepend_bos=True`` is the better
choice for comparing layers. Default is the model's own: that is the gap which benchmarks score.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tracelab.datasets.own import as_triples
from tracelab.datasets.records import Record
from tracelab.errors import TracelabError, require_choice, warn
from tracelab.gradients import measuring
from tracelab.localize.tracing.attribution import attribution_traces
from tracelab.localize.tracing.cases import (
    Case,
    make_cases,
    restored_columns,
    sampled,
    sentences_of,
)
from tracelab.localize.tracing.fast import fast_traces, trace_bytes
from tracelab.localize.tracing.noise import attribute_embedding_std, hash_of, noise_draws
from tracelab.localize.tracing.result import TE_FLOOR, CausalTrace, effect_table
from tracelab.localize.tracing.sentence import (
    COMPONENTS,
    TracedStates,
    Tracer,
    plain_traces,
)
from tracelab.model.finite import CAUSE
from tracelab.model.load import model_facts, require_hook
from tracelab.model.memory import require_room_at
from tracelab.model.partial_forward import BlockRunner
from tracelab.model.plain_blocks import block_runner
from tracelab.model.settings import as_request, run_settings
from tracelab.model.texts import Texts, as_texts
from tracelab.model.tokens import token_texts
from tracelab.progress import progress
from tracelab.ranges import (
    IG_MOST,
    INT_MOST,
    SAMPLES_MOST,
    require_int,
    require_layers,
    require_number,
    require_seed,
)
from tracelab.storage.checkpoint import open_entry, require_entries

POSITIONS = ("roles", "all")
METHODS = ("exact", "attribution")
RUNS = ("auto", "fast", "plain")
CHECKED_SAMPLES = 2
"""Noise samples on which the fast way is checked: enough to be several rows."""
CASES = "cases"
"""The entry of a checkpoint: a line a finished case."""


@measuring()
def causal_trace(
    model: TransformerBridge,
    pairs: Iterable[Record],
    *,
    method: str = "exact",
    components: Texts = COMPONENTS,
    positions: str = "roles",
    layers: Sequence[int] | None = None,
    n_samples: int = 10,
    noise_factor: float = 3.0,
    noise_std: float | None = None,
    noise: Mapping[str, Float[Tensor, "samples noised d_model"]] | None = None,
    window: int | None = None,
    mentions: str = "all",
    max_cases: int | None = None,
    prepend_bos: bool | None = None,
    run: str = "auto",
    ig_steps: int = 1,
    checkpoint: Path | str | None = None,
    seed: int = 0,
) -> CausalTrace:
    """Trace pairs: StereoSet's intrasentence records, or your own (``datasets.pairs``).

    Args:
        method: ``"exact"`` restores every state in a run of its own, ``"attribution"`` estimates
            all effects to first order from one backward pass (:mod:`.attribution`).
        components: of ``resid``, ``mlp`` and ``attn``.
        positions: ``"roles"`` restores the attribute words, the token before the filler and the
            filler; ``"all"`` restores every token (for heatmaps of a sentence).
        layers: where states are restored; default: every layer.
        n_samples: noise samples a sentence.
        noise_factor: standard deviation of the noise in those of the attribute words' embeddings.
        noise_std: standard deviation of the noise itself, instead of ``noise_factor``.
        noise: the noise itself by record id, ``[samples, noised columns, d_model]``, instead of
            drawing it; for comparison with another implementation on the same draw. A record it
            lacks is an error.
        window: layers restored together for ``mlp`` and ``attn``; default 10, or all of a smaller
            model.
        mentions: ``"all"`` mentions of attribute words are noised, or the ``"first"`` only.
        max_cases: trace a random sample of so many of the pairs that can be traced.
        prepend_bos: whether BOS comes before each sentence; default: the model's (see above).
        run: ``"fast"`` shares caches, ``"plain"`` runs the model once a state, ``"auto"`` is fast
            where a check on this model shows the same numbers (of ``exact`` only).
        ig_steps: points between the corrupted and the clean embeddings at which ``attribution``
            takes gradients: 1 is the corrupted run alone.
        checkpoint: folder in which finished cases are stored; a run with the same settings resumes
            from them.
        seed: of the noise and the bootstrap.

    Raises:
        TracelabError: nothing can be traced, a sentence beyond the model's context, a window larger
            than the model, an unknown option, or log-probabilities that are not finite.
    """
    require_seed(seed)
    pairs = as_triples(pairs, "causal_trace", unrelated=False)
    components = as_texts(components, "component")
    for component in components:
        require_choice("component", component, COMPONENTS)
    require_entries(checkpoint, CASES)
    require_choice("positions", positions, POSITIONS)
    require_choice("method", method, METHODS)
    require_choice("run", run, RUNS)
    require_int("ig_steps", ig_steps, most=IG_MOST)
    if method == "exact" and ig_steps != 1:
        raise TracelabError('ig_steps are of attribution: add method="attribution"')
    if method == "attribution" and run != "auto":
        raise TracelabError(f'run={run!r} is of method="exact": attribution has one way to run')
    require_choice("mentions", mentions, ("all", "first"))
    n_layers = model_facts(model).n_layers
    window = min(10, n_layers) if window is None else window
    if not 1 <= require_int("window", window, -INT_MOST) <= n_layers:
        raise TracelabError(
            f"a window of {window} layers needs a model with as many: it has {n_layers}"
        )
    require_int("n_samples", n_samples, most=SAMPLES_MOST)
    if max_cases is not None:
        require_int("max_cases", max_cases)
    require_number("noise_factor", noise_factor, least=0)
    if noise_std is not None:
        require_number("noise_std", noise_std, least=0)
    layers = require_layers(
        range(n_layers) if layers is None else layers, n_layers, model_facts(model).model_id
    )
    if not layers or not components:
        raise TracelabError("nothing to trace: name at least one layer and one component")
    for layer in layers:
        require_hook(model, "resid_post", layer)
    cases, skipped = make_cases(model, pairs, mentions=mentions, prepend_bos=prepend_bos)
    n_traceable = len(cases)
    if noise_std is None and noise is None:  # of all of them, so that a sample gets the same noise
        noise_std = noise_factor * attribute_embedding_std(model, cases)
    cases = sampled(cases, max_cases, seed=seed)
    longest = max(cases, key=lambda case: len(case.stereotype.ids))
    if method == "exact" and run != "plain":
        try:
            require_room_at(
                model,
                f"traces of {n_samples} noise samples of {len(longest.stereotype.ids)} tokens",
                trace_bytes(model, longest, n_samples, len(layers), len(components)),
                'lower n_samples, name fewer components, run="plain", or load it in bfloat16',
            )
        except TracelabError as error:
            if run == "fast":
                raise
            warn(f"{error}; tracing the slow way, which needs less")
            run = "plain"
    draws = noise_draws(model, cases, noise, noise_std, n_samples, seed=seed)
    traced = TracedStates(layers, components, window)
    runner = BlockRunner(model) if run == "plain" else block_runner(model)
    tracer: Tracer
    if method == "attribution":
        tracer = partial(attribution_traces, ig_steps=ig_steps)
    elif run == "auto":
        same = _fast_is_exact(runner, longest, draws[longest.id], traced, positions)
        run = "fast" if same else "plain"
        if run == "plain":
            warn("caches cannot be shared on this model: tracing the slow way")
    if method == "exact":
        tracer = fast_traces if run == "fast" else plain_traces
    settings = run_settings(
        model,
        pairs,
        method=method,
        ig_steps=ig_steps,
        components=list(components),
        positions=positions,
        layers=layers,
        n_samples=n_samples,
        noise_std=noise_std,
        noise_hash=hash_of(draws),
        noise_factor=noise_factor,
        window=window,
        mentions=mentions,
        max_cases=max_cases,
        prepend_bos=model_facts(model).prepend_bos if prepend_bos is None else prepend_bos,
        te_floor=TE_FLOOR,
        run=run,
        seed=seed,
    )
    request = None if checkpoint is None else as_request(model, settings)
    with (
        open_entry(checkpoint, CASES, request) as entry,
        progress(total=len(cases), what="tracing", unit="pair") as bar,
    ):
        done = {line.pop("case"): line for line in entry.load_lines()}
        for case in cases:
            if case.id not in done:
                done[case.id] = _trace_case(runner, tracer, case, draws[case.id], traced, positions)
                entry.append({"case": case.id, **done[case.id]})
            bar.update()
    settings |= {"n_pairs": len(pairs), "n_traceable": n_traceable, "skipped": skipped}
    case_table, states = _tables(model, cases, done, layers)
    return CausalTrace(settings, effect_table(case_table, states, seed=seed), case_table, states)


def _trace_case(
    runner: BlockRunner,
    tracer: Tracer,
    case: Case,
    values: Float[Tensor, "samples noised d_model"],
    states: TracedStates,
    positions: str,
) -> dict[str, Any]:
    """Gaps of one case: clean (high), corrupted (low) and restored ``[column][layer]`` by
    component."""
    columns = restored_columns(case, positions)
    sentences = sentences_of(case, values, columns)
    traces = tracer(runner, sentences, case.first, states)

    def of_columns(side: int, component: str) -> Float[Tensor, "columns layers"]:
        where = sentences[side].positions
        rows = [where.index(case.columns[c][side]) for c in columns]
        return traces[side].restored[component][rows]

    restored = {c: (of_columns(0, c) - of_columns(1, c)).tolist() for c in states.components}
    stereo, anti = traces
    high, low = stereo.clean - anti.clean, stereo.corrupted - anti.corrupted
    if not np.isfinite(
        [high, low, *(gap for table in restored.values() for row in table for gap in row)]
    ).all():
        raise TracelabError(f"the log-probabilities of pair {case.id} are not finite: {CAUSE}")
    return {"high": high, "low": low, "columns": columns, "gap": restored}


def _tables(
    model: TransformerBridge,
    cases: Sequence[Case],
    done: dict[str, dict[str, Any]],
    layers: Sequence[int],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    case_rows, parts = [], []
    for case in cases:
        values = done[case.id]
        row: dict[str, Any] = {"case": case.id, "bias_type": case.bias_type, "target": case.target}
        row |= {"stereotype": case.stereotype.text, "anti_stereotype": case.anti_stereotype.text}
        row |= {"high": values["high"], "low": values["low"], "te": values["high"] - values["low"]}
        row["n_tokens"] = len(case.stereotype.ids) - 1  # all but the first have a log-probability
        row |= {"equal_length": case.equal_length, "first_token": case.first_token}
        case_rows.append(row)
        texts = _column_texts(model, case)
        for component, gaps in values["gap"].items():
            table = np.asarray(gaps)  # columns x layers
            column = np.repeat(values["columns"], table.shape[1])
            parts.append(
                pd.DataFrame(
                    {
                        "case": case.id,
                        "component": component,
                        "column": column,
                        "role": [case.roles[c] for c in column],
                        "token": [texts[c] for c in column],
                        "layer": np.tile(layers, len(table)),
                        "gap": table.ravel(),
                    }
                )
            )
    return pd.DataFrame(case_rows), pd.concat(parts, ignore_index=True)


def _column_texts(model: TransformerBridge, case: Case) -> list[str]:
    """A label a column; the filler's shows both sentences' tokens."""
    stereo = token_texts(model, case.stereotype.ids)
    anti = token_texts(model, case.anti_stereotype.ids)
    return [
        stereo[s] if role != "filler" else f"{stereo[s]} / {anti[a]}"
        for (s, a), role in zip(case.columns, case.roles, strict=True)
    ]


def _fast_is_exact(
    runner: BlockRunner,
    case: Case,
    values: Float[Tensor, "samples noised d_model"],
    states: TracedStates,
    positions: str,
) -> bool:
    """Whether a pair has the same scores both ways here, in the shapes of the real run.

    Several noise samples and layers make a batch of rows: some models (BLOOM, Falcon with ALiBi)
    put the number of rows into what they give their blocks. The longest sentence is beyond a
    sliding window if any is; the first and the last position that is restored are the longest and
    the shortest suffix that is run; and restored at the first of the layers, the sentence runs
    through all later ones, of whatever kind they are.
    """
    stereo, anti = sentences_of(case, values[:CHECKED_SAMPLES], restored_columns(case, positions))
    where = [p for p in stereo.positions if min(stereo.noise.positions) <= p < len(stereo.ids) - 1]
    layers = states.layers
    chosen = sorted({layers[0], layers[len(layers) // 2], layers[-1]})
    sentences = [
        replace(stereo, positions=sorted({where[0], where[-1]})),
        replace(anti, positions=where[:1]),  # the same up to the filler
    ]
    few = replace(states, layers=chosen)
    plain = plain_traces(runner, sentences, case.first, few)
    try:
        fast = fast_traces(runner, sentences, case.first, few)
    except Exception:  # whatever it is, the plain way has just been seen to work
        return False
    # Half-precision logits are themselves rounded to eighths of a nat.
    tolerance = 1e-3 if runner.model.cfg.dtype == torch.float32 else 0.5
    return all(
        torch.allclose(ours.restored[c], theirs.restored[c], atol=tolerance)
        for ours, theirs in zip(fast, plain, strict=True)
        for c in states.components
    )
