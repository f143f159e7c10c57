"""Docstrings name other objects by Sphinx' roles; the site shows these as links.

:func:`~tracelab.load`  becomes  a link to it where a page has it, else its name as code
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:func|class|meth|mod|data|attr|exc):`(?P<tilde>~?)(?P<name>[\w.]+)`")
EXAMPLE = re.compile(r"^>>> .*(?:\n.+)*", re.M)


class Roles(griffe.Extension):
    """Rewrites the docstring of each object as it is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called by griffe for each object once it is complete."""
        if obj.docstring is not None:
            linked = ROLE.sub(link, obj.docstring.value)
            obj.docstring.value = EXAMPLE.sub(r"```pycon\n\g<0>\n```", linked)


def link(role: re.Match[str]) -> str:
    """A cross-reference that may lead nowhere, which is then plain code."""
    name = role["name"].lstrip(".")
    shown = name.rpartition(".")[2] if role["tilde"] else name
    return f'<autoref identifier="{name}" optional><code>{shown}</code></autoref>'
