"""Weight deltas trained on StereoSet triples: what BiasEdit and KLAAD have in common.

Training and development triples share no target term; development triples choose the state that is
kept. An edit is named after the bias types of its training triples.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn
from transformer_lens.model_bridge import TransformerBridge

from tracelab.config import Config
from tracelab.datasets.own import as_triples
from tracelab.datasets.records import Record, subsample
from tracelab.datasets.stereoset import BIAS_TYPES, StereoSetRecord, stereoset
from tracelab.interventions.method import Method
from tracelab.interventions.origin import Origin
from tracelab.interventions.training.loop import TRAINING, Figures, train
from tracelab.interventions.training.triples import Triples, split_by_target
from tracelab.interventions.weight_delta import WeightDelta, WeightDeltaSpec
from tracelab.model.memory import Sizes, require_room_at
from tracelab.model.settings import request_of
from tracelab.storage.data_hash import data_hash

Records = list[StereoSetRecord]


class TrainedDeltaSpec(WeightDeltaSpec):
    """The deltas' shapes, the configuration, and the bias types of the training data."""

    config: Config
    bias: str


class TrainedDelta(Method, WeightDelta):
    """Base of weight deltas trained on triples."""

    SpecBase = TrainedDeltaSpec
    biases = (*BIAS_TYPES, "all")
    uses_dev: ClassVar[bool] = True
    entries = (TRAINING,)

    def __init__(
        self, spec: Any, origin: Origin | None, notes: dict[str, Any] | None = None
    ) -> None:
        super().__init__(spec, origin, notes)
        self.config, self.bias = spec.config, spec.bias

    @classmethod
    def training_data(
        cls,
        bias: str,
        *,
        source: str | Path = "wheel",
        limit: int | None = None,
        without: Collection[str] = (),
    ) -> Records:
        """StereoSet's ``test`` records of a bias type, or of ``"all"``; no target term is one of
        ``dev``'s, on which StereoSet is scored."""
        found = stereoset(None if bias == "all" else bias, split="test", source=source)
        return subsample([record for record in found if record.target not in without], limit)

    @classmethod
    def split(
        cls, data: Iterable[Record], dev: Iterable[Record] | None, seed: int
    ) -> tuple[Records, Records]:
        """Training and development records; without any for development, those of a fifth of the
        target terms are."""
        if dev is None:
            return split_by_target(as_triples(data, cls.__name__), seed=seed)
        return as_triples(data, cls.__name__), as_triples(dev, cls.__name__)

    @classmethod
    def begun(
        cls,
        model: TransformerBridge,
        config: Any,
        triples: Triples,
        *,
        layers: Iterable[int],
        modules: Collection[str],
        rank: int | None,
    ) -> Self:
        """An edit that changes nothing yet, to be trained on these triples.

        Raises:
            TracelabError: there is no room for the gradients of one triple.
        """
        layers, longest = list(layers), max(map(len, triples.sequences))
        require_room_at(
            model,
            f"gradients of three sentences of {longest} tokens",
            Sizes.of(model).fit(3, longest, len(model.blocks) - min(layers)),
            "edit later layers, leave out the longest records, or load the model in bfloat16",
        )
        zero = WeightDelta.low_rank(
            model, layers=layers, modules=tuple(modules), rank=rank, seed=config.seed
        )
        bias = "+".join(sorted({record.bias_type for record in triples.records}))
        edit = cls(cls.Spec(maps=zero.spec().maps, config=config, bias=bias), zero.origin)
        edit.load_state_dict(zero.state_dict())
        return edit.to(model.cfg.device)

    def train_on(
        self,
        model: TransformerBridge,
        records: Records,
        held_out: Records,
        batches: Iterator[Any],
        step: Callable[[Any], Figures],
        evaluate: Callable[[], dict[str, float]],
        *,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        steps: int,
        checkpoint: Path | None,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    ) -> None:
        """Train ``module`` until the development loss no longer falls, and note what was done.

        Args:
            evaluate: figures of the development triples, with ``loss``; with ``score`` too if the
                state is chosen by something else.

        Raises:
            TracelabError: a loss that is not finite at the first step, or training that diverges.
        """

        def score() -> dict[str, float]:
            figures = evaluate()
            return {"score": figures["loss"]} | figures

        hashes = {"data": data_hash(records), "dev": data_hash(held_out)}
        more = {
            "config": self.config.settings(),
            "layers": sorted({m.layer for m in self.spec().maps}),
        }
        curves = train(
            module,
            optimizer,
            batches,
            step,
            score,
            steps=steps,
            eval_every=self.config.eval_every,
            patience=self.config.patience,
            scheduler=scheduler,
            checkpoint=checkpoint,
            key=request_of(model, **hashes, **more),
            what=self.name,
        )
        curves.require_converged(self.name, checkpoint)
        self.notes |= {
            "data_hash": hashes["data"],
            "dev_hash": hashes["dev"],
            "curves": curves.rows,
        }

    def note_sizes(self, triples: Triples, n_train: int, n_dev: int) -> None:
        """Note how many triples were used."""
        self.notes |= {"left_out": triples.left_out, "n_train": n_train, "n_dev": n_dev}

    @property
    def own_name(self) -> str:
        """``kind(bias)``."""
        return f"{self.kind}({self.bias})"
