"""An attention gap measured in pieces: parts of the pairs, each by itself, joined."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from tracelab.localize.attention.attention_gap import KEEP_MAPS, AttentionGap, summarise


def joined_gaps(parts: Sequence[AttentionGap], *, keep_maps: int = KEEP_MAPS) -> AttentionGap:
    """The gap over the pairs of all parts, in their order.

    The words of the neutral swaps are those that each part drew for itself.

    Args:
        keep_maps: of so many pairs maps are kept, as one call would.
    """
    settings = dict(parts[0].settings)
    for name in ("n_pairs", "n_equal", "n_aligned", "n_unusable"):
        settings[name] = sum(part.settings[name] for part in parts)
    pairs, positions, maps = (
        pd.concat([getattr(part, name) for part in parts], ignore_index=True)
        for name in ("pairs", "positions", "maps")
    )
    summary = summarise(pairs, n_unusable=settings["n_unusable"], seed=settings["seed"])
    own = pairs[pairs["selection"].isin(["equal", "aligned"])]
    first = own.sort_values("selection", key=lambda names: names != "equal", kind="stable")
    kept = [maps[maps["pair"] == pair] for pair in first["pair"].head(keep_maps)]
    chosen = pd.concat(kept, ignore_index=True) if kept else maps.head(0)
    return AttentionGap(settings, summary, pairs, positions, chosen)
