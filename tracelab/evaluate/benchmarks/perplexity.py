"""Perplexity: whether a model still writes the language it was trained on.

    PPL = exp( Σ_texts Σ_j −log p(w_j | w_<j)  /  number of scored tokens )

Each text stands alone, the usual texts are :func:`~tracelab.datasets.neutral_sentences`; or, as
papers do on WikiText-2, all texts are joined and cut into windows. The two are different figures.
Without BOS the first token of a text or window is not scored. Compare only models of one tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from tracelab.datasets.records import Sentence
from tracelab.errors import TracelabError
from tracelab.evaluate.scores import BenchmarkScores, Sample, score_table
from tracelab.model.load import model_facts
from tracelab.model.scoring import BATCH_TOKENS, score, token_logprobs
from tracelab.model.settings import run_settings
from tracelab.model.texts import Texts, as_texts
from tracelab.model.tokens import bos_id, context_length, encode
from tracelab.ranges import require_seed

WINDOW = 992
"""Tokens of a window of WikiText-2: GPT-2's context less 32, as in the code of arXiv 2412.01711."""


@dataclass(frozen=True)
class PerplexityScores(BenchmarkScores):
    """The perplexity, and the texts it comes from.

    Attributes:
        table: ``benchmark, bias, edit, metric, value, low, high, n``; ``bias`` is empty, ``n``
            texts or windows.
        texts: one row a text or window: ``text``, the sum ``nll`` of its negative log-probabilities
            in nats, and ``n_tokens``.
    """

    texts: pd.DataFrame

    def samples(self) -> list[Sample]:
        """Texts, each with its negative log-probability and its number of tokens."""
        return _samples(self.texts)


def perplexity(
    model: TransformerBridge,
    texts: Texts,
    *,
    max_length: int | None = None,
    benchmark: str = "perplexity-bold",
    prepend_bos: bool | None = None,
    edit: str | None = None,
    batch_tokens: int = BATCH_TOKENS,
    seed: int = 0,
) -> PerplexityScores:
    """Perplexity of a model on texts, each alone or in windows over all of them.

    >>> texts = tracelab.datasets.neutral_sentences(100)  # or wikitext(), from the hub
    >>> perplexity(model, texts).frame
    >>> perplexity(model, texts, max_length=992, benchmark="windows").frame

    Args:
        max_length: tokens of a window, BOS included: the texts are joined by empty lines and cut
            into windows without overlap (the code of arXiv 2412.01711: 992 for GPT-2). Default:
            each text alone.
        benchmark: name of the texts, for the table.
        prepend_bos: whether BOS comes before each text or window; default: the model's.
        edit: name for the table of the edit that is on the model.
        seed: kept in the settings; intervals draw nothing.

    Raises:
        TracelabError: no text, one without a token to score, or a window of fewer than two tokens
            or of more than the model's context; a text beyond it, or log-probabilities that are not
            finite.
    """
    require_seed(seed)
    texts = as_texts(texts)
    if not texts:
        raise TracelabError("no text to measure perplexity on")
    context = context_length(model)
    if max_length is not None and not 2 <= max_length <= (context or max_length):
        possible = f"from 2 to {context}, the model's context" if context else "at least 2"
        raise TracelabError(
            f"a window of max_length={max_length} tokens is not possible: {possible}"
        )
    bos = model_facts(model).prepend_bos if prepend_bos is None else prepend_bos
    if max_length is None:
        logprobs = score(model, texts, prepend_bos=bos, batch_tokens=batch_tokens).logprobs
    else:
        windows = _windows(model, texts, max_length, bos)
        texts = model.tokenizer.batch_decode(windows)
        found = token_logprobs(model, windows, [1] * len(windows), batch_tokens=batch_tokens)
        logprobs = tuple(values.numpy() for values in found)
    nll = [-float(values.sum(dtype=np.float64)) for values in logprobs]
    table = pd.DataFrame(
        {"text": list(texts), "nll": nll, "n_tokens": [len(values) for values in logprobs]}
    )
    records = [Sentence(str(number), text) for number, text in enumerate(texts)]
    settings = run_settings(
        model, records, benchmark=benchmark, max_length=max_length, prepend_bos=bos, seed=seed
    )
    return PerplexityScores(
        settings, score_table(_samples(table), benchmark=benchmark, edit=edit, seed=seed), table
    )


def _windows(
    model: TransformerBridge, texts: Sequence[str], max_length: int, bos: bool
) -> list[list[int]]:
    ids = encode(model, "\n\n".join(texts), prepend_bos=False).ids
    start, step = [bos_id(model)] * bos, max_length - bos
    ids = ids[1:] if bos and ids[:1] == tuple(start) else ids  # the first window has its own
    windows = [[*start, *ids[first : first + step]] for first in range(0, len(ids), step)]
    return [window for window in windows if len(window) > 1]


def _samples(texts: pd.DataFrame) -> list[Sample]:
    units = texts[["nll", "n_tokens"]].to_numpy(float)
    return [
        Sample("", (units,), {"perplexity": lambda means: np.exp(means[..., 0] / means[..., 1])})
    ]
