"""A method that tracelab has never heard of does all that its own methods do."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from pydantic import Field

import tracelab
from tests.interventions.edits import random_delta
from tests.tiny import tiny_hf
from tracelab.config import Config, Finite
from tracelab.errors import TracelabError
from tracelab.interventions import ActivationEdit, Stack, load_intervention
from tracelab.model.states import mean_states


@dataclass(frozen=True)
class Sides:
    bias: str
    first: tuple[str, ...]
    second: tuple[str, ...]


class SteeringConfig(Config):
    strength: Finite = Field(1.0, description="of the vector")


class Steering(ActivationEdit):
    kind, Config, point = "steering", SteeringConfig, "resid_post"
    shape: ClassVar = {"v": ("d_model",)}

    def change(self, h, *, v):
        self.tell("length", None, h.norm(dim=-1), label="h")
        return h + self.config.strength * v

    def learn(self, model, data):
        points = [self.point_at(layer) for layer in self.layers]
        first, second = (mean_states(model, side, points) for side in (data.first, data.second))
        for layer, v in zip(self.layers, (first - second).mean(dim=0), strict=True):
            self.set_(layer, v=v)
        self.notes["n_pairs"] = len(data.first)


DATA = Sides("gender", ("She is here", "A woman said"), ("He is here", "A man said"))
PROMPT = "The nurse said that"


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request, tiny_model):
    return tiny_model(request.param)


@pytest.fixture(scope="module")
def edit(model):
    return Steering.fit(model, DATA, layers=[1, 2], strength=3.0)


def test_it_is_fitted_by_the_same_call(model, edit):
    assert edit.name == "steering(gender)"
    assert (edit.layers, edit.config.strength) == ((1, 2), 3.0)
    assert edit.notes.keys() == {"n_pairs", "data_hash", "fit_seconds"}
    states = mean_states(model, [*DATA.first, *DATA.second], [edit.point_at(2)])[:, 0]
    torch.testing.assert_close(edit.get_buffer("v_2"), states[:2].mean(0) - states[2:].mean(0))


def test_it_is_saved_and_loaded_where_its_class_is_given(model, edit, tmp_path):
    with pytest.raises(
        TracelabError, match=r"Steering is a class of your own, .* kinds=\(Steering,\)"
    ):
        edit.save(tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    edit.save(tmp_path / "bundle", kinds=(Steering,))
    with pytest.raises(TracelabError, match="unknown kind of intervention 'steering'"):
        load_intervention(tmp_path / "bundle")
    back = load_intervention(tmp_path / "bundle", kinds=(Steering,))
    assert back.same_as(edit)
    assert back.config == edit.config
    scores = []
    for each in (edit, back):
        with each.applied(model):
            scores.append(tracelab.score(model, [PROMPT]).frame)
    assert scores[0].equals(scores[1])


def test_a_stack_that_holds_it_is_saved_under_the_same_condition(model, edit, tmp_path):
    stack = Stack([edit, random_delta(model)])
    with pytest.raises(TracelabError, match="a class of your own"):
        stack.save(tmp_path / "stack")
    stack.save(tmp_path / "stack", kinds=(Steering,))
    assert load_intervention(tmp_path / "stack", kinds=(Steering,)).name == stack.name


def test_it_is_inspected_and_evaluated(model, edit):
    found = tracelab.inspect(model, [edit, random_delta(model)], PROMPT)
    moved = found.layers.query("edit == 'steering(gender)'").set_index("layer")["resid_post"]
    assert moved[0] == 0
    assert (moved[[1, 2]] > 0).all()
    assert found.told["quantity"].unique().tolist() == ["length"]
    assert len(found.told) == 2
    assert found.groups.empty
    assert {"tokens-0", "layers-0"} <= found.figures().keys()
    board = tracelab.evaluate(
        model, {"steer": edit}, ["stereoset"], bias="gender", limit=3, off_target=False, costs=False
    )
    assert set(board.frame["edit"]) == {"unedited", "steer"}


def test_attached_to_plain_transformers_it_does_the_same(model, edit, tokenizer):
    tokens = torch.tensor([model.tokenizer(PROMPT).input_ids])
    with torch.no_grad(), edit.applied(model):
        expected = model(tokens)
    plain = tiny_hf(model.original_model.config.model_type, len(tokenizer))
    with torch.no_grad(), edit.attach(plain):
        torch.testing.assert_close(plain(tokens).logits, expected, atol=1e-4, rtol=1e-4)


def test_a_point_that_cannot_be_edited_is_one_sentence(model):
    class Elsewhere(Steering):
        kind, point = "elsewhere", "hook_mlp"

    with pytest.raises(TracelabError, match="unknown point of Elsewhere 'hook_mlp': choose one of"):
        Elsewhere.fit(model, DATA)


def test_wishes_that_it_cannot_meet_are_one_sentence(model):
    for wish, message in (
        ({"dev": DATA}, "Steering looks at no development data: leave dev out"),
        ({"layers": []}, "Steering needs at least one layer"),
        ({"layers": "last"}, "layers 'last' are not understood: give numbers"),
        ({"layers": [9]}, "layer 9 is out of range"),
        ({"rank": 2}, "Steering.fit has no argument rank: it has strength, layers, dev"),
        (
            {"config": tracelab.ErasureConfig()},
            "Steering takes a SteeringConfig, not ErasureConfig",
        ),
    ):
        with pytest.raises(TracelabError, match=message):
            Steering.fit(model, **{"data": DATA, **wish})
    with pytest.raises(TracelabError, match="tracelab has no data to fit steering on"):
        Steering.training_data("gender")


def test_it_shows_itself_in_a_line_and_in_a_notebook(edit):
    assert repr(edit) == f"<Steering steering(gender), made for {edit.origin.model_id}, 64 values>"
    page = edit._repr_html_()
    for told in (
        "steering(gender)",
        "strength=3.0",
        "hook_resid_post of layers 1 to 2",
        "64 values",
        "2 pairs",
    ):
        assert told in page
    edit.notes["metrics"] = "<b>"
    assert "<b>" not in edit._repr_html_()


def test_a_kind_is_one_class(edit, tmp_path):
    class Erasing(tracelab.Erasure):
        """Without a kind of its own it would be loaded as tracelab's."""

    class Other(Steering):
        pass

    with pytest.raises(TracelabError, match="Erasing and Erasure both have the kind 'erasure'"):
        edit.save(tmp_path / "bundle", kinds=[Steering, Erasing])
    edit.save(tmp_path / "bundle", kinds=Steering)  # one need not be in a list
    with pytest.raises(TracelabError, match="Other and Steering both have the kind 'steering'"):
        load_intervention(tmp_path / "bundle", kinds=(Steering, Other))
    assert load_intervention(tmp_path / "bundle", kinds=Steering).same_as(edit)


def test_tensors_that_do_not_fit_are_one_sentence(model, edit):
    for wrong, message in (
        ({"v": torch.tensor(1.0)}, r"v at layer 1 has the size \[32\], not \[\]"),
        ({"w": torch.zeros(32)}, r"steering has no w at layer 1: it has v at layers \[1, 2\]"),
    ):
        with pytest.raises(TracelabError, match=message):
            edit.set_(1, **wrong)
    copied = copy.deepcopy(edit)
    copied.set_(1, v=edit.get_buffer("v_1").numpy())
    assert copied.same_as(edit)


def test_a_fit_that_went_wrong_is_not_handed_out(model, tmp_path):
    class Broken(Steering):
        kind = "broken"

        def learn(self, model, data):
            self.set_(1, v=torch.full((32,), float("nan")))

    class Sized(Steering):
        kind, shape = "sized", {"v": ("n_iter",)}

    with pytest.raises(TracelabError, match="broken.gender. gave values in v_1 that are"):
        Broken.fit(model, DATA, layers=[1])
    with pytest.raises(TracelabError, match="'n_iter': it is a number, d_model or a field of"):
        Sized.fit(model, DATA)
    noted = Steering.fit(model, DATA, layers=[1])
    noted.notes["t"] = torch.zeros(1)
    with pytest.raises(TracelabError, match="hold what JSON cannot: .*Tensor"):
        noted.save(tmp_path / "noted", kinds=Steering)


def test_what_it_tells_has_its_layer(model, edit):
    told = tracelab.inspect(model, edit, PROMPT).told
    assert told["layer"].tolist() == [1, 2]
