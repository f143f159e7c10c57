"""The probers of all layers as one batched network.

``L`` networks ``Linear(d_model → 1024) → ReLU → Linear(1024 → groups)`` are trained at once by
batched matrix products. They share nothing but the order of the minibatches, so each is what it
would be alone, and how many stand in one product is a matter of speed. Hyper-parameters are those
of FairMed's code: Adam, 1e-3, batches of 32, 20 epochs, soft targets.

The same step size suits no two scales of activation, and the norms of MLP outputs can differ a
hundredfold between layers. So each layer's inputs are standardised on the training rows, ``(a - μ)
/ σ``, with the mean vector ``μ`` and one ``σ`` a layer, the root of the mean squared distance from
``μ``: inputs have norm 1, whatever the width. (Inputs whose single features have variance 1 are
longer by √d, and over-fit: same F1, a third more held-out KL. One σ a feature does so too, and
blows up what hardly varies.) When trained, both are folded into the first map,

    W1 ← W1 / σ,    b1 ← b1 - (μ / σ) W1,

so that a prober reads activations as the model makes them. FairMed's code does not standardise:
``ProberConfig(standardise=False)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tracelab.errors import TracelabError
from tracelab.gradients import learning
from tracelab.model.memory import prober_bytes, require_room
from tracelab.ranges import (
    EPOCHS_MOST,
    INT_MOST,
    WIDTH_MOST,
    require_int,
    require_number,
)

_LARGEST_PARAMETER = 100.0  # they begin below 1
_GROUP_BYTES = 24 * 1024**2
"""Of first maps that are trained together: beyond, a gradient is memory that the system hands out
anew at each step, and what Adam reads and writes is in no cache."""


@dataclass(frozen=True)
class ProberConfig:
    """Hyper-parameters of the probers: FairMed's, but for inputs standardised by layer."""

    hidden: int = 1024
    lr: float = 1e-3
    batch_size: int = 32
    epochs: int = 20
    standardise: bool = True

    def __post_init__(self) -> None:
        most = {"hidden": WIDTH_MOST, "batch_size": INT_MOST, "epochs": EPOCHS_MOST}
        for name, largest in most.items():
            require_int(f"{name} of the probers", getattr(self, name), most=largest)
        require_number("lr of the probers", self.lr, above=0)
        if not isinstance(self.standardise, bool):
            raise TracelabError(f"standardise is True or False, not {self.standardise!r}")

    def settings(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


class Probers(nn.Module):
    """One two-layer prober for each layer of the model; layer l is initialised from ``(seed,
    l)``."""

    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor

    def __init__(self, n_layers: int, d_model: int, hidden: int, n_groups: int, seed: int) -> None:
        super().__init__()
        sizes = {
            "w1": (d_model, hidden),
            "b1": (1, hidden),
            "w2": (hidden, n_groups),
            "b2": (1, n_groups),
        }
        fan_in = {"w1": d_model, "b1": d_model, "w2": hidden, "b2": hidden}
        for name, size in sizes.items():
            bound = 1 / math.sqrt(fan_in[name])  # as torch.nn.Linear initialises both
            value = torch.empty(n_layers, *size, dtype=torch.float32, device="cpu")
            for layer in range(n_layers):
                generator = torch.Generator().manual_seed(hash((seed, layer, fan_in[name], *size)))
                value[layer].uniform_(-bound, bound, generator=generator)
            self.register_parameter(name, nn.Parameter(value))

    def forward(
        self, activations: Float[Tensor, "rows layers d_model"]
    ) -> Float[Tensor, "layers rows groups"]:
        """Group logits of each layer's prober."""
        inputs = activations.transpose(0, 1)
        hidden = torch.baddbmm(self.b1, inputs, self.w1).relu()
        return torch.baddbmm(self.b2, hidden, self.w2)

    def part(self, layers: slice) -> Probers:
        """Those of some layers, in the same memory."""
        other = Probers.__new__(Probers)
        nn.Module.__init__(other)
        for name, value in self.named_parameters():
            other.register_parameter(name, nn.Parameter(value.detach()[layers]))
        return other

    @torch.no_grad()
    def fold(self, scale: Scale) -> None:
        """Read raw activations from now on, where standardised ones were read until now."""
        self.w1 /= scale.std[:, None, None]
        self.b1 -= scale.mean[:, None] @ self.w1


@dataclass(frozen=True)
class Scale:
    """Mean activation and spread of each layer, by which inputs are standardised."""

    mean: Float[Tensor, "layers d_model"]
    std: Float[Tensor, "layers"]

    @classmethod
    def of(
        cls, activations: Float[Tensor, "prompts layers d_model"], rows: Int[Tensor, "rows"]
    ) -> Self:
        """Of some rows, a piece at a time: they may be mapped to a file larger than memory. A layer
        that does not vary keeps its scale."""
        pieces = rows.split(256)
        mean = sum(activations[p].double().sum(dim=0) for p in pieces) / len(rows)
        squares = sum(((activations[p].double() - mean) ** 2).sum(dim=0) for p in pieces)
        std = (squares / len(rows)).sum(dim=-1).sqrt()  # type: ignore[union-attr]
        # Rounding alone makes a constant layer vary a little.
        constant = std <= 1e-6 * mean.norm(dim=-1)  # type: ignore[union-attr]
        return cls(mean.float(), std.masked_fill(constant, 1.0).float())  # type: ignore[union-attr]

    @classmethod
    def unit(cls, n_layers: int, d_model: int) -> Self:
        """That changes nothing."""
        return cls(
            torch.zeros(n_layers, d_model, dtype=torch.float32, device="cpu"),
            torch.ones(n_layers, dtype=torch.float32, device="cpu"),
        )

    def part(self, layers: slice) -> Scale:
        """Of some layers."""
        return Scale(self.mean[layers], self.std[layers])

    def apply(
        self, activations: Float[Tensor, "rows layers d_model"]
    ) -> Float[Tensor, "rows layers d_model"]:
        """``(a - μ) / σ``."""
        return (activations - self.mean) / self.std[:, None]


@learning()
def train_probers(
    activations: Float[Tensor, "prompts layers d_model"],
    labels: Float[Tensor, "prompts groups"],
    train: Int[Tensor, "train"],
    *,
    config: ProberConfig,
    seed: int,
    step: Callable[[], object] = lambda: None,
) -> Probers:
    """Fit one prober a layer to soft labels on the rows ``train``.

    Args:
        activations: of all prompts; read a minibatch at a time, so they may be mapped to a file.
        step: called after each epoch.

    Returns:
        The trained probers of raw activations, without gradients.

    Raises:
        TracelabError: the training diverged.
    """
    _, n_layers, d_model = activations.shape
    require_room(
        "cpu",
        f"probers of width {config.hidden}",
        prober_bytes(n_layers, d_model, config.hidden),
        "lower hidden= of the probers",
    )
    probers = Probers(n_layers, d_model, config.hidden, labels.shape[1], seed)
    at_once = max(1, _GROUP_BYTES // (4 * d_model * config.hidden))
    layers = [slice(start, start + at_once) for start in range(0, n_layers, at_once)]
    groups = [
        (each, part, torch.optim.Adam(part.parameters(), lr=config.lr, fused=True))
        for each in layers
        for part in [probers.part(each)]
    ]
    order = torch.Generator().manual_seed(seed)
    scale = Scale.of(activations, train) if config.standardise else Scale.unit(n_layers, d_model)
    for _ in range(config.epochs):
        shuffled = train[torch.randperm(len(train), generator=order)]
        for each, part, optimizer in groups:
            for rows in shuffled.split(config.batch_size):
                inputs = scale.part(each).apply(activations[rows, each].float())
                log_p = part(inputs).log_softmax(dim=-1)
                # Summed over layers: each layer's mean loss has its own parameters, and Adam's
                # steps of one layer do not depend on another's gradient.
                loss = -(labels[rows] * log_p).sum(dim=-1).mean(dim=1).sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        step()
    largest = float(
        torch.stack([value.detach().abs().max() for value in probers.parameters()]).max()
    )
    if not largest <= _LARGEST_PARAMETER:
        raise TracelabError(
            f"the training of the probers diverged (largest parameter {largest:.3g}): lower "
            f"lr={config.lr}"
        )
    probers.requires_grad_(False)
    probers.fold(scale)
    return probers
