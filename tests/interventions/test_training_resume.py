"""A training loop that is interrupted resumes to the same end; a damaged checkpoint is ignored."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tracelab.errors import TracelabError
from tracelab.interventions.training.loop import TRAINING, Curves, train

# --- interruption
# ---------------------------------------------------------------------------------------------------  # noqa: E501


class Run:
    """A noisy fit with Adam, a scheduler and a running buffer; a step may be told to fail."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        self.optimizer = torch.optim.Adam(self.module.parameters(), lr=0.05)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 0.9**step)
        self.steps = 0

    def batches(self):
        generator = torch.Generator().manual_seed(1)
        while True:
            x = torch.randn(8, 3, generator=generator)
            yield x, x.sum(dim=1, keepdim=True).sin()

    def __call__(
        self, *, checkpoint=None, key=None, interrupt_at=None, steps=20, patience=20, scheduler=True
    ) -> Curves:
        def step(batch) -> dict[str, float]:
            if self.steps == interrupt_at:
                raise KeyboardInterrupt
            self.steps += 1
            x, y = batch
            loss = (self.module.train()(x) - y).square().mean()
            loss.backward()
            return {"loss": loss.item()}

        def evaluate() -> dict[str, float]:
            x = torch.linspace(-1, 1, 12).reshape(4, 3)
            with torch.no_grad():
                return {
                    "score": (self.module.eval()(x) - x.sum(dim=1, keepdim=True).sin())
                    .square()
                    .mean()
                    .item()
                }

        return train(
            self.module,
            self.optimizer,
            self.batches(),
            step,
            evaluate,
            steps=steps,
            eval_every=3,
            patience=patience,
            scheduler=self.scheduler if scheduler else None,
            checkpoint=checkpoint,
            key=key or {"data": "abc", "layers": (1, 2)},
        )


def uninterrupted(**options) -> tuple[Run, Curves]:
    run = Run()
    return run, run(**options)


def same(first: Run, second: Run) -> bool:
    a, b = first.module.state_dict(), second.module.state_dict()
    return all(torch.equal(a[name], b[name]) for name in a)


def interrupted(checkpoint, at: int, **options) -> None:
    with pytest.raises(KeyboardInterrupt):
        Run()(checkpoint=checkpoint, interrupt_at=at, **options)


@pytest.mark.parametrize("at", [0, 1, 3, 10, 19])
@pytest.mark.parametrize("scheduler", [True, False], ids=["scheduler", "no scheduler"])
def test_a_resumed_run_ends_exactly_as_one_without_interruption(tmp_path, at, scheduler):
    whole, curves = uninterrupted(scheduler=scheduler)
    interrupted(tmp_path, at, scheduler=scheduler)
    resumed = Run()
    torch.manual_seed(99)
    again = resumed(checkpoint=tmp_path, scheduler=scheduler)
    assert same(resumed, whole)
    assert again.rows == curves.rows
    assert resumed.steps == 20 - at // 3 * 3  # from the last validation on, not from the beginning
    assert resumed.scheduler.last_epoch == (20 if scheduler else 0)
    learning_rates = [run.optimizer.param_groups[0]["lr"] for run in (resumed, whole)]
    assert learning_rates[0] == learning_rates[1]


def test_a_run_may_be_interrupted_twice(tmp_path):
    whole, curves = uninterrupted()
    interrupted(tmp_path, 7)
    interrupted(tmp_path, 5)
    resumed = Run()
    assert resumed(checkpoint=tmp_path).rows == curves.rows
    assert same(resumed, whole)
    assert resumed.steps == 20 - 6 - 3


def test_a_checkpoint_changes_nothing(tmp_path):
    whole, curves = uninterrupted()
    stored = Run()
    assert stored(checkpoint=tmp_path / "new folder").rows == curves.rows
    assert same(stored, whole)


@pytest.mark.parametrize("patience", [2, 20], ids=["out of patience", "all steps"])
def test_a_finished_run_is_resumed_without_another_step(tmp_path, patience):
    whole, curves = uninterrupted(checkpoint=tmp_path, patience=patience)
    again = Run()
    assert again(checkpoint=tmp_path, patience=patience).rows == curves.rows
    assert same(again, whole)
    assert again.steps == 0


def test_the_checkpoint_of_a_run_with_another_key_is_not_resumed(tmp_path):
    whole, curves = uninterrupted()
    interrupted(tmp_path, 10, key={"data": "other"})
    fresh = Run()
    assert fresh(checkpoint=tmp_path).rows == curves.rows
    assert same(fresh, whole)
    assert fresh.steps == 20


DAMAGES = {
    "empty": lambda content: b"",
    "cut short": lambda content: content[: len(content) // 2],
    "not a checkpoint": lambda content: b"what a text editor left here\n",
    "an empty pickle": lambda content: b"\x80\x02.",
    "altered inside": lambda content: content[:200] + bytes(200) + content[400:],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_ignored(tmp_path, damage):
    whole, curves = uninterrupted()
    interrupted(tmp_path, 10)
    stored = tmp_path / TRAINING
    stored.write_bytes(DAMAGES[damage](stored.read_bytes()))
    fresh = Run()
    assert fresh(checkpoint=tmp_path).rows == curves.rows
    assert same(fresh, whole)
    assert fresh.steps == 20


@pytest.mark.parametrize(
    "content", [[1, 2], {"key": {"data": "abc"}}, torch.zeros(2)], ids=["list", "other", "tensor"]
)
def test_a_checkpoint_that_torch_can_read_but_that_is_none_is_ignored(tmp_path, content):
    interrupted(tmp_path, 10)
    torch.save(content, tmp_path / TRAINING)
    fresh = Run()
    fresh(checkpoint=tmp_path)
    assert fresh.steps == 20


class Harm:
    """Unpickling it would create a file."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_checkpoint_that_holds_code_is_ignored_and_not_run(tmp_path):
    interrupted(tmp_path, 10)
    torch.save({"best": Harm(tmp_path / "harm")}, tmp_path / TRAINING)
    fresh = Run()
    fresh(checkpoint=tmp_path)
    assert fresh.steps == 20
    assert not (tmp_path / "harm").exists()


def test_a_file_of_somebodys_own_is_refused_before_any_step_and_stays(tmp_path):
    (tmp_path / TRAINING).write_bytes(b"notes of my own")
    fresh = Run()
    with pytest.raises(TracelabError, match=f"{TRAINING}' was not written by tracelab"):
        fresh(checkpoint=tmp_path)
    assert fresh.steps == 0
    assert (tmp_path / TRAINING).read_bytes() == b"notes of my own"
