"""The front door of the inspector: type a prompt, switch edits on, and see what they do.

What it shows is what :func:`tracelab.inspect` finds, so its caveats hold: a moved distribution says
that an edit acts, not that it removes a bias, and a head's map where it looks, not what it does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformer_lens.model_bridge import TransformerBridge

from tracelab.errors import TracelabError
from tracelab.inspection.before_after import Edits, named
from tracelab.inspection.session import Session
from tracelab.model.hooked import require_unedited
from tracelab.model.texts import Texts, as_texts
from tracelab.ranges import require_int

if TYPE_CHECKING:
    from tracelab.inspection.widget import Inspector


def inspector(
    model: TransformerBridge,
    edits: Edits,
    prompt: str = "The nurse said that",
    *,
    top: int = 8,
    sensitive: Texts = (),
    new_tokens: int = 24,
    prepend_bos: bool | None = None,
) -> Inspector:
    """A widget that compares the model with and without edits on a prompt that you type.

    Each edit has a check box and a strength from 0 (bit for bit the unedited model) over 1 (the
    edit itself) to 2; those that are on are applied together, in the order given. Enter computes
    all views of the prompt: the tokens promoted and demoted at the position that is clicked; how
    far each layer moved at each position; the attention heads of a layer. The KL under the logit
    lens and continuations are computed when they are asked for.

    What is read is what :func:`tracelab.inspect` with ``positions="all"`` returns, and it is kept
    as ``widget.session.result``. A prompt that cannot be shown is refused by a sentence in the
    widget. Works offline in JupyterLab, VS Code and the classic notebook; where no kernel is
    (nbconvert) the same view is shown without its controls. ``widget.save("inspector.html")``
    writes it as a page of its own, as does ``tracelab inspect … --out DIR``.

    >>> tracelab.inspector(model, edit, "The nurse said that")
    Inspector(..., weight_delta)

    Args:
        edits: one edit or several, or a mapping from names.
        prompt: the first one, of at most 64 tokens.
        top: how many promoted and how many demoted tokens of each position.
        sensitive: words that are marked, beside those that name groups
            (:mod:`tracelab.inspection.sensitive`).
        new_tokens: of each continuation.

    Raises:
        TracelabError: anywidget is not installed, no edit, an edit of another model, hooks on the
            model, or a first prompt that cannot be shown.
    """
    require_unedited(model, "inspector")
    require_int("top", top)
    sensitive = as_texts(sensitive, "sensitive word")
    chosen = named(edits)
    if not chosen:
        raise TracelabError("the inspector needs at least one edit")
    for edit in chosen.values():
        edit.hooks(model)  # refuses before any work
    try:
        from tracelab.inspection.widget import Inspector
    except ImportError as error:
        raise TracelabError(
            "the inspector needs anywidget: pip install 'tracelab[notebook]'; without it, "
            "tracelab.inspect(model, edits, prompt).plot('map') draws the same numbers"
        ) from error
    session = Session(
        model,
        chosen,
        prompt,
        top=top,
        sensitive=sensitive,
        new_tokens=new_tokens,
        prepend_bos=prepend_bos,
    )
    return Inspector(session)
