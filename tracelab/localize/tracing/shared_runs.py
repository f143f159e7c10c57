"""What all restored runs of one sentence share: the clean run, the corrupted run, and what each
block leaves of the corrupted run where its states are clean.

The last token predicts nothing and is not run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tracelab.localize.tracing.sentence import HOOKED, TracedSentence, noising
from tracelab.model.load import model_facts
from tracelab.model.partial_forward import BlockRunner, KeyValues, Watcher

LOGIT_BYTES = 24 * 2**20
"""Logits made at once; beyond 32 MB a C library asks the kernel for new pages each time."""


@dataclass(frozen=True)
class SharedRuns:
    """The clean and the corrupted run of one sentence.

    Attributes:
        clean: by component and layer, the clean states.
        before: the corrupted residuals before each block and after the last.
        key_values: the corrupted keys and values of each block.
        logprobs: of the scored tokens in the corrupted run.
    """

    runner: BlockRunner
    ids: Int[Tensor, "pos"]
    clean_score: float
    clean: dict[str, dict[int, Float[Tensor, "1 run d_model"]]]
    before: dict[int, Float[Tensor, "samples run d_model"]]
    key_values: list[KeyValues]
    logprobs: Float[Tensor, "samples scored"]
    _left: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Positions that are run."""
        return len(self.ids) - 1

    @property
    def samples(self) -> int:
        """Rows of the corrupted run."""
        return len(self.logprobs)

    def left(self, component: str, layer: int) -> Float[Tensor, "samples run d_model"]:
        """What block ``layer`` leaves of the corrupted run with clean states at every position."""
        if component == "resid":
            return self.clean["resid"][layer].expand_as(self.before[layer + 1])
        if (component, layer) not in self._left:
            keys, values = self.key_values[layer]
            self._left[component, layer] = self.runner.run(
                layer,
                self.before[layer],
                start=0,
                length=self.length,
                prefix=(keys[:, :, :0], values[:, :, :0]),
                watchers=[(HOOKED[component], layer, self.clean[component][layer].expand_as)],
            )
        return self._left[component, layer]


def shared_runs(
    runner: BlockRunner, sentence: TracedSentence, first: int, components: Sequence[str]
) -> SharedRuns:
    """Run a sentence clean and corrupted; its tokens are scored from ``first`` on."""
    model, n_layers = runner.model, model_facts(runner.model).n_layers
    ids = sentence.ids.to(model.cfg.device)
    noise, targets, context = sentence.noise.before(len(ids) - 1), ids[None, first:], ids[None, :-1]
    clean: dict[str, dict[int, Tensor]] = {component: {} for component in components}
    with runner.watching(
        (HOOKED[component], layer, _keep(clean[component], layer))
        for component in components
        for layer in range(n_layers)
    ):
        clean_logits = runner.logits(context)[:, first - 1 :]
    before: dict[int, Tensor] = {}
    with runner.watching(
        [
            ("embed", None, noising(noise)),
            ("resid_pre", 0, _keep(before, 0)),
            *(("resid_post", n, _keep(before, n + 1)) for n in range(n_layers)),
        ]
    ):
        key_values = runner.key_values(context.expand(len(noise.values), -1))
    scored = few_rows(before[n_layers][:, first - 1 :], model.cfg.d_vocab)
    logprobs = torch.cat([logprobs_at(runner.head(rows), targets)[:, 0] for rows in scored])
    return SharedRuns(
        runner=runner,
        ids=ids,
        clean_score=float(logprobs_at(clean_logits, targets).sum()),
        clean=clean,
        before=before,
        key_values=key_values,
        logprobs=logprobs,
    )


def few_rows(
    resid: Float[Tensor, "rows part d_model"], d_vocab: int
) -> Iterable[Float[Tensor, "_rows part d_model"]]:
    """Rows whose logits fit into memory that is at hand."""
    return resid.split(max(1, positions_at_once(resid.device, d_vocab) // resid.shape[1]))


def positions_at_once(device: torch.device, d_vocab: int) -> int:
    """Positions whose logits fit into memory that is at hand."""
    at_once = LOGIT_BYTES * (1 if device.type == "cpu" else 16)
    return max(1, at_once // (4 * d_vocab))


def logprobs_at(
    logits: Float[Tensor, "rows part vocab"], targets: Int[Tensor, "sentences part"]
) -> Float[Tensor, "rows sentences part"]:
    """Log-probabilities of what each of some sentences has at the same places."""
    places = torch.arange(logits.shape[1], device=logits.device)
    return logits.float().log_softmax(dim=-1)[:, places, targets.to(logits.device)]


def _keep(store: dict[int, Tensor], key: int) -> Watcher:
    def keep(value: Tensor) -> None:
        store[key] = value.detach()

    return keep
