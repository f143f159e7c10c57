"""The loop that trains an edit: steps, a look at development data now and then, the best state
kept.

Every ``eval_every`` steps ``evaluate`` is asked for development figures; training ends when the one
called ``score`` (lower is better) has not improved ``patience`` times, and the best state is what
remains. A loss or gradient that is not finite ends it as well, at the best state so far. With
``partial`` all is kept in a file after each look, and a run with the same ``key`` goes on from
there.
"""

from __future__ import annotations

import copy
import json
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
from tracelab.storage.files import atomic_file
from tracelab.storage.ownership import adopt, is_ours, require_file, require_ours

KEPT = {"module", "optimizer", "scheduler", "curves", "best", "best_score", "stale", "done", "key"}
"""What a partial file holds."""

Figures = Mapping[str, float]

LARGEST_PARAMETER = 100.0
"""Parameters of deltas and editors begin at 0 or below 10, and are trained in steps far below 1."""


@dataclass
class Curves:
    """What a training run measured: ``{"step", "split", name: value, …}`` a row, ``split`` train or
    dev.

    ``largest``: the largest parameter after the last step, whichever state is kept.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    largest: float = 0.0

    def add(self, step: int, split: str, figures: Figures) -> None:
        """One more row."""
        self.rows.append(
            {"step": step, "split": split, **{k: round(float(v), 6) for k, v in figures.items()}}
        )

    def require_converged(self, what: str, partial: Path | str | None) -> None:
        """Refuse a run that diverged, and let go of what it kept in ``partial``.

        Raises:
            TracelabError: its parameters are huge, or no look was better than the first and the
                last far worse.
        """
        scores = [row["score"] for row in self.rows if row["split"] == "dev"]
        gained = min(scores) < scores[0]
        try:
            require_converged(what, scores[0], min(scores) if gained else scores[-1], self.largest)
        except TracelabError:
            if partial is not None:
                Path(partial).unlink(missing_ok=True)
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
    partial: Path | str | None = None,
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
        partial: a file; one of somebody's own is left alone, with a warning (fits refuse it:
            :func:`require_partial`).

    Raises:
        TracelabError: the development figures are not finite before the first step, or the loss is
            not at it.
    """
    if partial is not None and not _is_a_trainings(partial):
        warn(
            f"{str(partial)!r} was not written by tracelab: it stays as it is, and nothing of "
            f"{what} is kept",
        )
        partial = None
    curves, best, best_score, stale, done = (
        Curves(),
        copy.deepcopy(module.state_dict()),
        float("inf"),
        0,
        0,
    )
    taken_up = _taken_up(partial, key)
    if taken_up is not None:
        module.load_state_dict(taken_up["module"])
        optimizer.load_state_dict(taken_up["optimizer"])
        if scheduler is not None:
            scheduler.load_state_dict(taken_up["scheduler"])
        curves.rows = taken_up["curves"]
        best, best_score, stale, done = (
            taken_up[name] for name in ("best", "best_score", "stale", "done")
        )

    def look() -> bool:
        """Measure, keep; whether to go on."""
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
        if partial is not None:
            kept: dict[str, Any] = {
                "module": module.state_dict(),
                "optimizer": optimizer.state_dict(),
                "curves": curves.rows,
            }
            kept |= {
                "scheduler": None if scheduler is None else scheduler.state_dict(),
                "key": _plain(key),
            }
            kept |= {"best": best, "best_score": best_score, "stale": stale, "done": done}
            adopt([Path(partial)])
            # To an open file: torch takes the archive's name from a path, and a hidden file without
            # suffix has none.
            with atomic_file(partial) as path, path.open("wb") as file:
                torch.save(kept, file)
        return stale < patience and done < steps

    with progress(total=steps, what=what, unit="step") as bar:
        bar.update(done)
        going = look() if taken_up is None else stale < patience and done < steps
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
                going = look()
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


def require_partial(partial: Path | str | None) -> None:
    """Refuse, before any work, a file that no interrupted training left.

    Raises:
        TracelabError: it is somebody's own, or nothing can be written there.
    """
    if partial is None:
        return
    require_file(partial)
    if not _is_a_trainings(partial):
        require_ours(Path(partial))


def _is_a_trainings(partial: Path | str) -> bool:
    return is_ours(Path(partial)) or _read(partial) is not None  # 0.1 left no mark


def _plain(key: Mapping[str, Any] | None) -> Any:
    return json.loads(json.dumps(key))


def _taken_up(partial: Path | str | None, key: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What an interrupted run with the same key kept."""
    kept = None if partial is None else _read(partial)
    return kept if kept is not None and kept["key"] == _plain(key) else None


def _read(partial: Path | str) -> dict[str, Any] | None:
    """What an interrupted run kept; None where there is no file, or none that can be used."""
    if not Path(partial).is_file():
        return None
    try:
        kept = torch.load(partial, weights_only=True)
    except Exception:  # a damaged file surfaces as whatever its reader happens to raise
        return None
    return kept if isinstance(kept, dict) and kept.keys() >= KEPT else None
