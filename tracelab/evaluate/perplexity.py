"""Perplexity: whether a model still writes the language it was trained on.

    PPL = exp( Σ_texts Σ_j −log p(w_j | w_<j)  /  number of scored tokens )

Each text stands alone; without BOS its first token is not scored. This is not the figure that papers report
for WikiText-2, whose windows run over about a thousand tokens: compare it only with itself, before and after an
edit, and only between models of one tokenizer. The usual texts are :func:`~tracelab.datasets.neutral_sentences`.
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
from tracelab.model import model_info
from tracelab.results import run_settings
from tracelab.scoring import BATCH_TOKENS, score


@dataclass(frozen=True)
class PerplexityScores(BenchmarkScores):
    """The perplexity, and the texts it comes from.

    Attributes:
        table: ``benchmark, bias, edit, metric, value, low, high, n``; ``bias`` is empty, ``n`` texts.
        texts: one row a text: ``text``, the sum ``nll`` of its negative log-probabilities in nats, ``n_tokens``.
    """

    texts: pd.DataFrame

    def samples(self) -> list[Sample]:
        """Texts, each with its negative log-probability and its number of tokens."""
        return _samples(self.texts)


def perplexity(
    model: TransformerBridge,
    texts: Sequence[str],
    *,
    benchmark: str = "perplexity-bold",
    prepend_bos: bool | None = None,
    edit: str | None = None,
    batch_tokens: int = BATCH_TOKENS,
    seed: int = 0,
) -> PerplexityScores:
    """Perplexity of a model on texts, each alone.

    Args:
        benchmark: name of the texts, for the table.
        prepend_bos: whether BOS comes before each text; default: the model's.
        edit: name for the table of the edit that is on the model.
        seed: of the bootstrap, which resamples texts.

    Raises:
        TracelabError: no text, or one without a token to score.
    """
    if not texts:
        raise TracelabError("no text to measure perplexity on")
    bos = model_info(model).prepend_bos if prepend_bos is None else prepend_bos
    logprobs = score(model, texts, prepend_bos=bos, batch_tokens=batch_tokens).logprobs
    nll = [-float(values.sum(dtype=np.float64)) for values in logprobs]
    table = pd.DataFrame({"text": list(texts), "nll": nll, "n_tokens": [len(values) for values in logprobs]})
    records = [Sentence(str(number), text) for number, text in enumerate(texts)]
    settings = run_settings(model, records, benchmark=benchmark, prepend_bos=bos, seed=seed)
    return PerplexityScores(settings, score_table(_samples(table), benchmark=benchmark, edit=edit, seed=seed), table)


def _samples(texts: pd.DataFrame) -> list[Sample]:
    units = texts[["nll", "n_tokens"]].to_numpy(float)
    return [Sample("", (units,), {"perplexity": lambda means: np.exp(means[..., 0] / means[..., 1])})]
