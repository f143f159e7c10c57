"""The inspector as a page that stands alone: one file, no network, from the numbers of a result.

The page is the widget's own module and style with the numbers as JSON between them, so it looks and
works as the widget does, but for typing and sliding, which need a model. What is quoted of prompts
and models stands in JSON whose ``<``, ``>`` and ``&`` are escapes, so that none of it ends the
script.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from tracelab.errors import TracelabError
from tracelab.inspection.payload import compact
from tracelab.storage.files import own_file

FILE = "inspector.html"
_ESCAPED = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>tracelab inspector</title>
<style>
body {{ margin: 0 auto; padding: 16px; max-width: 1212px; }}
@media (max-width: 500px) {{ body {{ padding: 4px; }} }}
</style>
</head>
<body>
<main>
{fragment}
</main>
</body>
</html>
"""


def static_html(page: dict[str, Any]) -> str:
    """A fragment of HTML that shows the inspector wherever it is put, more than once too.

    Args:
        page: of :func:`~tracelab.inspection.payload.page_of`.
    """
    data = compact(page).translate(_ESCAPED)
    name = "tracelab-" + hashlib.sha256(data.encode()).hexdigest()[:12]
    return (
        f"<style>{asset('inspector.css')}</style>\n"
        f'<div id="{name}"><noscript>The inspector is drawn by JavaScript, which is off here.'
        "</noscript></div>\n"
        f'<script type="application/json" id="{name}-data">{data}</script>\n'
        f'<script type="module">\n{asset("inspector.js")}\n'
        f"for (const place of document.querySelectorAll('[id=\"{name}\"]:not([data-shown])')) {{\n"
        "place.dataset.shown = true;\n"
        f'mountSaved(place, JSON.parse(document.getElementById("{name}-data").textContent));\n'
        "}\n</script>\n"
    )


def write_html(page: dict[str, Any], file: Path | str) -> Path:
    """Write the inspector as one HTML file that stands alone; returns it.

    Args:
        page: of :func:`~tracelab.inspection.payload.page_of`.

    Raises:
        TracelabError: a file of that name is not tracelab's, or it cannot be written.
    """
    with own_file(file) as path:
        path.write_text(_PAGE.format(fragment=static_html(page)), encoding="utf-8")
    return Path(file)


@cache
def asset(name: str) -> str:
    """The text of the widget's module or style, which come with the package.

    Raises:
        TracelabError: the installation lacks it.
    """
    try:
        return (files("tracelab.inspection") / name).read_text(encoding="utf-8")
    except OSError as error:
        raise TracelabError(f"{name} is missing from this installation of tracelab") from error
