"""The neutraliser against slow oracles: autograd for the gradient, a plain loop for each of the two
geometries."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm as normal
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from tracelab.interventions.fairmed import neutraliser
from tracelab.interventions.fairmed.neutraliser import (
    FairMedConfig,
    LayerProber,
    neutralise,
)

D, HIDDEN = 8, 16
SLACK = 1 + 1e-5  # of fp32, on a length


def random_prober(seed: int, groups: int = 3) -> LayerProber:
    """Rough enough that a KL of whole nats is common; the second layer is milder, so that neutral
    points exist."""
    draw = torch.Generator().manual_seed(seed)
    w1, b1, w2, b2 = (
        torch.randn(shape, generator=draw)
        for shape in ((D, HIDDEN), (1, HIDDEN), (HIDDEN, groups), (1, groups))
    )
    return LayerProber(w1, b1, 0.4 * w2, 0.4 * b2)


def random_activations(seed: int, seq: int = 4, pos: int = 5) -> Tensor:
    return torch.randn(seq, pos, D, generator=torch.Generator().manual_seed(seed))


def some(seed: int, seq: int = 4, pos: int = 5) -> Tensor:
    """A mask with both values in it."""
    mask = torch.rand(seq, pos, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask[0, 0], mask[0, 1] = True, False
    return mask


def slow_kl(prober: LayerProber, a: Tensor) -> Tensor:
    """KL(U ‖ p) by torch.nn.functional."""
    logits = torch.relu(a @ prober.w1 + prober.b1) @ prober.w2 + prober.b2
    log_p = log_softmax(logits, dim=-1)
    return kl_div(log_p, torch.full_like(log_p, 1 / log_p.shape[-1]), reduction="none").sum(dim=-1)


@pytest.fixture
def in_fp64():
    """At the edge of a ReLU one rounding decides a whole step: comparisons of loops need more
    digits."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


seeds = st.integers(0, 10**6)
quickly = settings(deadline=None, max_examples=12, derandomize=True)
radii = st.sampled_from([0.05, 0.5, 3.0, 30.0])


# --- the closed forms
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [2, 3, 7])
def test_the_kl_is_that_of_torch_and_zero_for_a_uniform_prober(groups):
    prober, a = random_prober(0, groups), random_activations(1)
    torch.testing.assert_close(prober.kl(a), slow_kl(prober, a), atol=1e-6, rtol=1e-5)
    assert prober.kl(a).min() > -1e-6
    assert prober.kl(a).max() > 0.3
    blind = LayerProber(
        prober.w1, prober.b1, torch.zeros_like(prober.w2), torch.zeros_like(prober.b2)
    )
    torch.testing.assert_close(blind.kl(a), torch.zeros(a.shape[:2]), atol=1e-6, rtol=0)


def gradients(seed: int, groups: int) -> tuple[Tensor, Tensor]:
    """(written out, autograd's)"""
    prober, a = random_prober(seed, groups), random_activations(seed + 50).requires_grad_()
    (expected,) = torch.autograd.grad(slow_kl(prober, a).sum(), a)
    kl, gradient = prober.kl_and_gradient(a.detach())
    gradient = gradient()
    torch.testing.assert_close(kl, slow_kl(prober, a.detach()), atol=1e-6, rtol=1e-5)
    assert expected.abs().max() > 0.1
    return gradient, expected


@pytest.mark.parametrize("groups", [2, 3, 7])
@pytest.mark.parametrize("seed", range(3))
def test_the_written_out_gradient_is_autograds_to_1e_6(groups, seed):
    torch.testing.assert_close(*gradients(seed, groups), atol=1e-6, rtol=1e-5)


@pytest.mark.usefixtures("in_fp64")
@pytest.mark.parametrize("groups", [2, 3, 7])
@pytest.mark.parametrize("seed", range(3))
def test_in_fp64_the_written_out_gradient_is_autograds_to_1e_12(groups, seed):
    torch.testing.assert_close(*gradients(seed, groups), atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("groups", [2, 3, 5, 11])
def test_neutral_is_no_share_further_from_even_than_the_tolerance_says_for_two(groups):
    prober, config = random_prober(0, groups), FairMedConfig()
    assert prober.slack == pytest.approx(allowed(prober), rel=0.02)
    draw = torch.Generator().manual_seed(groups)
    logits = torch.randn(200_000, groups, generator=draw) * torch.rand(
        200_000, 1, generator=draw
    ).mul(0.4)
    p = logits.softmax(dim=-1)
    kl = -(groups * p).log().mean(dim=-1)
    off = (p - 1 / groups).abs().amax(dim=-1)
    neutral = kl < config.tol * prober.slack
    assert neutral.sum() > 100
    bound = (config.tol / 2) ** 0.5
    assert off[neutral].max() < 1.2 * bound  # to second order: shares near 0 bend it
    assert off[neutral].max() > 0.7 * bound


# --- oracles: one activation, or one sequence, and a loop
# ---------------------------------------------------------


def descend_alone(
    a: Tensor, probers: list[LayerProber], epsilon: float, config: FairMedConfig
) -> tuple[Tensor, int]:
    """One activation ``[d]``: steps along the gradient in an L2 ball, from 0, by autograd."""
    delta, best, lowest, shrink = torch.zeros_like(a), torch.zeros_like(a), float("inf"), 1.0
    for taken in range(config.steps + 1):
        delta.requires_grad_()
        kls = [slow_kl(prober, a + delta).squeeze() for prober in probers]
        (slope,) = torch.autograd.grad(sum(kls), delta)
        delta = delta.detach()
        values = [kl.item() for kl in kls]
        neutral = all(
            value < config.tol * allowed(prober)
            for value, prober in zip(values, probers, strict=True)
        )
        shrink = 1.0 if sum(values) < lowest * 0.999 else shrink / 2
        if neutral or sum(values) < lowest:
            best, lowest, best_slope = delta, sum(values), slope
        if neutral or taken == config.steps:
            break
        if config.step == "fixed":
            delta = delta - epsilon * config.step_frac * slope / slope.norm()
        else:  # where a line from the best point, as steep as it is there, would meet 0
            length = shrink * min(lowest / best_slope.norm(), 2 * epsilon)
            delta = best - length * best_slope / best_slope.norm()
        if delta.norm() > epsilon:
            delta = delta * epsilon / delta.norm()
    return best, taken


def allowed(prober: LayerProber) -> float:
    """Lowest KL, relative to that of two groups, of a distribution with one share so far from
    even: by its definition, at a small distance."""
    n, off = prober.w2.shape[1], 1e-3

    def kl(n: int) -> float:
        others = [(1 - 1 / n - off) / (n - 1)] * (n - 1)
        return -sum(math.log(n * p) / n for p in [1 / n + off, *others])

    return kl(n) / kl(2)


def released_code_alone(
    a: Tensor, prober: LayerProber, epsilon: float, config: FairMedConfig, noise: Tensor
) -> tuple[Tensor, int]:
    """One sequence ``[1, T, d]`` as FairMed's code: joint KL, sign steps, a projection over axis 1
    (positions)."""
    length = epsilon * torch.tensor(normal.cdf(noise[..., :1].numpy()), dtype=a.dtype)
    delta = noise / noise.norm(dim=-1, keepdim=True) * length
    best, lowest, taken = torch.zeros_like(a), float("inf"), 0
    for number in range(config.steps):
        delta.requires_grad_()
        log_p = log_softmax(
            torch.relu((a + delta) @ prober.w1 + prober.b1) @ prober.w2 + prober.b2, dim=-1
        )
        kl = kl_div(log_p, torch.full_like(log_p, 1 / log_p.shape[-1]), reduction="batchmean")
        (slope,) = torch.autograd.grad(kl, delta)
        delta = delta.detach()
        if kl.item() < lowest:
            best, lowest = delta, kl.item()
        if lowest < config.tol or number == config.steps - 1:
            break
        delta = delta - epsilon * config.step_frac * slope.sign()
        for feature in range(delta.shape[2]):
            over_positions = delta[:, :, feature].norm()
            if over_positions > epsilon:
                delta[:, :, feature] *= epsilon / over_positions
        taken += 1
    return best, taken


@pytest.mark.usefixtures("in_fp64")
@pytest.mark.parametrize("epsilon", [0.3, 4.0])
@pytest.mark.parametrize("n_probers", [1, 2])
@pytest.mark.parametrize("step", ["polyak", "fixed"])
def test_the_l2_geometry_is_one_loop_an_activation(epsilon, n_probers, step):
    a = random_activations(0)
    probers = [random_prober(seed) for seed in range(n_probers)]
    mask, config = some(2), FairMedConfig(tol=0.05, step=step)
    found = neutralise(a, mask, probers, epsilon, config)
    for row, place in mask.nonzero().tolist():
        delta, taken = descend_alone(a[row, place], probers, epsilon, config)
        torch.testing.assert_close(found.delta[row, place], delta, atol=1e-7, rtol=1e-6)
        assert int(found.steps[row, place]) == taken
    if epsilon < 1:  # the ball's edge is reached, or some stop early
        assert (found.delta.norm(dim=-1) > epsilon * (1 - 1e-9)).any()
    else:
        assert found.steps[mask].unique().numel() > 2


@pytest.mark.usefixtures("in_fp64")
@pytest.mark.parametrize("epsilon", [0.05, 1.0])
@pytest.mark.parametrize("length", [1, 6])
def test_the_published_geometry_is_the_released_codes_loop(epsilon, length):
    config = FairMedConfig(norm="code", grad="sign", init="random", step="fixed", tol=0.03)
    prober = random_prober(3)
    a = random_activations(4, seq=3, pos=length)
    noise = random_activations(5, seq=3, pos=length)
    found = neutralise(a, torch.ones(3, length, dtype=torch.bool), [prober], epsilon, config, noise)
    for row in range(3):
        delta, taken = released_code_alone(a[row, None], prober, epsilon, config, noise[row, None])
        torch.testing.assert_close(found.delta[row], delta[0], atol=1e-9, rtol=1e-6)
        assert found.steps[row].unique().tolist() == [taken]


# --- properties
# ---------------------------------------------------------------------------------------------------  # noqa: E501


@quickly
@given(
    seed=seeds,
    epsilon=radii,
    init=st.sampled_from(["zero", "random"]),
    grad=st.sampled_from(["l2", "sign"]),
)
def test_no_delta_leaves_its_ball(seed, epsilon, init, grad):
    a, noise, mask = random_activations(seed), random_activations(seed + 1), some(seed)
    for radius, times in (("fixed", 1.0), ("adaptive", 4.0)):
        config = FairMedConfig(init=init, grad=grad, radius=radius, tol=1e-4)
        lengths = neutralise(a, mask, [random_prober(seed)], epsilon, config, noise).delta.norm(
            dim=-1
        )
        assert lengths.max() <= times * epsilon * SLACK
        assert lengths.max() > 0


@quickly
@given(
    seed=seeds,
    epsilon=radii,
    radius=st.sampled_from(["fixed", "adaptive"]),
    grad=st.sampled_from(["l2", "sign"]),
)
def test_the_kl_never_ends_above_its_start(seed, epsilon, radius, grad):
    a, prober = random_activations(seed), random_prober(seed)
    config = FairMedConfig(radius=radius, grad=grad)
    found = neutralise(a, torch.ones(4, 5, dtype=torch.bool), [prober], epsilon, config)
    fall = slow_kl(prober, a) - slow_kl(prober, a + found.delta)
    assert fall.min() >= -1e-6
    assert fall.max() > 0


@quickly
@given(seed=seeds, epsilon=radii)
def test_what_is_neutral_already_and_what_is_outside_the_mask_is_left_alone_exactly(seed, epsilon):
    a, prober, mask = random_activations(seed), random_prober(seed), some(seed)
    kl = slow_kl(prober, a)
    config = FairMedConfig(tol=float(kl[mask].median()) + 1e-4)
    found = neutralise(a, mask, [prober], epsilon, config)
    untouched = ~mask | (kl < config.tol * prober.slack - 1e-5)
    assert not found.delta[untouched].any()
    assert not found.steps[untouched].any()
    for preset in (config, FairMedConfig.published("gender"), config.replace(direction="random")):
        found = neutralise(a, mask, [prober], epsilon, preset, random_activations(seed + 1))
        assert not found.delta[~mask].any()
        assert not found.steps[~mask].any()


def test_a_larger_radius_ends_no_worse_and_fixed_steps_do():
    a, prober = random_activations(0, seq=60), random_prober(0)
    mask = torch.ones(60, 5, dtype=torch.bool)
    ends = {}
    for step in ("polyak", "fixed"):
        found = [
            neutralise(a, mask, [prober], radius, FairMedConfig(step=step))
            for radius in (0.3, 1.0, 3.0, 30.0)
        ]
        ends[step] = [slow_kl(prober, a + each.delta) for each in found]
    means = [float(kl.mean()) for kl in ends["polyak"]]
    for smaller, larger in pairwise(means):
        assert larger <= smaller + 1e-3
    neutral = [(kl < 0.001 * prober.slack).float().mean() for kl in ends["polyak"]]
    assert neutral[-1] > 0.85
    assert ends["fixed"][-1].mean() > ends["fixed"][-2].mean() + 0.01
    assert ends["fixed"][-1].mean() > means[-1] + 0.01


@quickly
@given(seed=seeds)
def test_more_steps_are_never_worse(seed):
    a, prober, mask = (
        random_activations(seed),
        random_prober(seed),
        torch.ones(4, 5, dtype=torch.bool),
    )
    kls = []
    for steps in (0, 1, 3, 10, 30):
        found = neutralise(a, mask, [prober], 2.0, FairMedConfig(steps=steps, tol=1e-3))
        assert found.steps.max() <= steps
        kls.append(slow_kl(prober, a + found.delta))
    for fewer, more in pairwise(kls):
        assert (more <= fewer + 1e-6).all()
    torch.testing.assert_close(kls[0], slow_kl(prober, a))


@pytest.mark.parametrize(
    "config", [FairMedConfig(), FairMedConfig.published("race"), FairMedConfig(radius="adaptive")]
)
def test_a_radius_of_zero_is_the_identity(config):
    found = neutralise(
        random_activations(0), some(0), [random_prober(0)], 0.0, config, noise=random_activations(1)
    )
    assert not found.delta.any()
    assert not found.steps.any()


CONFIGS = {
    "l2": FairMedConfig(),
    "adaptive": FairMedConfig(radius="adaptive"),
    "random start": FairMedConfig(init="random"),
    "random direction": FairMedConfig(direction="random"),
    "published": FairMedConfig.published("gender"),
}


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


@pytest.mark.usefixtures("in_fp64")
@pytest.mark.parametrize("seed", range(3))
def test_a_row_does_not_depend_on_its_batch(config, seed):
    a, noise = (random_activations(s) for s in (seed, seed + 10))
    mask, probers = some(seed), [random_prober(s) for s in (seed, seed + 20)]
    whole = neutralise(a, mask, probers, 1.0, config, noise)
    for row in range(len(a)):
        one = slice(row, row + 1)
        alone = neutralise(a[one], mask[one], probers, 1.0, config, noise[one])
        torch.testing.assert_close(whole.delta[one], alone.delta, atol=1e-8, rtol=1e-6)
        assert torch.equal(whole.steps[one], alone.steps)
    assert whole.delta.any()


@pytest.mark.parametrize("n_probers", [1, 2])
@pytest.mark.parametrize("init", ["zero", "random"])
@pytest.mark.parametrize("radius", ["fixed", "adaptive"])
@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_one_activation_alone_is_neutralised_as_one_among_others(
    monkeypatch, n_probers, init, radius, value
):
    # In fp64: a search that bends many times makes a rounding error of fp32 large.
    config = FairMedConfig(init=init, radius=radius, steps=12)
    probers = [
        LayerProber(*(w.double() for w in vars(random_prober(seed)).values()))
        for seed in range(n_probers)
    ]
    moved = 0
    for seed in range(6):
        a = random_activations(seed)[:1, :1].double()
        if value is not None:
            a[0, 0, 0] = value
        mask = torch.ones(1, 1, dtype=torch.bool)
        noise = random_activations(seed + 50)[:1, :1].double()
        alone = neutralise(a, mask, probers, 2.0, config, noise)
        with monkeypatch.context() as patch:
            patch.setattr(neutraliser, "_is_one", lambda *_: False)
            among = neutralise(a, mask, probers, 2.0, config, noise)
        torch.testing.assert_close(alone.delta, among.delta, atol=1e-8, rtol=1e-6)
        assert torch.equal(alone.steps, among.steps)
        moved += int(alone.steps)
    assert (moved > 10) == (value is None)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_an_activation_that_is_not_finite_gets_none_and_disturbs_no_other_row(config, value):
    a, noise, mask = (
        random_activations(0),
        random_activations(1),
        torch.ones(4, 5, dtype=torch.bool),
    )
    clean = neutralise(a, mask, [random_prober(2)], 1.0, config, noise)
    a[1, 3, 2] = value
    spoilt = neutralise(a, mask, [random_prober(2)], 1.0, config, noise)
    others = torch.arange(4) != 1
    torch.testing.assert_close(spoilt.delta[others], clean.delta[others], atol=1e-5, rtol=1e-5)
    assert not spoilt.delta[1, 3].any()
    assert spoilt.delta.isfinite().all()
    if config.norm == "l2":  # the released code couples a sequence's positions
        torch.testing.assert_close(spoilt.delta[1, :3], clean.delta[1, :3], atol=1e-5, rtol=1e-5)


def test_what_padding_holds_does_not_matter(config):
    a, noise, mask = (
        random_activations(0),
        random_activations(1),
        torch.ones(4, 5, dtype=torch.bool),
    )
    mask[2, :2] = False
    clean = neutralise(a, mask, [random_prober(2)], 1.0, config, noise)
    a[2, 0], a[2, 1] = float("nan"), 1e30
    spoilt = neutralise(a, mask, [random_prober(2)], 1.0, config, noise)
    torch.testing.assert_close(spoilt.delta, clean.delta, atol=1e-5, rtol=1e-5)
    assert clean.delta[2, 2:].any()


@pytest.mark.parametrize("seed", range(5))
def test_the_published_preset_leaves_the_l2_ball_but_not_the_box(seed):
    a, noise = (random_activations(s, seq=40, pos=1) for s in (seed, seed + 100))
    config = FairMedConfig.published("gender")
    lengths = neutralise(
        a, torch.ones(40, 1, dtype=torch.bool), [random_prober(seed)], 0.3, config, noise
    ).delta
    assert lengths.norm(dim=-1).max() > 1.2 * 0.3
    assert lengths.norm(dim=-1).max() <= 0.3 * D**0.5 * SLACK
    assert lengths.abs().max() <= 0.3 * SLACK


def test_over_positions_the_published_projection_bounds_each_feature():
    a, noise = random_activations(0, seq=10, pos=12), random_activations(1, seq=10, pos=12)
    config = FairMedConfig.published("gender").replace(init="zero")
    delta = neutralise(
        a, torch.ones(10, 12, dtype=torch.bool), [random_prober(0)], 0.5, config, noise
    ).delta
    assert delta.norm(dim=1).max() <= 0.5 * SLACK
    assert delta.norm(dim=1).max() > 0.4


@pytest.mark.parametrize("norm", ["l2", "code"])
def test_the_random_control_is_as_long_as_the_adversarial_delta_and_lies_along_the_noise(norm):
    a, noise, mask = random_activations(0), random_activations(1), some(0)
    config = FairMedConfig(norm=norm)
    adversarial = neutralise(a, mask, [random_prober(0)], 1.0, config, noise)
    control = neutralise(
        a, mask, [random_prober(0)], 1.0, config.replace(direction="random"), noise
    )
    lengths = adversarial.delta.norm(dim=-1)
    torch.testing.assert_close(control.delta.norm(dim=-1), lengths, atol=1e-6, rtol=1e-5)
    assert torch.equal(control.steps, adversarial.steps)
    moved = lengths > 1e-3
    cosine = torch.cosine_similarity(control.delta, noise, dim=-1)[moved]
    torch.testing.assert_close(cosine, torch.ones_like(cosine), atol=1e-5, rtol=0)
    assert torch.cosine_similarity(adversarial.delta, noise, dim=-1)[moved].mean() < 0.5


# --- several attributes
# -------------------------------------------------------------------------------------------


@quickly
@given(seed=seeds)
def test_with_several_probers_it_stops_where_all_are_neutral_and_only_there(seed):
    a = random_activations(seed, seq=2, pos=20)
    probers = [random_prober(seed, 2), random_prober(seed + 1, 3)]
    config = FairMedConfig(steps=20, tol=0.03)
    found = neutralise(a, torch.ones(2, 20, dtype=torch.bool), probers, 3.0, config)
    worst = torch.stack(
        [slow_kl(prober, a + found.delta) / prober.slack for prober in probers]
    ).amax(dim=0)
    stopped = found.steps < config.steps
    assert stopped.any()
    assert (worst[stopped] < config.tol + 1e-6).all()


def test_a_second_attribute_keeps_the_search_going_where_the_first_is_neutral():
    a, mask = random_activations(0), torch.ones(4, 5, dtype=torch.bool)
    blind = random_prober(0)
    blind = LayerProber(blind.w1, blind.b1, torch.zeros_like(blind.w2), torch.zeros_like(blind.b2))
    config = FairMedConfig(tol=0.05)
    assert not neutralise(a, mask, [blind], 1.0, config).steps.any()
    both, other = (
        neutralise(a, mask, probers, 1.0, config)
        for probers in ([blind, random_prober(1)], [random_prober(1)])
    )
    assert both.steps.any()
    assert torch.equal(both.steps, other.steps)
    torch.testing.assert_close(both.delta, other.delta, atol=1e-6, rtol=1e-5)


def test_a_radius_that_adapts_stays_small_where_little_is_needed_and_reaches_further_where_more_is():  # noqa: E501
    a, mask, prober = (
        random_activations(0, seq=20),
        torch.ones(20, 5, dtype=torch.bool),
        random_prober(0),
    )
    fixed = neutralise(a, mask, [prober], 1.0, FairMedConfig())
    adaptive = neutralise(a, mask, [prober], 1.0, FairMedConfig(radius="adaptive"))
    lengths = adaptive.delta.norm(dim=-1)
    assert ((lengths > 0) & (lengths < 0.25)).any()
    assert (lengths > 1).any()
    kl = slow_kl(prober, a + adaptive.delta)
    assert (kl < 0.03).float().mean() > (slow_kl(prober, a + fixed.delta) < 0.03).float().mean()
