"""The scoreboard on a tiny model: what is compared, kept, corrected, and what a failure leaves."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from tracelab import Stack, WeightDelta
from tracelab.datasets import crows_pairs
from tracelab.datasets.records import subsample
from tracelab.errors import TracelabError
from tracelab.evaluate import crows_pairs_scores, edited_scores
from tracelab.evaluate.registry import BENCHMARKS
from tracelab.evaluate.scoreboard.costs import COLUMNS as COST_COLUMNS
from tracelab.evaluate.scoreboard.scoreboard import COLUMNS, Scoreboard, evaluate
from tracelab.figures.style import BLUE, GREY, ORANGE
from tracelab.statistics import holm
from tracelab.storage.tensors_hash import tensors_hash


def delta(model, seed: int, scale: float = 3.0) -> WeightDelta:
    made = WeightDelta.low_rank(model, layers=[1], modules=["mlp.out"], rank=2, seed=seed)
    with torch.no_grad():
        for name, value in made.named_parameters():
            if name.endswith("lora_B"):
                value.normal_(std=scale, generator=torch.Generator().manual_seed(seed))
    return made


@pytest.fixture(scope="module")
def board(tiny_model):
    model = tiny_model("llama")
    a, b = delta(model, 1), delta(model, 2)
    edits = {"a": a, "b": b, "both": Stack([a, b])}
    limits = {"stereoset": 12, "crows-pairs": 15, "perplexity": 6}
    return (
        model,
        edits,
        evaluate(model, edits, list(limits), bias="gender", limit=limits, costs=False),
    )


def only(table: pd.DataFrame, **where) -> pd.Series:
    for name, value in where.items():
        table = table[table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


def test_each_cell_is_the_benchmarks_own_score_and_paired_difference(board):
    model, edits, made = board
    assert list(made.frame.columns) == COLUMNS
    records = subsample(crows_pairs("gender"), 15)
    own = edited_scores(
        model, edits["a"], lambda name: crows_pairs_scores(model, records, edit=name)
    ).frame
    expected = only(own.dropna(subset="edit"), metric="crows_sum")
    found = only(made.frame, edit="a", benchmark="crows-pairs", metric="crows_sum")
    for name in ("value", "low", "high", "n", "difference", "difference_low", "difference_high"):
        assert found[name] == expected[name]
    assert found["p_paired"] == expected["p"]
    unedited = only(made.frame, edit="unedited", benchmark="crows-pairs", metric="crows_sum")
    assert (
        unedited["value"]
        == crows_pairs_scores(model, records).table.set_index("metric").loc["crows_sum", "value"]
    )
    assert np.isnan(unedited["difference"])


def test_stereoset_is_shown_on_every_bias_type_and_others_on_the_targeted_one(board):
    _, _, made = board
    biases = made.frame.groupby("benchmark")["bias"].unique()
    assert list(biases["stereoset"]) == ["gender", "race", "religion", "profession"]
    assert list(biases["crows-pairs"]) == ["gender"]
    assert list(biases["perplexity"]) == [""]


def test_off_target_false_leaves_the_other_types_out(tiny_model):
    made = evaluate(
        tiny_model("llama"), {}, ["stereoset"], bias="religion", limit=4, off_target=False
    )
    assert set(made.frame["bias"]) == {"religion"}
    assert set(made.frame["edit"]) == {"unedited"}


def test_holm_is_the_step_down_of_the_p_values_that_are_there():
    p = pd.Series([0.01, np.nan, 0.04, 0.03, 0.005])
    known = sorted(p.dropna())
    expected, highest = {}, 0.0
    for rank, value in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * value))
        expected[value] = highest
    found = holm(p)
    assert np.isnan(found[1])
    assert [found[i] for i in (0, 2, 3, 4)] == pytest.approx([expected[p[i]] for i in (0, 2, 3, 4)])
    assert np.isnan(holm(pd.Series([np.nan]))).all()


def test_the_correction_covers_all_comparisons_of_the_table(board):
    _, _, made = board
    table = made.frame
    np.testing.assert_array_equal(table["p_holm"], holm(table["p_paired"]))
    assert (table["p_holm"] >= table["p_paired"])[table["p_paired"].notna()].all()


def test_interaction_is_the_stacks_change_less_the_sum_of_the_members(board):
    _, _, made = board
    differences = made.frame.set_index(["benchmark", "bias", "metric", "edit"])["difference"]
    assert (differences.dropna() != 0).sum() > 20
    assert set(made.interactions["edit"]) == {"both"}
    assert len(made.interactions) == 4 * 4 + 2 + 3 + 1
    for row in made.interactions.to_dict("records"):
        key = (row["benchmark"], row["bias"], row["metric"])
        total = differences[(*key, "a")] + differences[(*key, "b")]
        assert row["sum_of_members"] == pytest.approx(total)
        assert row["interaction"] == pytest.approx(differences[(*key, "both")] - total)
        assert row["low"] <= row["interaction"] + 1e-9
        assert row["high"] >= row["interaction"] - 1e-9


def test_finished_cells_are_resumed_and_only_what_changed_is_measured(
    tiny_model, tmp_path, monkeypatch
):
    model = tiny_model("llama")
    measured = []
    score = BENCHMARKS["crows-pairs"].score

    def counting(*args, edit, **options):
        measured.append(edit)
        return score(*args, edit=edit, **options)

    spied = dataclasses.replace(BENCHMARKS["crows-pairs"], score=counting)
    edit = delta(model, 1)

    def run(**changes):
        measured.clear()
        given = {"bias": "gender", "limit": 8, "folder": tmp_path, "costs": False, **changes}
        return evaluate(model, {"a": given.pop("edit", edit)}, [spied], **given)

    first = run()
    assert measured == [None, "a"]
    again = run()
    assert measured == []
    pd.testing.assert_frame_equal(first.frame, again.frame)
    run(edit=delta(model, 3))
    assert measured == ["a"]
    run(limit=9)
    assert measured == [None, "a"]
    run(seed=1)
    assert measured == [None, "a"]


def test_texts_without_ids_are_kept_too(tiny_model, tmp_path):
    made = [
        evaluate(tiny_model("llama"), {}, ["perplexity"], limit=limit, folder=tmp_path, costs=False)
        for limit in (4, 4, 5)
    ]
    assert not sum(board.failures for board in made)
    assert len(list(tmp_path.glob("*.key"))) == 2
    assert (
        made[0].frame["value"].tolist()
        == made[1].frame["value"].tolist()
        != made[2].frame["value"].tolist()
    )


def test_an_interruption_loses_at_most_the_cell_it_falls_into(tiny_model, tmp_path):
    model = tiny_model("llama")
    calls = []
    score = BENCHMARKS["crows-pairs"].score

    def interrupted(*args, edit, **options):
        calls.append(edit)
        if calls == [None, "a", "b"]:
            raise KeyboardInterrupt
        return score(*args, edit=edit, **options)

    spied = dataclasses.replace(BENCHMARKS["crows-pairs"], score=interrupted)
    edits = {"a": delta(model, 1), "b": delta(model, 2)}
    given = {"bias": "gender", "limit": 8, "folder": tmp_path, "costs": False}
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, edits, [spied], **given)
    calls.clear()
    calls.append("later")
    evaluate(model, edits, [spied], **given)
    assert calls == ["later", "b"]


def test_one_failed_cell_is_told_in_its_row_and_the_others_go_on(tiny_model):
    model = tiny_model("llama")
    score = BENCHMARKS["perplexity"].score

    def fails(*args, edit, **options):
        if edit == "a":
            raise torch.OutOfMemoryError("tried to allocate 2 GiB")
        return score(*args, edit=edit, **options)

    def unreadable(bias, limit, **where):
        raise TracelabError("the file has no column 'sent_more'")

    broken = dataclasses.replace(BENCHMARKS["crows-pairs"], read=unreadable)
    short = dataclasses.replace(BENCHMARKS["perplexity"], score=fails)
    edits = {"a": delta(model, 1), "b": delta(model, 2)}
    made = evaluate(model, edits, [broken, short], bias="gender", limit=5, costs=False)
    reasons = {
        (row["edit"], row["benchmark"]): row["reason"] for row in made.failed.to_dict("records")
    }
    assert reasons == {
        ("a", "perplexity"): "out of memory: tried to allocate 2 GiB",
        **{
            (edit, "crows-pairs"): "the file has no column 'sent_more'"
            for edit in ("unedited", "a", "b")
        },
    }
    assert only(made.frame, edit="b", benchmark="perplexity")["difference"] != 0
    wide = made.wide()
    assert wide.loc["a"].tolist() == ["failed", "failed"]
    assert wide.loc["b", "perplexity perplexity"][0].isdigit()
    assert wide["crows-pairs gender"].tolist() == ["failed"] * 3


def test_a_bias_type_that_a_benchmark_lacks_is_a_row_with_the_reason(tiny_model):
    made = evaluate(tiny_model("llama"), {}, ["crows-pairs"], bias="profession", limit=3)
    assert "no bias type 'profession'" in made.failed["reason"].iloc[0]


@pytest.mark.slow
def test_costs_have_a_row_an_edit(board):
    model, edits, _ = board
    costs = evaluate(model, edits, ["crows-pairs"], bias="gender", limit=2).costs.set_index("edit")
    assert costs.loc["unedited", "added_parameters"] == 0
    assert costs.loc["a", "added_parameters"] == sum(p.numel() for p in edits["a"].parameters())
    assert costs.loc["both", "added_parameters"] == 2 * costs.loc["a", "added_parameters"]
    assert costs[list(COST_COLUMNS)].drop(columns="fit_seconds").notna().all(axis=None)
    assert (costs["reason"] == "").all()


def test_an_edit_by_another_name_is_the_same_cell(tiny_model, tmp_path):
    model = tiny_model("llama")
    given = {"bias": "gender", "limit": 4, "folder": tmp_path, "costs": False}
    for name in ("first", "second"):
        made = evaluate(model, {name: delta(model, 1)}, ["crows-pairs"], **given)
        assert list(made.frame["edit"].unique()) == ["unedited", name]
    assert len(list(tmp_path.glob("*.key"))) == 2


def test_of_all_bias_types_the_tradeoff_is_drawn_on_the_first_and_says_so(tiny_model):
    made = evaluate(tiny_model("llama"), {}, ["crows-pairs", "perplexity"], limit=4, costs=False)
    figure = made.plot_tradeoff("crows_sum")
    gender = only(made.frame, metric="crows_sum", bias="gender")
    assert figure.layout.shapes[0].y0 == pytest.approx(50 - gender["value"])
    assert "gender" in figure.layout.title.subtitle.text


def test_markdown_and_latex_hold_every_edit_and_metric(board):
    _, _, made = board
    for text in (made.to_markdown(), made.to_latex()):
        for word in ("unedited", "both", "perplexity", "crows-pairs"):
            assert word in text
    assert (
        made.wide()
        .loc["a", "perplexity perplexity"]
        .startswith(f"{only(made.frame, edit='a', benchmark='perplexity')['value']:.3g} [")
    )


def test_the_dot_plot_has_a_panel_a_metric_and_marks_what_survives_correction(board):
    _, _, made = board
    sure = dataclasses.replace(
        made, table=made.table.assign(p_holm=np.where(made.table["edit"] == "a", 0.01, 0.5))
    )
    figure = sure.plot()
    panels = made.table.drop_duplicates(["benchmark", "bias", "metric"])
    assert len(panels) == 4 * 4 + 2 + 3 + 1
    assert len(figure.data) == 2 * len(panels)  # those that hold, and the others
    changes = made.table[made.table["metric"] == "perplexity"].set_index("edit")["difference"]
    others, holds = figure.data[-2:]
    assert list(holds.x) == pytest.approx([changes["a"]], rel=1e-5)
    assert list(others.x) == pytest.approx(changes[["b", "both"]].tolist(), rel=1e-5)
    assert (holds.marker.color, holds.error_x.color) == (ORANGE, ORANGE)
    assert (others.marker.color, others.error_x.color) == (BLUE, BLUE)
    levels = sure.plot("level")
    assert (levels.data[0].marker.color, list(levels.data[0].y)) == (GREY, [0])
    values = made.table[made.table["metric"] == "perplexity"].set_index("edit")["value"]
    assert list(levels.data[-1].x) == pytest.approx([values["a"]], rel=1e-6)


def test_a_metric_of_a_second_benchmark_names_it_in_its_panels_title(board):
    _, _, made = board
    second = made.table[made.table["metric"] == "perplexity"].assign(benchmark="wikitext-2")
    other = made.table[made.table["metric"] == "perplexity"].assign(
        benchmark="lm-eval/boolq", metric="acc"
    )
    figure = dataclasses.replace(made, table=pd.concat([made.table, second, other])).plot()
    titles = [note.text.replace("<br>", " ") for note in figure.layout.annotations]
    assert titles[-3:] == ["perplexity", "wikitext-2: perplexity", "lm-eval/boolq: acc"]


def test_the_tradeoff_draws_paired_changes_and_where_the_ideal_lies(board):
    _, _, made = board
    figure = made.plot_tradeoff("crows_sum", "perplexity")
    unedited, *edits = figure.data
    assert (unedited.name, unedited.x[0], unedited.y[0]) == ("unedited", 0, 0)
    for trace in edits:
        row = only(made.table, edit=trace.name, metric="crows_sum")
        assert trace.y[0] == pytest.approx(row["difference"], abs=1e-4)
        if np.isfinite(row["difference_high"]):
            high = trace.y[0] + trace.error_y.array[0]
            assert high == pytest.approx(row["difference_high"], abs=1e-4)
    base = only(made.table, edit="unedited", metric="crows_sum")["value"]
    assert figure.layout.shapes[0].y0 == pytest.approx(50 - base)
    with pytest.raises(TracelabError, match="metric with an ideal value"):
        made.plot_tradeoff("perplexity")


def test_a_scoreboard_saved_and_loaded_is_the_same(board, tmp_path):
    _, _, made = board
    made.save(tmp_path / "board")
    again = Scoreboard.load(tmp_path / "board")
    pd.testing.assert_frame_equal(again.frame, made.frame)
    pd.testing.assert_frame_equal(again.interactions, made.interactions)
    assert again.settings == made.settings


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (({}, ["stereo"]), {}, "unknown benchmark 'stereo'"),
        (({}, []), {}, "no benchmark"),
        (({}, ["stereoset"]), {"bias": "age"}, "unknown bias type 'age'"),
        (({}, ["stereoset"]), {"limit": {"bbq": 3}}, "unknown benchmark in limit 'bbq'"),
        (({}, ["stereoset"]), {"options": {"bbq": {}}}, "unknown benchmark in options 'bbq'"),
        (({"unedited": Stack([])}, ["stereoset"]), {}, "call the edit something else"),
        (([Stack([]), Stack([])], ["stereoset"]), {}, "two edits have one name"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_is_measured(
    tiny_model, arguments, options, message
):
    with pytest.raises(TracelabError, match=message):
        evaluate(tiny_model("llama"), *arguments, **options)


def test_an_edit_of_another_model_is_refused(tiny_model):
    with pytest.raises(TracelabError, match="made for"):
        evaluate(tiny_model("llama"), {"a": delta(tiny_model("gpt2"), 1)}, ["stereoset"], limit=3)


def test_the_hash_of_tensors_tells_two_edits_apart(tiny_model):
    model = tiny_model("llama")
    assert (
        tensors_hash(delta(model, 1).state_dict())
        == tensors_hash(delta(model, 1).state_dict())
        != tensors_hash(delta(model, 2).state_dict())
    )
