"""From a StereoSet record to a case that can be traced: aligned tokens, what is noised, what is
scored.

The stereotype and the anti-stereotype of an intrasentence record share everything but the filler.
Their tokens are aligned in *columns*: the shared tokens before the filler, the filler (where the
fillers have different numbers of tokens, the last token of the shorter stands for the rest), the
shared tokens after it. Every column has one role (an attribute word that stands right before the
filler is ``attribute``):

| role | tokens |
|---|---|
| ``attribute`` | mentions of the target term and of the bias type's attribute words (these are noised) |
| ``before_filler`` | the token before the filler |
| ``filler`` | the word that makes the stereotype or the anti-stereotype ("attribute term" in BiasEdit) |
| ``after_filler`` | what follows it |
| ``other`` | the rest, BOS included |

Noise on a word after the filler cannot reach the filler's probability, so a record whose attribute
words all come after it is not traced. What is left out is counted by reason, and said aloud if it
is more than half.
"""  # noqa: E501

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities.statistics import derive_generator

from tracelab.datasets.records import Sentence, say_unusable
from tracelab.datasets.stereoset import StereoSetRecord
from tracelab.errors import TracelabError
from tracelab.localize.tracing.sentence import Noise, TracedSentence
from tracelab.model.tokens import Encoding, encode, require_context
from tracelab.ranges import require_seed

ROLES = ("attribute", "before_filler", "filler", "after_filler", "other")
KEY_ROLES = ("attribute", "before_filler", "filler")
"""The roles of BiasEdit's Figures 5 and 6."""
NO_WORD = "no_attribute_word"
LEFT_OUT = 0.5
"""Share of the records from which on it is said aloud that they cannot be traced; a fifth of
StereoSet's cannot."""


@dataclass(frozen=True)
class Case:
    """A pair ready for tracing.

    Attributes:
        stereotype, anti_stereotype: the encoded sentences.
        columns: (position in the stereotype, position in the anti-stereotype) of each aligned
            column.
        roles: the role of each column.
        noised: columns whose embeddings are corrupted.
        first: first scored token, the filler's first (the same position in both sentences).
    """

    id: str
    bias_type: str
    target: str
    stereotype: Encoding
    anti_stereotype: Encoding
    columns: tuple[tuple[int, int], ...]
    roles: tuple[str, ...]
    noised: tuple[int, ...]
    first: int

    @property
    def equal_length(self) -> bool:
        """Whether both sentences have the same number of tokens; BiasEdit traces only these."""
        return len(self.stereotype.ids) == len(self.anti_stereotype.ids)

    @property
    def first_token(self) -> bool:
        """Whether the text's first token is noised; a BOS before it is no token of the text."""
        offsets = self.stereotype.offsets
        return self.noised[0] == next(p for p, (start, end) in enumerate(offsets) if end > start)


def make_cases(
    model: TransformerBridge,
    records: Sequence[StereoSetRecord],
    *,
    mentions: str = "all",
    prepend_bos: bool | None = None,
) -> tuple[list[Case], dict[str, int]]:
    """Cases of the records that can be traced, and how many cannot, by reason.

    Args:
        mentions: which mentions of attribute words are noised: ``"all"``, or ``"first"`` of each
            sentence (BiasEdit noises the first hit of each word).

    Raises:
        TracelabError: no record can be traced, or one is beyond the model's context.
    """
    made = [_case(model, record, mentions, prepend_bos) for record in records]
    cases = [case for case in made if isinstance(case, Case)]
    skipped = dict(Counter(reason for reason in made if isinstance(reason, str)))
    if not cases:
        more = "; name what both sentences speak of as their target" if NO_WORD in skipped else ""
        raise TracelabError(f"none of {len(records)} records can be traced: {skipped}{more}")
    require_context(
        model,
        (
            max(len(c.stereotype.ids), len(c.anti_stereotype.ids)) if isinstance(c, Case) else 0
            for c in made
        ),
        what="pair",
    )
    reasons = [reason for reason in made if isinstance(reason, str)]
    say_unusable(
        "records",
        reasons,
        len(records),
        "cannot be traced: what follows is of the others",
        many=LEFT_OUT,
    )
    return cases, skipped


def sampled(cases: list[Case], max_cases: int | None, *, seed: int) -> list[Case]:
    """A random sample of so many cases, in their order; None: all of them."""
    require_seed(seed)
    if max_cases is None:
        return cases
    order = torch.randperm(len(cases), generator=derive_generator(seed, "cases"))
    return [cases[i] for i in sorted(order[:max_cases].tolist())]


def restored_columns(case: Case, positions: str) -> list[int]:
    """Columns whose states are restored: ``"all"``, or those of the key roles."""
    return [c for c, role in enumerate(case.roles) if positions == "all" or role in KEY_ROLES]


def sentences_of(
    case: Case, values: Float[Tensor, "samples noised d_model"], columns: Sequence[int]
) -> list[TracedSentence]:
    """The stereotype and its opposite, with states restored in some columns.

    A short filler's last token stands for several columns, and is restored once.
    """
    return [
        TracedSentence(
            torch.tensor(encoding.ids),
            Noise(tuple(case.columns[c][side] for c in case.noised), values),
            sorted({case.columns[c][side] for c in columns}),
        )
        for side, encoding in enumerate((case.stereotype, case.anti_stereotype))
    ]


def _case(
    model: TransformerBridge, record: StereoSetRecord, mentions: str, prepend_bos: bool | None
) -> Case | str:
    """The case, or the reason why there is none."""
    sentences = (record.stereotype, record.anti_stereotype)
    if any(len(sentence.filler) != 1 for sentence in sentences):
        return "not_one_filler"
    stereo, anti = (encode(model, s.text, prepend_bos=prepend_bos) for s in sentences)
    fillers = [e.positions(s.filler[0]) for e, s in zip((stereo, anti), sentences, strict=True)]
    if any(not filler for filler in fillers):
        return "no_filler_token"
    first = fillers[0][0]
    tails = [len(e.ids) - filler[-1] - 1 for e, filler in zip((stereo, anti), fillers, strict=True)]
    if stereo.ids[:first] != anti.ids[: fillers[1][0]]:
        return "different_before_filler"
    if tails[0] != tails[1] or (stereo.ids[-tails[0] :] != anti.ids[-tails[0] :] and tails[0]):
        return "different_after_filler"
    columns = [(p, p) for p in range(first)]
    for k in range(max(map(len, fillers))):
        columns.append(tuple(filler[min(k, len(filler) - 1)] for filler in fillers))  # type: ignore[arg-type]
    after = len(columns)
    columns += [(len(stereo.ids) - k, len(anti.ids) - k) for k in range(tails[0], 0, -1)]
    noised = _noised(stereo, record.stereotype, columns, mentions, side=0)
    if not noised:
        return NO_WORD
    if noised != _noised(anti, record.anti_stereotype, columns, mentions, side=1):
        return "different_attribute_words"
    if noised[0] >= first:
        return "attribute_after_filler"
    roles = ["other"] * first + ["filler"] * (after - first) + ["after_filler"] * tails[0]
    roles[first - 1] = "before_filler"
    for column in noised:
        roles[column] = "attribute"
    return Case(
        id=record.id,
        bias_type=record.bias_type,
        target=record.target,
        stereotype=stereo,
        anti_stereotype=anti,
        columns=tuple(columns),
        roles=tuple(roles),
        noised=noised,
        first=first,
    )


def _noised(
    encoding: Encoding,
    sentence: Sentence,
    columns: list[tuple[int, int]],
    mentions: str,
    *,
    side: int,
) -> tuple[int, ...]:
    """Columns of the attribute words of one sentence."""
    spans = sentence.attribute_words[: 1 if mentions == "first" else None]
    positions = {position for span in spans for position in encoding.positions(span)}
    filler = set(encoding.positions(sentence.filler[0]))
    return tuple(
        c for c, pair in enumerate(columns) if pair[side] in positions and pair[side] not in filler
    )
