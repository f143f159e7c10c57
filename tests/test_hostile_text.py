"""Names and texts that are script, table syntax or formulas stay text wherever tracelab shows or
writes them."""

from __future__ import annotations

import json
import re

import pandas as pd
import pytest

import tracelab
from tests.browser import PAYLOADS, needs_browser, runs
from tests.interventions.edits import random_delta
from tests.tiny import tiny_hf
from tracelab.escaping import csv_table, for_latex, for_markdown, latex_table, markdown_table
from tracelab.evaluate.benchmarks.stereoset import StereoSetScores
from tracelab.evaluate.scoreboard.scoreboard import COLUMNS, Scoreboard
from tracelab.figures import save_figures
from tracelab.interventions import WeightDelta
from tracelab.model import assets
from tracelab.model.load import from_hf
from tracelab.report.presets import PRESETS, Preset
from tracelab.storage.ownership import ChangedSinceWritten

NASTY = "a|b\nc\r\n<b>&\\ `code` [x](javascript:run) = {} % $ # _ ^ ~ \x1b[31m"


def board(names) -> Scoreboard:
    """A scoreboard in which every text is one of these."""
    rows = [
        {
            "edit": edit,
            "benchmark": names[0],
            "bias": names[-1],
            "metric": metric,
            "value": 50.0,
            "low": 40.0,
            "high": 60.0,
        }
        | {
            "n": 3,
            "difference": 1.0,
            "difference_low": 0.0,
            "difference_high": 2.0,
            "p_holm": 0.01,
            "reason": "",
        }
        for edit in ("unedited", *names)
        for metric in ("ss", "perplexity", names[0])
    ]
    table = pd.DataFrame(rows).reindex(columns=COLUMNS)
    failed = table.head(1).assign(reason=names[0], edit=names[-1])
    settings = {
        "model": {"model_id": names[0]},
        "bias": names[-1],
        "edits": {name: {} for name in names},
    }
    costs = pd.DataFrame({"edit": list(names), "note": list(names)})
    return Scoreboard(
        settings, pd.concat([table, failed], ignore_index=True), costs, pd.DataFrame()
    )


# --- pages
# --------------------------------------------------------------------------------------------------------  # noqa: E501


@needs_browser
def test_the_browser_of_these_tests_runs_what_is_not_escaped(tmp_path):
    for number, payload in enumerate(PAYLOADS[:2]):
        assert runs(f"<p>{payload}</p>", tmp_path / str(number))


@needs_browser
def test_what_stands_in_a_result_folder_does_not_run_when_the_result_is_shown(tmp_path):
    shown = []
    for number, payload in enumerate(PAYLOADS):
        table = pd.DataFrame({payload: [payload], "metric": [payload]})
        settings = {"model": {"model_id": "x"}}
        folder = StereoSetScores(settings, table, table).save(tmp_path / str(number))
        content = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        content["settings"]["model"]["model_id"] = payload
        (folder / "result.json").write_text(json.dumps(content), encoding="utf-8")
        with pytest.warns(ChangedSinceWritten, match="was changed since tracelab wrote it"):
            shown.append(StereoSetScores.load(folder)._repr_html_())
    assert not re.search("<(img|script|svg|iframe|details|body)", "".join(shown))
    assert not runs("".join(shown), tmp_path / "browser")


@needs_browser
def test_what_figures_show_does_not_run(tmp_path):
    save_figures(board(PAYLOADS).figures(), tmp_path, png=False)
    pages = sorted(tmp_path.glob("*.html"))
    assert len(pages) == 2
    for number, page in enumerate(pages):
        assert not runs(page, tmp_path / f"browser{number}")


@pytest.mark.slow
@needs_browser
def test_the_page_of_a_report_runs_nothing_of_what_it_quotes(tokenizer, tmp_path, monkeypatch):
    preset = Preset(
        prober_seeds=1, trace_pairs=1, trace_samples=1, layer_step=2, choice_records=6,
        benchmarks={"stereoset": 6, "perplexity": 3},
    )  # fmt: skip
    monkeypatch.setitem(PRESETS, "test", preset)
    own = type(tokenizer).from_pretrained(assets.model_dir())
    model = from_hf(tiny_hf("llama", len(tokenizer)), own, model_id="".join(PAYLOADS))
    edits = {payload: random_delta(model, scale=0.01) for payload in PAYLOADS[:2]}
    tracelab.report(
        model, "gender", tmp_path / "r", preset="test", limit=12, png=False, interventions=edits,
        prompts=PAYLOADS, command=PAYLOADS[2],
    )  # fmt: skip
    assert not runs(tmp_path / "r/index.html", tmp_path / "browser")  # it holds every figure


# --- Markdown, LaTeX, CSV, terminals
# ------------------------------------------------------------------------------


def test_a_markdown_table_has_the_cells_it_should_whatever_they_hold():
    text = board((NASTY, "plain")).to_markdown()
    cells = {len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines()}
    assert cells == {5}  # the metric, the unedited model, two edits
    assert "\x1b" not in text
    assert "<b>" not in text
    assert not re.search(r"(?<!\\)\]\(", text)
    assert "50 [40, 60]*" in text  # our own intervals are left alone


def test_a_latex_table_has_a_line_a_row_whatever_its_cells_hold():
    text = board((NASTY, "[b]", "*c")).to_latex()
    rows = [line for line in text.splitlines() if " & " in line]
    assert all(line.endswith(r" \\") for line in rows)
    assert {line.replace(r"\&", "").count("&") for line in rows} == {4}
    assert "\n\n" not in text
    assert for_latex(r"50% \of {a}") == r"50\% \textbackslash{}of \{a\}"
    assert latex_table(pd.DataFrame({"a": ["[x]", "*y"]})).count("{[}x]") == 1


@pytest.mark.parametrize(
    "text",
    ["=1+1", "@SUM(A1)", "+cmd|' /C calc'!A0", "-2+3", "\t=1", "\r=1", '=HYPERLINK("x")', "-"],
)
def test_a_cell_that_a_spreadsheet_would_compute_is_text_in_csv(text, tmp_path):
    (tmp_path / "t.csv").write_text(
        csv_table(pd.DataFrame({text: [text], "n": [-1.5]})), encoding="utf-8", newline=""
    )
    back = pd.read_csv(tmp_path / "t.csv")
    shown = "'" + text.replace("\r", "\n")  # a bare carriage return would begin a row of its own
    assert list(back.columns) == [shown, "n"]
    assert back.iloc[0].tolist() == [shown, -1.5]


def test_numbers_and_ordinary_texts_are_the_same_in_csv():
    table = pd.DataFrame(
        {"a": [-1.5, 2.0], "b": ["-0.5", "x = y"], "c": ["+1e5", None], "d": [1, 2]}
    )
    assert csv_table(table) == table.to_csv(index=False)


def test_tables_for_a_terminal_hold_no_control_characters():
    made = board((NASTY, "plain"))
    assert "\x1b" not in made.text()
    scores = StereoSetScores({}, pd.DataFrame({NASTY: [NASTY, "x"]}), pd.DataFrame())
    assert "\x1b" not in scores.text()
    assert len(scores.text().splitlines()) == 3


def test_text_for_markdown_is_a_line_without_tags_links_or_bars():
    assert for_markdown("a|b\n<i>x</i> [t](u) `c`") == r"a\|b &lt;i>x&lt;/i> [t\](u) \`c\`"
    assert markdown_table(pd.DataFrame({"a": ["1 [0, 2]"]}), index=False).count("1 [0, 2]") == 1


def test_the_card_of_a_bundle_is_the_same_document_whatever_its_texts_hold(tiny_model, tmp_path):
    model = tiny_model("llama")
    delta = random_delta(model)
    hostile = "x\n```\n# pwned\n<script>run()</script> `a` ``b``"
    origin = delta.origin.model_copy(update={"model_id": hostile, "fingerprint": hostile})
    edit = WeightDelta(delta.spec(), origin, {"metrics": {hostile: hostile}})
    card = (edit.save(tmp_path / "kept") / "README.md").read_text(encoding="utf-8")
    assert [line for line in card.splitlines() if line.startswith("#")] == ["# weight_delta"]
    assert sum(line.startswith("```") for line in card.splitlines()) == 2
    prose = re.sub(r"(`+) .*? \1(?!`)", "", card.split("```python")[0] + card.split("\n```\n")[1])
    assert "<script" not in prose
