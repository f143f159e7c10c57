"""StereoSet triples as tokens: what BiasEdit and KLAAD are trained on.

A triple holds a stereotypical, an anti-stereotypical and an unrelated sentence. Training and
development triples share no target term. Whether a BOS token comes first is the model's habit, as
in all scoring.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import GroupShuffleSplit
from transformer_lens.model_bridge import TransformerBridge

from tracelab.datasets.own import as_triples
from tracelab.datasets.records import Record, say_unusable
from tracelab.datasets.stereoset import StereoSetRecord
from tracelab.errors import TracelabError, brief
from tracelab.model.tokens import encode, require_context
from tracelab.ranges import require_seed

LABELS = ("stereotype", "anti_stereotype", "unrelated")
DEV_SHARE = 0.2


@dataclass(frozen=True)
class Triples:
    """Sentences of records as token ids, three a record, in the order of :data:`LABELS`.

    Attributes:
        sequences: ids of sentence ``3 * record + label``.
        fillers: positions of the filler's tokens in each (of an intersentence record: of the
            continuation).
        left_out: why records were left out, and how many.
    """

    records: tuple[StereoSetRecord, ...]
    sequences: tuple[tuple[int, ...], ...]
    fillers: tuple[tuple[int, ...], ...]
    left_out: dict[str, int]

    def index(self, record: int, label: str) -> int:
        """Number of a record's sentence in :attr:`sequences`."""
        return 3 * record + LABELS.index(label)

    def scored(self, sentence: int, span: str = "sentence") -> tuple[int, ...]:
        """Positions of a sentence that are scored: all but the first, or those of the filler. Of an
        intersentence record it is always the continuation, as StereoSet has it: both sentences have
        the context before them.

        Args:
            sentence: its number in :attr:`sequences`.
            span: ``"sentence"`` or ``"filler"``.
        """
        if span == "filler" or self.records[sentence // len(LABELS)].task == "intersentence":
            return self.fillers[sentence]
        return tuple(range(1, len(self.sequences[sentence])))

    def __repr__(self) -> str:
        lost = sum(self.left_out.values())
        bias = ", ".join(sorted({record.bias_type for record in self.records}))
        return brief(self, bias, f"n = {len(self.records)}", f"{lost} left out")


def tokenise(model: TransformerBridge, records: Iterable[Record]) -> Triples:
    """The triples of records that a causal model can be trained on.

    A record is left out if a filler cannot be found in its sentence, or if no token of a filler has
    a token before it; a warning tells if these are many.

    Raises:
        TracelabError: no record is left, or one has a sentence beyond the model's context.
    """
    records = as_triples(records, "the training")
    lengths: list[int] = []
    kept: list[StereoSetRecord] = []
    sequences: list[tuple[int, ...]] = []
    fillers: list[tuple[int, ...]] = []
    left_out: Counter[str] = Counter()
    for record in records:
        before = f"{record.context} " if record.task == "intersentence" else ""
        made, spans = [], []
        for label in LABELS:
            sentence = getattr(record, label)
            encoding = encode(model, before + sentence.text)
            if record.task == "intersentence":
                positions = [p for p, (_, end) in enumerate(encoding.offsets) if end > len(before)]
            else:
                positions = [p for span in sentence.filler for p in encoding.positions(span)]
            made.append(encoding.ids)
            spans.append(tuple(p for p in positions if p > 0))
        lengths.append(max(map(len, made)))
        if record.task == "intrasentence" and not all(
            getattr(record, label).filler for label in LABELS[:2]
        ):
            left_out["no filler in the sentence"] += 1
        elif not all(spans[:2]):
            left_out["nothing predicts the filler"] += 1
        else:
            kept.append(record)
            sequences += made
            fillers += spans
    require_context(model, lengths, what="record")
    if not kept:
        reasons = ", ".join(f"{reason}: {n}" for reason, n in left_out.items()) or "none were given"
        raise TracelabError(f"no usable triple among {len(records)} records ({reasons})")
    say_unusable("records", left_out.elements(), len(records), "are left out of the training")
    return Triples(tuple(kept), tuple(sequences), tuple(fillers), dict(left_out))


def split_by_target(
    records: Iterable[Record], *, share: float = DEV_SHARE, seed: int = 0
) -> tuple[list[StereoSetRecord], list[StereoSetRecord]]:
    """Training and development records with no target term in common, split within each bias type.

    Args:
        share: of the target terms of each bias type that is for development.

    Raises:
        TracelabError: a bias type with fewer than two target terms.
    """
    require_seed(seed)
    records = as_triples(records, "the training")
    train: list[StereoSetRecord] = []
    dev: list[StereoSetRecord] = []
    for bias in sorted({record.bias_type for record in records}):
        own = [record for record in records if record.bias_type == bias]
        targets = [record.target for record in own]
        if len(set(targets)) < 2:
            raise TracelabError(f"{bias} has one target term: none can be held out for development")
        splitter = GroupShuffleSplit(n_splits=1, test_size=share, random_state=seed)
        first, second = next(splitter.split(np.zeros(len(own)), groups=targets))
        train += [own[i] for i in first]
        dev += [own[i] for i in second]
    return train, dev
