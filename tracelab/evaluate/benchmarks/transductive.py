"""BiasEdit's own protocol: each group of test triples is scored under an edit made from these very
triples.

The labels of the test set go into the edit, so the figures say how well an editor fits what it is
shown, not what a model edited once does with new text: that is the inductive protocol. Never read
both in one column; the name in the column ``edit`` tells them apart. Source: BiasEdit (arXiv
2503.08588), released ``editor/base.py``.
"""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from tracelab.datasets.stereoset import StereoSetRecord
from tracelab.evaluate.benchmarks.stereoset import (
    StereoSetScores,
    stereoset_metrics,
    stereoset_scores,
)
from tracelab.interventions.biasedit.biasedit import BiasEdit
from tracelab.model.hooked import require_unedited
from tracelab.model.settings import run_settings
from tracelab.model.texts import as_records
from tracelab.ranges import require_seed


def transductive_scores(
    model: TransformerBridge, edit: BiasEdit, records: Iterable[StereoSetRecord], *, seed: int = 0
) -> StereoSetScores:
    """StereoSet's metrics, group by group under the editor's own edit of each group.

    Args:
        edit: one just fitted: its editor networks are needed, which a bundle does not hold.
        seed: kept in the settings; intervals draw nothing.

    Raises:
        TracelabError: the edit has no editor, hooks are on the model, or a group has no usable
            triple.
    """
    require_seed(seed)
    require_unedited(model, "the transductive protocol")
    records, parts = as_records(records), []
    for group, shift in edit.for_groups(model, records):
        with shift.applied(model):
            parts.append(stereoset_scores(model, group, seed=seed))
    sentences = pd.concat([part.sentences for part in parts], ignore_index=True)
    same = ("benchmark", "context_bos", "twins")
    settings = run_settings(model, records, **{name: parts[0].settings[name] for name in same})
    name = f"{edit.name}, transductive"
    table = stereoset_metrics(sentences, benchmark=settings["benchmark"], edit=name, seed=seed)
    return StereoSetScores(settings | {"seed": seed}, table, sentences)
