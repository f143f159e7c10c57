"""What ``inspect`` reports against slow oracles, method by method."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import entropy
from transformers import AutoTokenizer

import tracelab
from tests.interventions.edits import random_delta, random_experts, random_fairmed
from tests.tiny import tiny_hf
from tracelab.errors import TracelabError
from tracelab.inspection.told import groups_of
from tracelab.interventions import Stack
from tracelab.model import assets
from tracelab.model.forward_pass import reading
from tracelab.model.load import from_hf

PROMPT, SHORT = "The nurse said that the doctor", "He was"
EDITS = {
    "delta": random_delta,
    "fairmed": lambda model: random_fairmed(model, lam=2.0, steps=5),
    "experts": lambda model: random_experts(model, alpha=0.7),
    "stack": lambda model: Stack(
        [random_fairmed(model, lam=2.0, steps=5), random_experts(model, alpha=0.7)]
    ),
}


@pytest.fixture
def model(tiny_model):
    return tiny_model("llama")


@pytest.fixture(params=EDITS)
def edit(model, request):
    return EDITS[request.param](model)


def tokens_of(model, prompt=PROMPT):
    return torch.tensor([model.tokenizer(prompt, add_special_tokens=False).input_ids])


def as_read(positions, length):
    """As when the prompt's every token is scored, or as when it is continued."""
    return reading(0) if positions == "all" else reading(length - 1, generating=True)


@torch.no_grad()
def before_and_after(model, edit, positions="last"):
    """Logits ``[pos, vocab]`` of two ordinary forward passes."""
    tokens = tokens_of(model)
    before = model(tokens)[0]
    with edit.applied(model), as_read(positions, tokens.shape[1]):
        return before, model(tokens)[0]


def softmax(logits) -> np.ndarray:
    return torch.softmax(logits.double(), dim=-1).numpy()


# --- values
# -------------------------------------------------------------------------------------------------------  # noqa: E501


@pytest.mark.parametrize("positions", ["last", "all"])
def test_token_rows_are_those_of_two_ordinary_forward_passes(model, edit, positions):
    before, after = before_and_after(model, edit, positions)
    rows = tracelab.inspect(
        model, edit, PROMPT, positions=positions, top=3, tokens=["woman"]
    ).tokens
    length = len(before)
    assert sorted(set(rows["position"])) == (
        [length - 1] if positions == "last" else list(range(length))
    )
    assert len(rows) == 7 * rows["position"].nunique()
    for row in rows.itertuples():
        z, w = before[row.position], after[row.position]
        assert row.logit_before == pytest.approx(float(z[row.token_id]), abs=1e-5)
        assert row.logit_after == pytest.approx(float(w[row.token_id]), abs=1e-5)
        assert row.p_before == pytest.approx(softmax(z)[row.token_id], abs=1e-6)
        assert row.p_after == pytest.approx(softmax(w)[row.token_id], abs=1e-6)
        assert row.token == model.tokenizer.decode([row.token_id]).replace(" ", "·").replace(
            "\n", "⏎"
        )


@pytest.mark.parametrize("rank_by", ["probability", "logit"])
def test_the_tokens_listed_are_those_that_move_most(model, rank_by):
    edit = random_delta(model)
    before, after = (z[-1].double() for z in before_and_after(model, edit))
    change = (
        after - before if rank_by == "logit" else torch.tensor(softmax(after) - softmax(before))
    )
    ranked = sorted(range(len(change)), key=lambda token: float(change[token]))
    rows = tracelab.inspect(model, edit, PROMPT, top=4, rank_by=rank_by).tokens
    assert rows[rows["direction"] == "promoted"]["token_id"].tolist() == ranked[: -4 - 1 : -1]
    assert rows[rows["direction"] == "demoted"]["token_id"].tolist() == ranked[:4]


def test_kl_and_entropies_are_scipys(model, edit):
    before, after = before_and_after(model, edit, "all")
    rows = tracelab.inspect(model, edit, PROMPT, positions="all").positions
    assert rows["position"].tolist() == list(range(len(before)))
    for row in rows.itertuples():
        p, q = softmax(before[row.position]), softmax(after[row.position])
        assert row.kl == pytest.approx(entropy(p, q), rel=1e-4, abs=1e-6)
        assert row.entropy_before == pytest.approx(entropy(p), rel=1e-5)
        assert row.entropy_after == pytest.approx(entropy(q), rel=1e-5)
    assert rows["kl"].max() > 1e-3
    assert rows["token"].tolist() == ["The", "·nurse", "·said", "·that", "·the", "·doctor"]


def test_layer_rows_are_relative_norms_of_what_is_cached_inside_the_edit(model, edit):
    tokens = tokens_of(model)
    with torch.no_grad():
        _, clean = model.run_with_cache(tokens)
        with edit.applied(model):
            _, edited = model.run_with_cache(tokens)
    rows = tracelab.inspect(model, edit, PROMPT, positions="all").layers
    assert len(rows) == 4 * tokens.shape[1]
    names = {
        "resid_post": "hook_resid_post",
        "mlp_out": "hook_mlp_out",
        "pattern": "attn.hook_pattern",
    }
    for row in rows.itertuples():
        for measure, hook in names.items():
            old, new = (cache[f"blocks.{row.layer}.{hook}"][0] for cache in (clean, edited))
            if measure == "pattern":
                old, new = old[:, row.position, :], new[:, row.position, :]
            else:
                old, new = old[row.position], new[row.position]
            assert getattr(row, measure) == pytest.approx(
                float((new - old).norm() / old.norm()), rel=1e-4, abs=1e-6
            )


def test_before_the_first_edited_layer_nothing_moves_and_after_it_everything(model):
    layers = tracelab.inspect(model, random_delta(model, layers=(2,)), PROMPT).layers.set_index(
        "layer"
    )
    assert not layers.loc[:1, ["resid_post", "mlp_out", "pattern"]].to_numpy().any()
    assert (layers.loc[2:, ["resid_post", "mlp_out"]].to_numpy() > 0.01).all()
    assert layers.loc[2, "pattern"] == 0
    assert layers.loc[3, "pattern"] > 0


@pytest.mark.parametrize("name", ["empty stack", "zero experts", "zero radius"])
def test_an_edit_of_nothing_gives_zero_everywhere(model, name):
    edit = {
        "empty stack": Stack([]),
        "zero experts": random_experts(model, alpha=0.0),
        "zero radius": random_fairmed(model, lam=0.0),
    }[name]
    result = tracelab.inspect(model, edit, [PROMPT, SHORT], positions="all")
    assert (result.tokens["logit_before"] == result.tokens["logit_after"]).all()
    assert (result.tokens["p_before"] == result.tokens["p_after"]).all()
    assert (result.positions["kl"] == 0).all()
    assert (result.positions["entropy_before"] == result.positions["entropy_after"]).all()
    assert not result.layers[["resid_post", "mlp_out", "pattern"]].to_numpy().any()
    if name == "zero radius":
        assert (result.groups["size"] == 0).all()
        assert (result.groups["p_before"] == result.groups["p_after"]).all()
    else:
        assert result.groups.empty


def test_the_last_position_is_as_when_the_prompt_is_continued_and_all_are_as_when_they_are_scored(
    model,
):
    edit = random_fairmed(model, lam=2.0, positions="published")
    for positions, columns in (("last", [3, 4, 5]), ("all", [1, 2, 3, 4, 5])):
        with as_read(positions, 6), edit.applied(model), edit.observed() as told, torch.no_grad():
            logits = model(tokens_of(model))[0, -1]
        mask = next(fact.after for fact in told if fact.quantity == "edited")
        assert mask[0].nonzero().flatten().tolist() == columns
        rows = tracelab.inspect(model, edit, PROMPT, positions=positions).tokens.query(
            "position == 5"
        )
        expected = logits[torch.tensor(rows["token_id"].to_numpy())]
        assert rows["logit_after"].to_numpy() == pytest.approx(expected.numpy(), abs=1e-5)


@pytest.mark.parametrize("name", ["delta", "experts"])
def test_all_positions_end_with_the_last_one_where_what_is_read_does_not_matter(model, name):
    edit = EDITS[name](model)
    last, everywhere = (
        tracelab.inspect(model, edit, PROMPT, positions=rule, top=2) for rule in ("last", "all")
    )
    for name, table in last.tables().items():
        whole = everywhere.tables()[name]
        if name in ("attention", "moves", "texts", "weights"):  # whatever positions are asked for
            pd.testing.assert_frame_equal(whole, table)
            continue
        end = whole[whole["position"] == len(tokens_of(model)[0]) - 1].reset_index(drop=True)
        pd.testing.assert_frame_equal(end, table)


def test_each_prompt_is_what_it_is_alone(model, edit):
    both = tracelab.inspect(model, edit, [SHORT, PROMPT], top=2)
    alone = tracelab.inspect(model, edit, PROMPT, top=2)
    for name, table in alone.tables().items():
        second = both.tables()[name]
        if name != "weights":
            second = second.query("prompt == 1").reset_index(drop=True).drop(columns="prompt")
            table = table.drop(columns="prompt")
        pd.testing.assert_frame_equal(second, table)
    assert both.settings["prompts"] == [SHORT, PROMPT]


def test_each_edit_is_applied_alone(model):
    first, second = random_delta(model), random_fairmed(model, lam=2.0)
    both = tracelab.inspect(model, [first, second], PROMPT, top=2)
    for edit in (first, second):
        alone = tracelab.inspect(model, edit, PROMPT, top=2).positions
        found = both.positions[both.positions["edit"] == edit.name].reset_index(drop=True)
        pd.testing.assert_frame_equal(found, alone)
    assert list(both.settings["edits"]) == ["weight_delta", "fairmed(gender)"]
    assert both.settings["edits"]["fairmed(gender)"] == second.settings()


def test_edits_of_one_name_are_numbered_and_can_be_named(model):
    deltas = [random_delta(model), random_fairmed(model), random_delta(model, seed=5)]
    result = tracelab.inspect(model, deltas, PROMPT, top=1)
    assert list(result.settings["edits"]) == [
        "weight_delta #1",
        "fairmed(gender)",
        "weight_delta #3",
    ]
    assert list(dict.fromkeys(result.tokens["edit"])) == list(result.settings["edits"])
    named = tracelab.inspect(model, {"mild": deltas[0], "strong": deltas[2]}, PROMPT, top=1)
    assert list(named.settings["edits"]) == ["mild", "strong"]
    strong = named.positions.set_index("edit")["kl"]["strong"]
    assert strong == result.positions.set_index("edit")["kl"]["weight_delta #3"]


def test_named_words_are_shown_by_their_first_token_after_a_space(model):
    words = ["woman", "uncharacteristically"]
    firsts = [model.tokenizer(f" {word}", add_special_tokens=False).input_ids for word in words]
    assert [len(ids) > 1 for ids in firsts] == [False, True]
    rows = tracelab.inspect(model, random_delta(model), PROMPT, top=1, tokens=words).tokens
    named = rows[rows["direction"] == "named"]
    assert named["token_id"].tolist() == [ids[0] for ids in firsts]
    assert named["token"].iloc[0] == "·woman"


def test_the_models_bos_is_put_first_only_when_asked(model):
    without, with_bos = (
        tracelab.inspect(
            model, random_delta(model), PROMPT, positions="all", prepend_bos=bos
        ).positions
        for bos in (None, True)
    )
    assert len(with_bos) == len(without) + 1
    assert with_bos["token"].iloc[0] == model.tokenizer.bos_token


def test_attention_is_the_last_layers_pattern_averaged_over_heads_with_and_without_the_edit(
    model, edit
):
    tokens = tokens_of(model)
    with torch.no_grad(), as_read("last", tokens.shape[1]):
        _, clean = model.run_with_cache(tokens)
        with edit.applied(model):
            _, edited = model.run_with_cache(tokens)
    table = tracelab.inspect(model, edit, PROMPT).attention
    assert len(table) == 6 * 7 / 2
    assert (table["key"] <= table["query"]).all()
    for row in table.itertuples():
        for value, cache in ((row.before, clean), (row.after, edited)):
            expected = (
                sum(
                    float(head[row.query, row.key])
                    for head in cache["blocks.3.attn.hook_pattern"][0]
                )
                / 4
            )
            assert value == pytest.approx(expected, abs=1e-6)
    assert table.groupby("query")[["before", "after"]].sum().to_numpy() == pytest.approx(
        1, abs=1e-5
    )
    assert table.query("query == 5")["token"].tolist() == [
        "The",
        "·nurse",
        "·said",
        "·that",
        "·the",
        "·doctor",
    ]


def test_attention_before_is_that_of_the_model_itself_and_an_edit_of_an_early_layer_moves_it(model):
    both = tracelab.inspect(
        model, {"a": random_delta(model), "b": random_delta(model, layers=(3,))}, PROMPT
    ).attention
    early, late = (both[both["edit"] == name].reset_index(drop=True) for name in ("a", "b"))
    assert (early["before"] == late["before"]).all()
    assert (early["after"] - early["before"]).abs().max() > 1e-2
    assert (late["after"] == late["before"]).all()  # layer 3's own maps come after its pattern


def test_weights_are_listed_once_whatever_the_prompts(model):
    edits = {
        "delta": random_delta(model),
        "fairmed": random_fairmed(model),
        "mix": random_experts(model),
    }
    table = tracelab.inspect(model, edits, [PROMPT, SHORT], top_directions=2).weights
    # experts' deltas change other passes than the model's
    assert table["edit"].unique().tolist() == ["delta"]
    assert len(table) == 2 * 2 * 2
    assert table.columns.tolist()[:4] == ["edit", "layer", "module", "direction"]
    assert tracelab.inspect(model, edits["fairmed"], PROMPT).weights.empty


# --- the methods' own columns
# -------------------------------------------------------------------------------------


def test_group_rows_are_the_probers_on_the_activations(model):
    edit = random_fairmed(model, lam=2.0, steps=5)
    tokens = tokens_of(model)
    with torch.no_grad(), edit.applied(model):
        _, edited = model.run_with_cache(tokens)
    rows = tracelab.inspect(model, edit, PROMPT, positions="all").groups
    assert len(rows) == 2 * 3 * tokens.shape[1]
    for row in rows.itertuples():
        prober = edit.probers["gender"].layer(row.layer)
        number = edit.attributes[0].groups.index(row.group)
        p = prober.log_probs(edited[f"blocks.{row.layer}.hook_mlp_out"][0, row.position]).exp()
        assert row.p_after == pytest.approx(float(p[number]), abs=1e-5)
        assert row.attribute == "gender"
    each = rows.groupby(["layer", "position"])
    assert each["p_before"].sum().to_numpy() == pytest.approx(1, abs=1e-5)
    assert each["p_after"].sum().to_numpy() == pytest.approx(1, abs=1e-5)
    for (layer, position), part in each:
        by_hand = -math.log(3) - np.log(part["p_after"]).mean()
        assert part["kl_after"].to_numpy() == pytest.approx(by_hand, abs=1e-4), (layer, position)
    assert (rows["kl_after"] <= rows["kl_before"] + 1e-6).all()
    assert rows["steps"].between(0, 5).all()
    assert rows["steps"].max() > 0
    assert ((rows["size"] > 0) == (rows["steps"] > 0)).all()


def test_edits_that_tell_other_things_leave_group_rows_alone(model):
    """Two of one attribute in a stack keep a row each; another's quantities are not theirs."""
    edit, other = random_fairmed(model, lam=2.0), random_fairmed(model, lam=1.0, seed=1)
    alone = tracelab.inspect(model, edit, PROMPT)
    both = tracelab.inspect(model, {"alone": edit, "stack": Stack([edit, other])}, PROMPT).groups
    assert len(both.query("edit == 'alone'")) == len(alone.groups)
    assert len(both.query("edit == 'stack'")) == 2 * len(alone.groups)
    own = alone.told.assign(quantity="other", edit="else")
    rows = groups_of(pd.concat([alone.told, own]), ("edit", "prompt", "position"))
    assert rows["kl_after"].tolist() == alone.groups["kl_after"].tolist()
    assert len(rows) == len(alone.groups)


def test_two_attributes_have_rows_of_their_own(model):
    edits = Stack(
        [random_fairmed(model, attribute="gender"), random_fairmed(model, attribute="age", seed=1)]
    )
    rows = tracelab.inspect(model, edits, PROMPT).groups
    assert rows.groupby("attribute")["group"].unique().map(sorted).to_dict() == {
        "age": ["old", "young"],
        "gender": ["female", "male", "trans"],
    }


@pytest.mark.parametrize("name", ["experts", "stack"])
def test_experts_columns_give_the_mixed_logit(model, name):
    rows = tracelab.inspect(
        model, EDITS[name](model), PROMPT, positions="all", tokens=["woman"]
    ).tokens
    mixed = rows["z"] + 0.7 * (rows["z_plus"] - rows["z_minus"])
    assert rows["logit_after"].to_numpy() == pytest.approx(mixed.to_numpy(), abs=1e-4)
    if name == "experts":  # of a stack, z is what the edits before it made
        assert rows["z"].to_numpy() == pytest.approx(rows["logit_before"].to_numpy(), abs=1e-5)
    assert (rows["z_plus"] - rows["z_minus"]).abs().max() > 1


def test_z_plus_and_z_minus_are_the_experts_own_logits(model):
    edit = random_experts(model)
    rows = tracelab.inspect(model, edit, PROMPT, top=3).tokens
    for column, delta in (("z_plus", edit.expert), ("z_minus", edit.anti_expert)):
        expected = before_and_after(model, delta)[1][-1][torch.tensor(rows["token_id"].to_numpy())]
        assert rows[column].to_numpy() == pytest.approx(expected.numpy(), abs=1e-4)


def test_edits_without_experts_have_no_mixed_logits(model):
    rows = tracelab.inspect(
        model, [random_delta(model), random_experts(model)], PROMPT, top=1
    ).tokens
    assert rows[rows["edit"] == "weight_delta"]["z_plus"].isna().all()
    assert rows[rows["edit"] != "weight_delta"]["z_plus"].notna().all()
    assert "z_plus" not in tracelab.inspect(model, random_delta(model), PROMPT).tokens


def test_a_model_without_attention_patterns_is_measured_where_it_can_be(tokenizer):
    own = AutoTokenizer.from_pretrained(assets.model_dir())
    model = from_hf(tiny_hf("llama", len(tokenizer)), own, model_id="no-pattern")
    tracelab.model.load.model_info(model).faults["pattern"] = (
        "it does not fire on this architecture"
    )
    result = tracelab.inspect(model, random_delta(model), PROMPT)
    assert result.layers["pattern"].isna().all()
    assert (result.layers["resid_post"].iloc[1:] > 0).all()
    assert result.attention.empty
    assert set(result.figures()) == {"tokens-0", "positions-0", "layers-0", "map-0", "weights"}
    assert not result.heads
    with pytest.raises(TracelabError, match="the view 'heads' needs attention patterns"):
        result.plot("heads")
    with pytest.raises(
        TracelabError,
        match="the view 'attention' needs attention patterns, and no-pattern shows none",
    ):
        result.plot("attention")


# --- refused
# ------------------------------------------------------------------------------------------------------  # noqa: E501


def test_what_cannot_be_inspected_is_refused(model, tokenizer):
    delta = random_delta(model)
    for arguments in (([], PROMPT), ({}, PROMPT), (delta, [])):
        with pytest.raises(TracelabError, match="inspect needs at least one prompt and one edit"):
            tracelab.inspect(model, *arguments)
    for sizes in ({"top": 0}, {"top_directions": 0}):
        with pytest.raises(TracelabError, match=f"{next(iter(sizes))} is at least 1, not 0"):
            tracelab.inspect(model, delta, PROMPT, **sizes)
    with pytest.raises(TracelabError, match="unknown positions 'first': choose one of last, all"):
        tracelab.inspect(model, delta, PROMPT, positions="first")
    with pytest.raises(
        TracelabError, match="unknown rank_by 'p': choose one of probability, logit"
    ):
        tracelab.inspect(model, delta, PROMPT, rank_by="p")
    for nothing in (["woman", ""], [" "]):
        with pytest.raises(TracelabError, match="no token in the word"):
            tracelab.inspect(model, delta, PROMPT, tokens=nothing)
    own = AutoTokenizer.from_pretrained(assets.model_dir())
    other = from_hf(tiny_hf("llama", len(tokenizer), seed=1), own, model_id="other")
    with pytest.raises(TracelabError, match="made for tiny-llama with weights"):
        tracelab.inspect(other, delta, PROMPT)
