"""BiasEdit's editor network: from what a linear map sees and is told to change, to a shift of its
weights.

For each cached token, with input u of the map and gradient g of the debiasing loss at its output,

    (k~, g~) = editor(u, g)          D_row = -eta <u, k~> g~
    S = (K^T K + e^l I)^-1 K^T D     the shift [d_k, d_v] that lets each key produce its wanted change (ridge)

One network serves all maps of one shape; which map it works for enters by a scale and a shift per
block, and each map has a step size eta and a ridge e^l of its own. Two blocks ``x + scale * ReLU(x
A B + b) + shift`` act on the concatenated pair, normalised by running means and deviations. With B
= 0, at first, the editor is the normaliser alone. Source: BiasEdit (arXiv 2503.08588) and MALMEN
(arXiv 2311.04661), whose solve it is.

The ridge has two equal forms. ``S = K^T (K K^T + e^l I)^-1 D`` solves n × n, the one above d_k ×
d_k; the smaller is taken. It is differentiable: a loss of the shifted model is backpropagated
through the solve into the editor.
"""  # noqa: E501

from __future__ import annotations

from math import log

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tracelab.errors import TracelabError
from tracelab.gradients import measuring
from tracelab.ranges import require_memory

FORMS = ("auto", "primal", "dual")


class Normaliser(nn.Module):
    """Running mean and standard deviation of each coordinate over all rows ever seen (Welford)."""

    count: Tensor
    mean: Tensor
    m2: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float32))
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float32))
        self.register_buffer("m2", torch.zeros(size, dtype=torch.float32))

    @measuring()
    def update(self, rows: Float[Tensor, "n size"]) -> None:
        """Take rows into account."""
        n, total = rows.shape[0], self.count + rows.shape[0]
        delta = rows.mean(dim=0) - self.mean
        self.m2 += rows.var(dim=0, correction=0) * n + delta**2 * self.count * n / total
        self.mean += delta * n / total
        self.count.copy_(total)

    def forward(self, rows: Float[Tensor, "n size"]) -> Float[Tensor, "n size"]:
        """Rows with mean 0 and deviation 1 in each coordinate."""
        return (rows - self.mean) / ((self.m2 / (self.count - 1).clamp(min=1)).sqrt() + 1e-7)


class _Block(nn.Module):
    def __init__(
        self, size: int, n_maps: int, rank: int, init: str, generator: torch.Generator
    ) -> None:
        super().__init__()
        a = torch.randn(size, rank, generator=generator, dtype=torch.float32, device="cpu")
        self.A = nn.Parameter(a / size**0.5 if init == "scaled" else a)
        self.B = nn.Parameter(torch.zeros(rank, size, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(size, dtype=torch.float32))
        self.scale = nn.Parameter(torch.ones(n_maps, size, dtype=torch.float32))
        self.shift = nn.Parameter(torch.zeros(n_maps, size, dtype=torch.float32))

    def forward(self, x: Float[Tensor, "n size"], index: int) -> Float[Tensor, "n size"]:
        return x + self.scale[index] * (x @ self.A @ self.B + self.bias).relu() + self.shift[index]


class Editor(nn.Module):
    """The editor of all maps of one shape.

    Args:
        d_k, d_v: input and output width of the maps.
        n_maps: how many there are.
        rank: width of the hidden layer of each block (1920 in the paper).
        lr: initial step size eta of each map.
        ridge: initial e^l of each map (1 in the paper). Small, the shift gives each key its own
            change; large, it is what the keys have in common that is changed, in proportion to K^T
            D.
        init: ``"normal"``: A ~ N(0, 1) as released; ``"scaled"``: divided by √(d_k + d_v), so that
            a step of the optimiser moves the output by as much whatever the width.
    """

    def __init__(
        self,
        d_k: int,
        d_v: int,
        n_maps: int,
        *,
        rank: int = 1920,
        n_blocks: int = 2,
        lr: float = 1e-6,
        ridge: float = 1.0,
        init: str = "scaled",
        seed: int = 0,
    ) -> None:
        super().__init__()
        # With gradients and Adam's two moments, in fp32.
        require_memory(f"editors of rank {rank}", 16 * n_blocks * 2 * (d_k + d_v) * rank)
        generator = torch.Generator().manual_seed(seed)
        self.d_k = d_k
        self.normaliser = Normaliser(d_k + d_v)
        self.blocks = nn.ModuleList(
            _Block(d_k + d_v, n_maps, rank, init, generator) for _ in range(n_blocks)
        )
        self.lr = lr
        # eta / lr, so that it is trained in relative steps
        self.step = nn.Parameter(torch.ones(n_maps, dtype=torch.float32))
        self.log_ridge = nn.Parameter(torch.full((n_maps,), log(ridge), dtype=torch.float32))

    def forward(
        self, keys: Float[Tensor, "n d_k"], grads: Float[Tensor, "n d_v"], index: int
    ) -> Float[Tensor, "n d_v"]:
        """The change D that the map's output should get at each key."""
        x = self.normaliser(torch.cat([keys, grads], dim=1))
        for block in self.blocks:
            x = block(x, index)
        pseudo_keys, pseudo_grads = x.split([self.d_k, x.shape[1] - self.d_k], dim=1)
        return (
            -self.lr
            * self.step[index]
            * (keys * pseudo_keys).sum(dim=1, keepdim=True)
            * pseudo_grads
        )

    def shift(
        self, keys: Float[Tensor, "n d_k"], grads: Float[Tensor, "n d_v"], index: int
    ) -> Tensor:
        """The shift S ``[d_k, d_v]`` of map ``index``."""
        return ridge(keys, self(keys, grads, index), self.log_ridge[index])


def ridge(
    keys: Float[Tensor, "n d_k"],
    values: Float[Tensor, "n d_v"],
    log_ridge: Float[Tensor, ""],
    form: str = "auto",
) -> Float[Tensor, "d_k d_v"]:
    """``argmin_S ‖K S - D‖² + e^l ‖S‖²``, by the smaller of the two equal forms unless one is
    named.

    Differentiable in D and l; the keys are constants.

    Raises:
        TracelabError: the system cannot be solved (values that are not finite, or a ridge too
            small).
    """
    n, d_k = keys.shape
    dual = n <= d_k if form == "auto" else form == "dual"
    values, log_ridge, dtype = values.double(), log_ridge.double(), values.dtype
    keys = keys.detach()  # constants: the factor below has no gradient
    # The first tokens of texts have keys so large that a small ridge is lost in the rounding of
    # fp32.
    rounding = torch.finfo(torch.float32).eps * float(keys.square().sum())
    if rounding > 1e-3 * float(log_ridge.detach().exp()):
        keys = keys.double()
    with measuring():
        gram = (keys @ keys.T if dual else keys.T @ keys).double()
        system = gram + log_ridge.exp() * torch.eye(
            gram.shape[0], device=gram.device, dtype=gram.dtype
        )
        factor, fault = torch.linalg.cholesky_ex(system)
    if int(fault) or not torch.isfinite(factor).all():
        raise TracelabError(
            f"the ridge solve of {n} keys failed with ridge {float(log_ridge.detach().exp()):.3g}: "
            "lower meta_lr, or "
            "edit fewer triples at once (n_edits)"
        )
    keys = keys.double()
    solved = torch.cholesky_solve(values if dual else keys.T @ values, factor)
    if log_ridge.requires_grad:
        # d/dl A^-1 y = -e^l A^-1 A^-1 y, given as a term of value 0: autograd through the factor
        # costs far more.
        change = log_ridge.exp() - log_ridge.exp().detach()
        solved = solved - change * torch.cholesky_solve(solved.detach(), factor)
    return (keys.T @ solved if dual else solved).to(dtype)
