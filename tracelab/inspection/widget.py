"""The inspector in a notebook: an anywidget that hands what the front end asks to a session.

Needs ``anywidget`` (the extra ``notebook``); :func:`tracelab.inspector` imports this file when it
is called.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anywidget
import traitlets

from tracelab.inspection.page import asset, static_html, write_html
from tracelab.inspection.session import Session


class Inspector(anywidget.AnyWidget):
    """The widget of :func:`tracelab.inspector`; its state is what the front end shows.

    Attributes:
        session: what computes; ``session.result`` is the comparison that is shown.
    """

    _esm = asset("inspector.js")
    _css = asset("inspector.css")
    setup = traitlets.Dict().tag(sync=True)
    view = traitlets.Dict().tag(sync=True)
    heads = traitlets.Dict(allow_none=True).tag(sync=True)
    texts = traitlets.Dict(allow_none=True).tag(sync=True)
    said = traitlets.Dict().tag(sync=True)

    def __init__(self, session: Session) -> None:
        self.session = session
        super().__init__(setup=session.setup(), **session.shown())
        self.on_msg(self._asked)

    def _asked(self, widget: Any, request: Any, buffers: Any) -> None:
        parts = self.session.answer(request if isinstance(request, dict) else {})
        switches = self.session.switches
        names = [edit["name"] for edit in self.setup["edits"]]
        edits = [{"name": name, **each} for name, each in zip(names, switches, strict=True)]
        with self.hold_sync():
            self.setup = self.setup | {"edits": edits}
            for name, value in parts.items():
                setattr(self, name, value)

    def save(self, file: Path | str) -> Path:
        """Write what is shown now as one HTML file that stands alone; returns it.

        Raises:
            TracelabError: a file of that name is not tracelab's, or it cannot be written.
        """
        return write_html(self.session.page(), file)

    def __repr__(self) -> str:
        names = ", ".join(edit["name"] for edit in self.setup["edits"])
        return f"Inspector({self.setup['model']}, {names})"

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """The widget, and the same view as HTML for where no kernel is (nbconvert)."""
        made = super()._repr_mimebundle_(**options)
        if made is None:
            return None
        bundle, metadata = made if isinstance(made, tuple) else (made, {})
        static = {"text/html": static_html(self.session.page()), "text/plain": repr(self)}
        return bundle | static, metadata
