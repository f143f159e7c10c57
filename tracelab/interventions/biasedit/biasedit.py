"""BiasEdit: weight shifts of a few MLP output maps, made by an editor network from stereotype
triples.

The editor (:mod:`.editor`) is trained so that the shift it makes from a group of triples brings
stereotype and anti-stereotype to the same likelihood and leaves the model elsewhere as it was
(:mod:`.triple_losses`, :mod:`.triple_model`). Two protocols, never to be read in one column:

    inductive      one edit, made from training triples, applied to text it has not seen (this class; can be saved)
    transductive   the paper's: for each group of test triples an edit made from those labelled triples themselves
                   (:func:`tracelab.evaluate.transductive_scores`)

Only the shift is an intervention. The editor stays in :attr:`BiasEdit.editors` of the process that
fitted it, and is not part of a bundle. Source: arXiv 2503.08588 and its code;
``BiasEditConfig.reference()`` has the code's settings.
"""  # noqa: E501

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from transformer_lens.model_bridge import TransformerBridge

from tracelab.datasets.records import Record
from tracelab.datasets.stereoset import StereoSetRecord
from tracelab.errors import TracelabError, warn
from tracelab.gradients import measuring
from tracelab.interventions.biasedit.config import BiasEditConfig
from tracelab.interventions.biasedit.shift import DirectShift, EditorShift
from tracelab.interventions.biasedit.triple_model import Editors, TripleModel
from tracelab.interventions.origin import Origin
from tracelab.interventions.training.development import Choice, Development, remembered, scaled
from tracelab.interventions.training.trained_delta import TrainedDelta
from tracelab.interventions.training.triples import Triples, tokenise
from tracelab.interventions.weight_delta import WeightDelta, WeightDeltaSpec
from tracelab.localize.tracing.causal_trace import causal_trace
from tracelab.model.load import model_facts
from tracelab.model.texts import as_records
from tracelab.ranges import require_layers

WARM_UP = 0.05
"""Share of the steps in which a cosine schedule rises."""
_LOSS_RECORDS = 48
"""Most development triples on which the losses are measured."""


class BiasEdit(TrainedDelta):
    """A shift of MLP output maps made by an editor network.

    >>> edit = BiasEdit.fit(model, tracelab.datasets.stereoset("gender", split="test"))
    >>> with edit.applied(model):
    ...     tracelab.generate(model, "The nurse said that").frame
    """

    kind = "biasedit"
    Config = BiasEditConfig
    tried: ClassVar = {"lam": (0.3, 1.0, 3.0)}

    def __init__(
        self, spec: Any, origin: Origin | None, notes: dict[str, Any] | None = None
    ) -> None:
        super().__init__(spec, origin, notes)
        # in a list, so that they are no part of the edit's tensors
        self._editors: list[Editors] = []

    @classmethod
    def learned(
        cls,
        model: TransformerBridge,
        data: Iterable[Record],
        config: BiasEditConfig,
        *,
        layers: Sequence[int] | str | None,
        dev: Iterable[Record] | None,
        checkpoint: Path | None,
    ) -> BiasEdit:
        """Train an editor on triples and make one edit from them.

        The state and the strength, one of those tried, are those with the least association
        (or loss) on the development triples among those that cost no more than ``max_kl`` and
        ``max_lms_loss``; if none has less than the unedited model, the strength is 0.

        Args:
            data: training records, of which ``n_support`` at most are used. Records of several
                bias types and of both tasks can be joined::

                    [*stereoset("gender", split="test"),
                     *stereoset("gender", split="test", task="intersentence"),
                     *stereoset("profession", split="test")]

            layers: blocks to edit: numbers; ``"last123"``, ``"last2"``, …: the K-th from the end;
                ``"late"``: the last third; or ``"auto"``: the three whose MLP has the largest
                effect in causal tracing of training pairs. Default: ``"late"`` for a direct shift,
                ``"last123"`` for an editor's.
            dev: records whose target terms are none of ``data``'s.
        """
        records, held_out = cls.split(data, dev, config.seed)
        default = "late" if config.shift == "direct" else "last123"
        chosen = edited_layers(model, default if layers is None else layers, records)
        order = np.random.default_rng(config.seed)
        samples = [
            [part[i] for i in order.permutation(len(part))[:n]]
            for part, n in ((records, config.n_support), (held_out, config.n_dev))
        ]
        train_triples, dev_triples = (tokenise(model, sample) for sample in samples)
        rank = config.delta_rank if config.shift == "direct" else None
        edit = cls.begun(
            model, config, train_triples, layers=chosen, modules=config.modules, rank=rank
        )
        trained, measured = (
            TripleModel(model, triples, edit.spec().maps, config)
            for triples in (train_triples, dev_triples)
        )
        development = Development(model, dev_triples, min(chosen))
        learner = (DirectShift if config.shift == "direct" else EditorShift)(edit, trained, config)

        def figures(shift: BiasEdit | None) -> dict[str, float]:
            losses = measured.measure(shift, range(len(measured))[:_LOSS_RECORDS])
            return losses | development.measure(shift)

        choice = Choice(config, figures(None))
        look = remembered(edit, lambda: figures(edit))

        def evaluate() -> dict[str, float]:
            learner.show()
            found = look()
            return found | {"score": choice.score(found)}

        optimizer = torch.optim.Adam(learner.groups())

        edit.train_on(
            model,
            records,
            held_out,
            _batches(train_triples, config),
            learner.step,
            evaluate,
            module=learner.module,
            optimizer=optimizer,
            scheduler=_schedule(optimizer, config),
            steps=config.steps,
            checkpoint=checkpoint,
        )
        learner.show()
        edit.zero_grad()
        strength, table = scaled(edit, choice, look)
        if not strength:
            warn(
                f"{edit.name} changes nothing: no strength lowered the {config.choose} of the "
                f"development triples at a KL to the unedited model of at most {config.max_kl:g} "
                f"and a loss of at most {config.max_lms_loss:g} points of LMS "
                '(notes["strengths"]); train longer, or on more triples',
            )
        edit._editors[:] = learner.editors
        edit.note_sizes(train_triples, len(trained), len(measured))
        edit.notes |= {"strength": strength, "strengths": table}
        return edit

    @classmethod
    def require_layer_words(cls, words: str) -> str:
        """Return ``words`` if it is ``"auto"``, ``"late"``, or ``"last"`` and the digits of layers
        from the end.

        Raises:
            TracelabError: it is neither.
        """
        if not re.fullmatch(r"auto|late|last[1-9]+", words):
            raise TracelabError(
                f'layers {words!r} are not understood: give numbers, "auto", "late", or '
                '"last1", "last123", …'
            )
        return words

    @property
    def editors(self) -> Editors:
        """The trained editor networks.

        Raises:
            TracelabError: this edit was loaded, and a bundle holds none.
        """
        if not self._editors:
            raise TracelabError(
                "this edit has no editor network: a bundle holds none, nor has a direct shift; fit "
                "one in this process"
            )
        return self._editors[0]

    def for_groups(
        self, model: TransformerBridge, records: Iterable[StereoSetRecord]
    ) -> Iterator[tuple[list[StereoSetRecord], WeightDelta]]:
        """The transductive protocol: records in groups of ``n_edits``, in order, each with the edit
        made from it.

        Raises:
            TracelabError: this edit was loaded and has no editor, or a group has no usable triple.
        """
        editors, size, records = self.editors, self.config.n_edits, as_records(records)
        with measuring():
            shift = WeightDelta(WeightDeltaSpec(maps=self._spec.maps), self.origin).to(
                model.cfg.device
            )
        for start in range(0, len(records), size):
            group = list(records[start : start + size])
            made_from = TripleModel(model, tokenise(model, group), self._spec.maps, self.config)
            with measuring():
                shift.set_(editors.shifts(made_from.cached(range(len(made_from)))))
            yield group, shift


BiasEditSpec = BiasEdit.Spec


def edited_layers(
    model: TransformerBridge, layers: Sequence[int] | str, records: Sequence[StereoSetRecord]
) -> list[int]:
    """Layer numbers, ascending; see :meth:`BiasEdit.learned`.

    Raises:
        TracelabError: no such layer, or words that are not understood.
    """
    n_layers = model_facts(model).n_layers
    if not isinstance(layers, str):
        return require_layers(layers, n_layers, model_facts(model).model_id)
    if layers == "auto":
        trace = causal_trace(model, records, components=("mlp",), window=3, max_cases=16)
        effects = trace.effects.groupby("layer")["nie"].max().sort_values(ascending=False)
        return sorted(int(layer) for layer in effects.index[:3])
    if layers == "late":
        return list(range(n_layers - max(1, n_layers // 3), n_layers))
    found = sorted(
        {
            n_layers - int(digit)
            for digit in BiasEdit.require_layer_words(layers).removeprefix("last")
        }
    )
    if found[0] < 0:
        raise TracelabError(f"layers {layers!r}: the model has {n_layers}")
    return found


def _batches(triples: Triples, config: BiasEditConfig) -> Iterator[tuple[list[int], list[int]]]:
    """What each step's shift is made from and judged on, without end."""
    order = np.random.default_rng(config.seed)
    targets = np.array([record.target for record in triples.records])
    terms = np.unique(targets)
    if config.query == "held_out" and len(terms) < 2:
        raise TracelabError('query="held_out" needs triples of two target terms or more')
    while True:
        if config.query == "same":
            chosen = order.permutation(len(targets))[: config.n_edits].tolist()
            yield chosen, chosen[: config.n_query]
        else:
            half = order.permutation(terms)[: len(terms) // 2]
            first = np.isin(targets, half)
            made_from, judged_on = (
                order.permutation(np.flatnonzero(rows)) for rows in (first, ~first)
            )
            yield made_from[: config.n_edits].tolist(), judged_on[: config.n_query].tolist()


def _schedule(
    optimizer: torch.optim.Optimizer, config: BiasEditConfig
) -> torch.optim.lr_scheduler.LambdaLR | None:
    if config.schedule == "constant":
        return None
    rise, steps = max(1, round(WARM_UP * config.steps)), max(1, config.steps)

    def share(step: int) -> float:
        return min(1.0, (step + 1) / rise) * (1 + math.cos(math.pi * step / steps)) / 2

    return torch.optim.lr_scheduler.LambdaLR(optimizer, share)
