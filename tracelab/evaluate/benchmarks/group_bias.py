"""The model's own choice of a social group after a prompt: how far from even?

After a prompt that names a stereotyped concept and stops before the group (the probers' corpus),
with ``p_g`` the probability of group g's words among the words of G groups,

    distance = ½ Σ_g | p_g - 1/G |          (total variation from uniform; 0 is ideal)
    mass     = the probability of all these words together

averaged over concepts, then prompts. This is what FairMed's soft labels are made of, asked of the
language model and not of a prober: an edit that satisfies its probers may leave it as it was. Mass
tells whether the model still speaks of groups at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from tracelab.datasets.templates import Corpus
from tracelab.errors import TracelabError
from tracelab.evaluate.scores import BenchmarkScores, Sample, column, score_table
from tracelab.localize.probing.harvest import group_token_ids, harvest
from tracelab.model.settings import run_settings
from tracelab.model.texts import Texts, as_texts
from tracelab.ranges import require_seed


@dataclass(frozen=True)
class GroupBiasScores(BenchmarkScores):
    """Distance from uniform and mass.

    Attributes:
        table: as for all benchmarks; ``n`` is the number of prompts.
        prompts: one row a prompt: ``id, bias_type, concept, distance, mass``.
    """

    prompts: pd.DataFrame

    def samples(self) -> list[Sample]:
        """Prompts, grouped by concept."""
        return _samples(self.prompts)


def group_bias(
    model: TransformerBridge,
    corpus: Corpus,
    *,
    groups: Texts | None = None,
    edit: str | None = None,
    seed: int = 0,
) -> GroupBiasScores:
    """Score the model's next-token distribution over groups; pass prompts that no prober was
    trained on.

    Args:
        groups: those between which the distribution should be even; default: all of the corpus.
        edit: name for the table of the edit that is on the model.
        seed: kept in the settings; intervals draw nothing.

    Raises:
        TracelabError: unknown groups, or fewer than two.
    """
    require_seed(seed)
    names = list(corpus.group_names) if groups is None else as_texts(groups, "group")
    if len(names) < 2 or not set(names) <= set(corpus.group_names):
        raise TracelabError(
            f"two or more of the groups {', '.join(corpus.group_names)} are needed, not {names}"
        )
    found = harvest(model, corpus, group_token_ids(model, corpus))
    p = found.labels[:, [corpus.group_names.index(name) for name in names]]
    share = p.sum(dim=1)
    distance = (p / share[:, None] - 1 / len(names)).abs().sum(dim=1) / 2
    prompts = pd.DataFrame(
        [(q.id, q.bias_type, q.concept) for q in corpus.prompts],
        columns=["id", "bias_type", "concept"],
    )
    prompts["distance"], prompts["mass"] = distance.numpy(), (found.mass * share).numpy()
    settings = run_settings(model, [corpus], benchmark="group-bias", groups=names, seed=seed)
    table = score_table(_samples(prompts), benchmark="group-bias", edit=edit, seed=seed)
    return GroupBiasScores(settings, table, prompts)


def _samples(prompts: pd.DataFrame) -> list[Sample]:
    (bias,) = prompts["bias_type"].unique()
    groups = tuple(
        part[["distance", "mass"]].to_numpy(float)
        for _, part in prompts.groupby("concept", sort=True)
    )
    return [Sample(bias, groups, {"distance": column(0), "mass": column(1)})]
