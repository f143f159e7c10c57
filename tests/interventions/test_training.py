"""The training loop: the best state, patience, values that are not finite, and chunks."""

from __future__ import annotations

import itertools
import math
import warnings
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from tracelab.errors import TracelabError
from tracelab.interventions.training.loop import (
    TRAINING,
    Chunks,
    Curves,
    largest_parameter,
    require_converged,
    train,
)
from tracelab.storage.ownership import claim

NAN = float("nan")


class Walker(nn.Module):
    """A number that each step of :func:`walk` moves up by one."""

    def __init__(self, start: float = 0.0) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor(start))
        self.register_buffer("seen", torch.zeros(()))


def walk(
    module: Walker, scores=lambda x: -x, *, losses=lambda x: x, gradient=-0.5, **options
) -> Curves:
    """Steps of +1 by SGD, never clipped; ``scores`` and ``losses`` by where the walker is."""

    def step(batch: int) -> dict[str, float]:
        module.x.grad = torch.tensor(
            float(gradient(module.x.item()) if callable(gradient) else gradient)
        )
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


# --- the best state, and the end
# ------------------------------------------------------------------------------------


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
    assert [row["step"] for row in curves.rows if row["split"] == "dev"] == list(
        range(0, 5 + 2 * patience, 2)
    )


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
    train(
        module,
        optimizer,
        itertools.count(),
        step,
        score,
        steps=3,
        eval_every=3,
        patience=1,
        scheduler=halving,
    )
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


# --- what is not finite
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [NAN, float("inf")])
@pytest.mark.parametrize("where", ["losses", "gradient"])
def test_at_the_first_step_what_is_not_finite_is_an_error(where, fault):
    module = Walker(2.0)
    with pytest.raises(
        TracelabError, match=r"toy, step 1: not finite \(loss .*, gradient norm .*\): lower the"
    ):
        walk(module, **{where: lambda x: fault}, what="toy")
    assert module.x.item() == 2


@pytest.mark.parametrize("fault", [NAN, float("inf")])
@pytest.mark.parametrize("where", ["losses", "gradient"])
def test_later_what_is_not_finite_ends_training_at_the_best_state(where, fault):
    module = Walker()
    faulty = lambda x: fault if x == 5 else -0.5  # noqa: E731
    with pytest.warns(
        UserWarning, match=r"step 6: not finite \(.*\).*; the best state before it is kept"
    ):
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


# --- chunks
# ---------------------------------------------------------------------------------------------------------  # noqa: E501


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
    "cpu": RuntimeError(
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
    ),
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
def test_out_of_memory_it_begins_again_with_half_the_size_and_the_result_is_the_same(
    error, fits, size
):
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


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("no")]
)
def test_other_errors_pass_through_at_once(error):
    work = Sum(2, error)
    with pytest.raises(type(error), match=str(error)):
        Chunks(8)(work.add, NUMBERS, work.restart)
    assert len(work.chunks) == 1


# --- training that diverged
# -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "largest"),
    [
        (4.0, 10.8, 1.0),
        (0.1, 1.2, 1.0),
        (4.0, 3.0, 3e9),
        (4.0, float("nan"), 1.0),
        (4.0, 3.0, float("nan")),
    ],
)
def test_a_loss_far_above_its_start_or_a_huge_parameter_is_divergence(before, after, largest):
    with pytest.raises(
        TracelabError, match=r"x: the training diverged \(loss .*\): lower the learning rate"
    ):
        require_converged("x", before, after, largest)


@pytest.mark.parametrize(
    ("before", "after", "largest"), [(4.0, 3.0, 20.0), (4.0, 5.5, 1.0), (0.1, 1.0, 1.0)]
)
def test_noise_is_no_divergence(before, after, largest):
    require_converged("x", before, after, largest)


def test_a_parameter_that_is_not_a_number_is_the_largest():
    module = torch.nn.Linear(2, 1)
    torch.nn.init.constant_(module.weight, -7.0)
    assert largest_parameter(module) == 7
    torch.nn.init.constant_(module.bias, float("nan"))
    assert math.isnan(largest_parameter(module))


def test_a_run_that_found_a_better_state_has_not_diverged(tmp_path):
    stored = claim(tmp_path / TRAINING)
    stored.touch()
    for scores, diverged in (([5.0, 4.0, 9.0], False), ([5.0, 6.0, 9.0], True), ([5.0], False)):
        curves = Curves(
            [{"step": i, "split": "dev", "score": score} for i, score in enumerate(scores)]
        )
        with pytest.raises(TracelabError) if diverged else nullcontext():
            curves.require_converged("x", tmp_path)
        assert stored.exists() != diverged
        stored.touch()
