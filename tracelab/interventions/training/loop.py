"""The loop that trains an edit: steps, validation on development data now and then, the best state
restored at the end.

Every ``eval_every`` steps ``evaluate`` is asked for development figures; training ends when the one
called ``score`` (lower is better) has not improved ``patience`` times, and the best state is what
remains. A loss or gradient that is not finite ends it as well, at the best state so far. With
``checkpoint`` everything is stored after each validation, and a run with the same ``key`` resumes
from there.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import nn

from tracelab.errors import TracelabError, warn
from tracelab.gradients import learning
from tracelab.model.finite import CAUSE
from tracelab.model.weights import held
from tracelab.progress import progress
from tracelab.storage.checkpoint import discard, open_entry
from tracelab.storage.files import atomic_file

TRAINING = "training"
"""The entry of a checkpoint: states of module, optimizer and scheduler, and :data:`PROGRESS`."""
PROGRESS = ("curves", "best", "best_score", "stale", "done")

Figures = Mapping[str, float]

LARGEST_PARAMETER = 100.0
"""Parameters of deltas and editors begin at 0 or below 10, and are trained in steps far below 1."""


@dataclass
class Curves:
    """What a training run measured: ``{"step", "split", name: value, …}`` a row, ``split`` train or
    dev.

    ``largest``: the largest parameter after the last step, whichever state was the best.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    largest: float = 0.0

    def add(self, step: int, split: str, figures: Figures) -> None:
        """One more row."""
        self.rows.append(
            {"step": step, "split": split, **{k: round(float(v), 6) for k, v in figures.items()}}
        )

    def require_converged(self, what: str, checkpoint: Path | str | None) -> None:
        """Refuse a run that diverged, and discard its checkpoint.

        Raises:
            TracelabError: its parameters are huge, or the loss (where there is none, the score) is
                far above where it began: at the state that is kept, or, if no validation was better
                than the first, at the last.
        """
        looks = [row for row in self.rows if row["split"] == "dev"]
        best = min(looks, key=lambda row: row["score"])
        last = best if best["score"] < looks[0]["score"] else looks[-1]
        before, after = (row.get("loss", row["score"]) for row in (looks[0], last))
        try:
            require_converged(what, before, after, self.largest)
        except TracelabError:
            discard(checkpoint, TRAINING)
            raise

    @property
    def frame(self) -> pd.DataFrame:
        """Tidy: ``step, split, name, value``."""
        wide = pd.DataFrame(self.rows)
        return wide.melt(["step", "split"], var_name="name").dropna(ignore_index=True)


class Chunks:
    """Works through a group in chunks; out of memory, it begins again with half the size and keeps
    to it."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(
        self,
        function: Callable[[Sequence[int]], None],
        group: Sequence[int],
        restart: Callable[[], None],
    ) -> None:
        """Call ``function`` with each chunk of ``group``, after ``restart`` if it has to begin
        again.

        Raises:
            RuntimeError: not even one at a time fits.
        """

        while True:
            try:
                for start in range(0, len(group), self.size):
                    function(group[start : start + self.size])
                return
            except (RuntimeError, MemoryError) as error:
                if self.size == 1 or not should_reduce_batch_size(error):
                    raise
            self.size //= 2
            warn(f"out of memory: {self.size} texts at a time from here on")
            restart()


@learning()
@held()
def train(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[Any],
    step: Callable[[Any], Figures],
    evaluate: Callable[[], Figures],
    *,
    steps: int,
    eval_every: int,
    patience: int,
    clip: float = 1.0,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    checkpoint: Path | str | None = None,
    key: Mapping[str, Any] | None = None,
    what: str = "training",
) -> Curves:
    """Train the parameters of ``module``; returns the curves and leaves the best state in it.

    Args:
        batches: what each step is given; the same sequence in every run, so that a resumed one can
            skip.
        step: computes the loss of a batch, leaves its gradients in the parameters, returns its
            parts with ``loss``.
        evaluate: development figures with ``score``; called before the first step too.
        checkpoint: folder of the entry :data:`TRAINING`.
        key: JSON values that tell everything the run depends on.

    Raises:
        TracelabError: the development figures are not finite before the first step, the loss is not
            at it, or the checkpoint cannot be stored.
    """
    curves, best = Curves(), copy.deepcopy(module.state_dict())
    best_score, stale, done = float("inf"), 0, 0
    parts: dict[str, Any] = {"module": module, "optimizer": optimizer}
    parts |= {} if scheduler is None else {"scheduler": scheduler}

    def validate() -> bool:
        """Measure, store; whether to go on."""
        nonlocal best, best_score, stale
        figures = evaluate()
        if not done and not isfinite(figures["score"]):
            raise TracelabError(
                f"{what}: the loss is {figures['score']} before the first step: lower the learning "
                f"rate; else {CAUSE}"
            )
        curves.add(done, "dev", figures)
        if figures["score"] < best_score:
            best, best_score, stale = copy.deepcopy(module.state_dict()), figures["score"], 0
        else:
            stale += 1
        bar.set_postfix({name: f"{value:.3g}" for name, value in figures.items()})
        entry.save(write)
        return stale < patience and done < steps

    def write(path: Path) -> None:
        state = {name: part.state_dict() for name, part in parts.items()}
        state |= zip(PROGRESS, (curves.rows, best, best_score, stale, done), strict=True)
        # To an open file: torch takes the archive's name from a path, and a hidden file without
        # suffix has none.
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            torch.save(state, file)

    with (
        open_entry(checkpoint, TRAINING, key) as entry,
        progress(total=steps, what=what, unit="step") as bar,
    ):
        state = entry.load(lambda path: _read(path, {*parts, *PROGRESS}))
        if state is None:
            going = validate()
        else:
            for name, part in parts.items():
                part.load_state_dict(state[name])
            curves.rows, best, best_score, stale, done = (state[name] for name in PROGRESS)
            going = stale < patience and done < steps
            bar.update(done)
        for number, batch in enumerate(batches):
            if not going:
                break
            if number < done:
                continue
            optimizer.zero_grad()
            try:
                figures = step(batch)
                norm = float(torch.nn.utils.clip_grad_norm_(module.parameters(), clip))
                if not (isfinite(figures["loss"]) and isfinite(norm)):
                    shown = f"loss {figures['loss']:.3g}, gradient norm {norm:.3g}"
                    raise TracelabError(f"not finite ({shown}): lower the learning rate")
            except TracelabError as error:  # also a solve that failed
                reason = f"{what}, step {done + 1}: {error}"
                if not done:
                    raise TracelabError(reason) from error
                warn(f"{reason}; the best state before it is kept")
                break
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            done += 1
            bar.update()
            curves.add(done, "train", figures)
            if done % eval_every == 0 or done == steps:
                going = validate()
    curves.largest = largest_parameter(module)
    module.load_state_dict(best)
    return curves


def largest_parameter(module: nn.Module) -> float:
    """The largest absolute value among the parameters; not a number if one is not."""
    return float(
        torch.stack(
            [parameter.detach().abs().max().float().cpu() for parameter in module.parameters()]
        ).max()
    )


def require_converged(what: str, before: float, after: float, largest: float) -> None:
    """Refuse a training that diverged and yet stayed finite, as norms and softmax can make it.

    Args:
        before, after: the same loss before the first step and of what is left after the last.
        largest: of the parameters after the last step.

    Raises:
        TracelabError: the loss rose by more than noise, or a parameter is larger than any that an
            edit needs.
    """
    if not after - before <= max(1.0, abs(before) / 2) or not largest <= LARGEST_PARAMETER:
        raise TracelabError(
            f"{what}: the training diverged (loss {before:.3g} before it, {after:.3g} after, "
            "largest parameter "
            f"{largest:.3g}): lower the learning rate"
        )


def _read(path: Path, names: set[str]) -> dict[str, Any]:
    """The state that an interrupted run stored, if everything is in it."""
    state = torch.load(path, weights_only=True)
    if not isinstance(state, dict) or not state.keys() >= names:
        raise TracelabError("it is no state of a training")
    return state
