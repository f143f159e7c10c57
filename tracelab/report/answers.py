"""What a report found, in words: the title's question in two sentences, and at most eight numbers.

Every sentence is made from the parts and says less where they do: an interval that holds 0 is never
told as an effect, one unit has no interval, and what was not measured is not mentioned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup

from tracelab.figures.localize import ROLE_NAMES
from tracelab.metrics import paper_name
from tracelab.report.moved import away, relative, sentences, what_moved
from tracelab.report.parts import Parts
from tracelab.report.sections import best_layer

_STATES = {
    "mlp": "the outputs of the MLPs",
    "attn": "the outputs of attention",
    "resid": "the residual stream",
}
_PUT_BACK = {
    "mlp": "window of MLPs or attention layers",
    "attn": "window of MLPs or attention layers",
    "resid": "state of the residual stream",
}
"""What an effect is the largest of."""
_AT = {
    "attribute": "the words that name the group",
    "before_filler": "the token before the word in which the sentences differ",
    "filler": "the word in which the sentences differ",
    "after_filler": "the words after the one in which the sentences differ",
    "other": "other words",
}
"""Roles as a sentence says them; figures have :data:`~tracelab.figures.localize.ROLE_NAMES`."""

_NOT_TOLD = ", which cannot be told from 0"


@dataclass(frozen=True)
class Answer:
    """A row of the headline: what is asked, what was found, and what the number is."""

    question: str
    found: str
    meaning: Markup


def lead(parts: Parts) -> tuple[str, str]:
    """Where the stereotypes are, and how uncertain that is; one sentence each."""
    return f"{_acts(parts)}; {_reads(parts)}.", _uncertain(parts)


def what_edits_did(parts: Parts) -> str:
    """How many edits moved a bias score, and by how much the first of them; a sentence or two."""
    if parts.scoreboard is None:
        return "No edit was tried."
    moved = what_moved(parts.scoreboard)
    n_edits = len(parts.scoreboard.settings["edits"])
    tried = f"{n_edits} edits" if n_edits > 1 else "one edit"
    if moved[moved["role"] == "bias"].empty:
        return f"Of {tried} none could be scored for bias; the scoreboard says why."
    told = moved.loc[moved["moved"] & (moved["role"] == "bias"), "edit"].unique()
    if not len(told):
        return (
            f"Of {tried} none moved a bias score so far that it can be told from 0, which does not "
            "show that they do nothing."
        )
    number = "one" if len(told) == 1 else str(len(told))
    held = bool((moved.loc[moved["role"] == "bias", "p_holm"] < 0.05).any())
    corrected = "" if held else ", though none so far that it holds after Holm's correction"
    return (
        f"Of {tried} {number} moved a bias score (the paired 95 % interval excludes 0{corrected}). "
        f"The furthest: {sentences(moved)[0]}"
    )


def answers(parts: Parts) -> list[Answer]:
    """The headline, at most eight rows."""
    scores = parts.stereoset.table.set_index("metric")
    made = [
        Answer(
            "How often does it prefer the stereotype?",
            f"In {_percent(scores.loc['ss'])} of StereoSet's records; "
            f"{_against_even(scores.loc['ss'])}",
            Markup(
                "<dfn>SS</dfn>, stereotype score: share of records in which the stereotype is "
                "likelier than the anti-stereotype, as a mean over target terms; 50 % is even."
            ),
        )
    ]
    if "gap_group" in scores.index:
        gap = scores.loc["gap_group"]
        meaning = Markup(
            "<dfn>Group-dependent gap</dfn>: by how much the stereotype gains when the text names "
            "the group it is told of rather than the other, in <dfn>nats</dfn> (units of the "
            "natural logarithm of a probability) a token; 0 is unbiased."
        )
        asked = "How much of that depends on the group named?"
    else:
        gap = scores.loc["gap"]
        meaning = Markup(
            "<dfn>Stereotype gap</dfn>: log-probability of the stereotype less that of the "
            "anti-stereotype, in <dfn>nats</dfn> (units of the natural logarithm) a token. Part "
            "of it is that one of two words is commoner, whatever group is named."
        )
        asked = "By how much is the stereotype likelier?"
    made.append(Answer(asked, f"{_plain(gap)} nats a token{_unless_told(gap, _NOT_TOLD)}", meaning))
    if parts.crows is not None:
        row = parts.crows.table.set_index("metric").loc["crows_sum"]
        made.append(
            Answer(
                "And on other sentences?",
                f"In {_percent(row)} of CrowS-Pairs' pairs; {_against_even(row)}",
                Markup(
                    "<dfn>CrowS-Pairs</dfn>: share of pairs in which the sentence that "
                    "stereotypes is likelier, by summed log-probability; 50 % is even."
                ),
            )
        )
    made.append(
        Answer(
            "Does it know the language?",
            f"It prefers sense in {_percent(scores.loc['lms'])} of comparisons",
            Markup(
                "<dfn>LMS</dfn>, language modelling score: share of StereoSet's comparisons in "
                "which a sentence that makes sense is likelier than one that does not; 100 % is "
                "perfect, 50 % is chance."
            ),
        )
    )
    return [*made, *_places(parts), *_edit(parts)]


def _places(parts: Parts) -> list[Answer]:
    best = best_layer(parts)
    control = {key: best[f"control_{key}"] for key in ("low", "high")}
    hit, chance = (parts.attention.value(name) for name in ("hit_rate", "chance"))
    found = f"In {_percent(hit)} of pairs on a differing word; by chance {chance['value']:.0f} %"
    if "excess" in set(parts.attention.summary["selection"]):
        excess = parts.attention.value("hit_rate", "excess")
        bounds = f"{excess['low']:+.0f} to {excess['high']:+.0f}"
        found += f". Against a swapped neutral word: {excess['value']:+.0f} points ({bounds})"
        found += _unless_told(excess, _NOT_TOLD)
    return [
        Answer(
            "Where can the group be read?",
            f"Best in layer {best['layer']}: F1 {_plain(best, 'f1')}; with shuffled labels "
            f"{_plain({'value': best['f1_control'], **control})}"
            f"{_unless_told(_selectivity(best), '. The difference cannot be told from 0')}",
            Markup(
                "<dfn>F1</dfn> of a small classifier (a prober) that guesses from the MLP's output "
                "which group the model is about to name: 1 is always right. With shuffled labels "
                "it can only learn by heart."
            ),
        ),
        Answer(
            "Where does the stereotype act?",
            _largest_effect(parts),
            Markup(
                "<dfn>NIE</dfn>, normalised indirect effect: noise on the <dfn>attribute "
                "words</dfn> (those that name the group) changes how much the stereotype is "
                "preferred; NIE is the share of that change which comes back when a state is put "
                "back to its clean value. The <dfn>filler</dfn> is the word in which the two "
                "sentences of a pair differ."
            ),
        ),
        Answer(
            "Where does attention differ most?",
            found,
            Markup(
                "<dfn>Hit rate</dfn>: share of pairs of sentences in which the attention that a "
                "token receives differs most on a word in which they differ. Attention changes "
                "under any swapped word, so the neutral word is the comparison."
            ),
        ),
    ]


def _edit(parts: Parts) -> list[Answer]:
    """What the first edit did, if one was scored."""
    if parts.scoreboard is None:
        return []
    moved = what_moved(parts.scoreboard)
    if moved[moved["role"] == "bias"].empty:
        found = "Not to be told: none could be scored for bias, the scoreboard says why"
        return [Answer("Which edit moves it?", found, _PERPLEXITY)]
    told = moved[moved["moved"] & (moved["role"] == "bias")]
    if told.empty:
        found = "None of those tried: no change of a bias score can be told from 0"
        return [Answer("Which edit moves it?", found, _PERPLEXITY)]
    edit = told["edit"].iloc[0]
    rows = told[told["edit"] == edit]
    change = "; ".join(
        f"{row['quantity']} {row['before']:.3g} → {row['after']:.3g}{away(row)}"
        for row in rows.to_dict("records")
    )
    cost = moved[(moved["edit"] == edit) & (moved["metric"] == "perplexity")]
    price = "".join(
        f". Perplexity {relative(row)}" + ("" if row["moved"] else ", which may be chance")
        for row in cost.to_dict("records")
    )
    return [
        Answer("Which edit moves it furthest?", f"{paper_name(edit)}: {change}{price}", _PERPLEXITY)
    ]


_PERPLEXITY = Markup(
    "Change of bias scores on the same records before and after. <dfn>Perplexity</dfn>: how badly "
    "the model predicts neutral text; lower is better, so a rise is the cost of an edit."
)


def _peak(parts: Parts) -> pd.Series | None:
    """The largest effect of a module, or of the residual stream where none was traced; None if
    noise moved nothing."""
    effects = parts.trace.effects
    found = set(effects.loc[effects["nie"].notna(), "component"])
    of_modules = [
        parts.trace.peak(component) for component in ("mlp", "attn") if component in found
    ]
    if of_modules:
        return max(of_modules, key=lambda peak: float(peak["nie"]))
    return parts.trace.peak("resid") if "resid" in found else None


def _where(parts: Parts, peak: pd.Series) -> str:
    """``the outputs of the MLPs of 10 layers around layer 4``."""
    return f"{_STATES[peak['component']]} {_around(parts, peak)}"


def _around(parts: Parts, peak: pd.Series) -> str:
    window = parts.trace.settings["window"]
    several = peak["component"] != "resid" and window > 1
    return f"{f'of {window} layers around' if several else 'in'} layer {peak['layer']}"


def _acts(parts: Parts) -> str:
    peak = _peak(parts)
    if peak is None:
        return (
            "Tracing tells no place, because noise on the words that name the group moved the "
            f"preference in none of {len(parts.trace.cases)} pairs"
        )
    undone = (
        f"of what noise on the words that name the group does, {_share(peak)} is undone by putting "
        f"back {_where(parts, peak)}, at {_AT[peak['role']]}: more than by any other "
        f"{_PUT_BACK[peak['component']]}"
    )
    if peak["nie_low"] > 0:
        return undone[0].upper() + undone[1:]
    return f"Tracing tells no place for sure: {undone}"


def _reads(parts: Parts) -> str:
    best = best_layer(parts)
    numbers = (
        f"layer {best['layer']}: F1 {best['f1']:.2f}, against {best['f1_control']:.2f} with "
        "shuffled labels"
    )
    if best["selectivity_low"] > 0:
        return f"the group that the model is about to name can be read best in {numbers}"
    return (
        "the group that the model is about to name can be read in no layer for sure (best in "
        f"{numbers})"
    )


def _uncertain(parts: Parts) -> str:
    scores = parts.stereoset.table.set_index("metric")
    gap = scores.loc["gap_group" if "gap_group" in scores.index else "gap"]
    biased = _unless_told(gap, f"whether it is biased at all (StereoSet's gap is {_plain(gap)}), ")
    n = len(parts.trace.cases)
    traced = "one pair was traced" if n == 1 else f"{n} pairs were traced"
    return (
        f"Uncertain is {biased}how far this holds ({traced}, and the best of many layers looks "
        "better than it is), and what it means: that a state carries the information does not "
        "show that the stereotype is stored there."
    )


def _largest_effect(parts: Parts) -> str:
    peak = _peak(parts)
    if peak is None:
        return "Not to be told: noise moved no pair by enough"
    state = _STATES[peak["component"]].removeprefix("the ")
    return (
        f"{state[0].upper()}{state[1:]} {_around(parts, peak)} "
        f"({ROLE_NAMES[peak['role']]}): NIE {_plain(peak, 'nie')}"
        f"{_unless_told({'low': peak['nie_low'], 'high': peak['nie_high']}, _NOT_TOLD)}"
    )


def _share(peak: pd.Series) -> str:
    """``73 % (95 % interval 46 to 91 %)``."""
    low, high = peak["nie_low"], peak["nie_high"]
    interval = (
        "no interval" if low != low else f"95 % interval {100 * low:.0f} to {100 * high:.0f} %"
    )
    return f"{100 * peak['nie']:.0f} % ({interval})"


def _selectivity(best: pd.Series) -> dict[str, Any]:
    return {"low": best["selectivity_low"], "high": best["selectivity_high"]}


def _percent(row: pd.Series) -> str:
    low, high = row["low"], row["high"]
    interval = "no interval" if low != low else f"{low:.0f} to {high:.0f}"
    return f"{row['value']:.0f} % ({interval})"


def _plain(row: pd.Series | dict[str, Any], name: str = "value") -> str:
    """A number with its interval; of a column ``nie`` the bounds are ``nie_low`` and
    ``nie_high``."""
    own = f"{name}_low" in row
    low, high = (row[f"{name}_{end}" if own else end] for end in ("low", "high"))
    interval = "no interval" if low != low else f"{low:.2g} to {high:.2g}"
    return f"{row[name]:.2g} ({interval})"


def _against_even(row: pd.Series) -> str:
    """Whether a share can be told from 50 %."""
    low, high = row["low"], row["high"]
    if low > 50:
        return "more than half"
    if high < 50:
        return "less than half"
    return "cannot be told from half"


def _unless_told(row: pd.Series | dict[str, Any], said: str) -> str:
    """Nothing for an interval without 0; otherwise, and where there is none, what is said."""
    return "" if row["low"] > 0 or row["high"] < 0 else said
