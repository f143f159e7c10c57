"""The settings of a result: the model and the hooks on it, the data, the caller's choices, the
versions; and the request for one, by which it is resumed."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge

from tracelab.model.chat import has_template
from tracelab.model.hooked import hook_names
from tracelab.model.load import model_info, model_key
from tracelab.storage.data_hash import data_hash

LAYOUT = 2
"""Of the tables of results: what was kept with others is not resumed."""
_VERSIONED = ("tracelab", "torch", "transformers", "transformer-lens")


def run_settings(
    model: TransformerBridge, records: Iterable[Any] = (), **choices: Any
) -> dict[str, Any]:
    """What made a result, as JSON values.

    Args:
        records: the data; their hash is recorded.
        choices: whatever else it depends on.
    """
    template = {"chat_template": "not applied"} if has_template(model) else {}
    return {
        "model": model_info(model).settings(),
        "hooks": hook_names(model),
        "data_hash": data_hash(records),
        **template,  # an instruct model is measured on bare text unless a choice says otherwise
        **choices,
        "threads": torch.get_num_threads(),  # sums in another order differ by rounding
        "versions": {name: version(name) for name in _VERSIONED},
    }


def request_of(
    model: TransformerBridge, records: Iterable[Any] = (), **choices: Any
) -> dict[str, Any]:
    """The key of a checkpoint's entry: :func:`run_settings`, and every bit of the model."""
    return as_request(model, run_settings(model, records, **choices))


def as_request(model: TransformerBridge, settings: dict[str, Any]) -> dict[str, Any]:
    """As :func:`request_of`, from settings; without the number of threads, as what was begun beside
    other work may go on without it."""
    asked = {name: value for name, value in settings.items() if name != "threads"}
    return asked | model_key(model) | {"layout": LAYOUT}
