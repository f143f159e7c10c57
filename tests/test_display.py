"""What results, edits and data show of themselves in a notebook, and their bars."""

from __future__ import annotations

import copy
import pickle
import sys
import types
from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go
import pytest
import tqdm

from tests.interventions.edits import random_delta, random_erasure, random_fairmed
from tracelab import datasets
from tracelab.datasets.records import Records
from tracelab.errors import TracelabError
from tracelab.escaping import readable
from tracelab.interventions import Stack
from tracelab.model.scoring import score
from tracelab.progress import in_notebook, progress
from tracelab.results import Result

TABLE = pd.DataFrame(
    {
        "id": ["a", "b"],
        "metric": ["ss", "<b>lms</b>"],
        "value": [61.23456, 0.000012345],
        "low": [58.1, float("nan")],
        "high": [64.0, float("nan")],
        "difference": [1.5, float("nan")],
        "difference_low": [-1.0, float("nan")],
        "difference_high": [4.0, float("nan")],
        "note": ["", ""],
        "data_hash": ["9", "9"],
        "n": [3, 4],
    }
)


@dataclass(frozen=True)
class Drawn(Result):
    table: pd.DataFrame

    @property
    def frame(self):
        return self.table

    def plot(self):
        if self.table.empty:
            raise TracelabError("nothing to draw")
        return go.Figure(go.Bar(x=[1], y=[2]))


def made(table=TABLE):
    return Drawn({"model": {"model_id": "m"}}, table)


@pytest.fixture
def displayed(monkeypatch):
    """What a cell shows, one after the other."""
    found = []
    monkeypatch.setattr("IPython.display.display", lambda shown, raw: found.append((shown, raw)))
    monkeypatch.setattr(go.Figure, "show", lambda self: found.append(self))
    return found


def test_a_table_is_one_that_a_person_reads():
    shown = readable(TABLE)
    assert list(shown.columns) == ["metric", "value", "difference", "n"]
    assert list(shown["value"]) == ["61.23 [58.1, 64]", "1.234e-05"]
    assert list(shown["difference"]) == ["1.5 [-1, 4]", ""]
    assert list(readable(TABLE, ["n", "difference"]).columns) == ["n", "difference"]
    assert readable(pd.DataFrame()).empty
    assert len(readable(pd.DataFrame({"x": range(99)}))) == 12
    assert len(readable(pd.DataFrame({i: [i] for i in range(99)})).columns) == 9


def test_a_result_is_a_line_a_table_and_a_figure(displayed, monkeypatch):
    figure = {"application/vnd.plotly.v1+json": {}, "image/png": "…", "text/html": "<div>"}
    monkeypatch.setattr(go.Figure, "_repr_mimebundle_", lambda self: figure)
    bundle = made()._repr_mimebundle_()
    assert bundle["text/plain"] == "Drawn(m, 2 rows)"
    assert "61.23 [58.1, 64]" in bundle["text/html"]
    assert "&lt;b&gt;lms" in bundle["text/html"]
    assert set(bundle) == {"application/vnd.plotly.v1+json", "image/png", "text/plain", "text/html"}
    made()._ipython_display_()
    words, figure = displayed
    assert words == ({kind: bundle[kind] for kind in ("text/plain", "text/html")}, True)
    assert isinstance(figure, go.Figure)


def test_a_result_with_nothing_to_draw_is_a_line_and_a_table(displayed):
    made(TABLE.head(0))._ipython_display_()
    ((words, _),) = displayed
    assert words["text/plain"] == "Drawn(m, 0 rows)"


def test_an_edit_says_what_it_is_and_what_it_was_measured_to_do(tiny_model):
    model = tiny_model("llama")
    erasure = random_erasure(model, layers=(0, 1, 2))
    erasure.notes = {"n_pairs": 30, "left_out": 2, "kl": 0.0123, "perplexity_change": 1.5}
    page = erasure._repr_html_()
    for told in (
        "hook_resid_post of layers 0 to 2",
        "gender, 30 pairs, 2 left out",
        "neutral text: KL 0.0123 nats a token, perplexity +1.5 %",
        "tiny-llama",
    ):
        assert told in page
    half = erasure.scaled(0.5)._repr_html_()
    assert "<td>strength</td>\n      <td>0.5</td>" in half
    assert "neutral text" not in half  # that was measured at full strength
    fairmed = random_fairmed(model)
    row = {"attribute": "gender", "layer": None, "kl_before": 0.5, "kl_after": 0.25, "n": 8}
    fairmed.notes = {"agreement": [row]}
    assert "KL from even gender 0.5 → 0.25 nats (8 texts)" in fairmed._repr_html_()
    assert "erasure(gender), fairmed(gender)" in Stack([erasure, fairmed])._repr_html_()


def test_a_trained_edit_says_what_its_chosen_strength_did(tiny_model):
    delta = random_delta(tiny_model("llama"))
    table = [{"strength": 0.0, "ss": 60.0, "kl": 0.0}, {"strength": 0.5, "ss": 55.0, "kl": 0.02}]
    delta.notes = {"strength": 0.5, "strengths": table, "n_train": 9, "n_dev": 3}
    page = delta._repr_html_()
    assert "StereoSet SS (%) 60 → 55; KL to the unedited 0 → 0.02" in page
    assert "mlp.out of layers 1, 3; attn.o of layers 1, 3" in page
    assert "9 to train on, 3 for development" in page
    assert "→" not in delta.scaled(2)._repr_html_()


@pytest.mark.parametrize(
    "read",
    [
        lambda: datasets.stereoset("gender"),
        lambda: datasets.crows_pairs("gender"),
        lambda: datasets.bbq("Religion"),
        lambda: datasets.bbq("Religion", limit=100),
        lambda: datasets.bold("gender"),
        lambda: datasets.redditbias("gender"),
        lambda: datasets.winobias(),
        lambda: datasets.neutral_sentences(300),
        lambda: datasets.development_sentences("choose", 100),
        lambda: datasets.gender_swapped(datasets.stereoset("gender")),
        lambda: datasets.templates("gender"),
        lambda: datasets.expert_texts("gender"),
    ],
)
def test_the_repr_of_a_corpus_is_one_line(read):
    corpus = read()
    assert len(repr(corpus)) < 200
    assert "\n" not in repr(corpus)
    if isinstance(corpus, list):
        assert repr(corpus).startswith(f"Records({len(corpus)} {type(corpus[0]).__name__}")


def test_records_are_the_list_that_they_were():
    records = datasets.stereoset("gender", limit=5)
    plain = list(records)
    assert repr(records) == "Records(5 StereoSetRecord, gender)"
    assert records == plain
    assert isinstance(records, list)
    assert records[1:3] == plain[1:3]
    assert repr(records[1:3]) == "Records(2 StereoSetRecord, gender)"
    assert records[-1] == plain[-1]
    for back in (pickle.loads(pickle.dumps(records)), copy.deepcopy(records)):
        assert type(back) is Records
        assert back == plain
    assert repr(Records()) == "Records(0)"
    assert repr(Records(["a", 1])) == "Records(2 str and int)"


@pytest.fixture
def notebook(monkeypatch):
    """As if this were the kernel of a notebook."""
    shell = types.SimpleNamespace(kernel=object())
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)


def test_a_bar_is_a_widget_in_a_notebook(notebook, monkeypatch):
    pytest.importorskip("ipywidgets")
    from tqdm.notebook import tqdm as widget

    shown = []
    monkeypatch.setattr("tqdm.notebook.display", shown.append)
    with progress(total=3, what="scoring", unit="text") as bar:
        bar.update(1)
        assert not shown  # what is done at once has none
        bar.start_t -= 2
        bar.refresh()
        assert isinstance(bar, widget)
        assert shown == [bar.container]


def test_without_ipywidgets_a_notebook_has_a_line_of_text_and_no_warning(
    notebook, monkeypatch, recwarn, capsys
):
    monkeypatch.setattr("tracelab.progress.find_spec", lambda name: None)
    with progress(total=3, what="scoring", unit="text") as bar:
        bar.start_t -= 2
        bar.refresh()
    assert type(bar) is tqdm.tqdm
    assert not recwarn.list
    assert "scoring: " in capsys.readouterr().err


def test_an_interrupted_bar_is_closed(notebook, monkeypatch):
    monkeypatch.setattr("tracelab.progress.find_spec", lambda name: None)
    with pytest.raises(KeyboardInterrupt), progress(total=3, what="scoring") as bar:
        raise KeyboardInterrupt
    assert bar.disable  # what tqdm makes of a bar that was closed


def test_an_interrupted_cell_leaves_no_hook_and_no_bar(tiny_model, notebook, monkeypatch):
    def interrupt(h):
        raise KeyboardInterrupt

    monkeypatch.setattr("tracelab.progress.find_spec", lambda name: None)
    model = tiny_model("llama")
    edit = random_erasure(model)
    edit.change = lambda h, **tensors: interrupt(h)
    with pytest.raises(KeyboardInterrupt), edit.scaled(0.5).applied(model):
        score(model, ["The nurse", "A cat sits"])
    assert not model.list_hooks()
    assert not list(tqdm.tqdm._instances)


def test_ipython_on_a_terminal_and_python_alone_are_no_notebook(monkeypatch, capsys):
    for known in ({}, {"IPython": types.SimpleNamespace(get_ipython=lambda: object())}):
        with monkeypatch.context() as patch:
            patch.delitem(sys.modules, "IPython", raising=False)
            for name, module in known.items():
                patch.setitem(sys.modules, name, module)
            assert not in_notebook()
            with progress(total=3, what="scoring") as bar:
                bar.update(1)
            assert bar.disable
    assert capsys.readouterr().err == ""
