"""The page in a real browser: sorted by keyboard, read on a phone, in the dark, on paper and
without scripts."""

from __future__ import annotations

import gzip
import re
from base64 import b64decode

import pandas as pd
import pytest
from plotly.offline import get_plotlyjs

import tracelab
from tests.browser import BROWSER, needs_browser
from tests.interventions.edits import random_delta
from tracelab.report.presets import PRESETS, Preset

pytestmark = [needs_browser, pytest.mark.slow]
COMMAND = "tracelab report --bias gender --out 'a <b> c'"
RATIO = """
([foreground, background]) => {
  const light = (colour) => {
    const parts = colour.match(/[0-9.]+/g).slice(0, 3).map((each) => each / 255);
    const [r, g, b] = parts.map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const [a, b] = [light(foreground), light(background)].sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05);
}
"""
FAINT = f"""
() => {{
  const ratio = {RATIO.strip()};
  const found = [];
  for (const element of document.querySelectorAll("body *")) {{
    const text = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!text || element.closest("script, noscript, style, .modebar, .hoverlayer")) continue;
    if (!element.getClientRects().length) continue;
    let behind = element;
    const fill = (node) => getComputedStyle(node).backgroundColor;
    while (behind && /, 0\\)$|transparent/.test(fill(behind))) behind = behind.parentElement;
    const style = getComputedStyle(element);
    const colour = element instanceof SVGElement ? style.fill : style.color;
    const contrast = ratio([colour, fill(behind ?? document.body)]);
    if (contrast < 4.5) found.push([element.textContent.slice(0, 40), colour, contrast]);
  }}
  return found;
}}
"""


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory):
    """A report of two edits of a tiny model, one of which does much."""
    PRESETS["browser"] = Preset(
        prober_seeds=1, trace_pairs=2, trace_samples=1, layer_step=2, choice_records=6,
        benchmarks={"stereoset": 8, "perplexity": 3},
    )  # fmt: skip
    model = tiny_model("llama")
    edits = {"fairmed": random_delta(model, scale=0.001), "mine": random_delta(model, scale=0.3)}
    made = tmp_path_factory.mktemp("page") / "report"
    try:
        tracelab.report(
            model, "gender", made, preset="browser", limit=12, png=False, interventions=edits,
            prompts=["She said"], command=COMMAND,
        )  # fmt: skip
    finally:
        del PRESETS["browser"]
    return made


@pytest.fixture(scope="module")
def chromium():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


class Opened:
    """Pages of the report, and what they said on the console or asked a network for."""

    def __init__(self, chromium, folder):
        self.chromium, self.folder, self.said = chromium, folder, []

    def __call__(self, width=1400, **options):
        context = self.chromium.new_context(viewport={"width": width, "height": 900}, **options)
        page = context.new_page()
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", self.requested)
        page.goto((self.folder / "index.html").as_uri())
        if options.get("java_script_enabled", True):
            page.wait_for_selector("html[data-drawn]", timeout=120_000)
        return page

    def requested(self, request):
        if request.url.startswith("http"):
            self.said.append(request.url)


@pytest.fixture(scope="module")
def opened(chromium, folder):
    return Opened(chromium, folder)


@pytest.fixture(scope="module")
def shared(opened):
    return opened(permissions=["clipboard-read", "clipboard-write"])


@pytest.fixture(autouse=True)
def _silent(opened):
    yield
    assert opened.said == []


@pytest.fixture
def page(shared):
    """The page at 1400 pixels, which tests share."""
    shared.emulate_media(color_scheme="light")
    return shared


def test_every_figure_is_drawn_from_one_packed_script_and_has_words(page, folder):
    drawn = page.locator(".plot:visible").count()
    assert page.locator(".plot:visible .main-svg:first-child").count() == drawn > 7
    for image in page.locator('[role="img"]').all():
        assert len(image.get_attribute("aria-label")) > 30
    text = (folder / "index.html").read_text(encoding="utf-8")
    [packed] = re.findall(r'id="plotly">([^<]+)<', text)
    assert gzip.decompress(b64decode(packed)).decode() == get_plotlyjs()
    assert text.count("plotly.js v") == 0
    assert len(text) < 3e6


def test_plotlys_buttons_do_not_offer_to_upload(page):
    buttons = page.locator(".modebar-btn").evaluate_all(
        "all => all.map(each => each.dataset.title)"
    )
    assert buttons
    assert not [each for each in buttons if re.search("(?i)cloud|share|edit|studio", each or "")]


def test_a_column_is_sorted_by_keyboard_and_says_so(page, folder):
    table = pd.read_csv(folder / "tables/scoreboard_table.csv")
    change = table["difference"].dropna()
    head = page.locator("#scores th", has_text="change")
    assert head.get_attribute("aria-sort") == "none"
    head.locator("button").focus()
    shown = page.locator("#scores tbody td:nth-child(5)")
    for key, order in (("Enter", "ascending"), ("Space", "descending")):
        page.keyboard.press(key)
        assert head.get_attribute("aria-sort") == order
        values = [
            float(each) for each in shown.evaluate_all("all => all.map(c => c.dataset.value)")
        ]
        assert values == pytest.approx(sorted(change, reverse=order == "descending"))
    page.keyboard.press("Tab")  # the next column is the next stop
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "none"
    values = page.locator("#scores tbody td:nth-child(6)").evaluate_all(
        "all => all.map(c => c.dataset.value)"
    )
    known = [each for each in values if each]
    assert values == known + [""] * (len(values) - len(known))  # what has no interval comes last


def test_levels_are_drawn_on_request_with_the_keyboard(page):
    assert page.locator('[data-figure="scoreboard_levels-data"] svg').count() == 0
    page.locator("#scoreboard summary").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector('[data-figure="scoreboard_levels-data"] .main-svg')


def test_keyboard_order_begins_with_the_skip_link_and_the_contents(opened):
    page = opened()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.hash") == "#main"
    assert page.locator(".skip").bounding_box()["x"] >= 0
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.hash") == "#answer"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_contents_lead_to_headings_and_every_cell_has_its_header(page):
    links = page.locator("nav a").evaluate_all("all => all.map(each => each.hash)")
    assert len(links) > 12
    for link in links:
        assert page.locator(link).count() == 1
    page.locator('nav a[href="#attention_pair"]').click()
    assert page.locator("#attention_pair-heading").is_visible()
    assert page.evaluate("scrollY") > 1000
    assert page.locator("h2:not([id]), h3:not([id])").count() == 0
    assert page.locator("th:not([scope]), table:not(:has(thead))").count() == 0
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(each => each.id)")
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(("width", "scheme"), [(420, "light"), (1400, "dark")])
def test_no_text_is_faint_and_nothing_is_wider_than_the_screen(opened, width, scheme):
    page = opened(width, color_scheme=scheme)
    page.locator("main details").evaluate_all("all => all.forEach(each => (each.open = true))")
    page.wait_for_selector('[data-figure="scoreboard_levels-data"] .main-svg')
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(FAINT) == []
    dark = scheme == "dark"
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(21, 24, 29)") == dark
    assert page.locator("nav details").evaluate("each => each.open") == (width > 900)


def test_a_theme_that_changes_is_followed_by_the_figures(page):
    colour = "getComputedStyle(document.querySelector('#f1_per_layer .xtitle')).fill"
    assert page.evaluate(colour) == "rgb(31, 35, 40)"
    page.emulate_media(color_scheme="dark")
    page.wait_for_selector("html[data-drawn=again]")
    assert page.evaluate(colour) == "rgb(230, 233, 238)"


def test_on_paper_everything_is_open_light_and_whole(page):
    page.emulate_media(color_scheme="dark")
    printed = """
    () => {
      const paper = [];
      addEventListener("beforeprint", () => {
        for (const box of document.querySelectorAll(".plot")) {
          const { width, height } = box.querySelector("svg").getBoundingClientRect();
          paper.push([width, height]);
        }
        window.seen = {
          paper,
          folded: document.querySelectorAll("main details:not([open]):not(.screen)").length,
          ink: getComputedStyle(document.body).color,
        };
      });
    }
    """
    page.evaluate(printed)
    assert page.pdf(format="A4")[:4] == b"%PDF"
    seen = page.evaluate("window.seen")
    assert seen["folded"] == 0
    assert seen["ink"] == "rgb(31, 35, 40)"
    assert len(seen["paper"]) == page.locator(".plot").count()
    assert all(width <= 670 and height <= 900 for width, height in seen["paper"])
    assert page.locator("#numbers details[open]").count() == 0  # as it was
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert not page.locator("button.copy").is_visible()
    page.emulate_media(media="screen")


def test_the_command_is_copied_without_a_network(page):
    page.locator("button.copy").focus()
    page.keyboard.press("Enter")
    page.locator("[role=status]", has_text="Copied.").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == COMMAND


def test_links_lead_to_files_that_are_there(page, folder):
    links = page.locator("main a").evaluate_all(
        "all => all.map(each => each.getAttribute('href')).filter(each => !each.startsWith('#'))"
    )
    assert len(links) > 40
    assert [link for link in links if not (folder / link).is_file()] == []


def test_without_scripts_the_text_and_the_tables_are_there(opened):
    page = opened(java_script_enabled=False)
    assert page.locator("#scores tbody tr").count() > 5
    assert "No picture was made" in page.locator("#f1_per_layer noscript").inner_text()
    assert page.locator("nav details").get_attribute("open") is not None


def test_where_nothing_can_be_unpacked_the_pictures_are_shown(chromium, folder):
    page = chromium.new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto((folder / "index.html").as_uri())
    page.wait_for_selector("html[data-drawn]")
    assert page.locator("#tradeoff .plot p").is_visible()
    page.close()
