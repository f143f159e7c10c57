"""A harvest in pieces: activations and soft labels of some prompts of a corpus, joined for the
probers, which are trained on all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tracelab.datasets.templates import Corpus
from tracelab.localize.probing.harvest import Harvest, group_token_ids, harvest
from tracelab.model.settings import run_settings
from tracelab.results import Result


@dataclass(frozen=True)
class HarvestPart(Result):
    """A harvest as a result, which can be saved.

    Attributes:
        prompts: one row a prompt: ``id``.
        tensors: the fields of :class:`~tracelab.localize.probing.harvest.Harvest`.
    """

    prompts: pd.DataFrame
    tensors: dict[str, Tensor]

    @property
    def frame(self) -> pd.DataFrame:
        """The prompts."""
        return self.prompts

    def headline(self) -> str:
        """How many prompts, layers and groups."""
        prompts, layers, _ = self.tensors["activations"].shape
        groups = self.tensors["labels"].shape[1]
        return f"n = {prompts} prompts, {layers} layers, {groups} groups"

    @property
    def harvest(self) -> Harvest:
        """What the probers take."""
        return Harvest(**self.tensors)


def harvest_part(
    model: TransformerBridge,
    corpus: Corpus,
    *,
    prepend_bos: bool | None = None,
    batch_tokens: int = 1024,
) -> HarvestPart:
    """Run the model once over some prompts; see :func:`~tracelab.localize.probing.harvest.harvest`.

    Args:
        corpus: with the prompts of this part.
    """
    words = group_token_ids(model, corpus)
    found = harvest(model, corpus, words, prepend_bos=prepend_bos, batch_tokens=batch_tokens)
    ids = pd.DataFrame({"id": [prompt.id for prompt in corpus.prompts]})
    return HarvestPart(run_settings(model, [corpus]), ids, dict(vars(found)))


def joined_harvests(parts: Sequence[HarvestPart]) -> HarvestPart:
    """The harvest of the prompts of all parts, in their order."""
    tensors = {name: torch.cat([part.tensors[name] for part in parts]) for name in parts[0].tensors}
    prompts = pd.concat([part.prompts for part in parts], ignore_index=True)
    return HarvestPart(parts[0].settings, prompts, tensors)
