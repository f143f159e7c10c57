"""The model's own choice of a group: the formula by hand, and what is refused."""

from __future__ import annotations

import pytest
import torch

from tracelab.datasets import templates
from tracelab.errors import TracelabError
from tracelab.evaluate import group_bias
from tracelab.localize.probing.harvest import group_token_ids
from tracelab.model.tokens import encode


@pytest.fixture(scope="module")
def corpus():
    return templates("gender", limit=3)


def test_distance_and_mass_equal_a_loop_over_prompts(tiny_model, corpus):
    model = tiny_model("llama")
    words = dict(zip(corpus.group_names, group_token_ids(model, corpus), strict=True))
    found = group_bias(model, corpus, groups=["male", "female"])
    for prompt, row in zip(corpus.prompts, found.prompts.itertuples(), strict=True):
        with torch.no_grad():
            p = model(torch.tensor([encode(model, prompt.text).ids]))[0, -1].softmax(-1)
        female, male = (float(p[words[name]].sum()) for name in ("female", "male"))
        assert row.id == prompt.id
        assert row.mass == pytest.approx(female + male, rel=1e-4)
        assert row.distance == pytest.approx(abs(female / (female + male) - 0.5), abs=1e-5)


def test_the_table_averages_over_concepts(tiny_model, corpus):
    found = group_bias(tiny_model("llama"), corpus)
    by_concept = found.prompts.groupby("concept")["distance"].mean()
    row = found.table.set_index("metric").loc["distance"]
    assert row["value"] == pytest.approx(by_concept.mean())
    assert row["low"] <= row["value"] <= row["high"]
    assert row["n"] == len(corpus.prompts)


@pytest.mark.parametrize("groups", [["female"], ["female", "robot"]])
def test_unknown_or_single_groups_are_refused(tiny_model, corpus, groups):
    with pytest.raises(TracelabError, match="two or more of the groups female, male, trans"):
        group_bias(tiny_model("llama"), corpus, groups=groups)
