"""The figures of a report: each with its heading, how to read it, and what it shows in words for
those who do not see it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pandas as pd
import plotly.graph_objects as go

from tracelab.evaluate.scoreboard.scoreboard import Scoreboard
from tracelab.figures.localize import COMPONENT_NAMES, ROLE_NAMES
from tracelab.inspection.before_after import BeforeAfter
from tracelab.metrics import paper_name
from tracelab.report.moved import quantity, what_moved
from tracelab.report.parts import Parts

NARROW, BROAD = 0, 680
"""Pixels below which a figure is not drawn but scrolled: one panel fits any screen."""
_NAMED = 12


@dataclass(frozen=True)
class View:
    """A further figure of a section, folded until it is asked for.

    Attributes:
        name: of its files.
        summary: what is asked for.
        reading: how to read it.
        alt: what it shows, for those who do not see it.
    """

    name: str
    summary: str
    reading: str
    figure: go.Figure
    alt: str


@dataclass(frozen=True)
class Section:
    """A figure of the page.

    Attributes:
        name: of its files and of its place on the page.
        group: what it belongs to: "edits", "prompts" or "places".
        reading: two sentences on how to read it.
        alt: what it shows, for those who do not see it.
        least: narrowest width at which it can be read, in pixels.
        more: figures on request.
    """

    name: str
    group: str
    heading: str
    reading: str
    figure: go.Figure
    alt: str
    least: int = NARROW
    more: tuple[View, ...] = ()

    @property
    def views(self) -> list[Section | View]:
        """Its own figure and those on request."""
        return [self, *self.more]


def sections(parts: Parts) -> list[Section]:
    """The figures of a report, in the order of the page."""
    return _compared(parts) + _looked_at(parts) + _localised(parts)


def drawn(shown: list[Section]) -> dict[str, go.Figure]:
    """All figures by the names of their files."""
    return {each.name: each.figure for section in shown for each in section.views}


def _compared(parts: Parts) -> list[Section]:
    """What edits do to scores, if any was scored."""
    board = parts.scoreboard
    if board is None or not board.table["difference"].notna().any():
        return []
    made = [
        Section(
            "scoreboard",
            "edits",
            "Changes of scores",
            "Each line is an edit, each column a score; a point is the change from the unedited "
            "model on the same records, with its paired 95 % interval. Right of the line at 0 the "
            "score rose, left of it it fell; an interval across the line tells nothing of the "
            "direction.",
            board.plot(),
            _changes_in_words(board),
            BROAD,
            (
                View(
                    "scoreboard_levels",
                    "Levels instead of differences",
                    "Intervals here are of the scores themselves, which are wider than those of "
                    "their differences.",
                    board.plot("level"),
                    "Every score of the unedited model and under each edit; the numbers are in the "
                    "scoreboard.",
                ),
            ),
        )
    ]
    if board.has_tradeoff:
        made.append(
            Section(
                "tradeoff",
                "edits",
                "Bias against capability",
                "The unedited model is where both changes are 0. Towards the dotted line an edit "
                "lowers the bias, to the right it predicts neutral text worse: it is worth "
                "something if it moves the first way and not the second.",
                board.plot_tradeoff(),
                "A point for each edit, the unedited model at 0: change of perplexity across, "
                "change of a bias score up. The numbers are in the scoreboard.",
            )
        )
    return made


def _looked_at(parts: Parts) -> list[Section]:
    """What edits do on prompts, if any could be looked at."""
    seen = parts.before_after
    if seen is None:
        return []
    edits = list(seen.settings["edits"])
    moved = [] if parts.scoreboard is None else what_moved(parts.scoreboard)["edit"].unique()
    first = _of_edit(seen, next((edit for edit in moved if edit in edits), edits[0]))
    return [
        Section(
            f"before_after_{number}",
            "prompts",
            f"Next tokens after “{prompt}”",
            "The next tokens whose probability an edit changes most, for each edit: hollow before, "
            "filled after.",
            seen.plot("tokens", prompt=number),
            _tokens_in_words(seen.tokens[seen.tokens["prompt"] == number]),
            BROAD,
            _inside(first, number),
        )
        for number, prompt in enumerate(seen.settings["prompts"])
    ]


def _inside(seen: BeforeAfter, prompt: int) -> tuple[View, ...]:
    """Where in the model an edit acts on a prompt, and on which attention heads if it shows any.

    Args:
        seen: of one edit.
    """
    edit = paper_name(next(iter(seen.settings["edits"])))
    moves = seen.moves[seen.moves["prompt"] == prompt]
    told = moves[moves["resid_post"] > 0]
    if told.empty:
        return ()  # it acts on the logits, or not at all
    most = told.loc[told["resid_post"].idxmax()]
    found = [
        View(
            f"map_{prompt}",
            f"Where {edit} acts: every layer and token",
            "How far the edit moves the residual stream, and what MLP and attention add to it, "
            "relative to what they are without it; a change spreads to later layers and tokens.",
            seen.plot("map", prompt=prompt),
            "Layers against tokens. The residual stream changes most in layer "
            f"{most['layer']} at “{most['token']}”, by {most['resid_post']:.2g} of its norm.",
        )
    ]
    if f"before/{prompt}" in seen.heads:
        found.append(
            View(
                f"heads_{prompt}",
                f"What attention heads look at under {edit}: before, after, change",
                "The layer whose heads moved most, three maps a head. That attention changes shows "
                "where an edit is felt, not that attention was the cause of a stereotype.",
                seen.plot("heads", prompt=prompt),
                "Maps of attention, three a head: before, after, and the change.",
            )
        )
    return tuple(found)


def _of_edit(seen: BeforeAfter, edit: str) -> BeforeAfter:
    """What was seen of one edit."""
    number = list(seen.settings["edits"]).index(edit)
    after, alone = f"after/{number}/", "after/0/"
    heads = {
        name.replace(after, alone): maps
        for name, maps in seen.heads.items()
        if name.startswith(("before/", after))
    }
    settings = seen.settings | {"edits": {edit: seen.settings["edits"][edit]}}
    tables = {name: table[table["edit"] == edit] for name, table in seen.tables().items()}
    return replace(seen, settings=settings, heads=heads, **tables)


def _localised(parts: Parts) -> list[Section]:
    best = best_layer(parts)
    attention = {name: parts.attention.value(name)["value"] for name in ("hit_rate", "chance")}
    return [
        Section(
            "f1_per_layer",
            "places",
            "Where it can be read",
            "A prober at each layer guesses, from the MLP output at the last prompt token, which "
            "social group the model is about to name; it is tested on concepts and templates it "
            "was not trained on. A layer tells something where the blue band lies above the grey "
            "control with shuffled labels; that a group can be read there does not show that the "
            "model uses it.",
            parts.probes.plot(),
            f"Macro-F1 of a prober by layer. It is highest in layer {best['layer']}, with "
            f"{best['f1']:.2f}; the control with shuffled labels has {best['f1_control']:.2f} "
            "there.",
        ),
        Section(
            "trace_average",
            "places",
            "Where it acts",
            "Noise on the words that name the group (the attribute words) changes how much the "
            "model prefers the stereotype; each cell is the share of that change that comes back "
            "when one state is put back to its clean value (NIE, normalised indirect effect). The "
            "filler is the word in which the two sentences of a pair differ. Follow where along "
            "the layers each row is dark, and compare cells within a panel only: a window of MLP "
            "or attention restores several layers, a state of the residual stream one.",
            parts.trace.plot(),
            _peaks_in_words(parts),
            BROAD,
        ),
        Section(
            "trace_example",
            "places",
            "The same on one pair",
            "The traced pair with the largest total effect, token by token: colour is how far "
            "restoring that token's residual stream after that block moves the gap, towards the "
            "stereotype (orange) or away (purple). The filler's row names both sentences' tokens; "
            "one pair is an illustration, not evidence.",
            parts.example.plot_example(),
            f"The pair is “{parts.example.cases['stereotype'].iloc[0]}” against “"
            f"{parts.example.cases['anti_stereotype'].iloc[0]}”: layers across, tokens down.",
            BROAD,
        ),
        Section(
            "attention_gap",
            "places",
            "Where attention differs",
            "For every pair of sentences, the attention that a position receives is compared "
            "between the two; a point is a pair. Attention must change where a word changes, so "
            "the number to look at is how often the largest gap lies on the differing word (the "
            "hit rate) compared with swapping a neutral word.",
            parts.attention.plot(),
            f"The largest gap lies on a differing word in {attention['hit_rate']:.0f} % of pairs; "
            f"by chance it would in {attention['chance']:.0f} %.",
        ),
        Section(
            "attention_pair",
            "places",
            "Attention of one pair",
            "Each row shows where one token attends, in the stereotype, in the anti-stereotype, "
            "and their difference; tokens in which the sentences differ are bold. The scale of the "
            "first two ends at the 99th percentile of attention to tokens other than the first, "
            "which takes most of it.",
            parts.attention.plot_pair(),
            "Three maps of one pair of sentences, query tokens down, key tokens across: attention "
            "in the stereotype, in the anti-stereotype, and the difference. The numbers are in the "
            "table attention_maps.",
            BROAD,
        ),
    ]


def best_layer(parts: Parts) -> pd.Series:
    """The row of the layer whose prober is best; of equal ones the lowest."""
    return parts.probes.layers.sort_values(["f1", "layer"], ascending=[False, True]).iloc[0]


def _changes_in_words(board: Scoreboard) -> str:
    """Which changes can be told from 0."""
    changed = board.table[board.table["difference"].notna()]
    told = changed[(changed["difference_low"] > 0) | (changed["difference_high"] < 0)]
    if told.empty:
        return f"{len(changed)} changes, none of which can be told from 0."
    named = [
        f"{paper_name(row['edit'])}: {quantity(row, board.settings['bias'])} "
        f"{row['difference']:+.3g}"
        for row in told.head(_NAMED).to_dict("records")
    ]
    more = f", and {len(told) - _NAMED} more" if len(told) > _NAMED else ""
    return (
        f"{len(changed)} changes, of which {len(told)} have an interval without 0: "
        f"{'; '.join(named)}{more}."
    )


def _tokens_in_words(tokens: pd.DataFrame) -> str:
    """Of each edit the token that gained and the one that lost most."""
    said = []
    for edit, rows in tokens.groupby("edit", sort=False):
        change = rows["p_after"] - rows["p_before"]
        if not change.any():
            said.append(f"{paper_name(str(edit))} changes nothing")
            continue
        ends = [rows.loc[change.idxmax()], rows.loc[change.idxmin()]]
        pairs = [f"“{row['token']}” {row['p_before']:.2g} → {row['p_after']:.2g}" for row in ends]
        said.append(f"{paper_name(str(edit))}: {', '.join(pairs)}")
    return f"Probabilities before and after. {'; '.join(said)}."


def _peaks_in_words(parts: Parts) -> str:
    effects = parts.trace.effects
    found = dict.fromkeys(effects.loc[effects["nie"].notna(), "component"])
    if not found:
        return "Noise moved no pair far enough for shares to be computed: the panels are empty."
    peaks = [parts.trace.peak(component) for component in found]
    said = (
        f"{COMPONENT_NAMES[peak['component']]}: largest share {peak['nie']:.2f} in layer "
        f"{peak['layer']} at {ROLE_NAMES[peak['role']]}"
        for peak in peaks
    )
    return f"Share that comes back by layer and role of the token. {'; '.join(said)}."
