"""How much memory a piece of work takes, by formula, and refusing early what there is no room for.

With ``B`` texts of ``n`` tokens a pass (``T = B n``), ``b`` bytes a number, and of the model ``L``
layers, widths ``d`` and ``m`` (MLP), ``H`` heads, ``k`` numbers a key, and ``V`` tokens:

    weights      sum of all parameters' bytes
    kept         2 L T k b                        keys and values, which a pass keeps
    block        T b max(8 d + attention, 4 m + 2 d)
                 attention = H n (8 / b in fp32, 4 / b + 3 in half precision)
    logits       T V b
    forward      kept + max(block, logits)
    scoring      max(forward, logits + C V (4, or b + 4 in half precision)),   C = min(T, 256)
    harvest      kept + max(block, B V (b + 8));  4 p L d of p prompts in main memory, or in a file
    probers      16 L d h                         of width h: weights, gradients and Adam's moments
    fit          12 T V + L' T b (4 m + 4 d) + L' B H n² (4 in fp32, 5 in half precision)
                                                  of L' layers with gradients, the last ones
    trace        2 (S n d b (L + 1) + kept        the corrupted runs of S noise samples of two
                 + C L n d b)                     sentences, clean states of C components,
                 + S n d b L (C - 1)              what blocks leave, and the larger of two sets of
                 + V max(S n b, P (8 or b + 8))   logits: P positions of the restored runs at once
    generation   kept (1 + (1/2 + r) / L)         of R (n + g) tokens, g of them new; r = H / key
                 + R V (b + 8)                    heads, or 0 where each head has its own

Measured, a pass holds 0.92 to 1.45 times its formula (``analyses/gpu/memory.py``,
``tests/test_memory.py``), so nine tenths of it are asked for: little that would fit is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge

from tracelab.model.bridge import is_spread
from tracelab.ranges import require_memory

LEAST = 0.9
"""The share of a formula that was held at least where it was measured: what is asked for."""
CHUNK = 256
"""Rows of logits that scoring turns to fp32 at once."""


@dataclass(frozen=True)
class Sizes:
    """Of a model, in numbers; see the module's docstring.

    Attributes:
        keys: numbers of a key of one token, all heads together.
        repeats: heads that share a key; 0: none do.
        number: bytes of one number.
    """

    layers: int
    width: int
    inner: int
    heads: int
    keys: int
    repeats: int
    vocabulary: int
    number: int

    @classmethod
    def of(cls, model: TransformerBridge) -> Sizes:
        """Of a loaded model, in the dtype it has now."""
        cfg: Any = model.cfg
        key_heads = getattr(cfg, "n_key_value_heads", None) or cfg.n_heads
        parameters = model.original_model.parameters()
        dtype = next((p.dtype for p in parameters if p.dtype.is_floating_point), cfg.dtype)
        return cls(
            layers=cfg.n_layers,
            width=cfg.d_model,
            inner=getattr(cfg, "d_mlp", None) or 4 * cfg.d_model,
            heads=cfg.n_heads,
            keys=key_heads * cfg.d_head,
            repeats=cfg.n_heads // key_heads if key_heads < cfg.n_heads else 0,
            vocabulary=cfg.d_vocab,
            number=dtype.itemsize,
        )

    @property
    def half(self) -> bool:
        """Whether numbers have fewer than 32 bits."""
        return self.number < 4

    def kept(self, tokens: int) -> int:
        """Keys and values of all layers."""
        return 2 * self.layers * tokens * self.keys * self.number

    def block(self, texts: int, length: int) -> int:
        """The larger of what attention and MLP hold."""
        tokens, b = texts * length, self.number
        a_score = 4 + 3 * b if self.half else 8
        attention = 8 * tokens * self.width * b + texts * self.heads * length**2 * a_score
        return max(attention, tokens * b * (4 * self.inner + 2 * self.width))

    def forward(self, texts: int, length: int) -> int:
        """A forward pass with all its logits."""
        tokens = texts * length
        logits = tokens * self.vocabulary * self.number
        return self.kept(tokens) + max(self.block(texts, length), logits)

    def scoring(self, texts: int, length: int) -> int:
        """A forward pass whose tokens are scored."""
        tokens = texts * length
        in_fp32 = self.number + 4 if self.half else 4
        logits = tokens * self.number + min(tokens, CHUNK) * in_fp32
        return max(self.forward(texts, length), self.vocabulary * logits)

    def harvest(self, texts: int, length: int) -> int:
        """A forward pass of which the last token's logits are read."""
        logits = texts * self.vocabulary * (self.number + 8)
        return self.kept(texts * length) + max(self.block(texts, length), logits)

    def states(self, texts: int) -> int:
        """What a harvest keeps in main memory, or in a file."""
        return 4 * texts * self.layers * self.width

    def probers(self, hidden: int) -> int:
        """The probers of all layers in training, in main memory."""
        return prober_bytes(self.layers, self.width, hidden)

    def fit(self, texts: int, length: int, layers: int) -> int:
        """A forward pass with gradients of the last ``layers`` layers, and the way back."""
        tokens, b = texts * length, self.number
        a_layer = tokens * b * (4 * self.inner + 4 * self.width)
        a_layer += texts * self.heads * length**2 * (5 if self.half else 4)
        return 12 * tokens * self.vocabulary + layers * a_layer

    def trace(self, samples: int, length: int, components: int, positions: int) -> int:
        """The shared runs of a pair's two sentences, and the logits of the restored ones.

        Args:
            positions: whose logits are made at once.
        """
        a_state = samples * length * self.width * self.number
        corrupted = (self.layers + 1) * a_state + self.kept(samples * length)
        clean = components * self.layers * length * self.width * self.number
        left = max(0, components - 1) * self.layers * a_state
        in_fp32 = self.number + 8 if self.half else 8
        logits = max(samples * length * self.number, positions * in_fp32)
        return 2 * (corrupted + clean) + left + self.vocabulary * logits

    def generation(self, rows: int, length: int, new_tokens: int) -> int:
        """The keys and values of all tokens, those of a layer anew, and one step's logits."""
        kept = self.kept(rows * (length + new_tokens))
        anew = int(kept * (0.5 + self.repeats) / self.layers)
        return kept + anew + rows * self.vocabulary * (self.number + 8)


def prober_bytes(layers: int, width: int, hidden: int) -> int:
    """Weights, gradients and Adam's two moments of the probers' first maps, in fp32."""
    return 16 * layers * width * hidden


def free_memory(device: torch.device | str) -> int | None:
    """Bytes that can still be had on a device; None: nobody tells."""
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if torch.cuda.get_device_properties(device).is_integrated:  # the machine's own memory
            free = max(free, _main_memory() or 0)
        # what torch holds and does not use
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return _main_memory() if device.type == "cpu" else None


def _main_memory() -> int | None:
    """Of the machine and, in a container, of what it may have."""
    found = []
    try:
        facts = _numbers(Path("/proc/meminfo"))
        found.append(1024 * (facts["MemAvailable:"] + facts["SwapFree:"]))
    except (OSError, ValueError, KeyError):  # no Linux
        pass
    if (own := _container_memory()) is not None:
        found.append(own)
    return max(0, min(found)) if found else None


def _container_memory(group: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What a container may still take; files that were read are given up when it wants more."""
    try:
        most = int((group / "memory.max").read_text("ascii"))
        used = int((group / "memory.current").read_text("ascii"))
        parts = _numbers(group / "memory.stat")
    except (OSError, ValueError):  # no limit, or another kind of machine
        return None
    reclaimable = parts.get("inactive_file", 0) + parts.get("active_file", 0)
    return most - used + reclaimable + parts.get("slab_reclaimable", 0)


def _numbers(file: Path) -> dict[str, int]:
    """Of a file whose lines are a name and a number."""
    lines = (line.split() for line in file.read_text("ascii").splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1}


def require_room(device: torch.device | str, what: str, needed: int, change: str) -> None:
    """Refuse work for which a device has no room, before it begins.

    Args:
        what: the work, as the beginning of a sentence in the plural.
        needed: bytes, by a formula of :class:`Sizes`.
        change: what would make it fit.

    Raises:
        TracelabError: saying how much is needed, how much there is, and what to change.
    """
    free = free_memory(device)
    if free is not None or torch.device(device).type == "cpu":  # of the machine the whole is known
        require_memory(what, needed, free=free, place=str(device), change=change)


def require_room_at(model: TransformerBridge, what: str, needed: int, change: str) -> None:
    """:func:`require_room` where a model is; one that is spread over devices is not judged.

    Raises:
        TracelabError: there is no room.
    """
    if not is_spread(model.original_model):
        place = next(model.original_model.parameters()).device
        require_room(place, what, int(LEAST * needed), change)


SMALLER_PASSES = "lower batch_tokens, shorten the longest text, or load the model in bfloat16"


def require_room_for_passes(
    model: TransformerBridge,
    lengths: Iterable[int],
    batch_tokens: int,
    formula: Callable[[Sizes, int, int], int],
) -> None:
    """Refuse forward passes over texts for which there is no room where the model is.

    Args:
        lengths: tokens of each text.
        batch_tokens: most tokens of a pass; a longer text goes alone.
        formula: such as :meth:`Sizes.scoring`.

    Raises:
        TracelabError: there is no room.
    """
    lengths = list(lengths)
    longest = max(lengths, default=0)
    if not longest:
        return
    texts = max(1, min(batch_tokens, sum(lengths)) // longest)
    what = f"passes over {texts} texts of {longest} tokens"
    require_room_at(model, what, formula(Sizes.of(model), texts, longest), SMALLER_PASSES)
