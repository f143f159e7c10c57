"""FairMed beside the model's own distribution over groups: how far both are from even, and the
closed form that makes the model's even."""

from __future__ import annotations

import json
import warnings

import pytest
import torch

import tracelab
from tests.interventions.edits import random_fairmed
from tracelab.datasets import templates
from tracelab.errors import TracelabError
from tracelab.evaluate import group_bias
from tracelab.interventions import FairMed, FairMedConfig, load_intervention
from tracelab.interventions.fairmed import fairmed as module
from tracelab.interventions.fairmed.fairmed import FairMedSpec
from tracelab.interventions.fairmed.model_groups import balance, group_logits, kl_from_even
from tracelab.localize import probe_layers
from tracelab.localize.probing.prober import ProberConfig

WORDS = [torch.tensor([3, 8]), torch.tensor([5]), torch.tensor([0, 11, 12])]
TOKENS = torch.arange(40, 52).reshape(2, 6)


def some_logits(*shape: int) -> torch.Tensor:
    return 3 * torch.randn(*shape, 20, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def corpus():
    return templates("gender", limit=8)


@pytest.fixture(scope="module")
def probes(tiny_model, corpus):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few prompts
        config = ProberConfig(hidden=16, lr=1e-2)
        return probe_layers(tiny_model("llama"), corpus, config=config, n_seeds=1, top_k=2)


@pytest.fixture
def no_training(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("probers were trained")

    monkeypatch.setattr(module, "probe_layers", fail)


# --- the closed form
# ----------------------------------------------------------------------------------------------


def test_balanced_groups_are_equally_likely_and_other_tokens_as_before():
    logits = some_logits(4, 5)
    p, q = logits.softmax(-1), balance(logits, WORDS).softmax(-1)
    mass = torch.stack([q[..., ids].sum(-1) for ids in WORDS], -1)
    before = torch.stack([p[..., ids].sum(-1) for ids in WORDS], -1)
    torch.testing.assert_close(mass, before.mean(-1, keepdim=True).expand_as(mass))
    assert (before.amax(-1) > 2 * before.amin(-1)).any()
    others = [i for i in range(20) if i not in torch.cat(WORDS).tolist()]
    torch.testing.assert_close(q[..., others], p[..., others])
    assert torch.equal(balance(logits, WORDS)[..., others], logits[..., others])
    within = q[..., [3]] / q[..., [8]]  # the words of a group keep their ratio
    torch.testing.assert_close(within, p[..., [3]] / p[..., [8]])


def test_balancing_costs_the_mass_times_the_groups_kl_and_no_even_distribution_costs_less():
    logits = some_logits(6).double()
    log_p, balanced = logits.log_softmax(-1), balance(logits.float(), WORDS).double()
    cost = (log_p.exp() * (log_p - balanced.log_softmax(-1))).sum(-1)
    groups = torch.stack([log_p[:, ids].exp().sum(-1) for ids in WORDS], -1)
    mass, shares = groups.sum(-1), groups / groups.sum(-1, keepdim=True)
    expected = mass * (shares * (3 * shares).log()).sum(-1)
    torch.testing.assert_close(cost, expected, atol=1e-5, rtol=1e-4)
    for change in (0.3, -0.3):  # as even, with more or less mass
        other = balanced.clone()
        other[:, torch.cat(WORDS)] += change
        assert (log_p.exp() * (log_p - other.log_softmax(-1))).sum(-1).gt(cost).all()


def test_the_kl_from_even_is_that_of_torch():
    scores = group_logits(some_logits(4), WORDS)
    expected = torch.nn.functional.kl_div(
        scores.log_softmax(-1), torch.full_like(scores, 1 / 3), reduction="none"
    ).sum(-1)
    torch.testing.assert_close(kl_from_even(scores), expected)
    assert kl_from_even(group_logits(balance(some_logits(4), WORDS), WORDS)).abs().max() < 1e-6


# --- as an edit
# ---------------------------------------------------------------------------------------------------  # noqa: E501


@pytest.mark.usefixtures("no_training")
def test_balance_trains_no_probers_and_the_models_choice_is_even(tiny_model, corpus, tmp_path):
    model = tiny_model("llama")
    edit = FairMed.fit(model, corpus, target="balance")
    assert (edit.name, edit.layers, list(edit.state_dict())) == ("fairmed(gender, balance)", [], [])
    scored = list(edit.attributes[0].scored)
    before = group_bias(model, corpus, groups=scored).table.set_index("metric")["value"]
    loaded = load_intervention(edit.save(tmp_path / "edit"))
    for each in (edit, loaded):
        with each.applied(model):
            after = group_bias(model, corpus, groups=scored).table.set_index("metric")["value"]
        assert before["distance"] > 0.01
        assert after["distance"] < 1e-5
        assert after["mass"] == pytest.approx(before["mass"], rel=1e-4)


def test_balance_needs_no_probers_but_takes_theirs_and_gives_them_back(tiny_model, probes, corpus):
    model = tiny_model("llama")
    edit = FairMed.fit(model, probes)
    even = edit.with_config(FairMedConfig(target="balance"))
    with even.applied(model):
        table = group_bias(model, corpus, groups=["female", "male"]).table.set_index("metric")
    assert table["value"]["distance"] < 1e-5
    assert even.with_config(FairMedConfig()).layers == edit.layers
    own = FairMed.fit(model, probes, target="balance")
    with torch.no_grad(), own.applied(model):
        balanced = model(TOKENS)
    with torch.no_grad(), even.applied(model):
        assert torch.equal(model(TOKENS), balanced)
    with pytest.raises(TracelabError, match="no probers of gender were trained"):
        own.with_config(FairMedConfig())
    with pytest.raises(TracelabError, match="acts on the logits: give no layers"):
        FairMed.fit(model, probes, target="balance", layers=[1])
    with pytest.raises(TracelabError, match="has a closed form and no direction"):
        FairMedConfig(target="balance", direction="random")


def test_probers_that_know_no_words_are_refused(tiny_model):
    model = tiny_model("llama")
    edit = random_fairmed(model)
    with pytest.raises(TracelabError, match="do not say which tokens stand for its groups"):
        edit.with_config(FairMedConfig(target="balance"))
    with pytest.raises(TracelabError, match="do not say which tokens stand for its groups"):
        edit.agreement(model, templates("gender", limit=4))


def test_while_generating_every_step_is_balanced_with_a_cache_as_without(tiny_model, probes):
    model = tiny_model("llama")
    edit = FairMed.fit(model, probes, target="balance")
    with edit.applied(model), edit.observed() as told:
        text = tracelab.generate(model, ["He was"], max_new_tokens=4, do_sample=False)
    kls = [fact for fact in told if fact.quantity == "model_kl"]
    assert len(kls) == 4
    assert max(float(f.after.max()) for f in kls) < 1e-5
    assert max(float(f.before.max()) for f in kls) > 1e-3
    ids = model.tokenizer("He was", return_tensors="pt", add_special_tokens=False).input_ids
    with torch.no_grad(), edit.applied(model):
        for _ in range(4):
            ids = torch.cat([ids, model(ids)[:, -1:].argmax(-1)], dim=1)
    assert text.frame["continuation"].tolist() == [model.tokenizer.decode(ids[0, 2:])]


# --- how far probers and model agree
# ------------------------------------------------------------------------------


def test_agreement_is_the_kl_of_each_layers_prober_and_of_the_model(tiny_model, probes, corpus):
    model = tiny_model("llama")
    edit = FairMed.fit(model, probes, lam=4.0)
    table = edit.agreement(model, corpus)
    assert table["layer"].isna().tolist() == [True, False, False]
    assert table["layer"].dropna().tolist() == edit.layers
    assert (table["n"] == len(corpus.prompts)).all()
    with edit.applied(model), edit.observed() as told:
        group_bias(model, corpus)
    for layer, row in table.dropna().set_index("layer").iterrows():
        kls = [f.after[:, -1] for f in told if (f.quantity, f.layer) == ("kl", layer)]
        assert row["kl_after"] == pytest.approx(float(torch.cat(kls).mean()), abs=1e-5)
        assert row["kl_after"] < row["kl_before"]
    even = edit.with_config(FairMedConfig(target="balance")).agreement(model, corpus)
    own = even[even["layer"].isna()].iloc[0]
    assert own["kl_before"] == pytest.approx(table["kl_before"][0], abs=1e-6)
    assert own["kl_after"] < 1e-5 < own["kl_before"]
    with pytest.raises(TracelabError, match="this edit is about gender, not about age"):
        edit.agreement(model, templates("age", limit=4))


def test_a_fit_on_a_corpus_notes_how_far_both_are_from_even(
    tiny_model, probes, corpus, monkeypatch
):
    model = tiny_model("llama")
    monkeypatch.setattr(module, "probe_layers", lambda *args, **options: probes)
    rows = FairMed.fit(model, corpus).notes["agreement"]
    assert [row["layer"] for row in rows] == [None, *sorted(probes.top_layers)]
    assert all(row["n"] >= 4 for row in rows)


@pytest.mark.slow
def test_on_the_embedded_model_balance_makes_an_unseen_prompts_choice_even(real_model):
    few = templates("gender", limit=6)
    edit = FairMed.fit(real_model, few, target="balance")
    scored = edit.attributes[0].scored
    rest = templates("gender", limit=9)
    before = group_bias(real_model, rest, groups=scored).table.set_index("metric")["value"]
    with edit.applied(real_model):
        after = group_bias(real_model, rest, groups=scored).table.set_index("metric")["value"]
    assert before["distance"] > 0.1
    assert after["distance"] < 1e-4
    assert after["mass"] == pytest.approx(before["mass"], rel=1e-3)


def test_an_edit_of_before_there_was_a_choice_of_steps_has_fixed_ones():
    fields = FairMedConfig().settings()
    before = {name: v for name, v in fields.items() if name not in ("step", "standardise")}
    for config, step in ((before, "fixed"), (fields, "polyak")):
        spec = FairMedSpec.model_validate_json(json.dumps({"config": config, "attributes": []}))
        assert FairMed.build(spec, None).config.step == step


def test_words_that_are_ruled_out_stay_so_and_are_no_number_to_nobody():
    logits = torch.tensor([[1.0, -torch.inf, 2.0, 0.5]])
    even = balance(logits, [torch.tensor([0]), torch.tensor([1])])
    assert not even.isnan().any()
    assert even[0, 1] == -torch.inf
