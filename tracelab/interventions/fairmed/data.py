"""What FairMed can be fitted on: checked before anything is trained, and what is held out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from transformer_lens.model_bridge import TransformerBridge

from tracelab.datasets.templates import Corpus
from tracelab.errors import TracelabError
from tracelab.interventions.fairmed.config import FairMedConfig
from tracelab.localize.probing.probes import LayerProbes, split_rows
from tracelab.model.hooked import hook_names
from tracelab.model.load import model_facts
from tracelab.model.weights import same_weights
from tracelab.ranges import shown

PROBING = ("n_seeds", "split", "top_k")
"""Fields of the configuration that are about the probers."""
_AGREEMENT_PROMPTS = 64


def check_data(
    model: TransformerBridge, items: Sequence[Corpus | LayerProbes], config: FairMedConfig
) -> None:
    """Refuse data that cannot serve, before anything is trained.

    Raises:
        TracelabError: the same attribute twice, probes of another model or of an edited one, groups
            that nobody knows, or wishes about probers that are trained already.
    """
    if not isinstance(items, Sequence) or not all(
        isinstance(item, Corpus | LayerProbes) for item in items
    ):
        raise TracelabError(
            f"FairMed cannot be fitted on {shown(items)}: give a corpus (datasets.templates), its "
            "probes (probe_layers), or a list of them"
        )
    corpora = [item for item in items if isinstance(item, Corpus)]
    probes = [item for item in items if isinstance(item, LayerProbes)]
    names = [c.attribute for c in corpora] + [p.settings["attribute"] for p in probes]
    if not items or len(set(names)) < len(names):
        raise TracelabError(
            f"FairMed needs probers of at least one attribute, each once, not of {names}"
        )
    for item in probes:
        if not same_weights(model, item.settings["model"]["fingerprint"]):
            made_for, own = item.settings["model"]["model_id"], model_facts(model).model_id
            raise TracelabError(f"these probes are of {made_for}: probe {own} itself")
        if (on := item.settings.get("hooks")) and not hook_names(model):
            raise TracelabError(
                f"these probes were made with hooks on ({', '.join(on)}): probe the model as it is"
            )
    wishes = {n: getattr(config, n) for n in PROBING}
    asked = [
        name
        for name, wish in wishes.items()
        if wish != FairMedConfig.model_fields[name].default
        and any(wish != item.settings[name] for item in probes)
    ]
    if asked and not corpora:
        raise TracelabError(
            f"{', '.join(asked)}: these probes are made already; probe again, or give layers"
        )
    known = [c.group_names for c in corpora] + [p.settings["groups"] for p in probes]
    check_groups(config, {group for groups in known for group in groups})


def held_out(corpus: Corpus, probes: LayerProbes) -> Corpus:
    """At most :data:`_AGREEMENT_PROMPTS` prompts of the kept probers' test rows."""
    _, rows = split_rows(corpus, probes.settings["split"], probes.settings["seed"])
    few = rows[:: max(1, len(rows) // _AGREEMENT_PROMPTS)][:_AGREEMENT_PROMPTS]
    return replace(corpus, prompts=tuple(corpus.prompts[i] for i in few.tolist()))


def check_groups(config: FairMedConfig, known: set[str]) -> None:
    """Refuse groups that no prober knows."""
    if not isinstance(config.groups, str) and not known >= set(config.groups):
        raise TracelabError(
            f"the probers know the groups {sorted(known)}, not all of {list(config.groups)}"
        )
