"""Why a model, a tokenizer or a classifier could not be loaded: the first line of the reason, or
ours in its place.

Two refusals of ``transformers`` and ``torch`` tell the reader how to go past them. tracelab never
runs code that comes with a model unless it is told to (``trust_remote_code=True``), and has no way
to unpickle more than tensors.
"""

from __future__ import annotations

ASK = "read it, and if you trust it load with trust_remote_code=True (--trust-remote-code)."


def why_not(error: BaseException, *, remote_code: str = ASK) -> str:
    """The reason in a line.

    Args:
        remote_code: what to do where code of the model's own would have to run.
    """
    text = " ".join(_chain(error))
    if "trust_remote_code" in text:
        return f"it comes with code of its own, which is not run: {remote_code}"
    if "UnpicklingError" in text or "torch.load" in text or "weights_only" in text:
        return (
            "its weights are a pickle that holds more than tensors, or is damaged, and a pickle "
            "can run code: "
            "get them as safetensors."
        )
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _chain(error: BaseException | None) -> list[str]:
    """The error and those that it came of, as texts."""
    texts: list[str] = []
    while error is not None and len(texts) < 10:
        texts.append(f"{type(error).__name__} {error}")
        error = error.__cause__ or error.__context__
    return texts
