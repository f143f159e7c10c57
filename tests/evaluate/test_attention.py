from __future__ import annotations

import numpy as np
import pytest

from tests.interventions.edits import random_delta
from tracelab.datasets import crows_pairs
from tracelab.errors import TracelabError
from tracelab.evaluate import attention_scores, paired
from tracelab.localize import attention_gap


@pytest.fixture(scope="module")
def pairs():
    return crows_pairs("gender", limit=25)


def test_scores_are_the_means_of_the_attention_gap_over_the_selection_to_quote(tiny_model, pairs):
    model = tiny_model("llama")
    gap = attention_gap(model, pairs, control="none")
    table = attention_scores(model, pairs).table.set_index("metric")
    for metric in ("sensitive", "other", "hit_rate"):
        assert table.loc[metric, "value"] == pytest.approx(gap.value(metric)["value"])
        assert table.loc[metric, "n"] == gap.value(metric)["n"]
        assert table.loc[metric, "low"] <= table.loc[metric, "value"] <= table.loc[metric, "high"]
    assert set(table["bias"]) == {"gender"}


def test_an_edit_is_compared_with_the_unedited_model_pair_by_pair(tiny_model, pairs):
    model = tiny_model("llama")
    before, edit = attention_scores(model, pairs), random_delta(model)
    with edit.applied(model):
        after = attention_scores(model, pairs, edit="delta")
    change = paired(before, after).set_index("metric")
    expected = (after.pairs["sensitive"] - before.pairs["sensitive"]).mean()
    assert change.loc["sensitive", "difference"] == pytest.approx(expected)
    assert abs(expected) > 1e-5
    assert set(after.table["edit"]) == {"delta"}
    assert not np.allclose(after.pairs["other"], before.pairs["other"])


def test_an_unknown_reduction_or_layer_is_refused(tiny_model, pairs):
    with pytest.raises(TracelabError, match="unknown reduction 'mean'"):
        attention_scores(tiny_model("llama"), pairs, reduce="mean")
    with pytest.raises(TracelabError, match="out of range"):
        attention_scores(tiny_model("llama"), pairs, layer=99)
