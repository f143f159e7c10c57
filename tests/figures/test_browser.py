"""Saved figures in a real browser: no button that uploads, a clean console, the width and the
colours of the page."""

from __future__ import annotations

from contextlib import contextmanager

import pandas as pd
import plotly.graph_objects as go
import pytest

from tests.browser import BROWSER, needs_browser
from tracelab.figures import save_figures, scores
from tracelab.figures.style import PAGE_STYLE

pytestmark = needs_browser


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page_of(chromium):
    @contextmanager
    def opened(file, **options):
        page = chromium.new_page(**options)
        said = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(file.as_uri())
        page.wait_for_selector(".main-svg text")
        yield page, said
        page.close()

    return opened


def buttons(page) -> list[str]:
    """What the buttons above a figure say."""
    return page.eval_on_selector_all(
        ".modebar-btn", "each => each.map(b => b.getAttribute('data-title'))"
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A figure with edits of three colours, as tracelab saves it, and plotly's own of the same."""
    folder = tmp_path_factory.mktemp("pages")
    rows = [
        {"edit": edit, "metric": metric, "value": i, "low": i - 1, "high": i + 1, "p_holm": p}
        for metric in ("ss", "perplexity")
        for i, (edit, p) in enumerate((("unedited", None), ("a", 0.01), ("b", 0.5)))
    ]
    figure = scores(
        pd.DataFrame(rows), ["ss", "perplexity"], title="t", caption="c", values="level"
    )
    save_figures({"figure": figure}, folder, png=False)
    colours = {"color": ["red", "blue"]}
    plain = go.Figure(
        go.Scatter(x=[1, 2], y=[1, 2], mode="markers", marker=colours, error_x={"array": [1, 1]})
    )
    plain.write_html(folder / "plain.html", include_plotlyjs="plotly.min.js")
    return folder


def test_a_saved_figure_offers_no_upload_and_leaves_the_console_clean(saved, page_of):
    with page_of(saved / "figure.html") as (page, said):
        assert "Download plot as a PNG" in " ".join(buttons(page))
        assert not [title for title in buttons(page) if "hare" in title or "loud" in title]
        assert said == []


def test_plotlys_own_would_offer_it_and_complain_of_colours(saved, page_of):
    """What the test above looks for is there to be found."""
    with page_of(saved / "plain.html") as (page, said):
        assert any("Share chart" in title for title in buttons(page))
        assert any("Invalid color specifier" in text for text in said)


def test_a_figure_fits_the_width_of_its_page(saved, page_of):
    for width in (1000, 500):
        with page_of(saved / "figure.html", viewport={"width": width, "height": 600}) as (page, _):
            box = page.locator(".main-svg").first.bounding_box()
            assert width - 40 < box["width"] <= width
            page.set_viewport_size({"width": 800, "height": 600})
            page.wait_for_function(
                "document.querySelector('.main-svg').getBoundingClientRect().width > 740"
                " && document.querySelector('.main-svg').getBoundingClientRect().width <= 800"
            )


@pytest.mark.parametrize(
    ("scheme", "text"), [("light", "rgb(0, 0, 0)"), ("dark", "rgb(255, 255, 255)")]
)
def test_a_saved_figure_is_dark_where_its_reader_is(saved, page_of, scheme, text):
    assert "color-scheme: light dark" in PAGE_STYLE
    with page_of(saved / "figure.html", color_scheme=scheme) as (page, _):
        seen = page.eval_on_selector(".xtick text", "each => getComputedStyle(each).fill")
        assert seen == text
        paper = page.eval_on_selector(".main-svg", "each => getComputedStyle(each).background")
        assert "rgba(0, 0, 0, 0)" in paper
