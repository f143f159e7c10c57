"""The two ways to learn BiasEdit's shift: through an editor network, or directly.

Both put the shift into the edit (:meth:`show`) and leave a step's gradients in the parameters of
their ``module``.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np
import torch

from tracelab.gradients import learning, measuring
from tracelab.interventions.biasedit.config import BiasEditConfig
from tracelab.interventions.biasedit.triple_model import Editors, TripleModel
from tracelab.interventions.weight_delta import WeightDelta

Batch = tuple[Sequence[int], Sequence[int]]
"""The triples a shift is made from, and those it is judged on."""


class EditorShift:
    """An editor makes the shift; the edit is the mean of its shifts over groups of ``n_edits``
    training triples."""

    def __init__(self, edit: WeightDelta, trained: TripleModel, config: BiasEditConfig) -> None:
        self.edit, self.trained, self.config = edit, trained, config
        self.module = Editors(edit.spec().maps, config).to(trained.model.cfg.device)
        self.editors = [self.module]
        n_groups = ceil(len(trained) / config.n_edits)
        self._groups = [
            group.tolist() for group in np.array_split(np.arange(len(trained)), n_groups)
        ]
        for group in self._groups:
            self.module.update(trained.cached(group))

    def groups(self) -> list[dict[str, Any]]:
        """Parameters with their learning rates."""
        return self.module.groups(self.config)

    @learning()
    def step(self, batch: Batch) -> dict[str, float]:
        """Shift from one group, loss on another; backpropagated through the edit's tensors into the
        editor."""
        made_from, judged_on = batch
        rows = self.trained.cached(made_from)
        self.module.update(rows)
        shifts = self.module.shifts(rows)
        self.edit.set_(shifts)
        self.edit.zero_grad()
        figures = self.trained.backward(self.edit, judged_on)
        grads = [part.grad.T for part in self.edit.parameters()]  # type: ignore[union-attr]
        there = [grad.to(shift.device) for grad, shift in zip(grads, shifts, strict=True)]
        torch.autograd.backward(shifts, there)
        return figures

    @measuring()
    def show(self) -> None:
        """Put the mean shift into the edit."""
        by_group = [self.module.shifts(self.trained.cached(group)) for group in self._groups]
        self.edit.set_([torch.stack(shifts).mean(dim=0) for shifts in zip(*by_group, strict=True)])


class DirectShift:
    """The edit's own low-rank tensors are trained."""

    def __init__(self, edit: WeightDelta, trained: TripleModel, config: BiasEditConfig) -> None:
        self.module, self.trained, self.config = edit, trained, config
        self.editors: list[Editors] = []

    def groups(self) -> list[dict[str, Any]]:
        """Parameters with their learning rate."""
        return [{"params": list(self.module.parameters()), "lr": self.config.delta_lr}]

    def step(self, batch: Batch) -> dict[str, float]:
        """Loss under the edit."""
        return self.trained.backward(self.module, batch[1])

    def show(self) -> None:
        """Nothing: the edit is what is trained."""
