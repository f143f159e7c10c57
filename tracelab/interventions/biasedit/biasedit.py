"""BiasEdit: weight shifts of a few MLP output maps, made by an editor network from stereotype
triples.

The editor (:mod:`.editor`) is trained so that the shift it makes from a group of triples brings
stereotype and anti-stereotype to the same likelihood and leaves the model elsewhere as it was
(:mod:`.triple_losses`, :mod:`.biasedit_training`). Two protocols, never to be read in one column:

    inductive      one edit, made from training triples, applied to text it has not seen (this class; can be saved)
    transductive   the paper's: for each group of test triples an edit made from those labelled triples themselves
                   (:func:`tracelab.evaluate.transductive_scores`)

Only the shift is an intervention. The editor stays in :attr:`BiasEdit.editors` of the process that
fitted it, and is not part of a bundle. Source: arXiv 2503.08588 and its code;
``BiasEditConfig.reference()`` has the code's settings.
"""  # noqa: E501

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from transformer_lens.model_bridge import TransformerBridge

from tracelab.datasets.stereoset import StereoSetRecord
from tracelab.errors import TracelabError
from tracelab.gradients import learning, measuring
from tracelab.interventions.biasedit.config import BiasEditConfig
from tracelab.interventions.biasedit.shift import DirectShift, EditorShift
from tracelab.interventions.biasedit.triple_model import Editors, TripleModel
from tracelab.interventions.origin import Origin
from tracelab.interventions.training.loop import TRAINING, train
from tracelab.interventions.training.triples import Triples, split_by_target, tokenise
from tracelab.interventions.weight_delta import WeightDelta, WeightDeltaSpec
from tracelab.localize.tracing.causal_trace import causal_trace
from tracelab.model.hooked import require_unedited
from tracelab.model.load import model_facts
from tracelab.model.settings import request_of
from tracelab.model.texts import as_records
from tracelab.ranges import require_layers
from tracelab.storage.checkpoint import require_entries
from tracelab.storage.data_hash import data_hash

MODULE = "mlp.out"
STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
LMS_LOSS = 1.0
"""Points of LMS that a strength may cost on the development triples."""
_DEV_RECORDS = 128


class BiasEditSpec(WeightDeltaSpec):
    """The shifts' shapes, the configuration, and the bias types of the training data."""

    config: BiasEditConfig
    bias: str


class BiasEdit(WeightDelta):
    """A shift of MLP output maps made by an editor network.

    >>> edit = BiasEdit.fit(model, tracelab.datasets.stereoset("gender", split="test"))
    >>> with edit.applied(model):
    ...     model(tokens)
    """

    kind = "biasedit"
    Spec = BiasEditSpec

    def __init__(
        self, spec: BiasEditSpec, origin: Origin | None, notes: dict[str, Any] | None = None
    ) -> None:
        super().__init__(spec, origin, notes)
        self.config, self.bias = spec.config, spec.bias
        self._editors: list[
            Editors
        ] = []  # in a list, so that they are no part of the edit's tensors

    @classmethod
    @learning()
    def fit(
        cls,
        model: TransformerBridge,
        data: Iterable[StereoSetRecord],
        config: BiasEditConfig | None = None,
        *,
        layers: Sequence[int] | str = "last123",
        dev: Iterable[StereoSetRecord] | None = None,
        checkpoint: Path | str | None = None,
        allow_hooks: bool = False,
    ) -> BiasEdit:
        """Train an editor on triples and make one edit from them.

        The strength of the edit is the one of :data:`STRENGTHS` whose SS on the development triples
        is nearest to 50 among those that cost at most :data:`LMS_LOSS` points of LMS there.

        Args:
            data: training records, of which ``n_support`` at most are used; not those the edit will
                be scored on.
            layers: blocks to edit: numbers; ``"last123"``, ``"last2"``, …: the K-th from the end;
                or ``"auto"``: the three whose MLP has the largest effect in causal tracing of
                training pairs.
            dev: development records, which end the training and choose the strength; default: those
                of a fifth of the target terms of ``data``.
            checkpoint: folder in which an interrupted fit is stored, and resumed from.
            allow_hooks: fit on a model with hooks on, as it is with them.

        Raises:
            TracelabError: no usable triple, a layer without the map, a loss that is not finite at
                the first step, or training that diverges.
        """
        began = perf_counter()
        require_unedited(model, "a fit of BiasEdit", allow_hooks=allow_hooks)
        require_entries(checkpoint, TRAINING)
        config = config or BiasEditConfig()
        records, held_out = (
            split_by_target(data, seed=config.seed)
            if dev is None
            else (as_records(data), as_records(dev))
        )
        chosen = edited_layers(model, layers, records)
        rank = config.delta_rank if config.shift == "direct" else None
        zero = WeightDelta.low_rank(
            model, layers=chosen, modules=(MODULE,), rank=rank, seed=config.seed
        )
        shapes = zero.spec().maps
        order = np.random.default_rng(config.seed)
        samples = [
            [part[i] for i in order.permutation(len(part))[:n]]
            for part, n in ((records, config.n_support), (held_out, _DEV_RECORDS))
        ]
        train_triples, dev_triples = (tokenise(model, sample) for sample in samples)
        bias = "+".join(sorted({record.bias_type for record in train_triples.records}))
        edit = cls(BiasEditSpec(maps=shapes, config=config, bias=bias), zero.origin)
        edit.load_state_dict(zero.state_dict())
        edit.to(model.cfg.device)
        trained, measured = (
            TripleModel(model, triples, shapes, config) for triples in (train_triples, dev_triples)
        )
        learner = (DirectShift if config.shift == "direct" else EditorShift)(edit, trained, config)

        def evaluate() -> dict[str, float]:
            learner.show()
            figures = measured.measure(edit, range(len(measured)))
            return figures | {"score": figures["loss"]}

        key = {
            "data": data_hash(records),
            "dev": data_hash(held_out),
            "config": asdict(config),
            "layers": chosen,
        }
        curves = train(
            learner.module,
            torch.optim.Adam(learner.groups()),
            _batches(train_triples, config),
            learner.step,
            evaluate,
            steps=config.steps,
            eval_every=config.eval_every,
            patience=config.patience,
            checkpoint=checkpoint,
            key=request_of(model, **key),
            what=f"biasedit({bias})",
        )
        curves.require_converged(f"biasedit({bias})", checkpoint)
        learner.show()
        edit.zero_grad()
        strength, table = _strength(edit, measured)
        if not strength:
            warnings.warn(
                f"{edit.name} changes nothing: no strength brought SS nearer to 50 on the "
                "development triples without "
                f'costing more than {LMS_LOSS:g} points of LMS (notes["strengths"]); train longer, '
                "or on more triples",
                stacklevel=3,
            )
        edit.scale_(strength)
        edit._editors[:] = learner.editors
        edit.notes |= {"data_hash": key["data"], "dev_hash": key["dev"], "curves": curves.rows}
        edit.notes |= {
            "left_out": train_triples.left_out,
            "n_train": len(trained),
            "n_dev": len(measured),
        }
        edit.notes |= {
            "strength": strength,
            "strengths": table,
            "fit_seconds": round(perf_counter() - began, 1),
        }
        return edit

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

    @property
    def name(self) -> str:
        """``biasedit(gender)``."""
        return f"biasedit({self.bias})"

    def spec(self) -> BiasEditSpec:
        """The maps, the configuration and the bias types."""
        return BiasEditSpec(maps=self._spec.maps, config=self.config, bias=self.bias)

    @classmethod
    def build(cls, spec: Any, origin: Origin | None) -> BiasEdit:
        """With zero shifts."""
        return cls(spec, origin)


def edited_layers(
    model: TransformerBridge, layers: Sequence[int] | str, records: Sequence[StereoSetRecord]
) -> list[int]:
    """Layer numbers, ascending; see :meth:`BiasEdit.fit`.

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
    found = sorted(
        {n_layers - int(digit) for digit in require_layer_words(layers).removeprefix("last")}
    )
    if found[0] < 0:
        raise TracelabError(f"layers {layers!r}: the model has {n_layers}")
    return found


def require_layer_words(layers: str) -> str:
    """Return ``layers`` if it is ``"auto"``, or ``"last"`` and the digits of layers from the end.

    Raises:
        TracelabError: it is neither.
    """
    if not re.fullmatch(r"auto|last[1-9]+", layers):
        raise TracelabError(
            f'layers {layers!r} are not understood: give numbers, "auto", or "last1", "last123", …'
        )
    return layers


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


def _strength(edit: BiasEdit, measured: TripleModel) -> tuple[float, list[dict[str, float]]]:
    """The factor for the shifts, and what each was measured to do on development triples."""
    group = range(len(measured))
    unedited = measured.measure(None, group)
    table = [{"strength": 0.0, **unedited}]
    whole = copy.deepcopy(edit.state_dict())
    for factor in STRENGTHS:
        edit.scale_(factor)
        table.append({"strength": factor, **measured.measure(edit, group)})
        edit.load_state_dict(whole)
    # Never true of a figure that is not a number.
    allowed = [
        row for row in table if row["lms"] >= unedited["lms"] - LMS_LOSS and 0 <= row["ss"] <= 100
    ]
    best = min(allowed, key=lambda row: abs(row["ss"] - 50))
    return best["strength"], [
        {name: round(value, 4) for name, value in row.items()} for row in table
    ]
