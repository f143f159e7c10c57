"""A real browser that says what a page did: texts that would run as script, and whether they
ran."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no chromium on this machine (apt-get install chromium)"
)

RUN = "document.title='RAN'"
PAYLOADS = (
    f'<img src=x onerror="{RUN}">',
    f"<script>{RUN}</script>",
    f"</script><script>{RUN}</script>",
    f'</pre></td></table></title></style><svg onload="{RUN}">',
    f'<details open ontoggle="{RUN}">x</details>',
    f'<iframe srcdoc="<script>parent.{RUN}</script>"></iframe>',
    f'"\'><img src=x onerror="{RUN}">',
    f'{{{{ 7 * 7 }}}}<body onload="{RUN}">',
)


def runs(page: Path | str, folder: Path) -> bool:
    """Whether one of :data:`PAYLOADS` in a page (a file, or the HTML of a notebook's cell) ran when
    it was opened."""
    if isinstance(page, str):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "page.html").write_text(
            f"<!doctype html><meta charset=utf-8><title>quiet</title>{page}", "utf-8"
        )
        page = folder / "page.html"
    command = [
        str(BROWSER),
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={folder / 'profile'}",
    ]
    command += [
        "--virtual-time-budget=5000",
        "--allow-file-access-from-files",
        "--dump-dom",
        page.resolve().as_uri(),
    ]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "<body" in shown  # the page was opened
    return "<title>RAN</title>" in shown
