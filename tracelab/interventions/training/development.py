"""What an edit in training does to records it is not trained on and to neutral text, and the choice
by it.

SS of a hundred records of few target terms has a standard error of 3 to 4 points, more than what
an edit does; the association (:mod:`.choose`) is a mean of differences and sees smaller ones.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from math import isfinite, nan

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tracelab.datasets import development_sentences, gender_twins
from tracelab.errors import TracelabError
from tracelab.gradients import measuring
from tracelab.interventions.base import Intervention
from tracelab.interventions.drift import compared, logprobs
from tracelab.interventions.training.choose import association
from tracelab.interventions.training.config import ChoosingConfig
from tracelab.interventions.training.triple_losses import mean_over, scored, token_logprobs
from tracelab.interventions.training.triples import LABELS, Triples, tokenise
from tracelab.interventions.weight_delta import WeightDelta
from tracelab.model.partial_forward import SuffixRunner
from tracelab.model.scoring import BATCH_TOKENS
from tracelab.model.tokens import encode, length_batches, require_context
from tracelab.storage.tensors_hash import tensors_hash

STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
N_NEUTRAL = 40
"""Neutral sentences on which the drift of an edit in training is measured."""
NEUTRAL_TOKENS = 32
"""Neutral sentences are cut to so many tokens in training."""
KEPT_BYTES = 2**29
"""Most that a fit keeps of the unedited model's log-probabilities on neutral text. What is beyond
it, with a vocabulary of 262,144 words three fifths, is computed anew at each look."""


class Development:
    """Figures of development triples and of neutral text under any edit of a block or later ones.

    >>> records = tracelab.datasets.stereoset("gender", split="test", limit=8)
    >>> development = Development(model, tokenise(model, records), first_layer=0)
    >>> sorted(development.measure(edit))
    ['association', 'gap', 'gap_blind', 'gap_group', 'kl', 'lms', 'perplexity_change', 'ss']
    """

    def __init__(
        self,
        model: TransformerBridge,
        triples: Triples,
        first_layer: int,
        *,
        n_neutral: int = N_NEUTRAL,
    ) -> None:
        self.model, self.records = model, triples.records
        self._parts = [(triples, SuffixRunner(model, triples.sequences, first_layer))]
        pairs = gender_twins([r for r in self.records if r.bias_type == "gender"])
        self._of: list[int] = []
        if pairs:
            twins = tokenise(model, [twin for _, twin in pairs])
            number = {record: i for i, record in enumerate(self.records)}
            of = {twin.id: number[record] for record, twin in pairs}
            self._of = [of[twin.id] for twin in twins.records]
            self._parts.append((twins, SuffixRunner(model, twins.sequences, first_layer)))
        self._neutral = neutral_text(model, "choose", n_neutral, first_layer)
        self._unedited: dict[int, list[Tensor]] = {}

    @measuring()
    def gaps(self, edit: Intervention | None = None) -> pd.DataFrame:
        """A row a record: ``id, target, bias_type``, the mean log-probability a token of its three
        sentences, its ``gap``, and ``gap_group`` and ``gap_blind`` where it has a twin."""
        with nullcontext() if edit is None else edit.applied(self.model):
            lbars = [_lbars(*part) for part in self._parts]
        swapped = np.full(len(self.records), nan)
        if self._of:
            swapped[self._of] = lbars[1][:, 1] - lbars[1][:, 0]
        gap = lbars[0][:, 0] - lbars[0][:, 1]
        return pd.DataFrame(
            {
                **{
                    name: [getattr(record, name) for record in self.records]
                    for name in ("id", "target", "bias_type")
                },
                **dict(zip(LABELS, lbars[0].T, strict=True)),
                "gap": gap,
                "gap_group": (gap - swapped) / 2,
                "gap_blind": (gap + swapped) / 2,
            }
        )

    def measure(self, edit: Intervention | None = None) -> dict[str, float]:
        """``ss`` and ``lms`` in percent, ``gap`` and ``association`` in nats a token, of records;
        ``gap_group`` and ``gap_blind`` too, if some are of gender; ``kl`` in nats a token and
        ``perplexity_change`` in percent, of neutral text."""
        return summary(self.gaps(edit)) | self.drift(edit)

    @measuring()
    def drift(self, edit: Intervention | None) -> dict[str, float]:
        """``kl`` and ``perplexity_change`` on neutral text (:mod:`tracelab.interventions.drift`,
        from the first edited block on)."""
        if edit is None:
            return {"kl": 0.0, "perplexity_change": 0.0}
        sums, n = torch.zeros(3, dtype=torch.float64), 0
        batches = length_batches(map(len, self._neutral.sequences), BATCH_TOKENS)
        for number, batch in enumerate(batches):
            before = self._before(number, batch)
            with edit.applied(self.model):
                tokens, mask, logits = self._neutral(batch)
            places = mask[:, 1:].bool()
            n += int(places.sum())
            for part in compared(before, logprobs(logits, places), tokens[:, 1:][places]):
                sums += part
        kl, nll_before, nll = (sums / n).tolist()
        return {"kl": kl, "perplexity_change": 100 * float(np.expm1(nll - nll_before))}

    def _before(self, number: int, batch: Sequence[int]) -> Iterable[Tensor]:
        """The unedited model's log-probabilities of a batch of neutral text, in chunks; kept from
        the first look on where :data:`KEPT_BYTES` allow it."""
        if number in self._unedited:
            return self._unedited[number]
        _, mask, logits = self._neutral(batch)
        places = mask[:, 1:].bool()
        kept = sum(part.nbytes for parts in self._unedited.values() for part in parts)
        if kept + 4 * int(places.sum()) * logits.shape[-1] > KEPT_BYTES:
            return logprobs(logits, places)
        return self._unedited.setdefault(number, list(logprobs(logits, places)))


def neutral_text(model: TransformerBridge, use: str, n: int, first_layer: int) -> SuffixRunner:
    """The beginnings of :func:`~tracelab.datasets.development_sentences`, from a block on."""
    texts = [encode(model, text).ids[:NEUTRAL_TOKENS] for text in development_sentences(use, n)]
    require_context(model, map(len, texts))
    return SuffixRunner(model, texts, first_layer)


def _lbars(triples: Triples, runner: SuffixRunner) -> np.ndarray:
    """Mean log-probabilities a token, ``[record, label]``."""
    found = torch.zeros(len(triples.sequences), dtype=torch.float64)
    for batch in length_batches(map(len, triples.sequences), BATCH_TOKENS):
        tokens, mask, logits = runner(batch)
        places = scored(mask, [triples.scored(i) for i in batch])
        found[batch] = mean_over(token_logprobs(logits, tokens), places).double().cpu()
    return found.view(-1, len(LABELS)).numpy()


def summary(gaps: pd.DataFrame) -> dict[str, float]:
    """Means over records of :meth:`Development.gaps`, with ``ss`` and ``lms``; ``association`` is
    the mean over bias types of theirs."""
    stereotype, anti_stereotype, unrelated = (gaps[label] for label in LABELS)
    likelier = (stereotype > unrelated).mean() + (anti_stereotype > unrelated).mean()
    columns = gaps.assign(swapped=gaps["gap_blind"] - gaps["gap_group"])[["gap", "swapped"]]
    own = [association(*part.to_numpy().T) for _, part in columns.groupby(gaps["bias_type"])]
    return {
        "ss": 100 * float((stereotype > anti_stereotype).mean()),
        "lms": 50 * float(likelier),
        **association(*columns.to_numpy().T),
        "association": float(np.mean([each["association"] for each in own])),
    }


def remembered(
    edit: WeightDelta, figures: Callable[[], dict[str, float]]
) -> Callable[[], dict[str, float]]:
    """Figures of an edit, measured once for each state that it comes into: the state that is kept
    has been looked at already when its strength is chosen."""
    seen: dict[str, dict[str, float]] = {}

    def look() -> dict[str, float]:
        state = tensors_hash(edit.state_dict())
        if state not in seen:
            seen[state] = figures()
        return dict(seen[state])

    return look


class Choice:
    """The rule by which a state or a strength is kept: least ``association`` or ``loss`` among
    those that cost no more than the bounds.

    A state in training is scored as what is left of it at the strength that the bound on KL allows:
    to first order KL grows with the square of the strength and the rest with the strength. One that
    loses more LMS there than is allowed counts as no edit. :func:`scaled` then looks for the
    strength itself.

    >>> choice = Choice(ChoosingConfig(max_kl=0.1), {"association": 0.03, "lms": 85.0, "kl": 0.0})
    >>> choice.score({"association": 0.02, "lms": 84.5, "kl": 0.04})
    0.02
    >>> round(choice.score({"association": 0.01, "lms": 84.5, "kl": 0.4}), 3)  # half the strength
    0.02
    """

    def __init__(self, config: ChoosingConfig, unedited: Mapping[str, float]) -> None:
        self.by, self.bounds, self.unedited = config.choose, config.bounds, unedited

    def allows(self, figures: Mapping[str, float]) -> bool:
        """Whether an edit with these figures costs no more; not if one is no number."""
        return isfinite(figures[self.by]) and self.bounds.allow(
            kl=figures["kl"], lms_loss=self.unedited["lms"] - figures["lms"]
        )

    def score(self, figures: Mapping[str, float]) -> float:
        """What is to be low, at a strength within the bound on KL; no number, if one of the figures
        is none."""
        if not all(isfinite(value) for value in figures.values()):
            return nan
        share = self.share(figures)
        if share * (self.unedited["lms"] - figures["lms"]) > self.bounds.max_lms_loss:
            return self.unedited[self.by]
        both = [each.get("gap_group", nan) for each in (figures, self.unedited)]
        if self.by == "association" and np.allclose(
            np.abs(both), [each["association"] for each in (figures, self.unedited)]
        ):  # it may change its sign on the way
            return abs(share * both[0] + (1 - share) * both[1])
        return share * figures[self.by] + (1 - share) * self.unedited[self.by]

    def share(self, figures: Mapping[str, float]) -> float:
        """The strength, at most 1, at which an edit with these figures keeps the bound on KL."""
        excess = figures["kl"] / self.bounds.max_kl
        return 1.0 if excess <= 1 else excess**-0.5

    def best(self, table: Sequence[Mapping[str, float]]) -> int:
        """Which row is kept: the first of equals.

        Raises:
            TracelabError: none is within the bounds.
        """
        allowed = [i for i, row in enumerate(table) if self.allows(row)]
        if not allowed:
            raise TracelabError(f"none of {len(table)} edits is within {self.bounds}")
        return min(allowed, key=lambda i: table[i][self.by])


def scaled(
    edit: WeightDelta, choice: Choice, figures: Callable[[], dict[str, float]]
) -> tuple[float, list[dict[str, float]]]:
    """Scale an edit to the strength that the rule chooses, among :data:`STRENGTHS` and the one that
    just keeps the bound on KL.

    Args:
        figures: of the edit as it is.

    Returns:
        The strength, 0 if none is better than the unedited model, and what each was measured to do.
    """
    whole = copy.deepcopy(edit.state_dict())
    measured = {1.0: figures()}
    fitting = round(0.98 * choice.share(measured[1.0]), 4)
    table = [{"strength": 0.0, **choice.unedited}]
    for strength in sorted({*STRENGTHS, *([fitting] if 0 < fitting < 0.98 else [])}):
        if strength not in measured:
            edit.scale_(strength)
            measured[strength] = figures()
            edit.load_state_dict(whole)
        table.append({"strength": strength, **measured[strength]})
        if table[-1]["kl"] > choice.bounds.max_kl:  # as that of every greater strength is
            break
    strength = table[choice.best(table)]["strength"]
    edit.scale_(strength)
    return strength, [{name: round(value, 4) for name, value in row.items()} for row in table]
