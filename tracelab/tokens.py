"""Texts to tokens and back to characters; the one place that knows about BOS and padding.

A text is tokenised once, here, with the tokenizer's offset mapping, so that words are found by their
characters and never by searching in decoded tokens. Models get token tensors with a mask, padded on
the right, where in a causal model it changes nothing before it; on the left where text is to be continued.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tracelab.errors import TracelabError
from tracelab.model import model_info
from tracelab.ranges import require_int


@dataclass(frozen=True)
class Span:
    """Characters ``start`` to ``end`` (exclusive) of a text."""

    start: int
    end: int


@dataclass(frozen=True)
class Encoding:
    """A text's token ids and the characters each stands for (BOS stands for none)."""

    text: str
    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]

    def positions(self, span: Span) -> list[int]:
        """Positions of the tokens that hold a character of ``span``."""
        return [position for position, (start, end) in enumerate(self.offsets) if start < span.end and end > span.start]


def encode(model: TransformerBridge, text: str, *, prepend_bos: bool | None = None) -> Encoding:
    """Tokenise a text.

    Args:
        prepend_bos: whether a BOS token comes first; default: the model's (:func:`~tracelab.model.load`).

    Raises:
        TracelabError: the text has no token, or the tokenizer gives no character offsets.
    """
    tokenizer = model.tokenizer
    if not tokenizer.is_fast:
        raise TracelabError(
            f"the tokenizer of {model_info(model).model_id} gives no character offsets: use a fast (Rust) tokenizer"
        )
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of another encoding, read as if they were UTF-8
        raise TracelabError(f"no text in UTF-8, as it holds lone surrogates: {text!r}") from None
    made = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = list(made["input_ids"]), [tuple(pair) for pair in made["offset_mapping"]]
    if not ids:
        raise TracelabError(f"no token in the text {text!r}")
    if model_info(model).prepend_bos if prepend_bos is None else prepend_bos:
        ids, offsets = [bos_id(model), *ids], [(0, 0), *offsets]
    return Encoding(text, tuple(ids), tuple(offsets))


def bos_id(model: TransformerBridge) -> int:
    """The id that stands before a text: BOS, else EOS (as GPT-2, where they are one).

    Raises:
        TracelabError: the tokenizer has neither.
    """
    for token_id in (model.tokenizer.bos_token_id, model.tokenizer.eos_token_id):
        if token_id is not None:
            return int(token_id)
    raise TracelabError(f"the tokenizer of {model_info(model).model_id} has no BOS and no EOS token")


def first_token(model: TransformerBridge, word: str) -> int:
    """First token of a word inside a sentence; found by its characters, as a space can be a token of its own.

    Raises:
        TracelabError: the word is empty.
    """
    if not word.strip():
        raise TracelabError(f"no token in the word {word!r}")
    encoding = encode(model, f"a {word}", prepend_bos=False)
    return encoding.ids[encoding.positions(Span(2, 2 + len(word)))[0]]


def pad_id(model: TransformerBridge) -> int:
    """The id that stands for no token: the tokenizer's, else BOS; the mask tells it apart."""
    fill = model.tokenizer.pad_token_id
    return bos_id(model) if fill is None else int(fill)


def pad(
    model: TransformerBridge, sequences: Sequence[Sequence[int]], *, left: bool = False
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
    """Sequences of ids as one tensor, padded on the right (or left), and the mask (1 = a token, 0 = padding)."""
    longest = max(len(ids) for ids in sequences)
    tokens = torch.full((len(sequences), longest), pad_id(model))
    mask = torch.zeros_like(tokens)
    for row, ids in enumerate(sequences):
        columns = slice(longest - len(ids), None) if left else slice(len(ids))
        tokens[row, columns] = torch.tensor(ids)
        mask[row, columns] = 1
    return tokens.to(model.cfg.device), mask.to(model.cfg.device)


def length_batches(lengths: Iterable[int], batch_tokens: int, *, equal: bool = False) -> Iterator[list[int]]:
    """Indices in batches of similar length, shortest first.

    Args:
        lengths: length of each sequence in tokens.
        batch_tokens: most tokens of a batch, padding counted; a longer sequence goes alone.
        equal: whether all sequences of a batch must have the same length (then none is padded).
    """
    require_int("batch_tokens", batch_tokens)
    lengths = list(lengths)
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        full = batch and lengths[index] * (len(batch) + 1) > batch_tokens
        if full or (equal and batch and lengths[batch[0]] != lengths[index]):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def token_texts(model: TransformerBridge, ids: Iterable[int]) -> list[str]:
    """Each token as text, for labels; a leading space stays visible as ``·``."""
    return [model.tokenizer.decode([i]).replace(" ", "·").replace("\n", "⏎") for i in ids]
