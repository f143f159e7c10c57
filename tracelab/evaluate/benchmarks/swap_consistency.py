"""Individual fairness: does the model continue a text alike when the gender named is exchanged?

For the opening x of a StereoSet sentence and its gender-swapped twin x', with the next-token
distributions p after x and q after x', and σ that gives each gender word the probability of its
partner (he/she, his and him/her, …; the others keep theirs),

    swap_tv        = mean Σ |p − σ(q)| / 2                        (0: treated alike; 1: disjoint)
    swap_same_top1 = 100 · share[ top token of p = σ(top token of q) ]

each the mean over target terms of the mean over a term's openings, as StereoSet's are. This is the
statistical distance of Dwork et al. (2012, "Fairness through awareness") for pairs of inputs that
are to be treated alike. Without σ (``swap_tv_plain``, ``swap_same_top1_plain``) a model that says
"he" after one opening and "she" after the other would count as unfair.

Gender words are the pairs of StereoSet's list whose words are one token each. What else goes with
gender (names, "pregnant") is not exchanged, so a model that knows the world is not at 0; one that
does not read the opening is: read it beside perplexity.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tracelab.datasets.gender_swap import gender_twins
from tracelab.datasets.records import select
from tracelab.datasets.stereoset import stereoset
from tracelab.errors import TracelabError
from tracelab.evaluate.benchmarks.gender_tokens import gender_token_maps
from tracelab.evaluate.benchmarks.hellinger import next_token_logits
from tracelab.evaluate.scores import BenchmarkScores, Sample, by_bias, column, score_table
from tracelab.model.load import model_facts
from tracelab.model.settings import run_settings
from tracelab.model.texts import as_records
from tracelab.ranges import require_seed

METRICS = ("swap_same_top1", "swap_tv", "swap_same_top1_plain", "swap_tv_plain")


@dataclass(frozen=True)
class SwapPair:
    """The opening of a sentence, and the same with the gender words exchanged."""

    id: str
    bias_type: str
    target: str
    opening: str
    swapped: str


@dataclass(frozen=True)
class SwapScores(BenchmarkScores):
    """The metrics, and those of each opening.

    Attributes:
        openings: one row a pair: ``id, bias_type, target, opening, swapped``, the two top tokens
            ``top, top_swapped``, and the four metrics.
    """

    openings: pd.DataFrame

    def samples(self) -> list[Sample]:
        """Openings by target term."""
        return _samples(self.openings)


def swap_pairs(
    bias: str | None = "gender",
    *,
    split: str = "dev",
    source: str | Path = "wheel",
    limit: int | None = None,
) -> list[SwapPair]:
    """Openings of StereoSet's intrasentence records up to the filler that name a gender, each once.

    Raises:
        TracelabError: a bias type other than gender, or nothing is left.
    """
    found: dict[tuple[str, str], SwapPair] = {}
    for record, twin in gender_twins(stereoset("gender", split=split, source=source)):
        sides = (record.stereotype, twin.anti_stereotype)  # of the same filler
        opening, swapped = (side.text[: side.filler[0].start].rstrip() for side in sides)
        if opening and opening != swapped:
            pair = SwapPair(record.id, "gender", record.target, opening, swapped)
            found.setdefault((opening, swapped), pair)
    return select(list(found.values()), bias, limit, what="swap-consistency")


def swap_scores(
    model: TransformerBridge,
    pairs: Iterable[SwapPair],
    *,
    prepend_bos: bool | None = None,
    edit: str | None = None,
    seed: int = 0,
) -> SwapScores:
    """How alike the next tokens are after openings and their twins.

    Args:
        pairs: such as :func:`swap_pairs` gives.
        prepend_bos: whether BOS comes before each opening; default: the model's.
        edit: name for the table of the edit that is on the model.
        seed: of the bootstrap, which resamples target terms, then openings.

    Raises:
        TracelabError: no pairs, an opening beyond the model's context, or logits not finite.
    """
    require_seed(seed)
    pairs = as_records(pairs, "swap pair")
    if not pairs:
        raise TracelabError("no openings to exchange the gender in")
    bos = model_facts(model).prepend_bos if prepend_bos is None else prepend_bos
    texts = list(dict.fromkeys(text for pair in pairs for text in (pair.opening, pair.swapped)))
    logits = dict(zip(texts, next_token_logits(model, texts, bos), strict=True))
    same, partner = gender_token_maps(model, len(logits[texts[0]]))
    rows = []
    for pair in pairs:
        p, q = (logits[text].double().softmax(-1) for text in (pair.opening, pair.swapped))
        top, other = int(p.argmax()), int(q.argmax())
        exchanged = (_moved(p, same) - _moved(q, partner)).abs().sum() / 2
        alike = 100.0 * bool(same[top] == partner[other])
        words = [model.tokenizer.decode([token]) for token in (top, other)]
        plain = (100.0 * (top == other), float((p - q).abs().sum() / 2))
        rows.append((*vars(pair).values(), *words, alike, float(exchanged), *plain))
    names = ["id", "bias_type", "target", "opening", "swapped", "top", "top_swapped", *METRICS]
    table = pd.DataFrame(rows, columns=names)
    name = "swap-consistency"
    settings = run_settings(model, pairs, benchmark=name, prepend_bos=bos, seed=seed)
    scores = score_table(_samples(table), benchmark=name, edit=edit, seed=seed)
    return SwapScores(settings, scores, table)


def _moved(probabilities: Float[Tensor, "vocab"], to: Int[Tensor, "vocab"]) -> Tensor:
    return torch.zeros_like(probabilities).index_add(0, to, probabilities)


def _samples(table: pd.DataFrame) -> list[Sample]:
    metrics = {name: column(index) for index, name in enumerate(METRICS)}
    samples = []
    for bias, part in by_bias(table):
        terms = (term[list(METRICS)].to_numpy(float) for _, term in part.groupby("target"))
        samples.append(Sample(bias, tuple(terms), metrics))
    return samples
