"""The training loop on a toy whose every step is known by hand: it walks up a line, one unit a step."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from torch import nn

from tracelab.errors import TracelabError
from tracelab.interventions.training import Chunks, Curves, train

NAN = float("nan")


class Walker(nn.Module):
    """A number that each step of :func:`walk` moves up by one."""

    def __init__(self, start: float = 0.0) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor(start))
        self.register_buffer("seen", torch.zeros(()))


def walk(module: Walker, scores=lambda x: -x, *, losses=lambda x: x, gradient=-0.5, **options) -> Curves:
    """Steps of +1 by SGD, never clipped; ``scores`` and ``losses`` by where the walker is."""

    def step(batch: int) -> dict[str, float]:
        module.x.grad = torch.tensor(float(gradient(module.x.item()) if callable(gradient) else gradient))
        module.seen += batch
        return {"loss": losses(module.x.item()), "other": 2.0}

    settings = {"steps": 20, "eval_every": 1, "patience": 3}
    return train(
        module,
        torch.optim.SGD(module.parameters(), lr=2.0),
        itertools.count(),
        step,
        lambda: {"score": float(scores(module.x.item()))},
        **{**settings, **options},
    )


def taken(curves: Curves) -> int:
    """Number of steps."""
    return sum(row["split"] == "train" for row in curves.rows)


# --- the best state, and the end ------------------------------------------------------------------------------------


@pytest.mark.parametrize("best", [0, 1, 4])
def test_what_remains_is_the_state_with_the_best_development_score(best):
    module = Walker()
    curves = walk(module, lambda x: (x - best) ** 2)
    assert module.x.item() == best
    assert module.seen.item() == sum(range(best))  # buffers too
    assert taken(curves) == best + 3  # three more looks, none of them better


def test_a_score_that_only_ever_rises_leaves_the_module_as_it_was():
    module = Walker(5.0)
    walk(module, lambda x: x)
    assert module.x.item() == 5


@pytest.mark.parametrize("patience", [1, 2, 5])
def test_patience_counts_looks_without_improvement_not_steps(patience):
    curves = walk(Walker(), lambda x: abs(x - 4), eval_every=2, patience=patience)
    assert taken(curves) == 4 + 2 * patience
    assert [row["step"] for row in curves.rows if row["split"] == "dev"] == list(range(0, 5 + 2 * patience, 2))


def test_an_improvement_gives_new_patience():
    scores = iter([5, 6, 6, 4, 6, 6, 6])  # the fourth look is better, then three are not
    module = Walker()
    curves = walk(module, lambda x: next(scores))
    assert (module.x.item(), taken(curves)) == (3, 6)


def test_an_equal_score_is_no_improvement():
    module = Walker()
    curves = walk(module, lambda x: 1.0, patience=2)
    assert (module.x.item(), taken(curves)) == (0, 2)


def test_a_score_that_is_not_a_number_is_no_improvement():
    module = Walker()
    walk(module, lambda x: NAN if x > 2 else -x)
    assert module.x.item() == 2


def test_it_ends_after_so_many_steps_with_a_last_look():
    module = Walker()
    curves = walk(module, steps=7, eval_every=5)
    assert module.x.item() == 7
    assert [row["step"] for row in curves.rows if row["split"] == "dev"] == [0, 5, 7]


def test_no_steps_leave_the_module_as_it_was_and_look_once():
    module = Walker(2.0)
    curves = walk(module, steps=0)
    assert module.x.item() == 2
    assert curves.rows == [{"step": 0, "split": "dev", "score": -2.0}]


def test_gradients_are_clipped_to_their_common_norm():
    module = Walker()
    walk(module, gradient=-100.0, steps=1, clip=0.25)
    assert module.x.item() == pytest.approx(2 * 0.25)


def test_gradients_do_not_pile_up_from_step_to_step():
    module = Walker()

    def step(batch: int) -> dict[str, float]:
        assert not (module.x.grad is not None and module.x.grad.any())
        (-0.25 * module.x).backward()
        return {"loss": 0.0}

    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    score = lambda: {"score": -module.x.item()}  # noqa: E731
    train(module, optimizer, itertools.count(), step, score, steps=4, eval_every=4, patience=1)
    assert module.x.item() == 1


def test_the_scheduler_steps_with_the_optimiser():
    module = Walker()
    optimizer = torch.optim.SGD(module.parameters(), lr=2.0)
    halving = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)

    def step(batch: int) -> dict[str, float]:
        module.x.grad = torch.tensor(-0.5)
        return {"loss": 0.0}

    score = lambda: {"score": -module.x.item()}  # noqa: E731
    train(module, optimizer, itertools.count(), step, score, steps=3, eval_every=3, patience=1, scheduler=halving)
    assert module.x.item() == 1 + 1 / 2 + 1 / 4


def test_the_curves_hold_every_step_and_every_look_in_order():
    curves = walk(Walker(), steps=2, eval_every=2)
    assert curves.rows == [
        {"step": 0, "split": "dev", "score": 0.0},
        {"step": 1, "split": "train", "loss": 0.0, "other": 2.0},
        {"step": 2, "split": "train", "loss": 1.0, "other": 2.0},
        {"step": 2, "split": "dev", "score": -2.0},
    ]
    tidy = curves.frame
    assert list(tidy.columns) == ["step", "split", "name", "value"]
    rows = {tuple(row) for row in tidy.to_numpy().tolist()}
    assert rows == {
        (0, "dev", "score", 0.0),
        (2, "dev", "score", -2.0),
        (1, "train", "loss", 0.0),
        (2, "train", "loss", 1.0),
        (1, "train", "other", 2.0),
        (2, "train", "other", 2.0),
    }


# --- what is not finite ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [NAN, float("inf")])
@pytest.mark.parametrize("where", ["losses", "gradient"])
def test_at_the_first_step_what_is_not_finite_is_an_error(where, fault):
    module = Walker(2.0)
    with pytest.raises(TracelabError, match=r"toy, step 1: not finite \(loss .*, gradient norm .*\): lower the"):
        walk(module, **{where: lambda x: fault}, what="toy")
    assert module.x.item() == 2


@pytest.mark.parametrize("fault", [NAN, float("inf")])
@pytest.mark.parametrize("where", ["losses", "gradient"])
def test_later_what_is_not_finite_ends_training_at_the_best_state(where, fault):
    module = Walker()
    faulty = lambda x: fault if x == 5 else -0.5  # noqa: E731
    with pytest.warns(UserWarning, match=r"step 6: not finite \(.*\).*; the best state before it is kept"):
        curves = walk(module, lambda x: abs(x - 4), **{where: faulty})
    assert module.x.item() == 4
    assert taken(curves) == 5


@pytest.mark.parametrize(("at", "outcome"), [(0, TracelabError), (5, UserWarning)])
def test_a_step_that_cannot_be_computed_counts_as_not_finite(at, outcome):
    def losses(x: float) -> float:
        if x == at:
            raise TracelabError("the solve failed: do this")
        return 0.0

    module, catch = Walker(), pytest.raises if outcome is TracelabError else pytest.warns
    with catch(outcome, match=f"toy, step {at + 1}: the solve failed: do this"):
        walk(module, lambda x: abs(x - 4), losses=losses, what="toy")
    assert module.x.item() == min(at, 4)


# --- interruption ---------------------------------------------------------------------------------------------------


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

    def __call__(self, *, partial=None, key=None, interrupt_at=None, steps=20, patience=20, scheduler=True) -> Curves:
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
                return {"score": (self.module.eval()(x) - x.sum(dim=1, keepdim=True).sin()).square().mean().item()}

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
            partial=partial,
            key=key or {"data": "abc", "layers": (1, 2)},
        )


def uninterrupted(**options) -> tuple[Run, Curves]:
    run = Run()
    return run, run(**options)


def same(first: Run, second: Run) -> bool:
    a, b = first.module.state_dict(), second.module.state_dict()
    return all(torch.equal(a[name], b[name]) for name in a)


def interrupted(partial, at: int, **options) -> None:
    with pytest.raises(KeyboardInterrupt):
        Run()(partial=partial, interrupt_at=at, **options)


@pytest.mark.parametrize("at", [0, 1, 3, 10, 19])
@pytest.mark.parametrize("scheduler", [True, False], ids=["scheduler", "no scheduler"])
def test_a_resumed_run_ends_exactly_as_one_without_interruption(tmp_path, at, scheduler):
    whole, curves = uninterrupted(scheduler=scheduler)
    interrupted(tmp_path / "partial.pt", at, scheduler=scheduler)
    resumed = Run()
    torch.manual_seed(99)
    again = resumed(partial=tmp_path / "partial.pt", scheduler=scheduler)
    assert same(resumed, whole)
    assert again.rows == curves.rows
    assert resumed.steps == 20 - at // 3 * 3  # from the last look on, not from the beginning
    assert resumed.scheduler.last_epoch == (20 if scheduler else 0)
    learning_rates = [run.optimizer.param_groups[0]["lr"] for run in (resumed, whole)]
    assert learning_rates[0] == learning_rates[1]


def test_a_run_may_be_interrupted_twice(tmp_path):
    whole, curves = uninterrupted()
    interrupted(tmp_path / "partial.pt", 7)
    interrupted(tmp_path / "partial.pt", 5)
    resumed = Run()
    assert resumed(partial=tmp_path / "partial.pt").rows == curves.rows
    assert same(resumed, whole)
    assert resumed.steps == 20 - 6 - 3


def test_keeping_a_partial_file_changes_nothing(tmp_path):
    whole, curves = uninterrupted()
    kept = Run()
    assert kept(partial=tmp_path / "new folder" / "no suffix").rows == curves.rows
    assert same(kept, whole)


@pytest.mark.parametrize("patience", [2, 20], ids=["out of patience", "all steps"])
def test_a_finished_run_is_taken_up_without_another_step(tmp_path, patience):
    whole, curves = uninterrupted(partial=tmp_path / "partial.pt", patience=patience)
    again = Run()
    assert again(partial=tmp_path / "partial.pt", patience=patience).rows == curves.rows
    assert same(again, whole)
    assert again.steps == 0


def test_the_partial_file_of_a_run_with_another_key_is_not_taken_up(tmp_path):
    whole, curves = uninterrupted()
    interrupted(tmp_path / "partial.pt", 10, key={"data": "other"})
    fresh = Run()
    assert fresh(partial=tmp_path / "partial.pt").rows == curves.rows
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
def test_a_damaged_partial_file_is_ignored(tmp_path, damage):
    whole, curves = uninterrupted()
    partial = tmp_path / "partial.pt"
    interrupted(partial, 10)
    partial.write_bytes(DAMAGES[damage](partial.read_bytes()))
    fresh = Run()
    assert fresh(partial=partial).rows == curves.rows
    assert same(fresh, whole)
    assert fresh.steps == 20


@pytest.mark.parametrize("content", [[1, 2], {"key": {"data": "abc"}}, torch.zeros(2)], ids=["list", "other", "tensor"])
def test_a_file_that_torch_can_read_but_that_is_none_of_ours_is_ignored(tmp_path, content):
    torch.save(content, tmp_path / "partial.pt")
    fresh = Run()
    fresh(partial=tmp_path / "partial.pt")
    assert fresh.steps == 20


class Harm:
    """Unpickling it would create a file."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_partial_file_that_holds_code_is_ignored_and_not_run(tmp_path):
    torch.save({"key": Harm(tmp_path / "harm")}, tmp_path / "partial.pt")
    fresh = Run()
    fresh(partial=tmp_path / "partial.pt")
    assert fresh.steps == 20
    assert not (tmp_path / "harm").exists()


# --- chunks ---------------------------------------------------------------------------------------------------------


class Sum:
    """Adds up a group's numbers; chunks above ``fits`` are too large, which is noticed halfway."""

    def __init__(self, fits: int, error: Exception) -> None:
        self.fits, self.error = fits, error
        self.total, self.chunks = 0.0, []

    def add(self, chunk) -> None:
        self.chunks.append(list(chunk))
        for number in chunk:
            self.total += number
        if len(chunk) > self.fits:
            raise self.error

    def restart(self) -> None:
        self.total, self.chunks = 0.0, []


OUT_OF_MEMORY = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "cpu": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
}
NUMBERS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]


def test_with_enough_memory_a_group_is_worked_through_once_in_order():
    work = Sum(99, RuntimeError())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Chunks(4)(work.add, NUMBERS, work.restart)
    assert work.chunks == [[1, 2, 4, 8], [16, 32, 64, 128], [256, 512]]


@pytest.mark.filterwarnings("ignore:out of memory")  # of the sizes tried before the last
@pytest.mark.parametrize("error", OUT_OF_MEMORY)
@pytest.mark.parametrize(("fits", "size"), [(4, 4), (3, 2), (1, 1)])
def test_out_of_memory_it_begins_again_with_half_the_size_and_the_result_is_the_same(error, fits, size):
    work, chunks = Sum(fits, OUT_OF_MEMORY[error]), Chunks(8)
    with pytest.warns(UserWarning, match=f"out of memory: {size} texts at a time from here on"):
        chunks(work.add, NUMBERS, work.restart)
    assert work.total == sum(NUMBERS)
    assert [len(chunk) for chunk in work.chunks[:-1]] == [size] * (len(work.chunks) - 1)
    assert list(itertools.chain(*work.chunks)) == NUMBERS


def test_the_smaller_size_is_kept_for_the_groups_to_come():
    work, chunks = Sum(2, OUT_OF_MEMORY["cpu"]), Chunks(8)
    with pytest.warns(UserWarning, match="out of memory"):
        chunks(work.add, NUMBERS, work.restart)
    work.restart()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chunks(work.add, NUMBERS, work.restart)
    assert [len(chunk) for chunk in work.chunks] == [2] * 5


@pytest.mark.filterwarnings("ignore:out of memory")
def test_if_not_even_one_fits_the_error_is_shown():
    work = Sum(0, OUT_OF_MEMORY["cpu"])
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        Chunks(4)(work.add, NUMBERS, work.restart)
    assert [len(chunk) for chunk in work.chunks] == [1]


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("no")])
def test_other_errors_pass_through_at_once(error):
    work = Sum(2, error)
    with pytest.raises(type(error), match=str(error)):
        Chunks(8)(work.add, NUMBERS, work.restart)
    assert len(work.chunks) == 1
