"""BiasEdit against plain models: what is cached, the losses and gradients under an edit, the edit that is fitted."""

from __future__ import annotations

import copy
from functools import partial as bound

import numpy as np
import pytest
import torch

from tests.interventions.edits import logits
from tests.interventions.triple_records import records
from tests.tiny import tiny_hf
from tracelab.errors import TracelabError
from tracelab.evaluate.stereoset import stereoset_scores
from tracelab.evaluate.transductive import transductive_scores
from tracelab.interventions import BiasEdit, BiasEditConfig, WeightDelta, load_intervention
from tracelab.interventions.biasedit import LMS_LOSS, STRENGTHS, _batches, _strength, edited_layers
from tracelab.interventions.biasedit_training import Editors, TripleModel
from tracelab.interventions.triple_losses import debias_loss, retention_loss
from tracelab.interventions.triples import LABELS, tokenise
from tracelab.model import fingerprint

KINDS = ("llama", "gpt2")
LAYERS = (1, 3)
SMALL = {"rank": 8, "n_edits": 4, "n_support": 8, "batch_size": 3, "steps": 2, "eval_every": 1}
TRAIN, DEV = records(20), records(6, start=100, targets=("Peruvian", "baker", "uncle"))
# The released losses and positions, in small.
RELEASED = BiasEditConfig.reference(**{**SMALL, "n_edits": 4, "lam": 3.0})
OWN = BiasEditConfig(**SMALL, lam=0.7)
CONFIGS = {
    "own": OWN,
    "released": RELEASED,
    "fillers": BiasEditConfig(**SMALL, span="filler", loss="logprob", retain_on="unrelated"),
    "released losses of all": BiasEditConfig(**SMALL, loss="reference", retention="reference", lam=2.0),
}


def shapes_of(model, layers=LAYERS):
    return WeightDelta.low_rank(model, layers=layers, modules=("mlp.out",), rank=None).spec().maps


def triple_model(model, config=OWN, given=TRAIN, layers=LAYERS) -> TripleModel:
    return TripleModel(model, tokenise(model, given), shapes_of(model, layers), config)


def random_shifts(model, layers=LAYERS, scale=0.05, seed=0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(s.d_in, s.d_out, generator=generator) for s in shapes_of(model, layers)]


def dense_delta(model, layers=LAYERS, **options) -> WeightDelta:
    """A delta with random shifts."""
    delta = WeightDelta.low_rank(model, layers=layers, modules=("mlp.out",), rank=None)
    delta.set_(random_shifts(model, layers, **options))
    return delta


# --- slow oracles on a plain twin -----------------------------------------------------------------------------------


class Twin:
    """A plain ``transformers`` model with the tiny model's weights, of which shifts are added to the weights."""

    def __init__(self, kind: str, vocab: int, shifts=(), layers=LAYERS) -> None:
        self.kind, self.layers = kind, layers
        self.hf = tiny_hf(kind, vocab).requires_grad_(False)
        for layer, shift in zip(layers, shifts, strict=False):
            self.map(layer).weight += shift if kind == "gpt2" else shift.T  # Conv1D keeps [d_in, d_out]
        for layer in layers:
            self.map(layer).weight.requires_grad_()

    def map(self, layer: int):
        if self.kind == "gpt2":
            return self.hf.transformer.h[layer].mlp.c_proj
        return self.hf.model.layers[layer].mlp.down_proj

    def gradients(self) -> list[torch.Tensor]:
        """Of x W, that is, [d_in, d_out]."""
        grads = [self.map(layer).weight.grad for layer in self.layers]
        return grads if self.kind == "gpt2" else [grad.T for grad in grads]

    def logits(self, ids) -> torch.Tensor:
        """Of one sentence, unpadded."""
        return self.hf(torch.tensor([ids])).logits


def slow_debias(twin: Twin, triples, number: int, config) -> torch.Tensor:
    pair = []
    for label in ("stereotype", "anti_stereotype"):
        index = triples.index(number, label)
        ids = triples.sequences[index]
        logprobs = twin.logits(ids)[0].log_softmax(-1)
        values = torch.stack([logprobs[j - 1, ids[j]] for j in range(1, len(ids))])[None]
        chosen = torch.ones_like(values, dtype=torch.bool)
        if config.span == "filler":
            chosen = torch.tensor([[j in triples.fillers[index] for j in range(1, len(ids))]])
        pair += [values, chosen]
    return debias_loss(config.loss, *pair, beta=config.beta, margin=config.margin)[0]


def slow_retention(before: Twin, after: Twin, triples, number: int, config) -> torch.Tensor:
    losses = []
    for label in LABELS if config.retain_on == "all" else ("unrelated",):
        ids = triples.sequences[triples.index(number, label)]
        pair = before.logits(ids).detach(), after.logits(ids)
        tokens = torch.tensor([ids])
        losses.append(retention_loss(config.retention, *pair, tokens, torch.ones_like(tokens))[0])
    return torch.stack(losses).mean()


# --- what is cached -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_keys_times_output_gradients_are_the_gradient_of_the_weight(tiny_model, tokenizer, kind, config):
    # Every position with a gradient is cached, and the micro-batches (here 3, 2) add up.
    config = BiasEditConfig(**{**vars(config), "positions": "predicting"})
    trained = triple_model(tiny_model(kind), config)
    group = [7, 0, 3, 12, 5]
    keys, grads = trained.cached(group)
    twin = Twin(kind, len(tokenizer))
    sum(slow_debias(twin, trained.triples, number, config) for number in group).div(config.batch_size).backward()
    for k, g, expected in zip(keys, grads, twin.gradients(), strict=True):
        assert expected.abs().max() > 1e-6
        torch.testing.assert_close(k.T @ g, expected, atol=2e-4 * float(expected.abs().max()), rtol=1e-3)


def slow_keys(twin: Twin, triples, group, places) -> list[torch.Tensor]:
    """The map inputs of anti-stereotypes, then of stereotypes, at ``places(length)`` of each sentence."""
    found = [[] for _ in twin.layers]
    for label in ("anti_stereotype", "stereotype"):
        for number in group:
            ids = triples.sequences[triples.index(number, label)]
            inputs, handles = {}, []
            for layer in twin.layers:
                hook = lambda module, args, layer=layer: inputs.update({layer: args[0][0]})  # noqa: E731
                handles.append(twin.map(layer).register_forward_pre_hook(hook))
            with torch.no_grad():
                twin.logits(ids)
            for handle in handles:
                handle.remove()
            for rows, layer in zip(found, twin.layers, strict=True):
                rows.append(inputs[layer][places(len(ids))])
    return [torch.cat(rows) for rows in found]


POSITIONS = {"predicting": lambda n: slice(0, n - 1), "ans_ref": lambda n: slice(1, n)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", POSITIONS)
def test_the_cached_positions_are_those_that_predict_or_those_one_later(tiny_model, tokenizer, kind, rule):
    trained = triple_model(tiny_model(kind), BiasEditConfig(**SMALL, positions=rule))
    group = [4, 9, 1]  # one micro-batch
    keys, grads = trained.cached(group)
    expected = slow_keys(Twin(kind, len(tokenizer)), trained.triples, group, POSITIONS[rule])
    for k, g, rows in zip(keys, grads, expected, strict=True):
        torch.testing.assert_close(k, rows, atol=1e-4, rtol=1e-4)
        assert len(g) == len(k)


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_token_has_no_gradient_and_the_first_one_does(tiny_model, kind):
    model, group = tiny_model(kind), [4, 9, 1]
    predicting, later = (
        triple_model(model, BiasEditConfig(**SMALL, positions=rule)).cached(group)[1] for rule in POSITIONS
    )
    triples = tokenise(model, TRAIN)
    lengths = [
        len(triples.sequences[triples.index(n, label)]) for label in ("anti_stereotype", "stereotype") for n in group
    ]
    for early, late in zip(predicting, later, strict=True):
        start = 0
        for length in lengths:
            rows = slice(start, start + length - 1)
            assert early[rows].any(dim=1).all()
            assert not late[rows][-1].any()
            assert torch.equal(late[rows][:-1], early[rows][1:])
            start = rows.stop


def test_what_is_cached_does_not_depend_on_the_global_gradient_switch(tiny_model):
    trained = triple_model(tiny_model("llama"))
    plain = trained.cached([0, 1])
    with torch.no_grad():
        without = trained.cached([0, 1])
    for first, second in zip(plain[0] + plain[1], without[0] + without[1], strict=True):
        assert torch.equal(first, second)
        assert not first.requires_grad


# --- losses and gradients under an edit -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_losses_under_an_edit_and_their_gradients_are_those_of_edited_weights(tiny_model, tokenizer, kind, config):
    model, group = tiny_model(kind), [2, 11, 6, 0]
    trained, delta = triple_model(model, config), dense_delta(model)
    figures = trained.backward(delta, group)

    shifts = random_shifts(model)
    before, after = Twin(kind, len(tokenizer)), Twin(kind, len(tokenizer), shifts)
    debias = torch.stack([slow_debias(after, trained.triples, n, config) for n in group])
    retention = torch.stack([slow_retention(before, after, trained.triples, n, config) for n in group])
    ((debias + config.lam * retention).sum() / config.batch_size).backward()

    assert figures["debias"] == pytest.approx(debias.mean().item(), rel=1e-3, abs=1e-5)
    assert figures["retention"] == pytest.approx(retention.mean().item(), rel=1e-3, abs=1e-5)
    assert figures["loss"] == pytest.approx((debias + config.lam * retention).mean().item(), rel=1e-3, abs=1e-5)
    for parameter, expected in zip(delta.parameters(), after.gradients(), strict=True):
        assert expected.abs().max() > 1e-6
        tolerance = 2e-3 * float(expected.abs().max())
        torch.testing.assert_close(parameter.grad.T, expected, atol=tolerance, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_measured_figures_are_those_of_edited_weights_sentence_by_sentence(tiny_model, tokenizer, kind):
    model, group = tiny_model(kind), [0, 3, 5, 1]
    measured = triple_model(model, OWN, DEV)
    found = {"edited": measured.measure(dense_delta(model), group), "unedited": measured.measure(None, group)}
    plain = Twin(kind, len(tokenizer))
    for name, twin in (("edited", Twin(kind, len(tokenizer), random_shifts(model))), ("unedited", plain)):
        rows = []
        with torch.no_grad():
            for number in group:
                row = []
                for label in LABELS:
                    ids = measured.triples.sequences[measured.triples.index(number, label)]
                    logprobs = twin.logits(ids)[0].double().log_softmax(-1)
                    row.append(np.mean([float(logprobs[j - 1, ids[j]]) for j in range(1, len(ids))]))
                rows.append(row)
            debias = np.mean([float(slow_debias(twin, measured.triples, n, OWN)) for n in group])
            retention = np.mean([float(slow_retention(plain, twin, measured.triples, n, OWN)) for n in group])
        st, an, un = np.array(rows).T
        expected = {
            "loss": debias + OWN.lam * retention,
            "debias": debias,
            "retention": retention,
            "ss": 100 * np.mean(st > an),
            "lms": 50 * np.mean(st > un) + 50 * np.mean(an > un),
            "gap": np.mean(st - an),
        }
        assert found[name] == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert found["edited"]["retention"] > 0.01
    assert found["unedited"]["retention"] == 0


def test_figures_and_gradients_do_not_depend_on_the_memory_there_is(tiny_model, monkeypatch):
    model, group = tiny_model("llama"), [2, 11, 6, 0, 5]
    config = BiasEditConfig(**{**SMALL, "batch_size": 5})
    made, cached = [], []
    for fits in (5, 1):  # triples at a time
        trained, delta = triple_model(model, config), dense_delta(model)
        run = trained.runner

        def short(indices, run=run, fits=fits):
            if len(indices) > 3 * fits:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return run(indices)

        monkeypatch.setattr(trained, "runner", short)
        if fits == 1:
            with pytest.warns(UserWarning, match="out of memory"):
                figures = trained.backward(delta, group)
        else:
            figures = trained.backward(delta, group)
        made.append([figures, [p.grad for p in delta.parameters()], trained.measure(delta, group)])
        cached.append([k.T @ g for k, g in zip(*trained.cached(group), strict=True)])
    for i in (0, 2):
        assert made[1][i] == pytest.approx(made[0][i], rel=1e-4, abs=1e-6)
    for few, all_ in zip(made[1][1] + cached[1], made[0][1] + cached[0], strict=True):
        torch.testing.assert_close(few, all_, atol=1e-4 * float(all_.abs().max()), rtol=1e-3)


# --- the edit -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_shift_as_hooks_is_the_shift_added_to_the_weights(tiny_model, tokenizer, kind):
    model, shifts = tiny_model(kind), random_shifts(tiny_model(kind))
    hooked = logits(model, dense_delta(model))
    tokens = torch.arange(40, 52).reshape(2, 6)
    with torch.no_grad():
        edited = Twin(kind, len(tokenizer), shifts).hf(tokens).logits
    assert (hooked - logits(model)).abs().max() > 0.1
    torch.testing.assert_close(hooked, edited, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_zero_shift_is_the_unedited_model_bit_for_bit(tiny_model, kind):
    model = tiny_model(kind)
    delta = dense_delta(model)
    assert not torch.equal(logits(model, delta), logits(model))
    delta.set_([0 * shift for shift in random_shifts(model)])
    assert torch.equal(logits(model, delta), logits(model))


# --- fitting --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted(tiny_model):
    """``fitted(kind)``: an edit of the last two blocks, and the model's weights and flags before it was fitted."""
    made = {}

    def fit(kind: str):
        if kind not in made:
            model = tiny_model(kind)
            before = copy.deepcopy(model.state_dict()), fingerprint(model.original_model)
            flags = [parameter.requires_grad for parameter in model.parameters()]
            config = BiasEditConfig(**SMALL, lr=1e-2)
            made[kind] = BiasEdit.fit(model, TRAIN, config, layers="last12", dev=DEV), *before, flags
        return made[kind]

    return fit


def same_shifts(first: WeightDelta, second: WeightDelta) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_fitting_and_using_an_edit_leave_the_model_as_it_was(tiny_model, fitted, kind):
    model, (edit, weights, print_of_weights, flags) = tiny_model(kind), fitted(kind)
    for _, shift in edit.for_groups(model, DEV):
        logits(model, shift)
    assert fingerprint(model.original_model) == print_of_weights
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert any(flags)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.list_hooks() == {} or not any(model.list_hooks().values())


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_makes_the_same_edit_and_another_seed_another(tiny_model, fitted, kind):
    model, (edit, *_) = tiny_model(kind), fitted(kind)
    torch.manual_seed(99)  # the fit draws nothing from the global numbers
    again = BiasEdit.fit(model, TRAIN, edit.config, layers="last12", dev=DEV)
    assert again.notes == edit.notes
    assert same_shifts(again, edit)
    other = BiasEdit.fit(model, TRAIN, BiasEditConfig(**SMALL, lr=1e-2, seed=1), layers="last12", dev=DEV)
    assert other.notes["curves"] != edit.notes["curves"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_edit_is_the_editors_shift_of_the_support_triples_times_the_strength(tiny_model, fitted, kind):
    model, (edit, *_) = tiny_model(kind), fitted(kind)
    everything = BiasEdit.fit(model, TRAIN, BiasEditConfig(**{**SMALL, "n_support": 99}, lr=1e-2), layers=[2], dev=DEV)
    trained = triple_model(model, everything.config, layers=(2,))
    with torch.no_grad():
        shifts = everything.editors.shifts(trained.cached(range(len(TRAIN))))
    (parameter,) = everything.parameters()
    expected = everything.notes["strength"] * shifts[0].T
    torch.testing.assert_close(parameter.detach(), expected, atol=1e-5 * float(shifts[0].abs().max()), rtol=1e-3)
    assert len(list(edit.parameters())) == 2


def test_training_moves_the_editor_and_lowers_the_loss_it_is_trained_on(tiny_model):
    # Every step on the same triples: without gradients through hooks, shift and solve this would not fall.
    options = {**SMALL, "n_edits": 6, "query": "same", "steps": 12, "eval_every": 4, "lr": 1e-3, "step_lr": 0.3}
    config = BiasEditConfig(**options, loss="logprob", lam=0.1, meta_lr=1e-3)
    edit = BiasEdit.fit(tiny_model("llama"), TRAIN[:6], config, layers="last1", dev=TRAIN[:6])
    losses = [row["loss"] for row in edit.notes["curves"] if row["split"] == "train"]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_notes_tell_what_was_trained_on_and_how_it_went(fitted, kind):
    edit, *_ = fitted(kind)
    notes = edit.notes
    assert (notes["n_train"], notes["n_dev"], notes["left_out"]) == (len(TRAIN), len(DEV), {})
    steps = {split: [row["step"] for row in notes["curves"] if row["split"] == split] for split in ("train", "dev")}
    assert steps == {"train": [1, 2], "dev": [0, 1, 2]}
    assert edit.bias == "race"
    assert edit.name == "biasedit(race)"


def test_without_development_records_a_fifth_of_the_target_terms_is_held_out(tiny_model):
    given = records(30, targets=("a", "b", "c", "d", "e", "f", "g", "h", "i", "j"))
    edit = BiasEdit.fit(tiny_model("llama"), given, BiasEditConfig(**{**SMALL, "steps": 0}), layers="last1")
    assert (edit.notes["n_train"], edit.notes["n_dev"]) == (24, 6)


def test_an_interrupted_fit_goes_on_to_the_same_edit(tiny_model, tmp_path, monkeypatch):
    model, config = tiny_model("llama"), BiasEditConfig(**{**SMALL, "steps": 4, "eval_every": 2})
    fit = bound(BiasEdit.fit, model, TRAIN, config, layers="last1", dev=DEV)
    whole, calls, backward = fit(), [], TripleModel.backward

    def interrupted(self, *args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return backward(self, *args)

    monkeypatch.setattr(TripleModel, "backward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(partial=tmp_path / "partial.pt")
    resumed = fit(partial=tmp_path / "partial.pt")
    assert len(calls) == 4 + 2
    assert same_shifts(resumed, whole)
    assert resumed.notes == whole.notes
    # Of other data nothing is taken up.
    calls[:] = range(10)
    BiasEdit.fit(model, TRAIN[:10], config, layers="last1", dev=DEV, partial=tmp_path / "partial.pt")
    assert len(calls) == 10 + 4


# --- the strength ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_strength_is_the_one_with_ss_nearest_to_50_that_keeps_lms(tiny_model, fitted, kind):
    edit, *_ = fitted(kind)
    table = edit.notes["strengths"]
    assert [row["strength"] for row in table] == [0.0, *STRENGTHS]
    allowed = [row for row in table if row["lms"] >= table[0]["lms"] - LMS_LOSS]
    chosen = next(row for row in table if row["strength"] == edit.notes["strength"])
    assert chosen in allowed
    assert abs(chosen["ss"] - 50) == min(abs(row["ss"] - 50) for row in allowed)
    # The row of the chosen strength is what the edit as it is handed out does.
    measured = triple_model(tiny_model(kind), edit.config, DEV, layers=(2, 3))
    again = measured.measure(edit, range(len(DEV)))
    assert {name: chosen[name] for name in again} == pytest.approx(again, abs=1e-3)


class ByHand(TripleModel):
    """Figures by strength, read off the shift (1 at strength 1)."""

    def __init__(self, figures: dict[float, tuple[float, float]]) -> None:
        self.figures = figures

    def measure(self, delta, group):
        strength = 0.0 if delta is None else next(iter(delta.parameters())).max().item()
        ss, lms = self.figures[strength]
        return {"ss": ss, "lms": lms}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({0.75: (51.0, 80.0)}, 0.75),
        ({0.75: (51.0, 79.0)}, 0.75),  # costs just as much as it may
        ({0.75: (51.0, 78.9), 1.0: (56.0, 80.0)}, 1.0),  # the nearest one costs too much
        ({0.75: (48.0, 80.0), 1.0: (51.0, 80.0)}, 1.0),  # nearer, on whichever side
        ({0.5: (48.0, 80.0), 1.0: (52.0, 80.0)}, 0.5),  # of equals the weaker
        ({}, 0.0),  # if nothing helps, no edit
    ],
)
def test_strengths_by_hand(tiny_model, fitted, changes, expected):
    edit = copy.deepcopy(fitted("llama")[0])
    ones = [torch.ones(s.d_in, s.d_out) for s in edit.spec().maps]
    figures = {0.0: (70.0, 80.0), **{strength: (90.0, 80.0) for strength in STRENGTHS}, **changes}
    strength, table = _strength(edit, ones, ByHand(figures), [0])
    assert strength == expected
    assert {row["strength"]: (row["ss"], row["lms"]) for row in table} == figures


# --- bundles --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_edit_comes_back_with_its_logits_and_settings_but_without_editors(tiny_model, fitted, tmp_path, kind):
    model, edit = tiny_model(kind), copy.deepcopy(fitted(kind)[0])
    edit.set_(random_shifts(model, (2, 3)))
    back = load_intervention(edit.save(tmp_path / "kept"))
    assert type(back) is BiasEdit
    assert not torch.equal(logits(model, edit), logits(model))
    assert torch.equal(logits(model, back), logits(model, edit))
    assert (back.config, back.bias, back.name, back.notes) == (edit.config, edit.bias, edit.name, edit.notes)
    assert back.spec() == edit.spec()
    assert back.state_dict().keys() == {f"maps.blocks-{layer}-mlp-out.delta" for layer in (2, 3)}
    with pytest.raises(TracelabError, match="loaded from a bundle, which holds no editor network: fit it again"):
        _ = back.editors
    with pytest.raises(TracelabError, match="holds no editor network"):
        next(back.for_groups(model, DEV))
    with pytest.raises(TracelabError, match="holds no editor network"):
        transductive_scores(model, back, DEV)


# --- layers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("last1", [3]),
        ("last2", [2]),
        ("last12", [2, 3]),
        ("last123", [1, 2, 3]),
        ("last31", [1, 3]),
        ("last11", [3]),
        ("last4", [0]),
        ([3, 0, 3], [0, 3]),
        (range(2), [0, 1]),
    ],
    ids=str,
)
def test_layers_are_counted_from_the_end_or_given(tiny_model, layers, expected):
    assert edited_layers(tiny_model("llama"), layers, []) == expected


@pytest.mark.parametrize("layers", ["last", "last0", "first1", "1,2", "last1,2", "lastly", " last1", "last1 ", ""])
def test_words_for_layers_that_are_not_understood_are_refused(tiny_model, layers):
    with pytest.raises(TracelabError, match=rf"layers '{layers}' are not understood: give numbers, \"auto\", or"):
        edited_layers(tiny_model("llama"), layers, [])


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("last5", "layers 'last5': the model has 4"),
        ("last19", "layers 'last19': the model has 4"),
        ([4], "layer 4 is out of range: tiny-llama has layers 0 to 3"),
        ([-1], "layer -1 is out of range"),
        ([], "at least one layer"),
    ],
)
def test_layers_that_the_model_lacks_are_refused(tiny_model, layers, message):
    with pytest.raises(TracelabError, match=message):
        BiasEdit.fit(tiny_model("llama"), TRAIN, OWN, layers=layers, dev=DEV)


def test_automatic_layers_are_those_whose_mlp_has_the_largest_traced_effect(tiny_model):
    from tracelab.localize import causal_trace

    model = tiny_model("llama")
    found = edited_layers(model, "auto", TRAIN[:4])
    effects = causal_trace(model, TRAIN[:4], components=("mlp",), window=3, max_cases=16).effects
    largest = {layer: effects[effects["layer"] == layer]["nie"].max() for layer in range(4)}
    (weakest,) = set(range(4)) - set(found)
    assert found == sorted(found)
    assert all(largest[weakest] <= largest[layer] for layer in found)


# --- refusals -------------------------------------------------------------------------------------------------------


def test_more_edits_at_once_than_there_are_triples_are_refused(tiny_model):
    with pytest.raises(TracelabError, match="n_edits=4 of 3 training triples: lower it"):
        BiasEdit.fit(tiny_model("llama"), TRAIN[:3], OWN, layers="last1", dev=DEV)


def test_a_query_of_other_target_terms_needs_two_of_them(tiny_model):
    one = records(6, targets=("nurse",))
    with pytest.raises(TracelabError, match='query="held_out" needs triples of two target terms or more'):
        BiasEdit.fit(tiny_model("llama"), one, OWN, layers="last1", dev=DEV)


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_loss_that_is_not_finite_at_the_first_step_is_an_error_and_leaves_the_model_clean(tiny_model):
    config = BiasEditConfig(**SMALL, lr=1e30)
    with pytest.raises(TracelabError, match=r"biasedit\(race\): not finite at step 1 .*: lower the learning rate"):
        BiasEdit.fit(tiny_model("llama"), TRAIN, config, layers="last1", dev=DEV)
    assert not any(tiny_model("llama").list_hooks().values())


# --- what a step is made from and judged on -------------------------------------------------------------------------


def steps(config: BiasEditConfig, model, n: int):
    triples = tokenise(model, TRAIN)
    batches = _batches(triples, config)
    return triples, [next(batches) for _ in range(n)]


def test_held_out_steps_are_judged_on_other_target_terms_than_they_are_made_from(tiny_model):
    triples, found = steps(BiasEditConfig(**SMALL, query="held_out"), tiny_model("llama"), 50)
    for made_from, judged_on in found:
        terms = [{triples.records[i].target for i in rows} for rows in (made_from, judged_on)]
        assert terms[0].isdisjoint(terms[1])
        assert all(0 < len(rows) == len(set(rows)) <= 4 for rows in (made_from, judged_on))
    for side in (0, 1):
        assert {i for step in found for i in step[side]} == set(range(len(TRAIN)))


def test_same_steps_are_judged_on_what_they_are_made_from(tiny_model):
    _, found = steps(BiasEditConfig(**SMALL, query="same"), tiny_model("llama"), 50)
    for made_from, judged_on in found:
        assert made_from == judged_on
        assert len(set(made_from)) == 4
    assert {i for step in found for i in step[0]} == set(range(len(TRAIN)))


@pytest.mark.parametrize("query", ["same", "held_out"])
def test_the_seed_makes_the_steps(tiny_model, query):
    first, again, other = (
        steps(BiasEditConfig(**SMALL, query=query, seed=seed), tiny_model("llama"), 5)[1] for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other
    assert first[0] != first[1]


# --- the transductive protocol --------------------------------------------------------------------------------------


def shifts_by_group(edit: BiasEdit, model, given) -> list[tuple[list, list[torch.Tensor]]]:
    """Groups, and the shifts as they were while each group's turn it was."""
    return [
        (group, [parameter.detach().T.clone() for parameter in shift.parameters()])
        for group, shift in edit.for_groups(model, given)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_groups_are_in_order_of_n_edits_records_with_the_rest_last(tiny_model, fitted, kind):
    given = records(10, start=50)
    found = shifts_by_group(fitted(kind)[0], tiny_model(kind), given)
    assert [group for group, _ in found] == [given[:4], given[4:8], given[8:]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_groups_edit_is_the_editors_shift_of_its_own_triples(tiny_model, fitted, kind):
    # Keys and gradients are cached of all records together here, so padding and neighbours are others.
    model, edit, given = tiny_model(kind), fitted(kind)[0], records(10, start=50)
    everything = triple_model(model, edit.config, given, layers=(2, 3))
    for number, (_, shifts) in enumerate(shifts_by_group(edit, model, given)):
        rows = everything.cached(range(4 * number, min(4 * number + 4, 10)))
        with torch.no_grad():
            expected = edit.editors.shifts(rows)
        for shift, slow in zip(shifts, expected, strict=True):
            assert slow.any()
            torch.testing.assert_close(shift, slow, atol=1e-4 * float(slow.abs().max()), rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_groups_edit_does_not_depend_on_the_other_groups(tiny_model, fitted, kind):
    model, edit, given = tiny_model(kind), fitted(kind)[0], records(10, start=50)
    before = copy.deepcopy(edit.editors.state_dict()), [p.detach().clone() for p in edit.parameters()]
    together = shifts_by_group(edit, model, given)
    alone = [shifts_by_group(edit, model, group)[0] for group, _ in reversed(together)][::-1]
    for (_, first), (_, second) in zip(together, alone, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(together[0][1][0], together[1][1][0])
    # Neither the editor (its normaliser) nor the fitted edit has learnt anything from test triples.
    assert all(torch.equal(value, before[0][name]) for name, value in edit.editors.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(edit.parameters(), before[1], strict=True))


def test_transductive_scores_are_those_of_each_group_under_its_own_edit(tiny_model, fitted):
    model, edit, given = tiny_model("llama"), copy.copy(fitted("llama")[0]), records(10, start=50)
    scores = transductive_scores(model, edit, given)
    start = 0
    for _, shifts in shifts_by_group(edit, model, given):
        delta = dense_delta(model, (2, 3))
        delta.set_(shifts)
        with delta.applied(model):
            own = stereoset_scores(model, given[start : start + 4])
        part = scores.sentences[start : start + 4]
        for label in LABELS:
            np.testing.assert_allclose(part[label], own.sentences[label], rtol=1e-6)
        start += 4
    plain = stereoset_scores(model, given).sentences
    assert list(scores.sentences["id"]) == list(plain["id"]) == [record.id for record in given]
    assert not np.allclose(scores.sentences["stereotype"], plain["stereotype"], atol=1e-4)
    assert set(scores.table["edit"]) == {"biasedit(race), transductive"}


# --- editors of several shapes --------------------------------------------------------------------------------------


def test_maps_of_one_shape_share_a_network_and_others_have_their_own(tiny_model):
    shapes = list(shapes_of(tiny_model("llama"), (0, 1, 3)))
    wide = shapes[1].model_copy(update={"d_in": 16})
    editors = Editors([shapes[0], wide, shapes[2]], OWN)
    assert set(editors.networks) == {"64x32", "16x32"}
    assert editors.networks["64x32"].step.shape == (2,)
    assert editors.networks["16x32"].step.shape == (1,)
    generator = torch.Generator().manual_seed(0)
    rows = [[torch.randn(6, size, generator=generator) for size in sizes] for sizes in ((64, 16, 64), (32, 32, 32))]
    editors.update((rows[0], rows[1]))
    with torch.no_grad():
        editors.networks["64x32"].step[1] = 0  # of the third map alone
        first, second, third = editors.shifts((rows[0], rows[1]))
    assert first.any()
    assert second.any()
    assert not third.any()
    assert editors.networks["64x32"].normaliser.count == 12
    assert editors.networks["16x32"].normaliser.count == 6


def test_the_step_sizes_have_a_learning_rate_of_their_own_and_no_parameter_is_forgotten(tiny_model):
    editors = Editors(shapes_of(tiny_model("llama")), BiasEditConfig(**SMALL, meta_lr=1e-3, step_lr=0.5))
    others, step_sizes = editors.groups(editors_config := BiasEditConfig(**SMALL, meta_lr=1e-3, step_lr=0.5))
    assert (others["lr"], step_sizes["lr"]) == (editors_config.meta_lr, editors_config.step_lr)
    assert [id(p) for p in step_sizes["params"]] == [id(network.step) for network in editors.networks.values()]
    grouped = sorted(id(p) for group in (others, step_sizes) for p in group["params"])
    assert grouped == sorted(id(p) for p in editors.parameters())


# --- configuration --------------------------------------------------------------------------------------------------


def test_the_reference_preset_has_the_released_settings_and_takes_changes():
    config = BiasEditConfig.reference()
    assert (config.loss, config.retention, config.retain_on) == ("reference", "reference", "unrelated")
    assert (config.positions, config.query, config.span, config.init) == ("ans_ref", "same", "sentence", "normal")
    assert (config.n_edits, config.batch_size, config.rank, config.n_blocks) == (128, 64, 1920, 2)
    assert (config.lr, config.meta_lr, config.lam, config.patience) == (1e-7, 1e-6, 1.0, 5)
    assert config.step_lr == pytest.approx(config.meta_lr / config.lr)  # eta itself is trained with meta_lr
    assert BiasEditConfig.reference(lam=4.0, loss="logprob") == BiasEditConfig(
        **{**vars(config), "lam": 4.0, "loss": "logprob"}
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"loss": "kl"}, "unknown loss 'kl': choose one of reference, logprob, preference"),
        ({"span": "word"}, "unknown span 'word': choose one of sentence, filler"),
        ({"retention": "none"}, "unknown retention 'none': choose one of kl, reference"),
        ({"retain_on": "some"}, "unknown retain_on 'some': choose one of unrelated, all"),
        ({"positions": "ans"}, "unknown positions 'ans': choose one of predicting, ans_ref"),
        ({"query": "other"}, "unknown query 'other': choose one of held_out, same"),
        ({"init": "zero"}, "unknown init 'zero': choose one of scaled, normal"),
        *(
            ({name: 0}, f"{name} is at least 1, not 0")
            for name in ("n_edits", "n_support", "batch_size", "rank", "n_blocks", "eval_every", "patience")
        ),
        *(
            ({name: value}, f"{name} is a number above 0, not {value}")
            for name in ("beta", "lr", "meta_lr", "step_lr")
            for value in (0.0, -1.0, float("nan"), float("inf"))
        ),
        ({"lam": -0.5}, "lam is a number of at least 0, not -0.5"),
        ({"lam": float("nan")}, "lam is a number of at least 0, not nan"),
        ({"steps": -1}, "steps is a number of at least 0, not -1"),
        ({"margin": float("inf")}, "margin is a finite number, not inf"),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("make", [BiasEditConfig, BiasEditConfig.reference], ids=["own", "reference"])
def test_a_wrong_configuration_is_refused_in_one_sentence(make, wrong, message):
    with pytest.raises(TracelabError) as refused:
        make(**wrong)
    assert str(refused.value) == message


def test_zero_retention_zero_steps_and_a_negative_margin_are_allowed():
    config = BiasEditConfig(lam=0.0, steps=0, margin=-0.2)
    assert (config.lam, config.steps, config.margin) == (0.0, 0, -0.2)
