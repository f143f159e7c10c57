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
_FAILED: dict[int, str] = {}
"""Why no browser could be started, by process."""


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
    options = {"format": ending, "width": width, "height": height, "scale": scale}
    try:
        browser = _browser(os.getpid())
        try:
            return browser.draw(figure.to_dict(), options)
        except BaseException:
            _browser.cache_clear()  # the next picture has another browser
            browser.close()
            raise
    except Exception as error:  # whatever kaleido, its browser and the pipe between them raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise NoPicture(reason) from error


class _Browser:
    """Kaleido in a thread of its own, whose loop is not the notebook's."""

    def __init__(self) -> None:
        from kaleido import Kaleido

        # It tells of every message that the browser's pipe cuts in two; what matters is raised.
        logging.getLogger("choreographer").setLevel(logging.CRITICAL)
        self._process = os.getpid()
        self._kaleido: Any = None
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="tracelab pictures", daemon=True)
        self._thread.start()
        try:
            # mathjax would be fetched from the network
            self._kaleido = self._run(_opened(Kaleido, n=1, timeout=PATIENCE, mathjax=False))
        except BaseException:
            self.close()
            raise
        atexit.register(self.close)

    def draw(self, figure: dict[str, Any], options: dict[str, Any]) -> bytes:
        return self._run(self._kaleido.calc_fig(figure, opts=options))

    def close(self) -> None:
        """End the browser, its loop and its thread; nothing in a fork, which has no such thread."""
        atexit.unregister(self.close)
        if self._process != os.getpid() or self._loop.is_closed():
            return
        if self._kaleido is not None:
            with suppress(Exception):
                self._run(self._kaleido.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(1)
        if not self._thread.is_alive():
            self._loop.close()

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)


async def _opened(kind: Any, **options: Any) -> Any:
    """Within the loop, to which its queues belong."""
    made = kind(**options)
    await made.open()
    return made


@cache
def _browser(process: int) -> _Browser:
    """The one of a process: a fork has none of its parent's threads.

    Raises:
        NoPicture: none can be started, which is tried once.
    """
    if process in _FAILED:
        raise NoPicture(_FAILED[process])
    try:
        return _Browser()
    except Exception as error:
        _FAILED[process] = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise
