"""What a fit costs beside the forward and backward passes that it cannot do without.

    python analyses/speed/fitting.py [--quick] [--rounds 2]

While an edit is fitted once, every sentence that runs through the model is noted: from which block
on, under the edit or without it, with gradients or without. Of these, those that need not have been
run are left out: a sentence without the edit is needed once in a fit, one under the edit once in a
step or look. The reference runs what is left, in batches of like length, with a bare language loss
to go backwards from; the fit does this and tokenises, computes its losses, steps, looks, chooses a
strength. A cost: at most 1.3 times, so the goal is 1 / 1.3.

- ``fitting.biasedit_two``, ``fitting.klaad_two``: two steps on a dozen records, and the looks
  before, after and at each strength: fixed costs weigh most.
- ``fitting.biasedit``, ``fitting.klaad``: the methods' own settings on 64 records; not if quick.

On the embedded model it takes an hour; ``--quick`` is a random one of 8 layers and width 128, which
is vocabulary for the most part: losses weigh more there.
``agreement`` is the difference of the edits of two fits: the same, to the last bit.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from comparison import compare, options, say
from models import random_llama
from torch.optim.optimizer import register_optimizer_step_post_hook

import tracelab
from tracelab import KLAAD, BiasEdit
from tracelab.interventions.training.development import Development
from tracelab.interventions.training.finetune import frozen
from tracelab.model.hooked import hook_names
from tracelab.model.partial_forward import SuffixRunner
from tracelab.model.tokens import length_batches

Batch = tuple[SuffixRunner, list[int], bool, bool]  # which sentences; edited; with gradients


class Needed:
    """The sentences of one fit, each as often as it is needed."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.kept: list[SuffixRunner] = []
        self._seen: set[Any] = set()
        self._stage = 0

    def of(self, fit: Callable[[], Any]):
        """Note what a fit runs; returns its edit."""
        run, keep, measure = SuffixRunner.__call__, SuffixRunner._keep, Development.measure

        def noted(runner: SuffixRunner, indices):
            self._add(runner, list(indices))
            return run(runner, indices)

        def kept(runner: SuffixRunner, batch_tokens: int) -> None:
            self.kept.append(runner)
            keep(runner, batch_tokens)

        def looked(development: Development, edit=None):
            found = measure(development, edit)
            self._stage += 1
            return found

        handle = register_optimizer_step_post_hook(lambda *_: self._next())
        SuffixRunner.__call__, SuffixRunner._keep, Development.measure = noted, kept, looked
        try:
            return fit()
        finally:
            handle.remove()
            SuffixRunner.__call__, SuffixRunner._keep, Development.measure = run, keep, measure

    def _next(self) -> None:
        self._stage += 1

    def _add(self, runner: SuffixRunner, indices: list[int]) -> None:
        edited, graded = bool(hook_names(runner.model)), torch.is_grad_enabled()
        stage = self._stage if edited else None
        keys = {i: (tuple(runner.sequences[i]), graded, stage) for i in indices}
        new = [i for i, key in keys.items() if key not in self._seen]
        self._seen.update(keys.values())
        if new:
            self.batches.append((runner, new, edited, graded))

    def run(self, edit) -> int:
        """All of it, bare; returns the number of tokens."""
        count = 0
        for runner in self.kept:
            runner._keep(1024)
        for runner, indices, edited, graded in self.batches:
            lengths = [len(runner.sequences[i]) for i in indices]
            for rows in length_batches(lengths, 1024):
                count += sum(lengths[row] for row in rows)
                self._pass(runner, [indices[row] for row in rows], edit, edited, graded)
        return count

    @staticmethod
    def _pass(runner: SuffixRunner, rows: list[int], edit, edited: bool, graded: bool) -> None:
        if not edited:
            with torch.no_grad():
                runner(rows)
            return
        with torch.set_grad_enabled(graded), frozen(runner.model), edit.applied(runner.model):
            tokens, _, logits = runner(rows)
            if graded:
                torch.nn.functional.cross_entropy(
                    logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
                ).backward()
        edit.zero_grad()


def against_needed(name: str, fit: Callable[[], Any], rounds: int) -> dict[str, Any]:
    """A fit beside the passes that it cannot do without."""
    needed = Needed()
    edit = needed.of(fit)
    values = edit.state_dict()
    tokens = needed.run(edit)

    def apart(again, _: int) -> float:
        return max(float((a - values[n]).abs().max()) for n, a in again.state_dict().items())

    trained = type(edit).build(edit.spec(), edit.origin)
    trained.load_state_dict(values)
    for parameter in trained.parameters():
        parameter.requires_grad_(True)
    facts = compare(
        f"fitting.{name}",
        1 / 1.3,
        fit,
        lambda: needed.run(trained),
        apart,
        rounds=rounds,
        close=1e-6,
    )
    return facts | {"tokens": tokens}


def main() -> None:
    """Print the rounds, then the last line."""
    chosen = options(__doc__, rounds=2)
    warnings.filterwarnings("ignore", message=".*changes nothing")  # after so few steps
    model = random_llama(layers=8, width=128) if chosen.quick else tracelab.load()
    records = tracelab.datasets.stereoset("gender", split="test", limit=64)
    few = tracelab.datasets.stereoset("gender", split="test", limit=12)
    short = {"eval_every": 2, "n_dev": 4}
    fits = {
        "biasedit_two": lambda: BiasEdit.fit(model, few, steps=2, **short),
        "klaad_two": lambda: KLAAD.fit(model, few, batch_size=4, **short),
    }
    if not chosen.quick:
        fits |= {
            "biasedit": lambda: BiasEdit.fit(model, records, eval_every=10, n_dev=16),
            "klaad": lambda: KLAAD.fit(model, records, eval_every=4, n_dev=16),
        }
    say(
        *(
            against_needed(name, fit, 1 if chosen.quick else chosen.rounds)
            for name, fit in fits.items()
        )
    )


if __name__ == "__main__":
    main()
