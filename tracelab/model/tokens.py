"""Texts to tokens and back to characters; the one place that knows about BOS and padding.

A text is tokenised once, here, with the tokenizer's offset mapping, so that words are found by
their characters and never by searching in decoded tokens. Models get token tensors with a mask,
padded on the right, where in a causal model it changes nothing before it; on the left where text is
to be continued. Texts beyond the model's context are found here too (:func:`require_context`), and
ids that it has no embedding of.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import takewhile
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tracelab.errors import TracelabError, warn
from tracelab.model.bridge import require_bridge
from tracelab.model.load import model_facts
from tracelab.ranges import require_int
from tracelab.span import Span


@dataclass(frozen=True)
class Encoding:
    """A text's token ids and the characters each stands for (BOS stands for none)."""

    text: str
    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]

    def positions(self, span: Span) -> list[int]:
        """Positions of the tokens that hold a character of ``span``."""
        return [
            position
            for position, (start, end) in enumerate(self.offsets)
            if start < span.end and end > span.start
        ]


def encode(model: TransformerBridge, text: str, *, prepend_bos: bool | None = None) -> Encoding:
    """Tokenise a text.

    Args:
        prepend_bos: whether a BOS token comes first; default: the model's (:func:`tracelab.load`).
            A text that begins with one (as chat templates make them) gets no second.

    Raises:
        TracelabError: the text has no token, or one that the model has no embedding of, or the
            tokenizer gives no character offsets.
    """
    facts, tokenizer = model_facts(model), model.tokenizer
    if not tokenizer.is_fast:
        raise TracelabError(
            f"the tokenizer of {facts.model_id} gives no character offsets: use a "
            "fast (Rust) tokenizer"
        )
    try:
        made = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    except (UnicodeError, TypeError) as error:  # half a surrogate pair
        raise TracelabError(
            f"the text {text!r} cannot be tokenised: it is not valid Unicode"
        ) from error
    ids, offsets = list(made["input_ids"]), [tuple(pair) for pair in made["offset_mapping"]]
    if not ids:
        raise TracelabError(f"no token in the text {text!r}")
    if max(ids) >= (size := vocabulary_size(model)):
        token = next(i for i in ids if i >= size)
        name = tokenizer.convert_ids_to_tokens(token)
        raise TracelabError(
            f"the token {name!r} (id {token}) is beyond the {size} embeddings of "
            f"{facts.model_id}: give "
            "the model its own tokenizer, or call resize_token_embeddings before it is loaded"
        )
    if facts.prepend_bos if prepend_bos is None else prepend_bos:
        if ids[0] == (first := bos_id(model)):
            warn(
                "a text begins with the BOS token already: no second one comes before it",
            )
        else:
            ids, offsets = [first, *ids], [(0, 0), *offsets]
    return Encoding(text, tuple(ids), tuple(offsets))


def vocabulary_size(model: TransformerBridge) -> int:
    """How many tokens the model has an embedding of; its tokenizer may know more."""
    weight = getattr(cast(Any, model.original_model).get_input_embeddings(), "weight", None)
    return int(model.cfg.d_vocab if weight is None else weight.shape[0])


def require_context(
    model: TransformerBridge, lengths: Iterable[int], *, new_tokens: int = 0, what: str = "text"
) -> None:
    """Find texts with more tokens than the model's context, before any work.

    A model with a table of positions cannot run them. One that computes positions (rotary) runs on,
    beyond what it was trained for: a warning. One without a limit (ALiBi, no positions at all)
    takes any length.

    Args:
        lengths: tokens of each text, BOS included.
        new_tokens: how many may be generated after each.
        what: what one of them is called, with its number from 0.

    Raises:
        TracelabError: naming the first such text, its number of tokens and the context.
    """
    limit = context_length(model)
    long = (
        [] if limit is None else [(i, n) for i, n in enumerate(lengths) if n + new_tokens > limit]
    )
    if not long:
        return
    number, n = long[0]
    more = f" and up to {new_tokens} new ones" if new_tokens else ""
    others = f" (and {len(long) - 1} more)" if len(long) > 1 else ""
    model_id = model_facts(model).model_id
    text = f"{what} {number}{others} has {n} tokens{more}, {model_id} a context of {limit}"
    if _has_position_table(model, cast(int, limit)):
        raise TracelabError(
            f"{text}: shorten it{', or lower max_new_tokens' if new_tokens else ''}"
        )
    warn(f"{text}: beyond it the model does what it was not trained for")


def context_length(model: TransformerBridge) -> int | None:
    """Most tokens of a text, as the model's configuration says; None: no limit."""
    require_bridge(model)
    config = cast(Any, model.original_model.config).get_text_config()
    if model.cfg.positional_embedding_type == "alibi" and config.model_type not in _LIMITED:
        return None
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length"):
        if isinstance(limit := getattr(config, name, None), int) and limit > 0:
            return limit
    return None


_LIMITED = ("gptj", "codegen", "mpt")
"""Model types that compute positions (rotary, ALiBi), but only up to the context."""


def _has_position_table(model: TransformerBridge, limit: int) -> bool:
    """Whether positions are learned, so that there is none after the last; OPT's table begins with
    two of no text."""
    hf_model = cast(Any, model.original_model)
    tables = (
        getattr(module, "weight", None)
        for name, module in hf_model.named_modules()
        if "pos" in name.rpartition(".")[2] or name.endswith(("wpe", "wpe._original_component"))
    )
    sizes = [table.shape[0] for table in tables if isinstance(table, Tensor) and table.ndim == 2]
    return hf_model.config.get_text_config().model_type in _LIMITED or any(
        0 <= size - limit <= 8 for size in sizes
    )


def bos_id(model: TransformerBridge) -> int:
    """The id that stands before a text: BOS, else EOS (as GPT-2, where they are one).

    Raises:
        TracelabError: the tokenizer has neither, or the model has no embedding of it.
    """
    for name in ("bos_token", "eos_token"):
        token_id = getattr(model.tokenizer, f"{name}_id")
        if token_id is not None:
            if not 0 <= token_id < (size := vocabulary_size(model)):
                raise TracelabError(
                    f"the {name.replace('_', ' ')} {getattr(model.tokenizer, name)!r} (id "
                    f"{token_id}) is beyond the "
                    f"{size} embeddings of {model_facts(model).model_id}: set prepend_bos=False, "
                    "or give the model its "
                    "own tokenizer"
                )
            return int(token_id)
    raise TracelabError(
        f"the tokenizer of {model_facts(model).model_id} has no BOS and no EOS token"
    )


def first_token(model: TransformerBridge, word: str) -> int:
    """First token of a word inside a sentence; found by its characters, as a space can be a token
    of its own.

    Raises:
        TracelabError: the word is empty, or the model has no embedding of its token.
    """
    if not word.strip():
        raise TracelabError(f"no token in the word {word!r}")
    encoding = encode(model, f"a {word}", prepend_bos=False)
    return encoding.ids[encoding.positions(Span(2, 2 + len(word)))[0]]


def pad_id(model: TransformerBridge) -> int:
    """An id that stands for no token, of those that the model has an embedding of; the mask tells
    it apart."""
    tokenizer, size = model.tokenizer, vocabulary_size(model)
    for token_id in (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token_id is not None and 0 <= token_id < size:
            return int(token_id)
    return 0


def pad(
    model: TransformerBridge, sequences: Sequence[Sequence[int]], *, left: bool = False
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
    """Sequences of ids as one tensor, padded on the right (or left), and the mask (1 = a token, 0 =
    padding)."""
    longest = max(len(ids) for ids in sequences)
    tokens = torch.full((len(sequences), longest), pad_id(model), dtype=torch.long, device="cpu")
    mask = torch.zeros_like(tokens)
    for row, ids in enumerate(sequences):
        columns = slice(longest - len(ids), None) if left else slice(len(ids))
        tokens[row, columns] = torch.tensor(ids, device="cpu")
        mask[row, columns] = 1
    return tokens.to(model.cfg.device), mask.to(model.cfg.device)


def length_batches(
    lengths: Iterable[int], batch_tokens: int, *, equal: bool = False
) -> Iterator[list[int]]:
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


def aligned(first: Sequence[int], second: Sequence[int]) -> list[tuple[range, range]]:
    """Blocks of positions of two token sequences that stand for each other, by difflib.

    They are single positions, but where more or fewer tokens replace others: those are one block.
    Sequences of equal length are aligned index by index.
    """
    if len(first) == len(second):
        return [(range(k, k + 1), range(k, k + 1)) for k in range(len(first))]
    blocks: list[tuple[range, range]] = []
    for tag, a0, a1, b0, b1 in SequenceMatcher(
        None, list(first), list(second), autojunk=False
    ).get_opcodes():
        if a1 - a0 == b1 - b0:
            blocks += [
                (range(a0 + k, a0 + k + 1), range(b0 + k, b0 + k + 1)) for k in range(a1 - a0)
            ]
        elif tag == "replace":
            blocks.append((range(a0, a1), range(b0, b1)))
    return blocks


def token_texts(model: TransformerBridge, ids: Iterable[int]) -> list[str]:
    """Each token as text, for labels; a leading space stays visible as ``·``, and ``##`` where
    words are pieces."""
    return [_token_text(model.tokenizer, i).replace(" ", "·").replace("\n", "⏎") for i in ids]


def _token_text(tokenizer: Any, token_id: int) -> str:
    token = tokenizer.convert_ids_to_tokens(token_id)
    # Decoded alone, a token is the first of its text, before which these tokenizers write no space.
    if isinstance(token, str) and token.startswith("▁"):
        return token.replace("▁", " ")
    if isinstance(token, str) and token.startswith("##") and len(token) > 2:
        return token
    return tokenizer.decode([token_id])


def continuation_text(model: TransformerBridge, before: Sequence[int], ids: Sequence[int]) -> str:
    """What ``ids`` add to the text of the ids before them, without special tokens.

    Both are decoded together and cut: alone, the first token of many tokenizers loses its space.
    """
    start = model.tokenizer.decode(list(before), skip_special_tokens=True)
    whole = model.tokenizer.decode([*before, *ids], skip_special_tokens=True)
    # Where tokens change the text before them (a cleaned-up space), what is alike stands for it.
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(start, whole, strict=False))
    return whole[len(list(alike)) :]
