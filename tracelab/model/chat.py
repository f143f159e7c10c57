"""The chat template of an instruct model, which is used only on request.

A model tuned on chats continues a bare text as the base model does, or worse: which of both is
measured is the caller's choice, and a result's settings tell it (``chat_template``).
"""

from __future__ import annotations

from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from tracelab.errors import TracelabError
from tracelab.model.load import given_tokenizer, model_facts


def has_template(model: TransformerBridge) -> bool:
    """Whether the model's tokenizer has a chat template."""
    return bool(getattr(given_tokenizer(model), "chat_template", None))


def chat_prompt(model: TransformerBridge, prompt: str) -> str:
    """A user's turn as the model's template writes it, up to where its answer begins.

    Raises:
        TracelabError: the model has no template.
    """
    if not has_template(model):
        raise TracelabError(
            f"{model_facts(model).model_id} has no chat template: leave apply_chat_template out"
        )
    tokenizer: Any = given_tokenizer(model)
    turns = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


def begins_with_bos(model: TransformerBridge, text: str) -> bool:
    """Whether a text that a template made has its BOS token already."""
    bos = given_tokenizer(model).bos_token
    return bos is not None and text.startswith(bos)
