"""How much memory a piece of work holds at once: of tensors, the same on every device.

Scratch memory inside a kernel is not seen; ``torch.cuda.max_memory_allocated`` sees it on a GPU.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Alive(TorchDispatchMode):
    """Sums the storages that are alive among those made inside it."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.alive: dict[int, int] = {}
        self.peak = [0]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if not isinstance(tensor, Tensor) or tensor.device.type == "meta":
                continue
            storage = tensor.untyped_storage()
            key = storage.data_ptr()
            if key and key not in self.known and key not in self.alive:
                self.alive[key] = storage.nbytes()
                weakref.finalize(storage, self.alive.pop, key, None)
        self.peak[0] = max(self.peak[0], sum(self.alive.values()))
        return made


@contextmanager
def peak_memory(known: Iterable[Tensor]) -> Iterator[list[int]]:
    """Bytes of the tensors made inside the block that were alive at once, at most; in the list when
    it ends.

    Args:
        known: weights and the like, whose storages are not counted where they come up.
    """
    mode = _Alive(known)
    with mode:
        yield mode.peak
