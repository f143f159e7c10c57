"""A browser page in which the inspector's module talks to the real widget, by a stand-in for what
anywidget gives it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from tests.browser import BROWSER
from tracelab.inspection.page import asset

PARTS = ("setup", "view", "heads", "texts", "said")
_PAGE = """<!doctype html><meta charset="utf-8"><title>quiet</title><style>%s</style>
<div id="cell"></div>
<script type="module">
%s
const state = %s, acts = {};
const model = {
  get: (name) => state[name],
  on: (event, act) => { (acts[event] ??= []).push(act); },
  off: () => {},
  send: async (request) => {
    Object.assign(state, await window.ask(request));
    for (const name of Object.keys(state)) for (const act of acts[`change:${name}`] ?? []) act();
    window.answers = (window.answers ?? 0) + 1;
  },
};
render({ model, el: document.getElementById("cell") });
</script>"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """One browser for all tests of a module."""
    with sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


def watched(browser: Browser, **options: Any) -> tuple[Page, list[str]]:
    """A new page, and what it complained of so far."""
    page, said = browser.new_page(**options), []
    page.set_default_timeout(15_000)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    return page, said


def state_of(widget: Any) -> dict[str, Any]:
    """What the kernel holds for the front end, as it comes out of JSON."""
    return json.loads(json.dumps({name: getattr(widget, name) for name in PARTS}))


def show_live(page: Page, widget: Any) -> None:
    """Open the widget in a page; what the page sends is answered by the widget's own handler."""

    def ask(request: dict[str, Any]) -> dict[str, Any]:
        widget._handle_custom_msg(request, [])
        return state_of(widget)

    page.expose_function("ask", ask)
    state = json.dumps(state_of(widget)).replace("<", "\\u003c")
    code = asset("inspector.js").replace("export default { render };", "")
    page.set_content(_PAGE % (asset("inspector.css"), code, state))
    page.wait_for_selector(".tracelab-inspector .status", state="attached")


def answered(page: Page, count: int) -> None:
    """Wait for the answer to the ``count``-th request."""
    page.wait_for_function(f"window.answers === {count}")
