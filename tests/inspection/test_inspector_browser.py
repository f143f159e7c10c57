"""The inspector in a real browser: the widget against its kernel's numbers, and the page of its
own."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("playwright")
pytest.importorskip("anywidget")

import tracelab
from tests.browser import PAYLOADS, needs_browser
from tests.inspection.live_page import answered, chromium, show_live, watched
from tests.interventions.edits import random_delta, random_erasure
from tracelab.inspection.page import write_html
from tracelab.inspection.payload import page_of
from tracelab.interventions import Stack

pytestmark = needs_browser
FIRST, TYPED = "The nurse said that", "The doctor and his wife"


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model("llama")


@pytest.fixture(scope="module")
def edits(model):
    return {"delta": random_delta(model, scale=0.3), "erasure": random_erasure(model)}


def cells(page) -> dict[tuple[int, str], float]:
    """The map, as a screen reader is told it."""
    found = {}
    for text in page.locator(".cell").evaluate_all("a => a.map(e => e.ariaLabel)"):
        layer, token, value = re.fullmatch(r"layer (\d+), token (.*): (.*)", text).groups()
        found[int(layer), token] = float(value.replace("−", "-"))
    return found


def listed(page) -> list[tuple[str, str, str]]:
    """Tokens that are shown as promoted and demoted, with what is written beside them."""
    rows = page.locator(".next tbody tr:not(.group)")
    return rows.evaluate_all(
        "a => a.map(r => [r.cells[0].textContent, r.cells[2].textContent, r.cells[3].textContent])"
    )


def require_same(page, result, position, measure="resid_post"):
    """What the page shows is what ``inspect`` returns."""
    moves = result.moves
    want = {(row.layer, row.token): getattr(row, measure) for row in moves.itertuples()}
    shown = cells(page)
    assert shown.keys() == want.keys()
    assert [shown[k] for k in want] == pytest.approx(list(want.values()), rel=6e-3, abs=1e-9)
    rows = result.tokens[result.tokens["position"] == position]
    assert [row[0] for row in listed(page)] == list(rows["token"])
    for (_, before, after), row in zip(listed(page), rows.itertuples(), strict=True):
        for text, p in ((before, row.p_before), (after, row.p_after)):
            assert (p < 0.0006) if text == "<0.001" else float(text) == pytest.approx(p, abs=6e-4)


def expected(model, edits, prompt):
    return tracelab.inspect(model, {"edited": Stack(edits)}, prompt, positions="all", top=3)


def test_typing_sliding_and_clicking_show_the_numbers_of_inspect(browser, model, edits):
    widget = tracelab.inspector(model, edits, FIRST, top=3, new_tokens=4)
    page, complaints = watched(browser)
    show_live(page, widget)
    delta, erasure = edits.values()
    require_same(page, expected(model, [delta, erasure], FIRST), 3)

    page.get_by_label("Prompt", exact=True).fill(TYPED)
    page.keyboard.press("Enter")
    answered(page, 1)
    both = expected(model, [delta, erasure], TYPED)
    require_same(page, both, 4)
    assert re.fullmatch(r"computed in \d+\.\d\d s", page.locator(".status").text_content())

    page.get_by_label("strength of delta").fill("0.5")  # a slider's value, and its change event
    answered(page, 2)
    assert page.locator("output").first.text_content() == "× 0.50"
    require_same(page, expected(model, [delta.scaled(0.5), erasure], TYPED), 4)

    page.get_by_label("erasure", exact=True).uncheck()
    answered(page, 3)
    half = expected(model, [delta.scaled(0.5)], TYPED)
    require_same(page, half, 4)

    page.locator(".token").nth(1).click()
    require_same(page, half, 1)
    assert "·doctor" in page.locator(".next h4").text_content()

    page.get_by_label("Quantity", exact=True).select_option("mlp_out")
    require_same(page, half, 1, "mlp_out")
    page.get_by_label("Quantity", exact=True).select_option("lens_kl")
    answered(page, 4)
    lens = tracelab.inspect(model, delta.scaled(0.5), TYPED, lens=True, positions="all", top=3)
    require_same(page, lens, 1, "lens_kl")
    assert complaints == []
    page.close()


def test_a_layer_of_heads_is_fetched_and_a_cell_read_out(browser, model, edits):
    widget = tracelab.inspector(model, edits, FIRST, top=3)
    page, complaints = watched(browser, viewport={"width": 1000, "height": 900})
    show_live(page, widget)
    assert page.locator(".card").count() == 4
    page.locator(".heads").get_by_label("Layer", exact=True).select_option("1")
    answered(page, 1)
    assert page.locator(".heads h4").text_content() == "Attention heads of layer 1"
    page.locator(".card").nth(2).click()
    canvas = page.locator(".detail canvas").nth(1)
    box = canvas.bounding_box()
    side = box["width"] - 66  # the last query and its last key
    canvas.hover(position={"x": 66 + side - 4, "y": side - 4})
    text = page.locator(".heads .readout").text_content()
    before, after, change = re.search(r": (\S+) → (\S+) \((\S+)\)", text).groups()
    heads = widget.session.result.heads
    want = [float(heads[name][1, 2, -1, -1]) for name in ("before/0", "after/0/0")]
    assert text.startswith("head 2, ·that attends to ·that")
    assert [float(before), float(after)] == pytest.approx(want, abs=1e-3)
    assert float(change.replace("−", "-")) == pytest.approx(want[1] - want[0], abs=1e-3)
    assert complaints == []
    page.close()


def test_what_cannot_be_shown_is_one_sentence_and_the_next_prompt_works(browser, model, edits):
    widget = tracelab.inspector(model, edits, FIRST, top=3, new_tokens=4)
    page, complaints = watched(browser)
    show_live(page, widget)
    for count, (prompt, said) in enumerate(
        [("", "there is no prompt"), ("word " * 70, "the inspector shows at most 64")], start=1
    ):
        page.get_by_label("Prompt", exact=True).fill(prompt)
        page.get_by_role("button", name="Run").click()
        answered(page, count)
        assert said in page.locator(".status.error").text_content()
        assert page.locator(".token").count() == 4  # what was there stays
    page.get_by_label("Prompt", exact=True).fill(TYPED)
    page.keyboard.press("Enter")
    answered(page, 3)
    assert page.locator(".status.error").count() == 0
    assert page.locator(".token").count() == 5
    page.get_by_role("button", name="Sample").click()
    answered(page, 4)
    texts = ["".join(piece for piece, _ in widget.texts[side]) for side in ("before", "after")]
    made = tracelab.generate(model, TYPED, max_new_tokens=4, seed=0).frame["continuation"][0]
    assert texts[0] == made
    shown = page.locator(".columns p").all_text_contents()
    assert shown == [TYPED + text for text in texts]
    assert complaints == []
    page.close()


def test_of_what_is_asked_while_an_answer_is_awaited_the_last_of_a_kind_is_answered(
    browser, model, edits
):
    widget = tracelab.inspector(model, edits, FIRST, top=3, new_tokens=4)
    page, complaints = watched(browser)
    asked, answer = [], widget._handle_custom_msg
    widget._handle_custom_msg = lambda request, _: (asked.append(request), answer(request, _))
    show_live(page, widget)
    page.evaluate("""() => {
      const slider = document.querySelector("input[type=range]");
      const slide = (value) => { slider.value = value; slider.dispatchEvent(new Event("change")); };
      const sample = document.querySelector(".text button");
      slide(0.2); sample.click(); slide(0.5); sample.click(); slide(0.75);
    }""")
    answered(page, 3)
    runs = [each["edits"][0]["strength"] for each in asked if each["do"] == "run"]
    assert ([each["do"] for each in asked], runs) == (["run", "run", "texts"], [0.2, 0.75])
    delta, erasure = edits.values()
    require_same(page, expected(model, [delta.scaled(0.75), erasure], FIRST), 3)
    assert page.locator(".columns p").count() == 2  # texts of what is shown
    assert complaints == []
    page.close()


def test_the_map_is_walked_by_arrow_keys_and_every_control_has_a_name(browser, model, edits):
    page, complaints = watched(browser, viewport={"width": 420, "height": 800})
    show_live(page, tracelab.inspector(model, edits, FIRST, top=3))
    page.locator('.cell[tabindex="0"]').focus()
    layer = int(page.locator(".map").get_by_label("Layer", exact=True).input_value())
    page.keyboard.press("ArrowDown" if layer else "ArrowUp")
    moved = layer - 1 if layer else 1
    page.wait_for_function("window.answers === 1")  # its heads
    page.keyboard.press("ArrowLeft")
    assert page.locator(".map").get_by_label("Layer", exact=True).input_value() == str(moved)
    assert page.locator(".map").get_by_label("Token", exact=True).input_value() == "2"
    assert page.evaluate("document.activeElement.ariaSelected") == "true"
    unnamed = page.locator("input, select, button").evaluate_all(
        "all => all.filter(e => !(e.ariaLabel || e.labels?.length || e.textContent)).length"
    )
    assert unnamed == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    assert complaints == []
    page.close()


@pytest.fixture(scope="module")
def saved(model, edits, tmp_path_factory):
    """A page of two prompts and two edits, from a result."""
    result = tracelab.inspect(
        model, edits, [FIRST, TYPED], positions="all", top=3, lens=True, new_tokens=4
    )
    file = tmp_path_factory.mktemp("saved") / "inspector.html"
    return result, write_html(page_of(result), file)


def only(result, edit, prompt):
    """The tables of one edit and prompt."""
    tables = {name: getattr(result, name) for name in ("moves", "tokens")}
    chosen = {n: t[(t["edit"] == edit) & (t["prompt"] == prompt)] for n, t in tables.items()}
    return SimpleNamespace(**chosen)


def test_the_page_that_stands_alone_is_clicked_through_without_a_kernel(browser, saved):
    result, file = saved
    page, complaints = watched(browser)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    assert page.locator("input").count() == 0  # nothing that would need a model
    assert "run tracelab.inspector(model, edits)" in page.locator(".note").text_content()
    for prompt, text in enumerate([FIRST, TYPED]):
        page.get_by_label("Prompt", exact=True).select_option(label=text)
        for edit in ("delta", "erasure"):
            page.get_by_label("Edit", exact=True).select_option(edit)
            rows = only(result, edit, prompt)
            page.locator(".token").nth(2).click()
            require_same(page, rows, 2)
    page.get_by_label("Quantity", exact=True).select_option("lens_kl")
    require_same(page, rows, 2, "lens_kl")
    page.locator(".heads").get_by_label("Layer", exact=True).select_option("0")
    assert page.locator(".heads h4").text_content() == "Attention heads of layer 0"
    assert page.locator(".columns p").count() == 2
    assert asked == [file.as_uri()]
    assert complaints == []
    page.close()


def test_a_dark_page_is_drawn_in_light_ink(browser, saved):
    page, complaints = watched(browser, color_scheme="dark")
    page.goto(saved[1].as_uri())
    paper, ink = page.locator(".tracelab-inspector").evaluate(
        "e => [getComputedStyle(e).backgroundColor, getComputedStyle(e).color]"
    )
    light = [np.mean([int(n) for n in re.findall(r"\d+", colour)[:3]]) for colour in (paper, ink)]
    assert light[0] < 60 < 190 < light[1]
    assert page.locator(".tracelab-inspector.dark").count() == 1
    page.emulate_media(color_scheme="light")
    page.wait_for_selector(".tracelab-inspector:not(.dark)")
    assert complaints == []
    page.close()


def test_texts_that_are_script_run_neither_in_the_widget_nor_in_the_page(browser, model, tmp_path):
    prompt, names = PAYLOADS[2], PAYLOADS[:4]
    edits = {name: random_delta(model, scale=0.1) for name in names[1:3]}
    widget = tracelab.inspector(model, edits, prompt, top=2, new_tokens=3)
    page, _ = watched(browser)
    show_live(page, widget)
    page.get_by_label("Prompt", exact=True).fill(PAYLOADS[0])
    page.keyboard.press("Enter")
    answered(page, 1)
    page.get_by_role("button", name="Sample").click()
    answered(page, 2)
    assert page.title() == "quiet"
    assert page.locator(".tracelab-inspector img, .tracelab-inspector script").count() == 0
    assert names[1] in page.locator("fieldset").text_content()
    result = tracelab.inspect(model, edits, list(names), positions="all", top=2, new_tokens=3)
    result.settings["model"]["model_id"] = "".join(names)
    pages = [write_html(page_of(result), tmp_path / "inspector.html"), tmp_path / "cell.html"]
    cell = widget._repr_mimebundle_()[0]["text/html"]
    pages[1].write_text(f"<!doctype html><meta charset=utf-8><title>cell</title>{cell}", "utf-8")
    for file in pages:
        page.goto(file.as_uri())
        page.wait_for_selector(".tracelab-inspector .card")
        assert page.title() in ("tracelab inspector", "cell")
        assert page.locator("img, svg, iframe, details").count() == 0
        assert page.locator(".token").count() > 10
    page.close()
