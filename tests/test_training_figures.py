"""The figure of training curves by its content, and where edits keep them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.interventions.edits import random_delta
from tracelab.errors import TracelabError
from tracelab.figures import loss_curves
from tracelab.interventions import KLAAD, BiasEdit
from tracelab.interventions.biasedit.biasedit import BiasEditSpec
from tracelab.interventions.biasedit.config import BiasEditConfig
from tracelab.interventions.klaad.klaad import KLAADConfig, KLAADSpec
from tracelab.interventions.training.loop import Curves
from tracelab.metrics import METHODS

SCORES = {0: 3.0, 10: 1.5, 20: 1.5, 24: 2.0}


@pytest.fixture
def rows():
    """24 steps, four looks at development data; the second of them is the best."""
    curves = Curves()
    for step in range(25):
        if step:
            curves.add(step, "train", {"attention": 1 / step, "loss": float(step % 3)})
        if step in SCORES:
            curves.add(
                step,
                "dev",
                {"attention": 0.5, "loss": SCORES[step], "ss": 60.0 - step, "score": SCORES[step]},
            )
    return curves.rows


def drawn(rows):
    return loss_curves(rows, title="T", caption="C")


def panel(figure, number):
    """The traces of a panel by name."""
    axis = "x" if number == 1 else f"x{number}"
    return {trace.name: trace for trace in figure.data if trace.xaxis == axis}


def test_there_is_a_panel_a_quantity_the_loss_first_and_none_of_the_score(rows):
    figure = drawn(rows)
    assert [note.text for note in figure.layout.annotations] == ["loss", "attention loss", "SS (%)"]
    assert figure.layout.title.text == "T"
    assert figure.layout.title.subtitle.text == "C"


def test_training_steps_their_running_mean_and_development_data_are_drawn(rows):
    traces = panel(drawn(rows), 1)
    train = [row["loss"] for row in rows if row["split"] == "train"]
    assert list(traces) == ["a training step", "mean of 10 steps", "development data"]
    assert list(traces["a training step"].x) == list(range(1, 25))
    np.testing.assert_allclose(traces["a training step"].y, train)
    means = [np.mean(train[max(0, i - 9) : i + 1]) for i in range(24)]
    np.testing.assert_allclose(traces["mean of 10 steps"].y, means)
    assert (
        dict(zip(traces["development data"].x, traces["development data"].y, strict=True)) == SCORES
    )
    assert traces["development data"].mode == "lines+markers"


def test_a_quantity_measured_on_development_data_alone_has_only_its_curve(rows):
    (trace,) = panel(drawn(rows), 3).values()
    assert trace.name == "development data"
    assert list(trace.y) == [60, 50, 40, 36]


def test_the_kept_step_is_the_first_with_the_lowest_score_in_every_panel(rows):
    shapes = drawn(rows).layout.shapes
    assert [(shape.x0, shape.x1) for shape in shapes] == [(10, 10)] * 3
    assert {shape.line.dash for shape in shapes} == {"dot"}
    assert (shapes[0].name, shapes[0].showlegend) == ("kept: step 10", True)


def test_each_kind_of_curve_is_in_the_legend_once(rows):
    figure = drawn(rows)
    listed = [trace.name for trace in figure.data if trace.showlegend]
    assert listed == ["a training step", "mean of 10 steps", "development data"]
    assert sum(bool(shape.showlegend) for shape in figure.layout.shapes) == 1


def test_without_a_score_no_step_is_marked(rows):
    figure = drawn([{k: v for k, v in row.items() if k != "score"} for row in rows])
    assert not figure.layout.shapes


# --- what edits keep
# -----------------------------------------------------------------------------------------------


@pytest.fixture(params=["biasedit", "klaad"])
def edit(tiny_model, request):
    delta = random_delta(tiny_model("llama"))
    maps = delta.spec().maps
    if request.param == "biasedit":
        return BiasEdit(
            BiasEditSpec(maps=maps, config=BiasEditConfig(), bias="<b>race</b>"), delta.origin
        )
    return KLAAD(KLAADSpec(maps=maps, config=KLAADConfig(), bias="<b>race</b>"), delta.origin)


def test_a_fitted_edit_draws_its_notes(edit, rows):
    edit.notes |= {"curves": rows, "n_train": 96, "n_dev": 24}
    figure = edit.plot_training()
    assert figure.layout.title.text == f"Training of {METHODS[edit.kind]}(&lt;b&gt;race&lt;/b&gt;)"
    assert (
        figure.layout.title.subtitle.text
        == "96 training triples, 24 development triples · tiny-llama"
    )
    assert len(figure.data) == len(drawn(rows).data)


def test_an_edit_without_curves_is_refused(edit):
    with pytest.raises(
        TracelabError, match="the notes of .* hold no training curves: only an edit that was fitted"
    ):
        edit.plot_training()
