"""Pictures of figures, drawn by one browser that stays open: the first takes as long as it starts
(about two seconds), each that follows a quarter of a second.

Kaleido's own functions start a browser for each call; its server keeps one, but waits for ever if
that browser cannot be started, and hands the picture of an interrupted cell to the next one. Here
each picture has its own future and at most :data:`PATIENCE`.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
from collections.abc import Coroutine
from contextlib import suppress
from functools import cache
from threading import Thread
from typing import Any, TypeVar

import plotly.graph_objects as go

PATIENCE = 30.0
"""Seconds for a picture, the start of the browser among them."""

_T = TypeVar("_T")


class NoPicture(Exception):
    """Says why there is none: kaleido is not installed, there is no browser, or it failed."""


def picture(
    figure: go.Figure, ending: str, *, width: float, height: float, scale: float = 1
) -> bytes:
    """A figure as a file's content.

    Args:
        ending: "png", "svg" or "pdf".
        width, height: in pixels of the layout, 96 an inch.
        scale: pixels of the picture by pixel of the layout.

    Raises:
        NoPicture: it cannot be drawn here.
    """
    try:
        return _browser(os.getpid()).draw(
            figure.to_dict(),
            {"format": ending, "width": width, "height": height, "scale": scale},
        )
    except Exception as error:  # whatever kaleido, its browser and the pipe between them raise
        _browser.cache_clear()  # the next picture has another browser
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise NoPicture(reason) from error


class _Browser:
    """Kaleido in a thread of its own, whose loop is not the notebook's."""

    def __init__(self) -> None:
        from kaleido import Kaleido

        # It tells of every message that the browser's pipe cuts in two; what matters is raised.
        logging.getLogger("choreographer").setLevel(logging.CRITICAL)
        self._loop = asyncio.new_event_loop()
        Thread(target=self._loop.run_forever, name="tracelab pictures", daemon=True).start()
        # mathjax would be fetched from the network
        self._kaleido = self._run(_opened(Kaleido, n=1, timeout=PATIENCE, mathjax=False))
        atexit.register(self._close)

    def draw(self, figure: dict[str, Any], options: dict[str, Any]) -> bytes:
        return self._run(self._kaleido.calc_fig(figure, opts=options))

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    def _close(self) -> None:
        with suppress(Exception):
            self._run(self._kaleido.close())


async def _opened(kind: Any, **options: Any) -> Any:
    """Within the loop, to which its queues belong."""
    made = kind(**options)
    await made.open()
    return made


@cache
def _browser(process: int) -> _Browser:
    """The one of a process: a fork has none of its parent's threads."""
    return _Browser()
