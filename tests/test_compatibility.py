"""What the documentation says of each architecture is what happens."""

from __future__ import annotations

import re

import pytest

import tracelab
from docs import draw_compatibility
from tests.compatibility import (
    FAMILIES,
    OF_A_METHOD,
    OF_THE_MODEL,
    YES,
    attach,
    hooks,
    made,
    tried,
)
from tests.small_cache import make_small_cache
from tracelab.interventions.methods import METHODS

TABLE = draw_compatibility.read()
QUICK = ("llama",)
IN_CI = ("gpt2", "gpt_neox", "opt", "gemma2", "mixtral", "olmo2")
"""Of each kind of house one: the others are nightly."""
TRIED = [
    pytest.param(
        family,
        marks=[pytest.mark.slow] * (family not in QUICK)
        + [pytest.mark.nightly] * (family not in (*QUICK, *IN_CI)),
    )
    for family in FAMILIES
]


@pytest.fixture(scope="module", autouse=True)
def small_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = make_small_cache(tmp_path_factory.mktemp("cache"))
        patch.setenv("TRACELAB_CACHE", str(folder))
        yield


@pytest.mark.parametrize("family", TRIED)
def test_an_architecture_can_do_what_the_table_says_and_refuses_the_rest_by_name(family):
    rows = TABLE[TABLE["family"] == family]
    found = tried(family)
    assert found == dict(zip(rows["capability"], rows["outcome"], strict=True))
    for outcome in found.values():
        own = re.escape(family.replace("_", "").removesuffix("text"))
        assert outcome == YES or re.search(own, outcome.replace("_", ""), re.I), outcome


@pytest.mark.parametrize(
    ("family", "modules"), [("phi3", ("mlp.out", "attn.o")), ("mixtral", ("attn.q", "attn.o"))]
)
def test_experts_take_the_maps_that_an_architecture_has(family, modules):
    subject = made(family)
    training = tracelab.FinetuneConfig(rank=2, modules=modules)
    data = tracelab.Experts.training_data("gender", limit=4)
    subject.edits["experts"] = tracelab.Experts.fit(subject.model, data, training=training)
    hooks(subject, tracelab.Experts)
    attach(subject, tracelab.Experts)


def test_every_family_is_in_the_table_with_every_capability():
    checks = [check.__name__ for check in OF_THE_MODEL]
    checks += [f"{method.kind}: {check.__name__}" for method in METHODS for check in OF_A_METHOD]
    for family, models in FAMILIES.items():
        rows = TABLE[TABLE["family"] == family]
        assert set(rows["models"]) == {models}
        assert list(rows["capability"]) == checks
    assert set(TABLE["family"]) == FAMILIES.keys()
    assert {method.kind for method in METHODS} == draw_compatibility.METHOD_COLUMNS.keys()


def test_the_page_shows_the_table():
    page = draw_compatibility.PAGE.read_text("utf-8")
    assert page == draw_compatibility.in_the_page(TABLE), "python -m docs.draw_compatibility"


def test_a_cell_says_what_of_a_method_is_refused():
    assert draw_compatibility.cell({"fit": YES, "attach": YES}) == "yes"
    assert draw_compatibility.cell({"fit": YES, "attach": "it has no such module"}) == "no attach"
    assert draw_compatibility.cell({"fit": "no map", "attach": "no map"}) == "no"
