"""What all figures share: how they show themselves in a notebook, and files for pages and
papers."""

from __future__ import annotations

import base64
import threading

import plotly.graph_objects as go
import plotly.io
import pytest
from plotly.subplots import make_subplots

from tests.browser import needs_browser
from tracelab.errors import TracelabError
from tracelab.figures import pictures, save_figures
from tracelab.figures import style as shared
from tracelab.figures.paper import for_paper
from tracelab.figures.pictures import NoPicture, picture
from tracelab.figures.style import CONFIG, PAPER, SCREEN, Figure, finish, mimebundle
from tracelab.metrics import paper_model, paper_name

MIME = "application/vnd.plotly.v1+json"
PNG = b"\x89PNG"


@pytest.fixture
def figure():
    drawn = go.Figure(go.Scatter(x=[1, 2], y=[3, 4], name="a"))
    return finish(drawn, "A <title>", "n = 2; a caption · m", legend=False)


@pytest.fixture
def without_browser(monkeypatch):
    def none(*args, **kwargs):
        raise NoPicture("Kaleido requires Google Chrome")

    monkeypatch.setattr("tracelab.figures.style.picture", none)
    monkeypatch.setattr("tracelab.figures.saving.picture", none)


def test_a_figure_fits_the_width_and_takes_the_background_of_the_page(figure):
    assert figure.layout.width is None
    assert figure.layout.template.layout.paper_bgcolor == "rgba(0,0,0,0)"
    assert CONFIG["responsive"]
    assert CONFIG["showSendToCloud"] is False


def luminance(colour: str) -> float:
    """Of a hexadecimal colour, by WCAG 2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize(("paper", "least"), [("#ffffff", 4.5), ("#111111", 4.1)])
def test_text_contrasts_with_white_and_with_jupyters_dark_theme(paper, least):
    a, b = sorted((luminance(SCREEN.layout.font.color), luminance(paper)))
    assert (b + 0.05) / (a + 0.05) >= least


def test_where_nobody_chose_a_renderer_a_notebook_gets_the_bundle_with_a_picture(
    figure, monkeypatch
):
    monkeypatch.delenv("PLOTLY_RENDERER", raising=False)
    monkeypatch.setattr("tracelab.figures.style.picture", lambda *args, **sizes: PNG)
    monkeypatch.setattr(plotly.io.renderers, "_default_name", "plotly_mimetype")
    bundle = figure._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"]) == PNG
    assert bundle[MIME]["config"] == CONFIG
    monkeypatch.setattr(plotly.io.renderers, "_default_name", "jupyterlab")
    bundle = figure._repr_mimebundle_()
    assert list(bundle) == [MIME]
    assert bundle[MIME]["config"]["showSendToCloud"] is False
    monkeypatch.setattr(plotly.io.renderers, "_default_name", "plotly_mimetype")
    monkeypatch.setenv("PLOTLY_RENDERER", "plotly_mimetype")
    assert list(figure._repr_mimebundle_()) == [MIME]


def test_without_a_browser_the_bundle_is_plotlys_alone(figure, without_browser):
    assert list(mimebundle(figure)) == [MIME]


def test_what_a_figure_writes_itself_never_offers_to_upload(figure, tmp_path):
    figure.write_html(tmp_path / "a.html", include_plotlyjs=False, config={"scrollZoom": True})
    for text in (figure.to_html(include_plotlyjs=False), (tmp_path / "a.html").read_text()):
        assert '"showSendToCloud": false' in text
    assert '"scrollZoom": true' in text


def test_without_a_browser_the_html_stays_and_one_line_says_so(
    figure, tmp_path, capsys, without_browser
):
    assert save_figures({"gap": figure}, tmp_path) == [tmp_path / "gap.html"]
    assert capsys.readouterr().err == (
        "tracelab: no PNG figures, the HTML is there (Kaleido requires Google Chrome)\n"
    )
    with pytest.raises(TracelabError, match="no pdf can be drawn here: Kaleido requires"):
        save_figures({"gap": figure}, tmp_path, formats=["pdf"])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"formats": ["eps"]}, "unknown format 'eps'"), ({"width": "wide"}, "unknown width 'wide'")],
)
def test_an_unknown_format_or_width_is_refused_before_anything_is_written(
    figure, tmp_path, options, message
):
    with pytest.raises(TracelabError, match=message):
        save_figures({"gap": figure}, tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


@needs_browser
def test_drawings_for_a_paper_are_as_wide_as_a_column_with_their_caption_beside(figure, tmp_path):
    written = save_figures({"a": figure}, tmp_path, formats=("pdf", "svg", "png"), width="column")
    assert sorted(file.name for file in written) == ["a.pdf", "a.png", "a.svg", "a.txt"]
    assert (tmp_path / "a.txt").read_text() == "A <title>\nn = 2; a caption · m\n"
    png = (tmp_path / "a.png").read_bytes()
    assert png.startswith(PNG)
    assert int.from_bytes(png[16:20]) == pytest.approx(3.3 * 300, abs=3)
    svg = (tmp_path / "a.svg").read_text()
    assert "A &lt;title&gt;" not in svg
    assert "font-size: 10.6667px" in svg  # 8 points
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
    assert figure.layout.template == SCREEN
    assert figure.layout.title.text


@needs_browser
def test_one_browser_draws_all_pictures_and_another_follows_one_that_failed(figure, monkeypatch):
    sizes = {"width": 300, "height": 200}
    first = picture(figure, "png", **sizes)
    assert picture(figure, "png", **sizes) == first
    with pytest.raises(NoPicture):
        picture(figure, "bmp", **sizes)
    assert picture(figure, "png", **sizes) == first


def test_methods_and_models_are_named_as_in_papers():
    assert paper_name("fairmed + klaad") == "FairMed + KLAAD"
    assert paper_name("biasedit(race)") == "BiasEdit(race)"
    assert paper_name("my_klaad") == "my_klaad"
    assert paper_model("SmolLM2-135M-Instruct-Q4_1") == "SmolLM2-135M-Instruct 4-bit"
    assert paper_model("HuggingFaceTB/SmolLM2-135M") == "SmolLM2-135M"


def test_a_copy_for_files_is_black_on_white():
    assert PAPER.layout.paper_bgcolor == "white"
    assert luminance(PAPER.layout.font.color) < 0.02


def test_curves_look_different_however_many_there_are():
    looks = {
        (style["line"]["color"], style["marker"]["symbol"]) for style in map(shared.look, range(36))
    }
    assert len(looks) == 36


def test_a_figure_stays_one_when_it_is_changed(figure):
    assert isinstance(figure.update_layout(height=300), Figure)


def side_by_side(rows: int = 1):
    """Two panels beside each other, with titles and a line between their axes."""
    panels = make_subplots(rows=rows, cols=2, subplot_titles=["one", "two"], shared_yaxes=True)
    for row in range(rows):
        for column in (1, 2):
            panels.add_scatter(x=[1], y=[column], name="a", row=row + 1, col=column)
    panels.update_yaxes(title="height", col=1)
    panels.update_xaxes(title="width")
    return finish(panels, "t", "c")


def test_in_a_column_panels_stand_below_each_other_under_their_titles():
    made = for_paper(side_by_side(), "column")
    upper, lower = made.layout.yaxis.domain, made.layout.yaxis2.domain
    assert lower[0] == 0
    assert lower[1] < upper[0] < upper[1] == 1
    assert list(made.layout.xaxis.domain) == list(made.layout.xaxis2.domain) == [0, 1]
    places = {note.text: note.y for note in made.layout.annotations}
    assert places == {"one": pytest.approx(upper[1]), "two": pytest.approx(lower[1])}
    assert made.layout.yaxis2.showticklabels
    assert made.layout.yaxis2.title.text == "height"
    assert (made.layout.xaxis.title.text, made.layout.xaxis2.title.text) == (None, "width")
    page = for_paper(side_by_side(), "page")
    assert page.layout.xaxis.domain[1] < page.layout.xaxis2.domain[0]


def test_a_grid_is_refused_in_a_column_and_takes_a_page(tmp_path):
    with pytest.raises(TracelabError, match="take width='page'"):
        save_figures({"a": side_by_side(2)}, tmp_path, formats="svg", width="column")
    assert for_paper(side_by_side(2), "page").layout.width == pytest.approx(6.9 * 96)


def test_a_browser_that_cannot_be_started_is_tried_once_and_leaves_no_thread(monkeypatch):
    kaleido, tried = pytest.importorskip("kaleido"), []

    class Broken:
        def __init__(self, **options):
            tried.append(options)

        async def open(self):
            raise RuntimeError("no chrome here")

    monkeypatch.setattr(kaleido, "Kaleido", Broken)
    monkeypatch.setattr(pictures, "_FAILED", {})
    pictures._browser.cache_clear()
    before = threading.active_count()
    for _ in range(3):
        with pytest.raises(pictures.NoPicture, match="no chrome here"):
            pictures.picture(go.Figure(), "png", width=300, height=200)
    assert len(tried) == 1
    assert threading.active_count() == before
