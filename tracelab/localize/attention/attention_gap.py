"""Where does attention differ between a stereotype and its opposite? (KLAAD's motivating analysis)

For a pair with attention maps ``A_s`` and ``A_a`` (one layer, mean over heads), one number a
position:

| reduce | gap of position j |
|---|---|
| ``received`` (default) | ``| mean_i A_s[i,j] − mean_i A_a[i,j] |``: difference of the attention received |
| ``received_abs`` | ``mean_i |A_s[i,j] − A_a[i,j]|`` |
| ``paid`` | ``mean_k |A_s[j,k] − A_a[j,k]|``: difference of how the position attends |
| ``both`` | mean of ``received_abs`` and ``paid`` |
| ``last`` | ``|A_s[T,j] − A_a[T,j]|``: of the last token's attention |

Means run over all T rows or columns, masked zeros included, which gives the published scale.
*Sensitive* positions hold different tokens in the two sentences. A *hit* is a pair whose largest
gap lies on a sensitive position; chance is the share of sensitive positions (KLAAD, arXiv
2507.19962, Figure 1; the paper does not state its reduction, and "received" comes nearest to its
hit rate).

Attention must change where the input changes, so any swapped word beats chance. The control the
paper lacks: in each pair with one differing token, a *neutral* word nearby is swapped for another
instead, and hits are counted the same way. What the stereotype adds is the difference, ``excess``.

Pairs whose sentences differ in token count are aligned (:mod:`.alignment`) and reported under
``aligned``, apart from ``equal``, the paper's selection. A pair that differs in nothing else than
tokens which only one sentence has is without a sensitive position; the summary counts these under
``unusable``.
"""  # noqa: E501

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Bool, Float
from scipy.stats import ttest_rel
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tracelab.datasets.own import as_pairs
from tracelab.datasets.records import say_unusable
from tracelab.errors import TracelabError, require_choice
from tracelab.figures import attention_maps, gap_distributions
from tracelab.gradients import measuring
from tracelab.localize.attention.alignment import Alignment
from tracelab.localize.attention.neutral_swap import NeutralSwap, neutral_swaps
from tracelab.model.finite import CAUSE
from tracelab.model.load import model_facts, require_hook
from tracelab.model.memory import Sizes, require_room_for_passes
from tracelab.model.settings import run_settings
from tracelab.model.tokens import (
    encode,
    length_batches,
    pad,
    require_context,
)
from tracelab.progress import progress
from tracelab.ranges import INT_MOST, require_int, require_seed
from tracelab.results import Result, bias_types
from tracelab.statistics import mean_interval

REDUCTIONS = ("received", "received_abs", "paid", "both", "last")
CONTROLS = ("neutral", "none")
KEEP_MAPS = 8


@dataclass(frozen=True)
class AttentionGap(Result):
    """Gap on sensitive and on other positions, against chance and against the neutral swap.

    Attributes:
        summary: one row a (selection, metric): ``value, low, high, n``. Selections: ``equal``
            (equal token counts), ``aligned`` (the others), ``control_real`` and ``control_neutral``
            (pairs with one differing token: the pair itself, and a neutral word swapped),
            ``excess`` (the paired difference of the two hit rates), ``unusable`` (pairs without a
            sensitive position, counted). Metrics: ``hit_rate`` and ``chance`` in percent;
            ``sensitive`` and ``other`` (mean gap) with ``_sd``; ``t``, ``dof`` and ``p`` of the
            paired t-test over pairs.
        pairs: one row a (pair, selection): ``hit, chance, sensitive, other, n_positions``.
        positions: one row a (pair, position) of the pairs themselves: ``token_stereotype,
            token_anti_stereotype, sensitive, gap``.
        maps: one row a (pair, query, key) of the kept pairs: ``stereotype, anti_stereotype``
            attention.
    """

    summary: pd.DataFrame
    pairs: pd.DataFrame
    positions: pd.DataFrame
    maps: pd.DataFrame

    @property
    def frame(self) -> pd.DataFrame:
        """The summary table."""
        return self.summary

    def headline(self) -> str:
        """How often the largest gap lies on a differing word, and how often by chance."""
        hit, chance = self.value("hit_rate"), self.value("chance")
        return (
            f"{bias_types(self.pairs)}, n = {int(hit['n'])} pairs, "
            f"hit rate {hit['value']:.1f} % (chance {chance['value']:.1f} %)"
        )

    @property
    def selection(self) -> str:
        """The selection to quote: ``equal``, or ``aligned`` where no pair has equal token
        counts."""
        return "equal" if (self.pairs["selection"] == "equal").any() else "aligned"

    def value(self, metric: str, selection: str | None = None) -> pd.Series:
        """One row of the summary, by default of the selection to quote."""
        selection = selection or self.selection
        rows = self.summary.query("metric == @metric and selection == @selection")
        if rows.empty:
            raise TracelabError(f"no {metric!r} for the selection {selection!r}")
        return rows.iloc[0]

    def plot(self) -> go.Figure:
        """The distributions of the gap on sensitive and on other positions."""
        return gap_distributions(self.pairs, self.summary, self.settings, selection=self.selection)

    def plot_pair(
        self, pair: str | None = None, *, after: AttentionGap | None = None, edit: str = ""
    ) -> go.Figure:
        """Attention maps of a kept pair (default: the first): stereotype, anti-stereotype,
        difference; with ``after`` each of them before and under an edit, and the change.

        Args:
            after: the same measurement under an edit.
            edit: what to call it.

        Raises:
            TracelabError: no map of this pair was kept.
        """
        known = list(dict.fromkeys(self.maps["pair"]))
        if after is not None:
            kept = set(after.maps["pair"])
            known = [name for name in known if name in kept]
        pair = known[0] if pair is None and known else pair
        if pair not in known:
            raise TracelabError(
                f"no attention map of pair {pair!r} was kept: choose one of {known}"
            )
        maps, positions = (table[table["pair"] == pair] for table in (self.maps, self.positions))
        then = None if after is None else after.maps[after.maps["pair"] == pair]
        return attention_maps(maps, positions, self.settings, after=then, edit=edit)


def attention_gap(
    model: TransformerBridge,
    pairs: Iterable[Any],
    *,
    layer: int = -1,
    heads: str | Sequence[int] = "mean",
    reduce: str = "received",
    control: str = "neutral",
    keep_maps: int = KEEP_MAPS,
    prepend_bos: bool = True,
    batch_tokens: int = 1024,
    seed: int = 0,
) -> AttentionGap:
    """Measure the attention gap over pairs.

    Args:
        pairs: :class:`~tracelab.datasets.Pair`, or records with a ``pair()`` (StereoSet,
            CrowS-Pairs).
        layer: whose attention; negative counts from the last.
        heads: ``"mean"`` over all heads, or the heads to average.
        reduce: from a map to one gap a position; see the module's table.
        control: ``"neutral"`` also runs the neutral swap, ``"none"`` does not.
        keep_maps: of so many pairs (of equal length first) the maps are kept for figures.
        prepend_bos: whether BOS comes first. The published chance rate fits BOS counted as a
            position, so it is on by default, whatever the model's tokenizer does.
        seed: of the control's words and the bootstrap.

    Raises:
        TracelabError: unknown option, layer or head out of range, no pair with a differing token,
            one beyond the model's context, or attention that is not finite.
    """
    require_seed(seed)
    require_choice("reduction", reduce, REDUCTIONS)
    require_choice("control", control, CONTROLS)
    require_int("keep_maps", keep_maps, 0)
    require_int("batch_tokens", batch_tokens)
    info = model_facts(model)
    if not -info.n_layers <= require_int("layer", layer, -INT_MOST) < info.n_layers:
        raise TracelabError(
            f"layer {layer} is out of range: {info.model_id} has layers 0 to {info.n_layers - 1}"
        )
    layer = layer + info.n_layers if layer < 0 else layer
    name = require_hook(model, "pattern", layer)
    chosen_heads = _check_heads(heads, model.cfg.n_heads)
    records = as_pairs(pairs)
    encoded = [
        (
            encode(model, pair.stereotype, prepend_bos=prepend_bos),
            encode(model, pair.anti_stereotype, prepend_bos=prepend_bos),
        )
        for pair in records
    ]
    require_context(
        model, (max(len(first.ids), len(second.ids)) for first, second in encoded), what="pair"
    )
    aligned = [Alignment.of(*pair) for pair in encoded]
    usable = [i for i, a in enumerate(aligned) if a.sensitive.any() and not a.sensitive.all()]
    if not usable:
        raise TracelabError(f"none of {len(records)} pairs has both equal and differing tokens")
    lost = ["every token differs, or none"] * (len(records) - len(usable))
    say_unusable("pairs", lost, len(records), "have no sensitive position and are left out")
    swaps: dict[int, NeutralSwap] = {}
    if control == "neutral":
        swaps = neutral_swaps(model, [(i, *encoded[i]) for i in usable], seed=seed)
    sequences = [ids for i in usable for ids in (encoded[i][0].ids, encoded[i][1].ids)]
    sequences += [swap.ids for swap in swaps.values()]
    patterns = attention_patterns(model, sequences, name, chosen_heads, batch_tokens=batch_tokens)
    gap_rows: list[dict[str, Any]] = []
    position_parts, map_parts = [], {}
    keep = sorted(usable, key=lambda i: not aligned[i].equal)[:keep_maps]
    neutral_patterns = dict(zip(swaps, patterns[2 * len(usable) :], strict=True))
    for order, i in enumerate(usable):
        alignment, record = aligned[i], records[i]
        stereo, anti = patterns[2 * order], patterns[2 * order + 1]
        a, b = alignment.restrict(stereo, 0), alignment.restrict(anti, 1)
        gap = reduce_gap(a, b, reduce)
        selection = "equal" if alignment.equal else "aligned"
        row = {"pair": record.id, "bias_type": record.bias_type}
        real = _pair_row(gap, alignment.sensitive)
        gap_rows.append(row | {"selection": selection} | real)
        if i in swaps:
            swapped = reduce_gap(stereo, neutral_patterns[i], reduce)
            mask = np.zeros(len(swapped), dtype=bool)
            mask[swaps[i].position] = True
            gap_rows.append(row | {"selection": "control_real"} | real)
            gap_rows.append(row | {"selection": "control_neutral"} | _pair_row(swapped, mask))
        texts = [alignment.texts(model, encoded[i][side], side) for side in (0, 1)]
        position_parts.append(
            pd.DataFrame(
                {
                    "pair": record.id,
                    "selection": selection,
                    "position": range(len(gap)),
                    "token_stereotype": texts[0],
                    "token_anti_stereotype": texts[1],
                    "sensitive": alignment.sensitive,
                    "gap": gap,
                }
            )
        )
        if i in keep:
            map_parts[i] = _map_table(record.id, a, b)
    table = pd.DataFrame(gap_rows)
    empty = pd.DataFrame(columns=["pair", "query", "key", "stereotype", "anti_stereotype"])
    settings = run_settings(
        model,
        records,
        layer=layer,
        heads=heads if isinstance(heads, str) else list(heads),
        reduce=reduce,
        control=control,
        prepend_bos=prepend_bos,
        seed=seed,
        n_pairs=len(records),
        n_equal=sum(aligned[i].equal for i in usable),
        n_aligned=sum(not aligned[i].equal for i in usable),
        n_unusable=len(records) - len(usable),
    )
    return AttentionGap(
        settings,
        summarise(table, n_unusable=len(records) - len(usable), seed=seed),
        table,
        pd.concat(position_parts, ignore_index=True),
        pd.concat([map_parts[i] for i in keep], ignore_index=True) if keep else empty,
    )


@measuring()
def attention_patterns(
    model: TransformerBridge,
    sequences: Sequence[Sequence[int]],
    hook: str,
    heads: list[int] | None,
    *,
    batch_tokens: int = 1024,
) -> list[Float[np.ndarray, "_query _key"]]:
    """The attention map (mean over ``heads``, None: all) of each sequence at one hook point, in
    fp32.

    Raises:
        TracelabError: a map that is not finite.
    """
    results: list[np.ndarray] = [np.empty((0, 0))] * len(sequences)
    seen: dict[str, Tensor] = {}

    def keep(pattern: Float[Tensor, "batch head query key"], hook: object) -> None:
        pattern = pattern if heads is None else pattern[:, heads]
        seen["pattern"] = pattern.float().mean(dim=1)

    stop = int(hook.split(".")[1]) + 1  # later blocks do not matter
    stop_at = stop if stop < model_facts(model).n_layers else None
    lengths = [len(ids) for ids in sequences]
    require_room_for_passes(model, lengths, batch_tokens, Sizes.block)
    with progress(total=len(sequences), what="attention") as bar:
        for batch in length_batches(lengths, batch_tokens, equal=True):
            tokens, _ = pad(model, [sequences[i] for i in batch])
            model.run_with_hooks(tokens, fwd_hooks=[(hook, keep)], stop_at_layer=stop_at)
            for row, i in enumerate(batch):
                results[i] = seen["pattern"][row].cpu().numpy()
                if not np.isfinite(results[i]).all():
                    raise TracelabError(
                        f"the attention at {hook} in sentence {i} is not finite: {CAUSE}"
                    )
            bar.update(len(batch))
    return results


def reduce_gap(
    first: Float[np.ndarray, "pos pos"], second: Float[np.ndarray, "pos pos"], reduce: str
) -> Float[np.ndarray, "pos"]:
    """One gap a position from two maps ``[query, key]`` of equal shape; see the module's table."""
    difference = np.abs(first - second)
    received_abs, paid = difference.mean(axis=0), difference.mean(axis=1)
    choices = {
        "received": np.abs(first.mean(axis=0) - second.mean(axis=0)),
        "received_abs": received_abs,
        "paid": paid,
        "both": (received_abs + paid) / 2,
        "last": difference[-1],
    }
    return choices[reduce]


def summarise(pairs: pd.DataFrame, *, n_unusable: int = 0, seed: int = 0) -> pd.DataFrame:
    """The summary of :class:`AttentionGap` from its ``pairs`` table."""
    rows: list[dict[str, Any]] = []

    def add(selection: str, metric: str, values: Any, scale: float = 1.0) -> None:
        values = scale * np.asarray(values, dtype=float)
        low, high = mean_interval(values, seed=seed)
        row = {"selection": selection, "metric": metric, "value": float(values.mean())}
        rows.append(row | {"low": low, "high": high, "n": len(values)})

    for selection, part in pairs.groupby("selection", sort=False):
        name = str(selection)
        add(name, "hit_rate", part["hit"], 100.0)
        add(name, "chance", part["chance"], 100.0)
        for column in ("sensitive", "other"):
            add(name, column, part[column])
            rows.append({**rows[-1], "metric": f"{column}_sd", "value": part[column].std()})
            rows[-1] |= {"low": math.nan, "high": math.nan}
        if len(part) > 1:
            test = ttest_rel(part["sensitive"], part["other"])
            for metric, value in (("t", test.statistic), ("dof", test.df), ("p", test.pvalue)):
                row = {"selection": name, "metric": metric, "value": float(value)}
                rows.append(row | {"low": math.nan, "high": math.nan, "n": len(part)})
    hits = pairs.pivot_table(index="pair", columns="selection", values="hit", aggfunc="first")
    if {"control_real", "control_neutral"} <= set(hits.columns):
        both = hits[["control_real", "control_neutral"]].dropna().astype(float)
        add("excess", "hit_rate", both["control_real"] - both["control_neutral"], 100.0)
    missing = {"low": math.nan, "high": math.nan, "n": n_unusable}
    rows.append({"selection": "unusable", "metric": "pairs", "value": float(n_unusable), **missing})
    return pd.DataFrame(rows)


def _pair_row(gap: Float[np.ndarray, "pos"], sensitive: Bool[np.ndarray, "pos"]) -> dict[str, Any]:
    return {
        "hit": bool(sensitive[gap.argmax()]),
        "chance": float(sensitive.mean()),
        "sensitive": float(gap[sensitive].mean()),
        "other": float(gap[~sensitive].mean()),
        "n_positions": len(gap),
    }


def _map_table(
    pair: str, first: Float[np.ndarray, "pos pos"], second: Float[np.ndarray, "pos pos"]
) -> pd.DataFrame:
    query, key = np.indices(first.shape)
    columns = {"query": query.ravel(), "key": key.ravel()}
    columns |= {"stereotype": first.ravel(), "anti_stereotype": second.ravel()}
    return pd.DataFrame({"pair": pair, **columns})


def _check_heads(heads: str | Sequence[int], n_heads: int) -> list[int] | None:
    if isinstance(heads, str):
        require_choice("heads", heads, ("mean",))
        return None
    chosen = list(heads)
    if not chosen or not all(
        0 <= require_int("a head", head, -INT_MOST) < n_heads for head in chosen
    ):
        raise TracelabError(
            f"heads {chosen} are out of range: the model has heads 0 to {n_heads - 1}"
        )
    return chosen
