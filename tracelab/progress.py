"""Progress bars with the time left: on a terminal, in a notebook, and none when piped.

A bar says what is being done, how far it is and how long it will take. In a notebook it is a
widget, where ipywidgets is there to draw one, and else a line of text; what its front end shows of
a bar goes when it is done, and an interrupted one goes too, as each is used in a ``with`` block.
"""

from __future__ import annotations

import sys
import warnings
from importlib.util import find_spec

from tqdm import tqdm


def progress(*, total: int, what: str, unit: str = "it") -> tqdm:
    """A tqdm bar, silent where neither a terminal nor a notebook shows it."""
    if in_notebook():  # a saved notebook keeps a trace of each bar: so none of what is quick
        return _notebook_bar()(total=total, desc=what, unit=unit, leave=False, delay=1)
    hidden = not sys.stderr.isatty()
    return tqdm(total=total, desc=what, unit=unit, disable=hidden, leave=False)


def in_notebook() -> bool:
    """Whether this is the kernel of a notebook (and not IPython on a terminal)."""
    ipython = sys.modules.get("IPython")  # who has not imported it is in none
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


def _notebook_bar() -> type[tqdm]:
    """The widget; where it cannot be had, text without tqdm's red warning that it cannot."""
    if find_spec("ipywidgets") is None:
        return tqdm
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tqdm.notebook import tqdm as widget
    return widget
