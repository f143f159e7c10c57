"""The probers of all layers as one batched network.

``L`` networks ``Linear(d_model → 1024) → ReLU → Linear(1024 → groups)`` are trained at once by
batched matrix products. They share nothing but the order of the minibatches, so each is what it
would be alone. Hyper-parameters are those of FairMed's code: Adam, 1e-3, batches of 32, 20 epochs,
soft targets.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tracelab.errors import TracelabError
from tracelab.gradients import learning
from tracelab.ranges import (
    EPOCHS_MOST,
    INT_MOST,
    WIDTH_MOST,
    require_int,
    require_memory,
    require_number,
)

_LARGEST_PARAMETER = 100.0  # they begin below 1


@dataclass(frozen=True)
class ProberConfig:
    """Hyper-parameters of the probers (FairMed's)."""

    hidden: int = 1024
    lr: float = 1e-3
    batch_size: int = 32
    epochs: int = 20

    def __post_init__(self) -> None:
        most = {"hidden": WIDTH_MOST, "batch_size": INT_MOST, "epochs": EPOCHS_MOST}
        for name, largest in most.items():
            require_int(f"{name} of the probers", getattr(self, name), most=largest)
        require_number("lr of the probers", self.lr, above=0)

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
        The trained probers, without gradients.

    Raises:
        TracelabError: the training diverged.
    """
    _, n_layers, d_model = activations.shape
    # With gradients and Adam's two moments, in fp32.
    require_memory(f"probers of width {config.hidden}", 16 * n_layers * d_model * config.hidden)
    probers = Probers(n_layers, d_model, config.hidden, labels.shape[1], seed)
    optimizer = torch.optim.Adam(probers.parameters(), lr=config.lr, fused=True)
    order = torch.Generator().manual_seed(seed)
    for _ in range(config.epochs):
        shuffled = train[torch.randperm(len(train), generator=order)]
        for rows in shuffled.split(config.batch_size):
            logits = probers(activations[rows].float())
            targets = labels[rows].expand(n_layers, -1, -1)
            # Summed over layers: each layer's mean loss has its own parameters, and Adam's steps of
            # one layer do not depend on another's gradient.
            loss = -(targets * logits.log_softmax(dim=-1)).sum(dim=-1).mean(dim=1).sum()
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
    return probers.requires_grad_(False)
