"""FairMed's adversarial step: push an activation until its prober cannot tell the group.

For an activation ``a``, a frozen prober with group distribution ``p(a) = softmax(W2 ReLU(W1 a + b1)
+ b2)`` over C groups and ``U`` uniform, find a bounded perturbation ``δ`` that lowers

    KL(U ‖ p(a + δ)) = -log C - (1/C) Σ_g log p_g(a + δ)

by steps against the gradient, inside a ball of radius ``ε = lam · std‖a‖`` (FairMed, arXiv
2504.07787, and its code). The gradient is written out: with ``h = W1 a + b1`` and ``r = p - U`` it
is ``W1ᵀ ((W2ᵀ r) ⊙ [h > 0])``, which needs no autograd inside a hook.

The size of a step. ``step="fixed"``, FairMed's: ``α = ε · step_frac``, so that in a larger ball
steps are longer and overshoot. ``step="polyak"`` (default): as long as the KL would need to reach
its least value, 0, if it fell on as it does here (Polyak, 1969), ``KL / ⟨∇, d⟩`` along the
direction ``d``, whatever the ball; where the KL hardly fell, on from the best point with half the
length.

Two geometries. ``norm="l2"`` (default): each position's δ lies in an L2 ball over features and
follows the gradient's direction; δ = 0 is the first candidate, so an activation that is neutral
already is left alone. ``norm="code"``: what the released code does; it normalises over positions
instead of features, which for one position is a box of half-width ε (‖δ‖ up to ε√d), sums the KL
over a sequence's positions with one stop for all, and starts from noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, isfinite, isnan, log, nan

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tracelab.interventions.fairmed.config import FairMedConfig

_LEAST_FALL = 1e-3  # of the KL, relative, for a step to have been a good one


@dataclass(frozen=True)
class LayerProber:
    """One layer's prober: ``w1`` [d, hidden], ``b1``, ``w2`` [hidden, groups], ``b2``, all fp32."""

    w1: Float[Tensor, "d hidden"]
    b1: Float[Tensor, "1 hidden"]
    w2: Float[Tensor, "hidden groups"]
    b2: Float[Tensor, "1 groups"]

    @property
    def slack(self) -> float:
        """What the tolerance for two groups is multiplied by: with it a share may be as far from
        even."""
        n_groups = self.w2.shape[1]
        return n_groups**2 / (4 * (n_groups - 1)) if n_groups > 1 else 1.0

    def log_probs(self, a: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows groups"]:
        """Group log-probabilities."""
        return ((a @ self.w1 + self.b1[0]).relu() @ self.w2 + self.b2[0]).log_softmax(dim=-1)

    def kl(self, a: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows"]:
        """``KL(U ‖ p)``."""
        return _kl(self.log_probs(a))

    def kl_and_gradient(
        self, a: Float[Tensor, "*rows d"]
    ) -> tuple[Float[Tensor, "*rows"], Callable[[], Float[Tensor, "*rows d"]]]:
        """``KL(U ‖ p)``, and what computes its gradient with respect to ``a``: half of the work,
        which the last candidate of a search does not need."""
        h = a @ self.w1 + self.b1[0]
        log_p = (h.relu() @ self.w2 + self.b2[0]).log_softmax(dim=-1)

        def gradient() -> Tensor:
            residual = log_p.exp() - 1 / log_p.shape[-1]
            return ((residual @ self.w2.T) * (h > 0)) @ self.w1.T

        return _kl(log_p), gradient


def _kl(log_p: Float[Tensor, "*rows groups"]) -> Float[Tensor, "*rows"]:
    n_groups = log_p.shape[-1]
    return -log_p.mean(dim=-1) - log(n_groups)


@dataclass(frozen=True)
class Neutralised:
    """What was found for each activation: the perturbation and how many gradient steps were
    taken."""

    delta: Float[Tensor, "seq pos d"]
    steps: Int[Tensor, "seq pos"]


def neutralise(
    a: Float[Tensor, "seq pos d"],
    mask: Bool[Tensor, "seq pos"],
    probers: Sequence[LayerProber],
    epsilon: float,
    config: FairMedConfig,
    noise: Float[Tensor, "seq pos d"] | None = None,
) -> Neutralised:
    """The perturbation of each masked activation; 0 elsewhere, and where anything is not finite.

    Args:
        a: activations, fp32.
        mask: those to neutralise.
        probers: of one or several attributes; their KL are summed, and all must be neutral (below
            ``tol``, which is scaled with the number of groups unless ``norm="code"``) to stop.
        epsilon: the radius.
        noise: standard normal draws, needed for ``init="random"`` and ``direction="random"``.
    """
    delta = torch.zeros_like(a)
    steps = torch.zeros(mask.shape, dtype=torch.long, device=a.device)
    found = Neutralised(delta, steps)
    if epsilon == 0 or not mask.any():
        return found
    if config.norm == "l2":  # every position stands alone: [n, 1, d]
        rows = mask.nonzero(as_tuple=True)
        ones = torch.ones_like(steps[rows][:, None], dtype=torch.bool)
        problem = _Problem(a[rows][:, None], ones, probers, [prober.slack for prober in probers])
        start = None if noise is None else noise[rows][:, None]
    else:
        rows = mask.any(dim=1).nonzero(as_tuple=True)
        problem = _Problem(a[rows], mask[rows], probers, [1.0] * len(probers))
        start = None if noise is None else noise[rows]
    factors = (0.25, 0.5, 1.0, 2.0, 4.0) if config.radius == "adaptive" else (1.0,)
    best = torch.zeros_like(problem.a)
    taken = torch.zeros_like(problem.mask, dtype=torch.long)
    for number, factor in enumerate(factors):
        todo = (
            problem.worst(best) >= config.tol
            if number
            else torch.ones(len(best), dtype=torch.bool, device=a.device)
        )
        if todo.any():
            part = problem.select(todo)
            origin = _start(
                part, start[todo] if start is not None else None, epsilon * factor, config
            )
            improved, used = _descend(
                part, origin if number == 0 else best[todo], epsilon * factor, config
            )
            best[todo], taken[todo] = improved, taken[todo] + used[:, None]
    best = best * problem.mask[..., None]
    best = torch.where(best.isfinite().all(dim=-1, keepdim=True), best, torch.zeros_like(best))
    if config.direction == "random" and start is not None:
        lengths = best.norm(dim=-1, keepdim=True)
        best = start / start.norm(dim=-1, keepdim=True).clamp_min(1e-12) * lengths
    if config.norm == "l2":
        delta[rows], steps[rows] = best[:, 0], taken[:, 0]
    else:
        delta[rows], steps[rows] = best, taken * problem.mask
    return found


@dataclass(frozen=True)
class _Problem:
    """Activations ``[seq, pos, d]`` whose KL, summed over masked positions, is to fall."""

    a: Tensor
    mask: Tensor
    probers: Sequence[LayerProber]
    slack: Sequence[float]

    def select(self, rows: Tensor) -> _Problem:
        return _Problem(self.a[rows], self.mask[rows], self.probers, self.slack)

    def evaluate(self, delta: Tensor) -> tuple[Tensor, Tensor, Callable[[], Tensor]]:
        """Per sequence: the summed KL, the largest of an attribute over its slack; and what
        computes the gradient."""
        found = [prober.kl_and_gradient(self.a + delta) for prober in self.probers]
        kl = torch.stack([self._summed(kl) for kl, _ in found])

        def gradient() -> Tensor:
            slopes = torch.stack([slope() for _, slope in found]).sum(dim=0)
            return slopes.where(self.mask[..., None], torch.zeros_like(slopes))

        return kl.sum(dim=0), self._largest(kl), gradient

    def worst(self, delta: Tensor) -> Tensor:
        """Per sequence the largest KL of an attribute over its slack."""
        return self._largest(
            torch.stack([self._summed(p.kl(self.a + delta)) for p in self.probers])
        )

    def _largest(self, kl: Float[Tensor, "attributes seq"]) -> Float[Tensor, "seq"]:
        return torch.stack([k / slack for k, slack in zip(kl, self.slack, strict=True)]).amax(dim=0)

    def _summed(self, kl: Tensor) -> Tensor:
        # A product with the mask would let a NaN outside it through.
        return kl.where(self.mask, torch.zeros_like(kl)).sum(dim=1)


def _start(
    problem: _Problem, noise: Tensor | None, epsilon: float, config: FairMedConfig
) -> Tensor:
    if config.init == "zero" or noise is None:
        return torch.zeros_like(problem.a)
    # A length between 0 and ε made of the same draw: its first feature through the normal
    # distribution function.
    length = epsilon * torch.special.ndtr(noise[..., :1])
    return (
        noise / noise.norm(dim=-1, keepdim=True).clamp_min(1e-12) * length * problem.mask[..., None]
    )


def _descend(
    problem: _Problem, delta: Tensor, epsilon: float, config: FairMedConfig
) -> tuple[Tensor, Tensor]:
    """Best perturbation of each sequence along at most ``config.steps`` steps, and the steps
    taken."""
    if _is_one(problem, config):
        return _descend_one(problem, delta, epsilon, config)
    ended = torch.zeros_like(delta)
    taken = torch.zeros(delta.shape[0], dtype=torch.long, device=delta.device)
    active = torch.arange(delta.shape[0], device=delta.device)
    # Of those that go on, in their order.
    best, slopes = torch.zeros_like(delta), torch.zeros_like(delta)
    best_kl = torch.full(delta.shape[:1], float("inf"), dtype=delta.dtype, device=delta.device)
    share = torch.ones_like(best_kl)  # of Polyak's step
    # From zero, the first evaluation is of the activation as it is.
    evaluations = config.steps + (config.init == "zero")
    for number in range(1, evaluations + 1):
        kl, worst, gradient = problem.evaluate(delta)
        # Never true of a KL that is not a number. Neutral for all attributes is best even if the
        # sum was lower before.
        better = (kl < best_kl) | (worst < config.tol)
        fell = kl < best_kl * (1 - _LEAST_FALL)
        share = torch.where(fell, 1.0, share / 2)
        best_kl = torch.where(better, kl, best_kl)
        best = torch.where(better[:, None, None], delta, best)
        going = (worst >= config.tol) & best_kl.isfinite()
        if config.step == "fixed":  # from here on, be it better or not
            going &= kl.isfinite()
        n_going = 0 if number == evaluations else int(going.sum())
        if not n_going:
            ended[active] = best
            break
        slope = gradient()
        slopes = torch.where(better[:, None, None], slope, slopes)
        if n_going < len(going):
            ended[active[~going]] = best[~going]
            kept = (active, delta, best, slopes, slope, best_kl, share)
            active, delta, best, slopes, slope, best_kl, share = (each[going] for each in kept)
            problem = problem.select(going)
        if config.step == "fixed":
            stepped = delta - epsilon * config.step_frac * _direction(slope, config)
        else:
            step = _to_zero(best_kl, slopes, epsilon, config)
            stepped = best - share[:, None, None] * step
        delta = _project(stepped, epsilon, config)
        taken[active] += 1
    return ended, taken


def _is_one(problem: _Problem, config: FairMedConfig) -> bool:
    """Whether there is one activation, on the CPU, at the default geometry: each token written."""
    plain = (config.step, config.norm, config.grad) == ("polyak", "l2", "l2")
    return plain and problem.mask.numel() == 1 and problem.a.device.type == "cpu"


def _descend_one(
    problem: _Problem, delta: Tensor, epsilon: float, config: FairMedConfig
) -> tuple[Tensor, Tensor]:
    """:func:`_descend` of one activation, with numbers in the place of tensors of one number, which
    cost more than the prober itself."""
    a, delta, taken = problem.a[:, 0], delta[:, 0], 0
    best, best_kl, share = torch.zeros_like(delta), inf, 1.0
    slope, length = best, 0.0
    evaluations = config.steps + (config.init == "zero")
    for number in range(1, evaluations + 1):
        found = [prober.kl_and_gradient(a + delta) for prober in problem.probers]
        kls = [kl.item() for kl, _ in found]
        kl = sum(kls)
        over = (each / slack for each, slack in zip(kls, problem.slack, strict=True))
        worst = nan if isnan(kl) else max(over)
        # never true of a KL that is not a number
        better = kl < best_kl or worst < config.tol
        share = 1.0 if kl < best_kl * (1 - _LEAST_FALL) else share / 2
        best, best_kl = (delta, kl) if better else (best, best_kl)
        if number == evaluations or not (worst >= config.tol and isfinite(best_kl)):
            break
        if better:
            slope = sum((gradient() for _, gradient in found), torch.zeros_like(delta))
            length = slope.norm().item()
        step = share * min(max(best_kl, 0.0) / max(length, 1e-30), 2 * epsilon)
        delta = best - slope * (step / max(length, 1e-30))
        norm = delta.norm().item()
        if not norm <= epsilon:
            delta = delta * (epsilon / norm)
        taken += 1
    return best[:, None], torch.tensor([taken], dtype=torch.long)


def _to_zero(kl: Tensor, gradient: Tensor, epsilon: float, config: FairMedConfig) -> Tensor:
    """Polyak's step; at most through the whole ball, as where nothing slopes it has no end."""
    direction = _direction(gradient, config)
    slope = (gradient * direction).sum(dim=(1, 2))
    length = (kl.clamp_min(0) / slope.clamp_min(1e-30)).clamp(max=2 * epsilon)
    return length[:, None, None] * direction


def _direction(gradient: Tensor, config: FairMedConfig) -> Tensor:
    if config.grad == "sign":
        return gradient.sign()
    norm = gradient.norm(dim=-1, keepdim=True)
    return torch.where(norm > 0, gradient / norm.clamp_min(1e-30), torch.zeros_like(gradient))


def _project(delta: Tensor, epsilon: float, config: FairMedConfig) -> Tensor:
    axis = -1 if config.norm == "l2" else 1  # the released code normalises over positions
    norm = delta.norm(dim=axis, keepdim=True)
    return delta * (epsilon / norm.clamp_min(1e-30)).clamp(max=1.0)
