"""The pages of ``docs/`` keep what they promise: code runs, commands and names exist, and the site
builds.

A page's blocks of Python run from top to bottom in one namespace, on a small cache
(:mod:`tests.small_cache`). What cannot run here (a GPU, vLLM, llama.cpp) is no block of Python or
bash, and the page says so.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import sync_playwright

import tracelab
from tests.browser import BROWSER, needs_browser
from tests.small_cache import make_small_cache
from tracelab.cli.parser import make_parser

ROOT = Path(tracelab.__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {page.relative_to(DOCS).as_posix(): page.read_text("utf-8") for page in DOCS.rglob("*.md")}
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.M | re.S)


def blocks(text: str, language: str) -> list[str]:
    return [found[2] for found in FENCE.findall(text) if found[1] == language]


SLOW = {
    "howto_intervention.md",
    "howto_tune.md",
    "in_python.md",
    "method_biasedit.md",
    "method_klaad.md",
}
WITH_CODE = sorted(name for name, text in PAGES.items() if blocks(text, "python"))


def commands(text: str) -> list[str]:
    """The lines of a block, those that go on after a backslash joined, comments taken off."""
    lines = text.replace("\\\n", " ").splitlines()
    return [line for each in lines if (line := re.sub(r"(^|\s+)#.*", "", each).strip())]


COMMANDS = sorted(
    {
        (name, line)
        for name, text in PAGES.items()
        for block in blocks(text, "bash")
        for line in commands(block)
    }
)


@pytest.fixture(scope="module")
def small_cache(tmp_path_factory) -> Path:
    return make_small_cache(tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in WITH_CODE]
)
def test_the_python_of_a_page_runs_from_top_to_bottom(name, small_cache, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACELAB_CACHE", str(small_cache))
    monkeypatch.chdir(tmp_path)
    module = type(sys)("page")
    monkeypatch.setitem(sys.modules, "page", module)
    found: dict[str, Any] = vars(module)
    for number, block in enumerate(blocks(PAGES[name], "python")):
        exec(compile(block, f"docs/{name}, Python block {number}", "exec"), found)
    if "model" in found:
        assert not found["model"].list_hooks()


def test_every_block_is_of_a_kind_that_is_tried_or_says_what_it_is():
    kinds = {found[1] for text in PAGES.values() for found in FENCE.findall(text)}
    assert kinds <= {"python", "bash", "text", "json", "formula", "csv", "yaml"}


@pytest.mark.parametrize(("name", "line"), COMMANDS)
def test_the_command_of_a_page_is_understood(name, line):
    program, *words = shlex.split(line)
    if program == "tracelab":
        make_parser().parse_args(words)
    elif program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text("utf-8"), re.M)
    elif program == "python":
        assert (ROOT / words[0]).exists()
    else:
        assert program in {"pip", "export", "jupyter", "apt-get", "git", "cd"}


def test_every_public_name_is_in_the_reference():
    shown = "".join(text for name, text in PAGES.items() if name.startswith("api/"))
    named = set(re.findall(r"^::: tracelab\.(?:[\w.]+\.)?(\w+)$", shown, re.M))
    assert named >= {*tracelab.__all__} - {"datasets"}
    assert named >= {*tracelab.datasets.__all__, *tracelab.interventions.__all__}


def test_every_page_is_in_the_contents_and_the_other_way_round():
    contents = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:\n")[2]
    assert set(re.findall(r"^ +- (?:[^:\n#]+: )?([\w/]+\.md)$", contents, re.M)) == PAGES.keys()


def test_the_files_and_notebooks_that_pages_name_are_there():
    for name, text in PAGES.items():
        for path in re.findall(r"`((?:analyses|figures|tests|tracelab|docs)/[\w/]+\.\w+)`", text):
            assert (ROOT / path).exists(), f"{name}: {path}"


def test_the_links_between_pages_lead_to_files():
    for name, text in PAGES.items():
        for link in re.findall(r"\]\(([^)#:]+)", FENCE.sub("", text)):
            assert ((DOCS / name).parent / link).exists(), f"{name}: {link}"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_fetches_nothing(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(PAGES)  # and the page of what is not found
    for page in pages:
        text = page.read_text("utf-8")
        loaded = re.findall(r"<(?:script|img|iframe)[^>]*\bsrc=\"?([^\"\s>]+)", text)
        loaded += re.findall(r"<link[^>]*rel=\"?(?:stylesheet|icon|preconnect)[^>]*>", text)
        assert not [each for each in loaded if "//" in each], page


@pytest.mark.slow
def test_no_comment_that_asks_for_something_is_left(site):
    for page in site.rglob("*.html"):
        assert not re.search(r"<!-- (fields|metrics|help): ", page.read_text("utf-8")), page


@pytest.fixture(scope="module")
def address(site) -> Iterator[str]:
    """Where the site is served."""
    handler = partial(QuietHandler, directory=str(site))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.slow
@needs_browser
def test_pages_open_without_a_word_on_the_console_and_fit_a_phone(address):
    said, asked = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 420, "height": 900}, color_scheme="dark")
        tab.on("console", lambda message: said.append(message.text))
        tab.on("request", lambda request: asked.append(request.url))
        for page in ("index", "method_biasedit", "results", "command_line", "api/evaluate"):
            tab.goto(f"{address}/{page}.html")
            tab.wait_for_load_state("networkidle")
            wide = tab.evaluate("document.documentElement.scrollWidth")
            assert wide <= 420, f"{page} is {wide} wide"
        tab.goto(f"{address}/index.html?q=erasure")
        tab.wait_for_selector(".md-search-result__item", state="attached")
        browser.close()
    assert said == []
    assert all(url.startswith((address, "data:", "blob:")) for url in asked)
