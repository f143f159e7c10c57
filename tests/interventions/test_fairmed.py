"""FairMed on tiny models: what is fitted and refused, which positions are edited, and that the
direction matters."""

from __future__ import annotations

import contextlib
import warnings

import pytest
import torch
from transformers import AutoTokenizer

import tracelab
from tests.interventions.edits import random_fairmed
from tests.tiny import tiny_hf
from tracelab.datasets import templates
from tracelab.errors import TracelabError
from tracelab.interventions import FairMed, FairMedConfig, Stack
from tracelab.interventions.fairmed import fairmed as module
from tracelab.localize import probe_layers
from tracelab.localize.probing.prober import ProberConfig
from tracelab.model import assets
from tracelab.model.forward_pass import reading
from tracelab.model.load import from_hf

TOKENS = torch.arange(40, 52).reshape(2, 6)
LEFT = torch.tensor([[0, 0, 0, 1, 1, 1], [1] * 6])
QUICK = {"config": ProberConfig(hidden=16, epochs=20, lr=1e-2), "n_seeds": 1}


def probed(model, attribute, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few prompts
        return probe_layers(model, templates(attribute, limit=8), **QUICK, **options)


@pytest.fixture(scope="module")
def gender(tiny_model):
    return probed(tiny_model("llama"), "gender", top_k=2)


@pytest.fixture(scope="module")
def age(tiny_model):
    return probed(tiny_model("llama"), "age", top_k=2)


@pytest.fixture(scope="module")
def other_model(tokenizer):
    own = AutoTokenizer.from_pretrained(assets.model_dir())
    return from_hf(tiny_hf("llama", len(tokenizer), seed=1), own, model_id="other")


@pytest.fixture
def no_training(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("probers were trained")

    monkeypatch.setattr(module, "probe_layers", fail)


@torch.no_grad()
def told(model, edit, tokens=TOKENS, mask=None, within=None):
    """What the edit's layers tell of one forward pass: a row a layer and attribute."""
    with edit.applied(model), edit.observed() as facts, within or contextlib.nullcontext():
        model(tokens, attention_mask=mask)
    return by_layer(facts)


def by_layer(facts):
    """Each pass, layer and attribute: ``layer, attribute, kl_before, kl_after,
    mask, steps, size``."""
    rows = []
    for fact in facts:
        if fact.quantity == "kl":
            row = {"layer": fact.layer, "attribute": fact.label}
            rows.append(row | {"kl_before": fact.before, "kl_after": fact.after})
        elif fact.quantity != "p":
            rows[-1]["mask" if fact.quantity == "edited" else fact.quantity] = fact.after
    return rows


@torch.no_grad()
def mlp_out(model, layer, tokens=TOKENS, edit=None, mask=None):
    """The MLP's contribution that the model goes on with."""
    seen = []
    hook = (f"blocks.{layer}.hook_mlp_out", lambda value, hook: seen.append(value))
    with edit.applied(model) if edit else contextlib.nullcontext(), model.hooks(fwd_hooks=[hook]):
        model(tokens, attention_mask=mask)
    return seen[0]


# --- fitting
# ------------------------------------------------------------------------------------------------------  # noqa: E501


def test_fitting_takes_the_probers_of_the_best_layers(tiny_model, gender):
    edit = FairMed.fit(tiny_model("llama"), gender)
    assert edit.layers == sorted(gender.top_layers)
    assert len(edit.layers) == 2
    part = edit.probers["gender"]
    for name in ("w1", "b1", "w2", "b2", "norm_std"):
        assert torch.equal(getattr(part, name), gender.probers[name][edit.layers])
    assert edit.attributes[0].groups == ("female", "male", "trans")
    assert edit.attributes[0].scored == ("female", "male")
    assert edit.notes == {"data_hash": [gender.settings["data_hash"]], "seed": 0}
    assert edit.name == "fairmed(gender)"


def test_fitting_to_a_corpus_is_fitting_to_its_probes(tiny_model, gender, monkeypatch):
    model, asked = tiny_model("llama"), []

    def quickly(model, corpus, **options):
        asked.append((corpus, options))
        return gender

    monkeypatch.setattr(module, "probe_layers", quickly)
    corpus = templates("gender", limit=8)
    edit = FairMed.fit(model, corpus, FairMedConfig(lam=1.0), top_k=2, split="concept")
    options = {"n_seeds": 3, "top_k": 2, "split": "concept", "seed": 0}
    assert asked == [(corpus, {"config": ProberConfig(), **options})]
    expected = FairMed.fit(model, gender).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in edit.state_dict().items())
    assert edit.config == FairMedConfig(
        lam=1.0, **{name: gender.settings[name] for name in module.PROBING}
    )


def test_layers_can_be_chosen_by_hand_in_any_order(tiny_model, gender):
    edit = FairMed.fit(tiny_model("llama"), gender, layers=[3, 0, 3])
    assert edit.layers == [0, 3]
    assert torch.equal(edit.probers["gender"].w2, gender.probers["w2"][[0, 3]])
    assert [str(change.point) for change in edit.edits(tiny_model("llama").original_model)] == [
        "blocks.0.hook_mlp_out",
        "blocks.3.hook_mlp_out",
    ]


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([4], "layer 4 is out of range: tiny-llama has layers 0 to 3"),
        ([1, -1], "layer -1 is out of range"),
        ([], "FairMed needs at least one layer"),
    ],
)
def test_layers_that_cannot_be_are_refused_before_any_training(tiny_model, layers, message):
    with pytest.raises(TracelabError, match=message):
        FairMed.fit(tiny_model("llama"), templates("gender", limit=8), layers=layers)


@pytest.mark.usefixtures("no_training")
def test_attributes_that_cannot_be_are_refused_before_any_training(
    tiny_model, gender, age, other_model
):
    model, corpus = tiny_model("llama"), templates("gender", limit=8)
    for twice in ([corpus, corpus], [corpus, gender], [gender, age, gender]):
        with pytest.raises(
            TracelabError,
            match=r"at least one attribute, each once, not of \['gender', .*'gender'\]",
        ):
            FairMed.fit(model, twice)
    with pytest.raises(TracelabError, match=r"at least one attribute, each once, not of \[\]"):
        FairMed.fit(model, [])
    with pytest.raises(TracelabError, match="these probes are of tiny-llama: probe other itself"):
        FairMed.fit(other_model, [templates("age", limit=8), gender])


def test_groups_to_neutralise_must_be_known_and_two_of_their_attribute(tiny_model, gender, age):
    model = tiny_model("llama")
    with pytest.raises(
        TracelabError,
        match=r"the probers know the groups \['female', 'male', 'trans'\], not all of",
    ):
        FairMed.fit(model, gender, FairMedConfig(groups=("female", "mle")))
    with pytest.raises(
        TracelabError, match=r"a distribution over one group, 'female', is always uniform"
    ):
        FairMed.fit(model, [gender, age], FairMedConfig(groups=("female", "old")))
    assert FairMed.fit(model, [gender, age], FairMedConfig(groups=("female", "trans")))


@pytest.mark.usefixtures("no_training")
def test_groups_and_options_that_cannot_be_are_refused_before_any_training(tiny_model, gender):
    model, corpus = tiny_model("llama"), templates("gender", limit=8)
    with pytest.raises(
        TracelabError,
        match=r"the probers know the groups \['female', 'male', 'trans'\], not all of",
    ):
        FairMed.fit(model, corpus, FairMedConfig(groups=("female", "mle")))
    with pytest.raises(
        TracelabError, match="top_k: these probes are made already; probe again, or give layers"
    ):
        FairMed.fit(model, gender, top_k=3)


def test_two_attributes_are_neutralised_together_where_they_share_a_layer(tiny_model, gender, age):
    model = tiny_model("llama")
    both = FairMed.fit(model, [gender, age], FairMedConfig(lam=4.0))
    assert both.name == "fairmed(gender, age)"
    assert both.layers == sorted({*gender.top_layers, *age.top_layers})
    shared = FairMed.fit(model, [gender, age], FairMedConfig(lam=4.0), layers=[1])
    facts = {f["attribute"]: f for f in told(model, shared)}
    assert facts.keys() == {"gender", "age"}
    assert torch.equal(facts["gender"]["steps"], facts["age"]["steps"])
    for f in facts.values():
        assert f["kl_before"].max() > 0.03
        stopped = f["steps"] < 20
        assert stopped.any()
        assert (f["kl_after"][stopped] < 0.03 + 1e-6).all()
    alone = told(model, FairMed.fit(model, gender, FairMedConfig(lam=4.0), layers=[1]))[0]
    assert alone["steps"].sum() < facts["gender"]["steps"].sum()


def test_another_configuration_keeps_probers_layers_notes_and_what_was_allowed(
    tiny_model, gender, other_model
):
    model = tiny_model("llama")
    edit = FairMed.fit(model, gender)
    edit.allow_mismatch = True
    other = edit.with_config(FairMedConfig(lam=0.0))
    assert (other.layers, other.notes, other.origin) == (edit.layers, edit.notes, edit.origin)
    for name, value in edit.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    assert other.hooks(other_model)
    with torch.no_grad():
        before = model(TOKENS)
        with other.applied(model):
            assert torch.equal(model(TOKENS), before)
        with edit.applied(model):
            assert not torch.equal(model(TOKENS), before)


# --- positions
# ----------------------------------------------------------------------------------------------------  # noqa: E501


@pytest.mark.parametrize(
    ("rule", "first", "generating", "columns"),
    [
        # the token before the answer is the first whose logits are read
        (
            "predictive",
            3,
            False,
            [3, 4, 5],
        ),
        ("published", 3, False, [4, 5]),  # the answer's own tokens
        ("all", 3, False, [0, 1, 2, 3, 4, 5]),
        ("predictive", 5, True, [5]),
        ("published", 5, True, [3, 4, 5]),  # the last three of the prompt
        ("all", 5, True, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_a_rule_edits_its_positions_and_changes_no_other(
    tiny_model, rule, first, generating, columns
):
    model = tiny_model("llama")
    edit = random_fairmed(model, lam=3.0, positions=rule)
    for facts in told(model, edit, within=reading(first, generating=generating)):
        assert facts["mask"].tolist() == [[column in columns for column in range(6)]] * 2
    with reading(first, generating=generating):
        moved = (mlp_out(model, 1, edit=edit) - mlp_out(model, 1)).norm(dim=-1) > 0
    assert moved.any(dim=0).nonzero().flatten().tolist() == columns


@pytest.mark.parametrize("rule", ["predictive", "published", "all"])
def test_where_nothing_says_what_is_read_every_token_is_edited(tiny_model, rule):
    model = tiny_model("llama")
    facts = told(model, random_fairmed(model, positions=rule), mask=LEFT)
    assert torch.equal(facts[0]["mask"], LEFT.bool())


@pytest.mark.parametrize("rule", ["predictive", "published", "all"])
@pytest.mark.parametrize(
    "preset", [{}, {"norm": "code", "grad": "sign", "init": "random"}], ids=["l2", "code"]
)
def test_padding_is_never_edited(tiny_model, rule, preset):
    model = tiny_model("llama")
    edit = random_fairmed(model, lam=3.0, positions=rule, **preset)
    for mask in (LEFT, LEFT.flip(1)):
        for first in (0, 2, torch.tensor([4, 1])):
            with reading(first):
                moved = mlp_out(model, 1, edit=edit, mask=mask) - mlp_out(model, 1, mask=mask)
            assert not moved[mask == 0].any()
            assert moved[mask == 1].any()


def test_each_row_can_be_read_from_its_own_column(tiny_model):
    model = tiny_model("llama")
    facts = told(model, random_fairmed(model), within=reading(torch.tensor([2, 5])))
    assert facts[0]["mask"].tolist() == [[False] * 2 + [True] * 4, [False] * 5 + [True]]


@pytest.mark.parametrize(
    ("rule", "prefill"), [("predictive", [1, 1]), ("published", [2, 3]), ("all", [2, 7])]
)
def test_while_generating_the_rules_count_from_the_prompts_end_and_take_each_new_token(
    tiny_model, rule, prefill
):
    model = tiny_model("llama")
    edit = random_fairmed(model, positions=rule)
    prompts = ["He was", "My neighbours from the north are all"]
    lengths = [len(model.tokenizer(p, add_special_tokens=False).input_ids) for p in prompts]
    assert lengths == [2, 7]
    with edit.applied(model), edit.observed() as facts:
        tracelab.generate(model, prompts, max_new_tokens=3, do_sample=False)
    masks = [f["mask"] for f in by_layer(facts) if f["layer"] == 1]
    assert [tuple(mask.shape) for mask in masks] == [(2, 7), (2, 1), (2, 1)]
    assert masks[0].sum(dim=1).tolist() == prefill
    assert masks[0][:, -1].all()
    assert masks[1].all()
    assert masks[2].all()


# --- what it does
# -------------------------------------------------------------------------------------------------


def mean_kl(model, edit, tokens):
    """KL of the probers before and after, one number a layer."""
    facts = told(model, edit, tokens)
    return torch.tensor([[float(f[k].mean()) for f in facts] for k in ("kl_before", "kl_after")])


@pytest.mark.parametrize(
    "options", [{}, {"radius": "adaptive"}, {"groups": "all"}, {"groups": ("male", "trans")}]
)
def test_it_lowers_the_probers_kl_at_every_layer_and_a_random_direction_does_less(
    tiny_model, gender, options
):
    model = tiny_model("llama")
    config = FairMedConfig(lam=2.0, tol=1e-3, **options)
    edit = FairMed.fit(model, gender, config, layers=range(4))
    # concepts that it has not seen
    text = " ".join(prompt.text for prompt in templates("gender").prompts[-30:])
    tokens = model.tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids[:, :100]
    before, after = mean_kl(model, edit, tokens)
    control = mean_kl(model, edit.with_config(config.replace(direction="random")), tokens)
    assert (before > 0.01).all()
    assert (after < before / 2).all()
    assert (after < control[1]).all()
    assert (control[0] - control[1]).mean() < (before - after).mean() / 4


def test_a_random_direction_is_as_long_as_the_adversarial_one_at_the_first_layer(tiny_model):
    model = tiny_model("llama")
    sizes = []
    for direction in ("adversarial", "random"):
        edit = random_fairmed(model, lam=2.0, direction=direction, layers=(1,))
        sizes.append(told(model, edit)[0]["size"])
    torch.testing.assert_close(sizes[0], sizes[1], atol=1e-6, rtol=1e-4)
    assert sizes[0].max() > 0.05


@pytest.mark.parametrize("wider", ["gender", "age"])
def test_the_radius_is_lam_times_the_largest_spread_of_the_layers_norms(
    tiny_model, gender, age, wider
):
    model = tiny_model("llama")
    edit = FairMed.fit(model, [gender, age], FairMedConfig(lam=0.1, tol=0.0), layers=[2])
    edit.probers[wider].norm_std *= 3
    radius = 0.1 * 3 * float({"gender": gender, "age": age}[wider].probers["norm_std"][2])
    lengths = (mlp_out(model, 2, edit=edit) - mlp_out(model, 2)).norm(dim=-1)
    assert lengths.max() <= radius * (1 + 1e-4)
    assert lengths.max() > 0.9 * radius


@torch.no_grad()
def directions(model, edit, tokens, layer=1, mask=None):
    """The unit vectors along which the first edited layer is moved."""
    moved = mlp_out(model, layer, tokens, edit, mask) - mlp_out(model, layer, tokens, mask=mask)
    return torch.nn.functional.normalize(moved, dim=-1)


def test_noise_depends_on_the_place_in_the_text_the_layer_and_the_seed_only(tiny_model):
    model = tiny_model("llama")
    options = {"lam": 50.0, "tol": 0.0, "direction": "random"}
    edit = random_fairmed(model, layers=(1,), **options)
    first = directions(model, edit, TOKENS)
    torch.testing.assert_close(first[0], first[1], atol=1e-4, rtol=0)  # another text
    padded = directions(model, edit, TOKENS, mask=LEFT)
    torch.testing.assert_close(padded[0, 3:], first[0, :3], atol=1e-4, rtol=0)
    longer = directions(model, edit, torch.arange(300)[None] + 50)
    torch.testing.assert_close(longer[0, :6], first[0], atol=1e-4, rtol=0)
    # 300 places, each with a direction of its own
    assert (longer[0] @ longer[0].T).fill_diagonal_(0).abs().max() < 0.9
    others = [
        directions(model, edit.with_config(FairMedConfig(**options, seed=1)), TOKENS),
        directions(model, random_fairmed(model, layers=(2,), **options), TOKENS, layer=2),
    ]
    for other in others:
        assert torch.cosine_similarity(other, first, dim=-1).abs().max() < 0.9


def test_two_edits_of_one_layer_act_in_the_order_in_which_they_were_attached_as_on_the_bridge(
    tiny_model, tokenizer
):
    model, plain = tiny_model("llama"), tiny_hf("llama", len(tokenizer))
    first, second = (
        random_fairmed(model, lam=2.0, steps=5, layers=(1,), seed=seed) for seed in (0, 5)
    )
    with torch.no_grad():
        with first.applied(model), second.applied(model):
            bridged = model(TOKENS)
        with first.attach(plain), second.attach(plain):
            nested = plain(TOKENS).logits
        with Stack([first, second]).attach(plain):
            stacked = plain(TOKENS).logits
        with second.attach(plain), first.attach(plain):
            reversed_ = plain(TOKENS).logits
    torch.testing.assert_close(nested, bridged, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(stacked, bridged, atol=1e-4, rtol=1e-4)
    assert (reversed_ - bridged).abs().max() > 0.05


# --- cost
# ---------------------------------------------------------------------------------------------------------  # noqa: E501


def test_the_cost_counts_positions_and_steps_of_all_passes(tiny_model):
    model = tiny_model("llama")
    edit = random_fairmed(model, lam=2.0)
    assert edit.cost().empty
    assert list(edit.cost().columns) == [
        "layer",
        "positions",
        "ms_per_position",
        "steps_per_position",
    ]
    facts = told(model, edit, mask=LEFT)
    facts += told(model, edit, within=reading(4))
    cost = edit.cost().set_index("layer")
    assert cost.index.tolist() == [1, 2]
    for layer in (1, 2):
        own = [f for f in facts if f["layer"] == layer]
        steps = sum(int(f["steps"].sum()) for f in own)
        assert cost["positions"][layer] == 9 + 4
        assert cost["steps_per_position"][layer] == pytest.approx(steps / 13)
        assert 0 < cost["ms_per_position"][layer] < 1000
    assert cost["steps_per_position"].max() > 1
