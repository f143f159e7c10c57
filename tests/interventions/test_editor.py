"""BiasEdit's editor: its solve against numpy, its gradients against finite differences and the
hand-written ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tracelab.errors import TracelabError
from tracelab.interventions.biasedit.editor import FORMS, Editor, Normaliser, ridge

D_K, D_V = 5, 3
EXACT = {"atol": 1e-10, "rtol": 1e-10}


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def problem(n: int, d_k: int = D_K, dtype: torch.dtype = torch.float64):
    """Keys, values and a log-ridge."""
    return (
        random(n, d_k, dtype=dtype),
        random(n, D_V, seed=1, dtype=dtype),
        torch.tensor(-0.7, dtype=dtype),
    )


def moved(editor: Editor, scale: float = 0.3) -> Editor:
    """The editor in double, after a training that moved all of its parameters."""
    generator = torch.Generator().manual_seed(5)
    editor.double()
    with torch.no_grad():
        for parameter in editor.parameters():
            parameter += scale * torch.randn(
                parameter.shape, generator=generator, dtype=torch.float64
            )
    return editor


def trained(n_maps: int = 2, **options) -> Editor:
    """A tiny editor whose normaliser has seen rows and whose parameters are nowhere special."""
    editor = Editor(D_K, D_V, n_maps, **{"rank": 4, "lr": 0.5, **options})
    editor.normaliser.update(3 * random(20, D_K + D_V, seed=3, dtype=torch.float32) + 1)
    return moved(editor)


# --- the ridge solve
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 4, 5, 12])
@pytest.mark.parametrize("form", FORMS)
def test_the_ridge_solution_is_numpys(n, form):
    keys, values, log_ridge = problem(n)
    k, d = keys.numpy(), values.numpy()
    expected = np.linalg.solve(k.T @ k + np.exp(-0.7) * np.eye(D_K), k.T @ d)
    np.testing.assert_allclose(
        ridge(keys, values, log_ridge, form).numpy(), expected, rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("n", [1, 4, 5, 12])
def test_both_forms_of_the_ridge_are_equal(n):
    primal, dual = (ridge(*problem(n), form) for form in ("primal", "dual"))
    torch.testing.assert_close(primal, dual, **EXACT)
    assert primal.abs().max() > 0.01


@pytest.mark.parametrize(("n", "form"), [(3, "dual"), (5, "dual"), (6, "primal")])
def test_the_smaller_system_is_solved(monkeypatch, n, form):
    sizes = []
    cholesky = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda a: sizes.append(len(a)) or cholesky(a))
    automatic, named = ridge(*problem(n)), ridge(*problem(n), form)
    assert sizes == [min(n, D_K)] * 2
    assert torch.equal(automatic, named)


def test_no_other_shift_has_a_lower_ridge_objective():
    keys, values, log_ridge = problem(8)

    def objective(shift: torch.Tensor) -> float:
        return float(
            (keys @ shift - values).square().sum() + log_ridge.exp() * shift.square().sum()
        )

    best = ridge(keys, values, log_ridge)
    for seed in range(20):
        assert objective(best + 1e-3 * random(D_K, D_V, seed=seed)) > objective(best)


def test_a_huge_ridge_shifts_nothing_and_a_tiny_one_reaches_every_value():
    keys, values, _ = problem(3)  # fewer keys than dimensions: all values can be had
    tiny, huge = (
        ridge(keys, values, torch.tensor(value, dtype=torch.float64)) for value in (-30.0, 30.0)
    )
    torch.testing.assert_close(keys @ tiny, values, atol=1e-6, rtol=1e-6)
    assert huge.abs().max() < 1e-9


@pytest.mark.parametrize("form", ["primal", "dual"])
@pytest.mark.parametrize("n", [4, 12])
@pytest.mark.parametrize("log_ridge", [-0.7, 0.0, 9.0])
@pytest.mark.parametrize("size", [1e-2, 1.0, 40.0, 120.0, 1e3, 1e5])
def test_keys_of_every_size_are_solved_in_fp32_as_in_fp64(form, n, log_ridge, size):
    # Large ones (first tokens of texts) would leave nothing of a small ridge in fp32.
    keys, values, _ = problem(n, dtype=torch.float32)
    keys[0] *= size
    k, d = keys.double().numpy(), values.double().numpy()
    expected = np.linalg.solve(k.T @ k + np.exp(log_ridge) * np.eye(D_K), k.T @ d)
    found = ridge(keys, values, torch.tensor(log_ridge), form)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(
        found.numpy(), expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max()
    )


@pytest.mark.parametrize("form", ["primal", "dual"])
@pytest.mark.parametrize("n", [3, 9])
def test_gradients_through_the_ridge_equal_finite_differences(n, form):
    keys, values, log_ridge = problem(n)
    changing = values.requires_grad_(), log_ridge.requires_grad_()
    torch.autograd.gradcheck(lambda d, log: ridge(keys, d, log, form), changing)


@pytest.mark.parametrize("form", ["primal", "dual"])
@pytest.mark.parametrize("n", [3, 9])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["fp64", "fp32"]
)
def test_gradients_through_the_ridge_are_the_hand_written_ones(form, n, dtype, tolerance):
    # With M = dL/dS and R = (K^T K + e^l I)^-1 M: dL/dD = K R and dL/dl = -e^l <R, S> (MALMEN).
    keys, values, log_ridge = problem(n, dtype=dtype)
    values.requires_grad_()
    log_ridge.requires_grad_()
    shift, m = ridge(keys, values, log_ridge, form), random(D_K, D_V, seed=7, dtype=dtype)
    (shift * m).sum().backward()
    with torch.no_grad():
        r = torch.linalg.inv(keys.T @ keys + log_ridge.exp() * torch.eye(D_K, dtype=dtype)) @ m
        torch.testing.assert_close(values.grad, keys @ r, atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(
            log_ridge.grad,
            -log_ridge.exp() * (r * shift).sum(),
            atol=tolerance,
            rtol=10 * tolerance,
        )


def test_keys_are_constants():
    keys, values, log_ridge = problem(4)
    keys.requires_grad_()
    values.requires_grad_()
    ridge(keys, values, log_ridge).sum().backward()
    assert keys.grad is None
    assert values.grad.any()


@pytest.mark.parametrize("form", ["primal", "dual"])
@pytest.mark.parametrize("fault", [float("nan"), float("inf")])
def test_keys_that_are_not_finite_are_refused_with_what_to_do(form, fault):
    keys, values, log_ridge = problem(4)
    keys[2, 1] = fault
    with pytest.raises(
        TracelabError,
        match=r"the ridge solve of 4 keys failed with ridge 0\.497: lower meta_lr, or",
    ):
        ridge(keys, values, log_ridge, form)


def test_a_ridge_too_small_for_the_keys_is_refused():
    keys, values, _ = problem(4)
    keys[1] = keys[0]
    with pytest.raises(
        TracelabError,
        match="the ridge solve of 4 keys failed with ridge 0: .* fewer triples at once",
    ):
        ridge(keys, values, torch.tensor(-2000.0, dtype=torch.float64))


# --- the normaliser
# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [[40], [1, 39], [13, 1, 1, 25], [1] * 40], ids=str)
def test_the_normaliser_knows_mean_and_deviation_of_all_rows_however_they_came(parts):
    rows = random(40, 4, dtype=torch.float32) * torch.tensor([1.0, 10.0, 0.1, 3.0]) + torch.tensor(
        [0.0, 50.0, 1, -7]
    )
    normaliser = Normaliser(4)
    for part in rows.split(parts):
        normaliser.update(part)
    all_rows, new = rows.numpy().astype(float), random(6, 4, seed=2, dtype=torch.float32)
    expected = (new.numpy() - all_rows.mean(axis=0)) / all_rows.std(axis=0, ddof=1)
    np.testing.assert_allclose(normaliser(new).numpy(), expected, rtol=1e-4, atol=1e-4)
    assert normaliser.count.item() == 40


def test_a_coordinate_that_never_varies_stays_finite():
    normaliser = Normaliser(2)
    normaliser.update(torch.tensor([[1.0, 2.0], [1.0, 4.0]]))
    assert normaliser(torch.tensor([[1.0, 3.0]])).tolist() == [[0.0, 0.0]]


def test_what_the_normaliser_has_seen_is_kept_with_the_editor():
    seen = trained()
    fresh = Editor(D_K, D_V, 2, rank=4, lr=0.5).double()
    fresh.load_state_dict(seen.state_dict())
    assert fresh.normaliser.count == 20
    keys, grads = random(6, D_K), random(6, D_V, seed=1)
    assert torch.equal(fresh.shift(keys, grads, 1), seen.shift(keys, grads, 1))


# --- the editor
# -----------------------------------------------------------------------------------------------------  # noqa: E501


def slow_values(editor: Editor, keys: np.ndarray, grads: np.ndarray, index: int) -> np.ndarray:
    """D, token by token: normalise, two residual blocks, -eta <u, u~> g~."""
    p = {name: value.detach().numpy() for name, value in editor.state_dict().items()}
    std = np.sqrt(p["normaliser.m2"] / (p["normaliser.count"] - 1))
    rows = []
    for u, g in zip(keys, grads, strict=True):
        x = (np.concatenate([u, g]) - p["normaliser.mean"]) / (std + 1e-7)
        for block in ("blocks.0.", "blocks.1."):
            hidden = np.maximum(x @ p[block + "A"] @ p[block + "B"] + p[block + "bias"], 0)
            x = x + p[block + "scale"][index] * hidden + p[block + "shift"][index]
        eta = editor.lr * p["step"][index]
        rows.append(-eta * (u @ x[: len(u)]) * x[len(u) :])
    return np.array(rows)


@pytest.mark.parametrize("index", [0, 1])
def test_the_values_are_the_formula_token_by_token(index):
    editor, keys, grads = trained(), random(6, D_K), random(6, D_V, seed=1)
    expected = slow_values(editor, keys.numpy(), grads.numpy(), index)
    found = editor(keys, grads, index).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert np.abs(found).max() > 0.1


def test_each_map_has_a_scale_a_shift_a_step_and_a_ridge_of_its_own():
    keys, grads = random(6, D_K), random(6, D_V, seed=1)
    for name in ("blocks.0.scale", "blocks.1.shift", "step", "log_ridge"):
        editor = trained()
        before = [editor.shift(keys, grads, index) for index in (0, 1)]
        with torch.no_grad():
            editor.get_parameter(name)[1] += 1
        after = [editor.shift(keys, grads, index) for index in (0, 1)]
        assert torch.equal(after[0], before[0])
        assert not torch.allclose(after[1], before[1], atol=1e-3)


@pytest.mark.parametrize("n", [4, 9])
@pytest.mark.parametrize("first_ridge", [1.0, 50.0])
def test_a_new_editor_fits_the_negative_normalised_gradients(n, first_ridge):
    # B = 0: the editor is the normaliser, and S the ridge fit of -eta <u, u^> g^.
    editor = Editor(D_K, D_V, 1, rank=4, lr=0.25, ridge=first_ridge).double()
    rows = 2 * random(30, D_K + D_V, seed=3) + 1
    editor.normaliser.update(rows)
    keys, grads = 2 * random(n, D_K) + 1, 2 * random(n, D_V, seed=1) + 1
    mean, std = rows.numpy().mean(axis=0), rows.numpy().std(axis=0, ddof=1)
    k, g = keys.numpy(), grads.numpy()
    k_hat, g_hat = (k - mean[:D_K]) / (std[:D_K] + 1e-7), (g - mean[D_K:]) / (std[D_K:] + 1e-7)
    values = np.array([-0.25 * (k[i] @ k_hat[i]) * g_hat[i] for i in range(n)])
    expected = np.linalg.solve(k.T @ k + first_ridge * np.eye(D_K), k.T @ values)
    found = editor.shift(keys, grads, 0).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)  # log(ridge) is kept in fp32


def test_a_step_of_zero_shifts_nothing():
    keys, grads = random(6, D_K), random(6, D_V, seed=1)
    still = trained(lr=0.0)
    assert not still.shift(keys, grads, 0).any()
    editor = trained()
    assert editor.shift(keys, grads, 0).any()
    with torch.no_grad():
        editor.step.zero_()
    assert not editor.shift(keys, grads, 0).any()


@pytest.mark.parametrize("n", [4, 9])
def test_gradients_of_the_whole_editor_equal_finite_differences(n):
    # A loss of two maps' shifts, through solve, step, blocks and shared weights, in every
    # parameter.
    editor = trained()
    keys, grads = random(n, D_K), random(n, D_V, seed=1)
    weights = [random(D_K, D_V, seed=seed) for seed in (7, 8)]

    def loss() -> torch.Tensor:
        return sum(
            ((editor.shift(keys, grads, i) * weights[i]).sum() for i in (0, 1)), torch.zeros(())
        )

    loss().backward()
    for name, parameter in editor.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
        slow = torch.zeros_like(parameter)
        flat = parameter.data.view(-1)
        with torch.no_grad():
            for i in range(len(flat)):
                kept, sides = flat[i].item(), []
                for step in (1e-6, -1e-6):
                    flat[i] = kept + step
                    sides.append(loss().item())
                flat[i] = kept
                slow.view(-1)[i] = (sides[0] - sides[1]) / 2e-6
        torch.testing.assert_close(
            parameter.grad, slow, atol=1e-5, rtol=1e-5, msg=lambda text, name=name: name + text
        )


def test_the_seed_makes_the_editor():
    first, again, other = (
        Editor(D_K, D_V, 1, rank=4, seed=seed).state_dict() for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["blocks.0.A"], other["blocks.0.A"])
    assert not torch.equal(first["blocks.0.A"], first["blocks.1.A"])


def test_making_an_editor_leaves_the_global_random_numbers_alone():
    state = torch.get_rng_state()
    Editor(D_K, D_V, 1, rank=4)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_released_initialisation_is_the_scaled_one_times_the_root_of_the_width():
    scaled, normal = (Editor(60, 40, 1, rank=200, init=init) for init in ("scaled", "normal"))
    for name, parameter in scaled.named_parameters():
        factor = 10.0 if name.endswith(".A") else 1.0
        torch.testing.assert_close(normal.get_parameter(name), factor * parameter)
    assert normal.blocks[0].A.std().item() == pytest.approx(1, abs=0.02)  # 20,000 draws of N(0, 1)
