"""The page: what was asked, the headline numbers, each figure with how to read it, the settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from jinja2 import Environment, StrictUndefined
from plotly.offline import get_plotlyjs

from tracelab.figures.localize import COMPONENT_NAMES, ROLE_NAMES
from tracelab.metrics import label
from tracelab.report.moved import sentences, what_moved
from tracelab.report.parts import Parts


@dataclass(frozen=True)
class Section:
    """A figure of the page: its name (of the files too), heading and two sentences on how to read
    it."""

    name: str
    heading: str
    reading: str
    figure: go.Figure


def sections(parts: Parts) -> list[Section]:
    """The figures of a report, in the order of the page."""
    return _edited(parts) + _localised(parts)


def _edited(parts: Parts) -> list[Section]:
    """What edits do, if the report has any."""
    if parts.scoreboard is None or parts.before_after is None:
        return []
    made = [
        Section(
            "scoreboard",
            "What edits change",
            "Each row is an edit, each panel a score on the same records; the dotted line is the "
            "ideal value. Orange "
            "differs from the unedited model by more than chance after correction for the number "
            "of comparisons; "
            "an interval is of the score itself and wider than that of the difference, which the "
            "table has.",
            parts.scoreboard.plot(),
        ),
        Section(
            "tradeoff",
            "Bias against capability",
            "Further down the stereotype depends less on the group that is named, further left "
            "neutral text is predicted better: an edit is worth something if it moves down and "
            "not to the right.",
            parts.scoreboard.plot_tradeoff(),
        ),
    ]
    made += [
        Section(
            f"before_after_{number}",
            f"Before and after: “{prompt}”",
            "The next tokens whose probability an edit changes most, for each edit.",
            parts.before_after.plot("tokens", prompt=number),
        )
        for number, prompt in enumerate(parts.before_after.settings["prompts"])
    ]
    return made


def _localised(parts: Parts) -> list[Section]:
    return [
        Section(
            "f1_per_layer",
            "Where it can be read",
            "A prober at each layer guesses, from the MLP output at the last prompt token, which "
            "social group "
            "the model is about to name; it is tested on concepts and templates it was not trained "
            "on. A layer "
            "tells something where the blue band lies above the grey control with shuffled labels; "
            "that a group "
            "can be read there does not show that the model uses it.",
            parts.probes.plot(),
        ),
        Section(
            "trace_average",
            "Where it acts",
            "Noise on the words that name the group changes how much the model prefers the "
            "stereotype; each cell "
            "is the share of that change that comes back when one state is put back to its clean "
            "value. "
            "Follow where along the layers each row is dark, and compare cells within a panel "
            "only: a window of MLP "
            "or attention restores several layers, a state of the residual stream one.",
            parts.trace.plot(),
        ),
        Section(
            "trace_example",
            "The same on one pair",
            "The traced pair with the largest total effect, token by token: colour is how far "
            "restoring that token's "
            "residual stream after that block moves the gap, towards the stereotype (orange) or "
            "away (purple). "
            "The filler's row names both sentences' tokens; one pair is an illustration, not "
            "evidence.",
            parts.example.plot_example(),
        ),
        Section(
            "attention_gap",
            "Where attention differs",
            "For every pair of sentences, the attention that a position receives is compared "
            "between the two; a "
            "point is a pair. Attention must change where a word changes, so the figure to look at "
            "is how often the "
            "largest gap lies on the differing word compared with swapping a neutral word (in the "
            "caption).",
            parts.attention.plot(),
        ),
        Section(
            "attention_pair",
            "Attention of one pair",
            "Each row shows where one token attends, in the stereotype, in the anti-stereotype, "
            "and their difference; "
            "tokens in which the sentences differ are bold. The scale of the first two ends at the "
            "99th percentile of "
            "attention to tokens other than the first, which takes most of it.",
            parts.attention.plot_pair(),
        ),
    ]


def headline(parts: Parts) -> pd.DataFrame:
    """The numbers to quote: ``question, number, value, low, high, n, ideal`` (value in percent or
    as named)."""
    rows: list[dict[str, Any]] = []

    def add(question: str, number: str, row: pd.Series | dict[str, Any], ideal: str) -> None:
        values = {key: row[key] for key in ("value", "low", "high", "n")}
        rows.append({"question": question, "number": number, **values, "ideal": ideal})

    scores = parts.stereoset.table.set_index("metric")
    for metric in ("gap_group", "gap_blind", "gap"):
        if metric in scores.index:
            ideal = "" if metric == "gap_blind" else "0"
            add("How biased?", f"StereoSet, {label(metric)}", scores.loc[metric], ideal)
    for metric, ideal in (("ss", "50"), ("lms", "100"), ("icat", "100")):
        add("How biased?", f"StereoSet {metric.upper()} (%)", scores.loc[metric], ideal)
    if parts.crows is not None:
        row = parts.crows.table.set_index("metric").loc["crows_sum"]
        add("How biased?", "CrowS-Pairs, summed log-probability (%)", row, "50")
    best = parts.probes.layers.sort_values(["f1", "layer"], ascending=[False, True]).iloc[0]
    base = {"value": best["f1"], "low": best["low"], "high": best["high"], "n": best["n_test"]}
    add("Where can it be read?", f"best F1, layer {best['layer']}", base, "1")
    control = {
        "value": best["f1_control"],
        "low": best["control_low"],
        "high": best["control_high"],
    }
    add(
        "Where can it be read?",
        f"control, layer {best['layer']}",
        control | {"n": best["n_test"]},
        "",
    )
    totals = parts.trace.totals.set_index("quantity")
    add("Where does it act?", "mean |total effect| of the noise (nats)", totals.loc["|te|"], "")
    effects = parts.trace.effects
    for component in dict.fromkeys(effects.loc[effects["nie"].notna(), "component"]):
        peak = parts.trace.peak(component)
        name = (
            f"{COMPONENT_NAMES[component]}: {ROLE_NAMES[peak['role']]}, layer {peak['layer']} (NIE)"
        )
        values = {"value": peak["nie"], "low": peak["nie_low"], "high": peak["nie_high"]}
        add("Where does it act?", name, values | {"n": peak["n_nie"]}, "1")
    hit, chance = (parts.attention.value(metric) for metric in ("hit_rate", "chance"))
    add("Where does attention differ?", "hit rate on differing words (%)", hit, "")
    add("Where does attention differ?", "chance (%)", chance, "")
    if "excess" in set(parts.attention.summary["selection"]):
        excess = parts.attention.value("hit_rate", "excess")
        add("Where does attention differ?", "excess over a neutral swap (points)", excess, "0")
    if parts.scoreboard is not None:
        for row in what_moved(parts.scoreboard).to_dict("records"):
            change = {"value": row["difference"], "low": row["low"], "high": row["high"]}
            name = f"{row['edit']}: change of {row['quantity']}"
            add("What do edits change?", name, change | {"n": row["n"]}, "")
    return pd.DataFrame(rows)


def render(
    parts: Parts, bias: str, preset: str, command: str, shown: Sequence[Section], made: str
) -> str:
    """The page as one self-contained HTML text; plotly's script is in it once.

    Args:
        command: the command that makes this report again.
        made: date and time, for the foot of the page.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    template = environment.from_string(
        (files("tracelab.report") / "page.html.jinja").read_text(encoding="utf-8")
    )
    figures = [
        section.figure.to_html(
            full_html=False,
            include_plotlyjs=False,
            div_id=section.name,
            config={"displaylogo": False},
        )
        for section in shown
    ]
    settings = {name: result.settings for name, result in parts.named().items()}
    return template.render(
        bias=bias,
        preset=preset,
        command=command,
        model=parts.stereoset.settings["model"],
        headline=headline(parts).to_dict("records"),
        moved=[] if parts.scoreboard is None else what_moved(parts.scoreboard).to_dict("records"),
        verdicts=[] if parts.scoreboard is None else sentences(what_moved(parts.scoreboard)),
        texts=[] if parts.texts is None else _by_prompt(parts.texts.table),
        edits=[] if parts.scoreboard is None else list(parts.scoreboard.settings["edits"]),
        stacked=parts.choice is not None and bool(parts.choice.table["chosen"].any()),
        n_records=len(parts.stereoset.sentences),
        n_prompts=len(parts.probes.labels),
        n_traced=len(parts.trace.cases),
        trace_settings=parts.trace.settings,
        attention_settings=parts.attention.settings,
        sections=list(zip(shown, figures, strict=True)),
        settings=json.dumps(settings, indent=1),
        plotlyjs=get_plotlyjs(),
        made=made,
    )


def _by_prompt(texts: pd.DataFrame) -> list[tuple[str, list[dict[str, Any]]]]:
    """Each prompt with what is written after it, edit by edit; what is as before is left out."""
    found = []
    for prompt, part in texts.groupby("prompt", sort=False):
        first, *others = part.to_dict("records")
        kept = [row for row in others if row["text"] != first["text"]]
        found.append((str(prompt), [first, *kept]))
    return found
