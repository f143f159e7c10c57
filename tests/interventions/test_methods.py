"""What every method promises, on every architecture: a new line in the registry is tested here."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch

import tracelab
from tests.interventions.edits import CLOSE, QUICK, TOKENS, logits, random_delta, without_time
from tests.tiny import KINDS, tiny_hf
from tracelab.errors import TracelabError
from tracelab.interventions import Stack, load_intervention
from tracelab.interventions.method import Method
from tracelab.interventions.methods import METHODS
from tracelab.interventions.registry import LISTED

SLOW = pytest.mark.slow
ARCHITECTURES = [kind if kind == "llama" else pytest.param(kind, marks=SLOW) for kind in KINDS]
JOINED = ("gpt2", "gpt_neox", "bloom", "falcon", "phi3")
"""Architectures that compute query, key and value together: a delta of one cannot be attached."""
REFUSED = {("experts", "gemma2"): "cannot be used on tiny-gemma2: .*soft cap"}
"""What an architecture cannot do, by method and model type."""
OTHER = tracelab.FinetuneConfig()
DATA = {method: method.training_data("gender", limit=24) for method in METHODS}
_FITTED: dict[tuple[type[Method], str], Method] = {}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request, tiny_model):
    return tiny_model(request.param)


@pytest.fixture(scope="module", params=METHODS, ids=lambda method: method.kind)
def method(request):
    return request.param


@pytest.fixture(scope="module")
def edit(method, model):
    key = (method, tracelab.model.load.model_facts(model).model_id)
    if key not in _FITTED:
        _FITTED[key] = method.fit(model, DATA[method], **QUICK.get(method.kind, {}))
    if refusal := REFUSED.get((method.kind, model.original_model.config.model_type)):
        with pytest.raises(TracelabError, match=refusal):
            _FITTED[key].hooks(model)
        pytest.skip(f"refused by name: {refusal}")
    return _FITTED[key]


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def dtype(request):
    return request.param


def test_the_call_is_the_same_for_all(method):
    own = inspect.signature(method.fit).parameters
    assert list(own) == list(inspect.signature(Method.fit).parameters)
    assert method.kind in {listed.kind for listed in LISTED}
    assert method.fit.__func__ is Method.fit.__func__


def test_a_fit_says_what_made_it(method, edit):
    assert edit.kind == method.kind
    assert edit.name.startswith(f"{method.kind}(gender")
    assert edit.notes["fit_seconds"] >= 0
    assert edit.notes["data_hash"]
    assert isinstance(edit.config, method.Config)
    assert edit.settings()["config"] == edit.config.settings()
    assert f"{method.kind}(gender" in repr(edit)
    assert "\n" not in repr(edit)


def test_it_comes_and_goes_without_a_trace(model, edit):
    before = logits(model)
    moved = not torch.equal(logits(model, edit), before)
    assert moved or edit.notes["strength"] == 0  # BiasEdit's, where none was worth its cost
    assert torch.equal(logits(model), before)
    assert not model.list_hooks()


def test_a_bundle_and_a_copy_are_the_same_edit(model, edit, tmp_path):
    edit.save(tmp_path / "bundle")
    back = load_intervention(tmp_path / "bundle")
    assert back.same_as(edit)
    assert back.config == edit.config
    assert without_time(back) == without_time(edit)
    for other in (back, copy.deepcopy(edit), pickle.loads(pickle.dumps(edit))):
        assert torch.equal(logits(model, other), logits(model, edit))


def test_at_strength_zero_it_is_the_unedited_model_and_at_one_itself(model, edit):
    assert torch.equal(logits(model, edit.scaled(0)), logits(model))
    assert torch.equal(logits(model, edit.scaled(1)), logits(model, edit))
    assert edit.scaled(1).identity() == edit.identity()
    assert edit.strength == 1


def test_between_them_it_moves_towards_the_edit_and_strengths_multiply(model, edit):
    before, after = logits(model), logits(model, edit)
    small = logits(model, edit.scaled(0.01))
    assert torch.equal(logits(model, edit.scaled(0.5).scaled(0.02)), small)
    if not torch.equal(before, after):
        assert 0 < (small - before).norm() < 0.5 * (after - before).norm()


def test_each_strength_has_a_name_an_identity_and_a_bundle_of_its_own(model, edit, tmp_path):
    half = edit.scaled(0.5)
    assert half.name == f"{edit.name} × 0.5"
    assert (half.settings()["strength"], edit.settings()["strength"]) == (0.5, 1.0)
    assert half.identity() != edit.identity()
    assert half.same_as(edit)
    back = load_intervention(half.save(tmp_path / "half"))
    assert (back.name, back.identity()) == (half.name, half.identity())
    assert torch.equal(logits(model, back), logits(model, half))


def test_at_strength_zero_plain_transformers_is_unedited_too_in_any_dtype(
    model, method, edit, tokenizer, dtype
):
    kind = model.original_model.config.model_type
    if method.kind == "klaad" and kind in JOINED:
        pytest.skip("a delta of one of several maps cannot be attached")
    plain = tiny_hf(kind, len(tokenizer)).to(dtype)
    edit = copy.deepcopy(edit)
    for part in edit.modules():
        part.allow_mismatch = True  # rounded weights are others
    with torch.no_grad():
        before = plain(TOKENS).logits
        with edit.scaled(0).attach(plain):
            assert torch.equal(plain(TOKENS).logits, before)
        with edit.attach(plain):
            after = plain(TOKENS).logits
        with edit.scaled(1).attach(plain):
            assert torch.equal(plain(TOKENS).logits, after)
        assert torch.equal(plain(TOKENS).logits, before)


def test_plain_transformers_computes_the_same(model, method, edit, tokenizer):
    plain = tiny_hf(model.original_model.config.model_type, len(tokenizer))
    if method.kind == "klaad" and model.original_model.config.model_type in JOINED:
        with pytest.raises(TracelabError, match="cannot be attached"):
            edit.attach(plain)
        return
    with torch.no_grad(), edit.attach(plain):
        torch.testing.assert_close(plain(TOKENS).logits, logits(model, edit), **CLOSE)


def test_it_stands_in_a_stack_and_is_inspected(model, edit):
    stack = Stack([edit, random_delta(model)])
    found = tracelab.inspect(model, {"alone": edit, "stacked": stack}, "The nurse said that")
    assert set(found.tokens["edit"]) == {"alone", "stacked"}
    assert set(found.told.columns) >= {"layer", "quantity", "label", "before", "after"}


@pytest.mark.slow
def test_it_is_evaluated_and_the_same_fit_gives_the_same_edit(model, method, edit):
    board = tracelab.evaluate(
        model, {"it": edit}, ["stereoset"], bias="gender", limit=3, off_target=False, costs=False
    )
    assert not board.failures
    again = method.fit(model, DATA[method], edit.config)
    assert again.same_as(edit)


def test_what_it_cannot_do_is_one_sentence(model, method):
    for wrong, message in (
        ({"layers": []}, "needs at least one layer"),
        ({"layers": [99]}, "layer 99 is out of range"),
        ({"layers": "first"}, "layers 'first' are not understood"),
        ({"no_such_field": 1}, f"{method.__name__}.fit has no argument no_such_field"),
        *([({"data": 3}, f"{method.__name__} cannot be fitted on 3")] if method.needs else []),
        ({"config": OTHER}, f"{method.__name__} takes a {method.Config.__name__}, not Finetune"),
    ):
        with pytest.raises(TracelabError, match=message):
            method.fit(model, **{"data": DATA[method], **wrong})
