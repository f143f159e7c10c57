"""Log-probabilities of sentences and continuations.

    log p(w_1 … w_m | context) = Σ_j log p(w_j | context, w_<j)

Sequences are batched by length and padded on the right, the normaliser is summed in fp32 at the
needed positions only, and the result does not depend on the batch a sequence fell into. Hooks that
are on the model are in force, so an edited model is scored by the same call. What sequences begin
with in common is run once where that gives the same (:mod:`.packed`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tracelab.errors import TracelabError
from tracelab.figures import log_probabilities
from tracelab.gradients import measuring
from tracelab.model.chat import begins_with_bos, chat_prompt
from tracelab.model.finite import require_finite, require_finite_logits
from tracelab.model.forward_pass import reading
from tracelab.model.load import model_facts
from tracelab.model.memory import Sizes, require_room_for_passes
from tracelab.model.packed import scoring_by_tree
from tracelab.model.settings import run_settings
from tracelab.model.texts import Texts, as_texts
from tracelab.model.tokens import bos_id, encode, length_batches, pad, require_context, token_texts
from tracelab.progress import progress
from tracelab.ranges import require_int
from tracelab.results import Result
from tracelab.span import Span

BATCH_TOKENS = 1024
"""Default size of a batch in tokens: fills two cores or a GPU, and keeps the logits below 1 GB."""


@dataclass(frozen=True)
class Scores(Result):
    """Log-probabilities (natural logarithm) of texts.

    Attributes:
        table: one row a text: ``text, context`` (None where it had none), ``n_tokens, logprob`` and
            ``logprob_mean``, a token.
        scored: one row a scored token: ``text`` (its number), ``position`` (from 0, context and BOS
            counted), ``token_id, token, logprob``.
    """

    table: pd.DataFrame
    scored: pd.DataFrame

    @property
    def frame(self) -> pd.DataFrame:
        """One row a text."""
        return self.table

    @property
    def texts(self) -> tuple[str, ...]:
        """The scored texts."""
        return tuple(self.table["text"])

    @property
    def logprobs(self) -> tuple[Float[np.ndarray, "_scored"], ...]:
        """Of each text, one value a scored token: float32."""
        return tuple(self._by_text("logprob"))

    @property
    def tokens(self) -> tuple[tuple[int, ...], ...]:
        """Of each text, the ids of the scored tokens."""
        return tuple(tuple(ids.tolist()) for ids in self._by_text("token_id"))

    @property
    def sum(self) -> Float[np.ndarray, "texts"]:
        """Log-probability of each text."""
        return self.table["logprob"].to_numpy(copy=True)

    @property
    def mean(self) -> Float[np.ndarray, "texts"]:
        """Mean log-probability a token of each text."""
        return self.table["logprob_mean"].to_numpy(copy=True)

    def headline(self) -> str:
        """The mean over texts of the log-probability a token."""
        n, mean = len(self.table), self.table["logprob_mean"].mean()
        return f"n = {n} texts, {len(self.scored)} tokens, mean log p {mean:.3f} a token"

    def plot(self) -> go.Figure:
        """Each text's mean a token and its tokens."""
        return log_probabilities(self.table, self.scored, self.settings)

    def _by_text(self, column: str) -> list[np.ndarray]:
        """A column of the tokens, cut where a text ends."""
        ends = self.table["n_tokens"].cumsum()[:-1]
        return np.split(self.scored[column].to_numpy(copy=True), ends)


@dataclass(frozen=True)
class _Given:
    """What was to be scored, for the hash of the data."""

    text: str
    context: str | None


def score(
    model: TransformerBridge,
    texts: Texts,
    contexts: Texts | None = None,
    *,
    prepend_bos: bool | None = None,
    apply_chat_template: bool = False,
    batch_tokens: int = BATCH_TOKENS,
) -> Scores:
    """Log-probability of each text, alone or as the continuation of a context.

    Args:
        texts: what is scored: one string, or several in anything that can be gone through (a list,
            a pandas column).
        contexts: text before each, joined to it by a space and not scored. Tokens are those of the
            joint text; a token that holds a character of the continuation belongs to it.
        prepend_bos: whether a BOS token comes first; default: the model's. Without BOS and context
            the first token has no log-probability and is not scored.
        apply_chat_template: whether a context is a user's turn and the text the model's answer, as
            its chat template writes them.
        batch_tokens: most tokens in a forward pass.

    Raises:
        TracelabError: no text, unequal numbers of texts and contexts, a text with no token to score
            or beyond the model's context, or log-probabilities that are not finite.
    """
    texts = as_texts(texts)
    contexts = None if contexts is None else as_texts(contexts, "context")
    if not texts:
        raise TracelabError("no text to score")
    if contexts is not None and len(contexts) != len(texts):
        raise TracelabError(f"{len(texts)} texts but {len(contexts)} contexts")
    befores = [""] * len(texts) if contexts is None else [f"{context} " for context in contexts]
    template = {}
    if apply_chat_template:
        if contexts is None:
            raise TracelabError("a chat template needs contexts: the turns that the texts answer")
        befores = [chat_prompt(model, context) for context in contexts]
        prepend_bos = False if begins_with_bos(model, befores[0]) else prepend_bos
        template = {"chat_template": "applied"}
    sequences, firsts = [], []
    for index, (before, text) in enumerate(zip(befores, texts, strict=True)):
        encoding = encode(model, before + text, prepend_bos=prepend_bos)
        # The space that joins the two may belong to the first token: it is not asked for.
        inside = encoding.positions(Span(len(before), len(before) + len(text)))
        if not inside or len(encoding.ids) < 2:
            raise TracelabError(
                f"no token to score in text {index} ({text!r}): prepend BOS or give a context"
            )
        sequences.append(encoding.ids)
        firsts.append(max(inside[0], 1))
    values = token_logprobs(model, sequences, firsts, batch_tokens=batch_tokens)
    given = [_Given(text, contexts[i] if contexts else None) for i, text in enumerate(texts)]
    bos = model_facts(model).prepend_bos if prepend_bos is None else prepend_bos
    settings = run_settings(
        model, given, prepend_bos=bos, with_contexts=contexts is not None, **template
    )
    sums, means = (np.array([each(v.numpy()) for v in values]) for each in (np.sum, np.mean))
    table = pd.DataFrame([asdict(each) for each in given]).assign(
        n_tokens=[len(v) for v in values], logprob=sums, logprob_mean=means
    )
    return Scores(settings, table, _scored(model, sequences, firsts, torch.cat(values)))


def _scored(
    model: TransformerBridge,
    sequences: Sequence[Sequence[int]],
    firsts: Sequence[int],
    values: Float[Tensor, "scored"],
) -> pd.DataFrame:
    """The table of scored tokens."""
    places = [
        (text, position, ids[position])
        for text, (ids, first) in enumerate(zip(sequences, firsts, strict=True))
        for position in range(first, len(ids))
    ]
    table = pd.DataFrame(places, columns=["text", "position", "token_id"])
    known = table["token_id"].unique().tolist()
    names = dict(zip(known, token_texts(model, known), strict=True))
    return table.assign(token=table["token_id"].map(names), logprob=values.numpy())


def token_logprobs(
    model: TransformerBridge,
    sequences: Sequence[Sequence[int]],
    firsts: Sequence[int],
    *,
    batch_tokens: int = BATCH_TOKENS,
) -> list[Float[Tensor, "_scored"]]:
    """``log p(token_j | tokens before j)`` for ``j >= firsts[i] >= 1`` of each sequence.

    Returns:
        One float32 CPU tensor ``[len(sequences[i]) - firsts[i]]`` a sequence, in the order given.

    Raises:
        TracelabError: a sequence beyond the model's context, or log-probabilities that are not
            finite.
    """
    require_context(model, map(len, sequences))
    return logprobs_within(model, sequences, firsts, batch_tokens=batch_tokens)


@measuring()
def logprobs_within(
    model: TransformerBridge,
    sequences: Sequence[Sequence[int]],
    firsts: Sequence[int],
    *,
    batch_tokens: int,
    owners: Sequence[int] | None = None,
    what: str = "text",
    by_tree: bool | None = None,
) -> list[Float[Tensor, "_scored"]]:
    """:func:`token_logprobs` of sequences that are known to be within the context.

    Args:
        by_tree: whether what sequences begin with in common is run once; default: if that gives
            the same.
        owners, what: number and kind of what each sequence is of, for the message; default: the
            text itself.
    """
    require_int("batch_tokens", batch_tokens)
    owners = range(len(sequences)) if owners is None else owners
    results: list[Tensor] = [torch.empty(0, dtype=torch.float32)] * len(sequences)
    lengths = [len(ids) for ids in sequences]
    require_room_for_passes(model, lengths, batch_tokens, Sizes.scoring)

    def one_a_row(batch: Sequence[int]) -> list[Tensor]:
        return row_logprobs(model, [sequences[i] for i in batch], [firsts[i] for i in batch])

    trees = (
        nullcontext()
        if by_tree is False
        else scoring_by_tree(model, sequences, firsts, one_a_row, batch_tokens)
    )
    with trees as quick, progress(total=sum(lengths), unit="token", what="scoring") as bar:
        for batch in length_batches(lengths, batch_tokens) if quick is None else quick.batches:
            pieces = one_a_row(batch) if quick is None else quick.score(batch)
            require_finite(pieces, [owners[i] for i in batch], what)
            for i, piece in zip(batch, pieces, strict=True):
                results[i] = piece
                bar.update(lengths[i])
    return results


def row_logprobs(
    model: TransformerBridge, sequences: Sequence[Sequence[int]], firsts: Sequence[int]
) -> list[Float[Tensor, "_scored"]]:
    """:func:`token_logprobs` of one batch, a sequence a row: the plain way, on the model itself."""
    tokens, mask = pad(model, sequences)
    with reading(torch.tensor([first - 1 for first in firsts])):
        logits = model(tokens, attention_mask=mask)
    scored = [
        (row, j)
        for row, (ids, first) in enumerate(zip(sequences, firsts, strict=True))
        for j in range(first, len(ids))
    ]
    if not scored:  # texts of one token, which nothing predicts
        return [torch.empty(0, dtype=torch.float32) for _ in sequences]
    index, position = torch.tensor(scored).T
    values = target_logprobs(logits, index, position - 1, tokens[index, position]).cpu()
    return list(values.split([len(i) - first for i, first in zip(sequences, firsts, strict=True)]))


def target_logprobs(
    logits: Float[Tensor, "batch pos vocab"],
    rows: Int[Tensor, "n"],
    positions: Int[Tensor, "n"],
    targets: Int[Tensor, "n"],
    chunk: int = 256,
) -> Float[Tensor, "n"]:
    """Log-probability in fp32 of ``targets`` under the logits at ``(rows, positions)``.

    ``chunk`` positions at a time are turned to fp32, which bounds the memory.
    """
    pieces = []
    for start in range(0, len(rows), chunk):
        part = slice(start, start + chunk)
        pieces.append(logprobs_of(logits[rows[part], positions[part]], targets[part]))
    return torch.cat(pieces)


def logprobs_of(
    logits: Float[Tensor, "*places vocab"], targets: Int[Tensor, "*places"]
) -> Float[Tensor, "*places"]:
    """Log-probability in fp32 of each target under the logits at its place."""
    logits = logits.float()
    picked = logits.gather(-1, targets[..., None].to(logits.device)).squeeze(-1)
    return picked - logits.logsumexp(-1)


def start_logprobs(model: TransformerBridge) -> Float[Tensor, "vocab"]:
    """``log p(token | BOS)`` of every token (EOS where there is no BOS): what official StereoSet
    scoring takes as the first token's probability.

    Raises:
        TracelabError: logits that are not finite.
    """
    start = torch.tensor([[bos_id(model)]], device=model.cfg.device)
    with measuring(), reading(0):  # given tokens are scored: no edit rules any out
        logits = model(start)[:, -1]
    require_finite_logits(logits, [0], "the BOS token before text")
    return logits[0].float().log_softmax(-1).cpu()
