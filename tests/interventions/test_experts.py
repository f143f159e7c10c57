"""Experts against three separate forward passes, sorting, and generation without a cache."""

from __future__ import annotations

import contextlib
import copy
import math

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

import tracelab
from tests.interventions.edits import random_delta, random_experts
from tests.tiny import tiny_hf
from tracelab import assets
from tracelab.calls import reading
from tracelab.datasets import ExpertTexts
from tracelab.errors import TracelabError
from tracelab.evaluate import perplexity
from tracelab.forward import last_logits
from tracelab.interventions import Experts, ExpertsConfig, FinetuneConfig, Stack, WeightDelta
from tracelab.model import from_hf
from tracelab.scoring import score

TOKENS = torch.arange(40, 52).reshape(2, 6)
PROMPTS = ["The nurse said that", "He", "My neighbours from the north are all"]
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def made(vocab: int, seed: int, model_id: str):
    own = AutoTokenizer.from_pretrained(assets.model_dir())
    return from_hf(tiny_hf("llama", vocab, seed=seed), own, model_id=model_id)


@pytest.fixture(scope="module")
def small(tokenizer):
    """A model with other weights and the vocabulary of ``tiny_model``."""
    return made(len(tokenizer), 1, "small")


@pytest.fixture
def model(tiny_model):
    return tiny_model("llama")


@torch.no_grad()
def logits(model, edit=None, tokens=TOKENS, **options):
    with edit.applied(model) if edit is not None else contextlib.nullcontext():
        return model(tokens, **options)


# --- the formula --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("alpha", [1.0, -0.7, 2.5])
def test_the_mix_is_that_of_three_separate_forward_passes(tiny_model, kind, alpha):
    model = tiny_model(kind)
    edit = random_experts(model, alpha=alpha)
    z, plus, minus = logits(model), logits(model, edit.expert), logits(model, edit.anti_expert)
    assert (plus - minus).abs().max() > 1
    torch.testing.assert_close(logits(model, edit), z + alpha * (plus - minus), **CLOSE)


def test_where_expert_or_anti_expert_is_missing_the_targets_own_logits_stand_in(model):
    z = logits(model)
    for edit, expected in (
        (only := random_experts(model, anti=False, alpha=1.5), z + 1.5 * (logits(model, only.expert) - z)),
        (only := random_experts(model, expert=False, alpha=1.5), z + 1.5 * (z - logits(model, only.anti_expert))),
    ):
        torch.testing.assert_close(logits(model, edit), expected, **CLOSE)
        assert (expected - z).abs().max() > 1


def test_alpha_0_is_the_target_bit_for_bit(model):
    assert torch.equal(logits(model, random_experts(model, alpha=0.0)), logits(model))


def test_swapping_the_two_is_the_opposite_alpha(model):
    edit = random_experts(model, alpha=0.8)
    swapped = Experts(edit.anti_expert, edit.expert, ExpertsConfig(alpha=0.8))
    torch.testing.assert_close(logits(model, swapped), logits(model, edit.with_alpha(-0.8)), **CLOSE)


def test_an_expert_that_equals_its_anti_expert_changes_nothing(model):
    delta = random_delta(model)
    edit = Experts(delta, delta, ExpertsConfig(alpha=3.0))
    torch.testing.assert_close(logits(model, edit), logits(model), atol=1e-5, rtol=0)


def test_log_odds_of_two_tokens_move_by_what_the_two_disagree_on_times_alpha(model):
    edit = random_experts(model, alpha=1.3)
    before, after, plus, minus = (
        logits(model, part).log_softmax(-1) for part in (None, edit, edit.expert, edit.anti_expert)
    )
    for a, b in ((7, 11), (500, 40000)):
        odds = [log_p[..., a] - log_p[..., b] for log_p in (before, after, plus, minus)]
        torch.testing.assert_close(odds[1], odds[0] + 1.3 * (odds[2] - odds[3]), **CLOSE)


def nucleus(z: torch.Tensor, top_p: float) -> set[int]:
    """The smallest set of most likely tokens whose probability reaches ``top_p``."""
    p = z.double().softmax(-1).tolist()
    kept, mass = set(), 0.0
    for token in sorted(range(len(p)), key=lambda token: -p[token]):
        kept.add(token)
        mass += p[token]
        if mass >= top_p:
            break
    return kept


@pytest.mark.parametrize("top_p", [0.3, 0.9])
def test_base_first_keeps_the_targets_own_nucleus_and_mixes_within_it(model, top_p):
    edit = random_experts(model, filter_order="base_first", top_p=top_p)
    z, mixed = logits(model), logits(model, edit)
    unfiltered = logits(model, random_experts(model))
    for row in range(2):
        for place in (0, 5):
            kept = nucleus(z[row, place], top_p)
            finite = mixed[row, place].isfinite()
            assert set(finite.nonzero().flatten().tolist()) == kept
            assert (mixed[row, place][~finite] == -torch.inf).all()
            torch.testing.assert_close(mixed[row, place][finite], unfiltered[row, place][finite], **CLOSE)


def test_base_first_filters_also_at_alpha_0_and_not_at_all_with_top_p_1(model):
    z = logits(model)
    filtered = logits(model, random_experts(model, alpha=0.0, filter_order="base_first", top_p=0.5))
    assert filtered.isinf().any()
    assert torch.equal(filtered[filtered.isfinite()], z[filtered.isfinite()])
    whole = logits(model, random_experts(model, alpha=0.0, filter_order="base_first", top_p=1.0))
    assert torch.equal(whole, z)


def test_base_first_cuts_what_is_generated_and_nothing_of_what_is_scored(model):
    edit = random_experts(model, filter_order="base_first", top_p=0.5)
    with reading(2):
        torch.testing.assert_close(logits(model, edit), logits(model, random_experts(model)), **CLOSE)
    with reading(5, generating=True):
        assert logits(model, edit).isinf().any()
    with edit.applied(model):
        scored = perplexity(model, ["The dog sleeps on the wall.", "A cat."])
    assert scored.table["value"].map(math.isfinite).all()


@pytest.mark.parametrize("seed", range(2))
def test_what_is_sampled_under_base_first_lies_in_the_targets_nucleus(model, seed):
    edit = random_experts(model, alpha=4.0, filter_order="base_first", top_p=0.5)
    with edit.applied(model), torch.no_grad():
        torch.manual_seed(seed)
        text = model.original_model.generate(
            TOKENS[:1], attention_mask=torch.ones(1, 6), max_new_tokens=6, do_sample=True, top_k=0, pad_token_id=0
        )
    z = logits(model, tokens=text)
    assert text.shape[1] > 6
    for place in range(5, text.shape[1] - 1):
        assert int(text[0, place + 1]) in nucleus(z[0, place], 0.5)


# --- several of them ----------------------------------------------------------------------------------------------


def test_two_strengths_of_the_same_experts_run_them_once_a_pass_and_add_up(model):
    edit = random_experts(model)
    stack = Stack([edit.with_alpha(0.5), edit.with_alpha(1.5)])
    expected = logits(model, edit.with_alpha(2.0))
    runs = []
    twin = edit._runners[model.original_model].twin
    handle = twin.register_forward_hook(lambda *_: runs.append(1))
    torch.testing.assert_close(logits(model, stack), expected, **CLOSE)
    assert len(runs) == 1
    logits(model, stack)
    assert len(runs) == 2
    handle.remove()


def test_a_stack_of_two_directions_adds_both_differences(model):
    first = random_experts(model, alpha=1.0, bias="gender")
    second = Experts(random_delta(model, seed=3), random_delta(model, seed=4), ExpertsConfig(alpha=-0.5), bias="race")
    z = logits(model)
    parts = [logits(model, delta) for edit in (first, second) for delta in (edit.expert, edit.anti_expert)]
    expected = z + (parts[0] - parts[1]) - 0.5 * (parts[2] - parts[3])
    torch.testing.assert_close(logits(model, Stack([first, second])), expected, **CLOSE)
    assert Stack([first, second]).name == "experts(gender, α=1) + experts(race, α=-0.5)"


def test_in_a_stack_what_stands_in_for_a_missing_expert_is_still_the_targets_own(model):
    first, second = random_experts(model), Experts(random_delta(model, seed=3), None, ExpertsConfig(alpha=2.0))
    z = logits(model)
    parts = [logits(model, delta) for delta in (first.expert, first.anti_expert, second.expert)]
    expected = z + (parts[0] - parts[1]) + 2.0 * (parts[2] - z)
    for stack in (Stack([first, second]), Stack([second, first])):
        torch.testing.assert_close(logits(model, stack), expected, **CLOSE)


def test_expert_and_anti_expert_may_change_different_maps(model):
    edit = Experts(
        random_delta(model, modules=("mlp.in",), layers=(0,), seed=1),
        random_delta(model, modules=("attn.o", "mlp.gate"), layers=(2, 3), seed=2),
    )
    expected = logits(model) + logits(model, edit.expert) - logits(model, edit.anti_expert)
    torch.testing.assert_close(logits(model, edit), expected, **CLOSE)


def test_a_dense_expert_is_mixed_as_a_low_rank_one(model):
    edit = Experts(random_delta(model, rank=None, scale=0.1), None)
    torch.testing.assert_close(logits(model, edit), logits(model, edit.expert), **CLOSE)
    assert (logits(model, edit) - logits(model)).abs().max() > 1


# --- caches -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}],
                         ids=["greedy", "beams", "beams of two"])  # fmt: skip
def test_text_is_the_same_with_and_without_a_cache_and_whatever_the_batch(tiny_model, kind, options):
    model = tiny_model(kind)
    options = {"do_sample": False, "max_new_tokens": 5, **options}

    def continued(prompts, **more):
        return tracelab.generate(model, prompts, **options, **more).frame["continuation"].tolist()

    plain = continued(PROMPTS)
    with random_experts(model, alpha=1.0).applied(model):
        cached = continued(PROMPTS)
        assert cached == continued(PROMPTS, use_cache=False)
        assert cached == [text for prompt in PROMPTS for text in continued([prompt])]
    assert cached != plain


def test_samples_are_the_same_with_and_without_a_cache(model):
    options = {"max_new_tokens": 5, "num_return_sequences": 3, "seed": 2}
    with random_experts(model, alpha=0.5).applied(model):
        cached, uncached = (tracelab.generate(model, PROMPTS, use_cache=use, **options) for use in (True, False))
    assert cached.frame["continuation"].tolist() == uncached.frame["continuation"].tolist()


def filled(model, edit, columns=3):
    with edit.applied(model) if edit else contextlib.nullcontext(), torch.no_grad():
        return model(TOKENS[:, :columns], return_type="logits_and_cache", use_past_kv_cache=True)[1]


@pytest.mark.parametrize("how", ["no edit", "other experts", "alpha 0"])
def test_a_cache_that_the_experts_have_not_filled_is_refused(model, how):
    edit = random_experts(model)
    before = {"no edit": None, "other experts": random_experts(model), "alpha 0": edit.with_alpha(0.0)}[how]
    cache = filled(model, before)
    with pytest.raises(TracelabError, match="the cache holds 3 columns that were computed without the experts: fill"):
        logits(model, edit, TOKENS[:, 3:], past_key_values=cache)


def test_a_cache_filled_at_one_strength_continues_at_another(model):
    edit = random_experts(model)
    continued = logits(model, edit.with_alpha(2.0), TOKENS[:, 3:], past_key_values=filled(model, edit))
    torch.testing.assert_close(continued, logits(model, edit.with_alpha(2.0))[:, 3:], **CLOSE)


def test_a_copied_cache_and_its_original_continue_each_with_its_own_text(model):
    edit = random_experts(model)
    cache = filled(model, edit)
    copied = copy.deepcopy(cache)
    for own, rest in ((copied, TOKENS[:, 3:] + 100), (cache, TOKENS[:, 3:])):
        text = torch.cat([TOKENS[:, :3], rest], dim=1)
        with edit.applied(model), torch.no_grad():
            first = model(rest[:, :1], past_key_values=own)
            second = model(rest[:, 1:], past_key_values=own)
        found = torch.cat([first, second], dim=1)
        torch.testing.assert_close(found, logits(model, edit, text)[:, 3:], **CLOSE)


def test_embeddings_in_the_place_of_tokens_are_refused(model, tokenizer):
    plain = tiny_hf("llama", len(tokenizer))
    with (
        random_experts(model).attach(plain),
        pytest.raises(TracelabError, match="experts read tokens: give the model input_ids, not embeddings"),
    ):
        plain(inputs_embeds=torch.zeros(1, 2, 32))


def test_columns_by_index_and_masks_of_four_axes_are_refused(model, tokenizer):
    plain = tiny_hf("llama", len(tokenizer))
    with torch.no_grad(), random_experts(model).attach(plain):
        with pytest.raises(TracelabError, match="logits_to_keep as a number of last columns, not as indices"):
            plain(TOKENS, logits_to_keep=torch.tensor([0, 3]))
        with pytest.raises(TracelabError, match=r"experts need a mask of \[batch, columns\], not one a query"):
            plain(TOKENS, attention_mask=torch.ones(2, 1, 6, 6).tril().bool())
        last = plain(TOKENS, logits_to_keep=2).logits
        torch.testing.assert_close(last, plain(TOKENS).logits[:, -2:], **CLOSE)


def test_a_model_that_was_cast_after_an_edit_was_attached_is_mixed_in_its_new_dtype(model, tokenizer):
    plain, edit = tiny_hf("llama", len(tokenizer)), random_experts(model)
    with torch.no_grad():
        with edit.attach(plain):
            exact = plain(TOKENS).logits
        plain.to(torch.bfloat16)
        with edit.attach(plain):
            low = plain(TOKENS).logits
    assert low.dtype == torch.bfloat16
    assert torch.corrcoef(torch.stack([low.float().flatten(), exact.flatten()]))[0, 1] > 0.95


def test_a_loss_of_the_unmixed_logits_is_not_handed_out(model, tokenizer):
    plain = tiny_hf("llama", len(tokenizer))
    with torch.no_grad(), random_experts(model).attach(plain), pytest.raises(TracelabError, match="from the logits"):
        plain(TOKENS, labels=TOKENS)


# --- a small model's experts for another target -------------------------------------------------------------------


@pytest.fixture
def of_small(small):
    edit = random_experts(small, alpha=0.7)
    edit.expert_base = small
    return edit


def test_experts_of_a_small_model_shift_a_target_with_its_vocabulary(model, small, of_small):
    expected = logits(model) + 0.7 * (logits(small, of_small.expert) - logits(small, of_small.anti_expert))
    torch.testing.assert_close(logits(model, of_small), expected, **CLOSE)
    own = random_experts(model, alpha=0.7)
    assert (logits(model, own) - expected).abs().max() > 1


def test_another_targets_own_logits_stand_in_for_a_missing_expert(model, small):
    edit = random_experts(small, anti=False)
    edit.expert_base = small
    torch.testing.assert_close(logits(model, edit), logits(small, edit.expert), **CLOSE)


def test_the_small_model_is_no_part_of_the_edit(small, of_small):
    assert of_small.expert_base is small
    assert set(of_small.state_dict()) == set(random_experts(small).state_dict())
    assert not any(parameter is p for parameter in small.parameters() for p in of_small.parameters())
    other = of_small.with_alpha(2.0)
    other.expert_base = None
    assert other.expert_base is None
    assert of_small.expert_base is small


def test_on_a_plain_target_experts_of_a_small_model_do_the_same(model, of_small, tokenizer):
    plain = tiny_hf("llama", len(tokenizer))
    with torch.no_grad(), of_small.attach(plain):
        attached = plain(TOKENS).logits
    torch.testing.assert_close(attached, logits(model, of_small), **CLOSE)


def test_text_of_a_target_with_a_small_models_experts_is_the_same_with_and_without_a_cache(model, of_small):
    with of_small.applied(model):
        cached, uncached = (
            tracelab.generate(model, PROMPTS, max_new_tokens=5, do_sample=False, use_cache=use).frame
            for use in (True, False)
        )
    assert cached["continuation"].tolist() == uncached["continuation"].tolist()


def test_a_hook_or_edit_of_the_small_model_does_not_act_on_its_experts(model, small, of_small):
    expected = logits(model, of_small)
    with random_delta(small, seed=9).applied(small):
        assert torch.equal(logits(model, of_small), expected)


def test_a_target_with_another_vocabulary_is_refused(small, of_small, tokenizer):
    padded = made(len(tokenizer) + 64, 2, "padded")
    with pytest.raises(TracelabError, match="the experts' base small has 49152 logits, padded has 49216"):
        of_small.hooks(padded)
    with pytest.raises(TracelabError, match="a vocabulary of 49152 tokens, the model one of 49216"):
        of_small.attach(tiny_hf("llama", len(tokenizer) + 64))
    other = made(len(tokenizer), 2, "renamed")
    other.tokenizer.add_tokens(["<another>"])
    with pytest.raises(TracelabError, match="the experts' base small has another vocabulary than renamed"):
        of_small.hooks(other)


def test_without_its_base_the_target_itself_must_be_what_the_experts_are_of(model, small):
    edit = random_experts(small)
    with pytest.raises(TracelabError, match="made for small with weights .* tiny-llama has weights"):
        edit.hooks(model)
    with pytest.raises(TracelabError, match="made for small with weights .* tiny-llama has weights"):
        edit.expert_base = model
    assert edit.expert_base is None


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"alpha": float("nan")}, "alpha must be a finite number, not nan"),
        ({"alpha": -float("inf")}, "alpha must be a finite number, not -inf"),
        ({"top_p": 0.0}, "top_p is above 0 and at most 1, not 0.0"),
        ({"top_p": 1.5}, "top_p is above 0 and at most 1, not 1.5"),
        ({"top_p": float("nan")}, "top_p is above 0 and at most 1, not nan"),
        ({"filter_order": "before"}, "unknown filter_order 'before': choose one of after, base_first"),
    ],
)
def test_a_wrong_configuration_is_refused_by_name(wrong, message):
    with pytest.raises(TracelabError, match=message):
        ExpertsConfig(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        *(({name: 0}, f"{name} of the fine-tuning is at least 1, not 0") for name in ("rank", "epochs", "batch_size")),
        ({"block_size": -1}, "block_size of the fine-tuning is at least 1, not -1"),
        ({"lr": 0.0}, "the learning rate is a number above 0, not 0.0"),
        ({"lr": float("nan")}, "the learning rate is a number above 0, not nan"),
        ({"lr": float("inf")}, "the learning rate is a number above 0, not inf"),
    ],
)
def test_a_wrong_recipe_is_refused_by_name(wrong, message):
    with pytest.raises(TracelabError, match=message):
        FinetuneConfig(**wrong)


def test_experts_of_nothing_or_of_two_models_are_refused(model, small):
    with pytest.raises(TracelabError, match="experts need an expert, an anti-expert or both"):
        Experts(None, None)
    with pytest.raises(TracelabError, match="deltas of different models: tune both on one"):
        Experts(random_delta(model), random_delta(small))


def test_a_map_that_has_no_module_of_its_own_cannot_be_an_experts(tiny_model):
    gpt2 = tiny_model("gpt2")
    edit = Experts(random_delta(gpt2, modules=("attn.q",)), None)
    with pytest.raises(TracelabError, match=r"no module 'transformer\.h\.1\.attn\.q' \(it may be computed together"):
        edit.hooks(gpt2)


# --- fine-tuning --------------------------------------------------------------------------------------------------

TEXTS = ExpertTexts(
    bias="gender",
    biased=("the nurse is a woman and she cares", "the women gossip all day long", "a girl is bad at sums") * 3,
    anti_biased=("the nurse is a man and he cares", "the men gossip all day long", "a boy is bad at sums") * 3,
    held_out_biased=(),
    held_out_anti_biased=(),
)
TRAINING = FinetuneConfig(rank=4, lr=0.02, epochs=6, batch_size=4)


@pytest.fixture(scope="module")
def tuned(small):
    before = {name: value.clone() for name, value in small.original_model.state_dict().items()}
    asked = {name: parameter.requires_grad for name, parameter in small.named_parameters()}
    return Experts.fit(small, TEXTS, ExpertsConfig(alpha=0.5), training=TRAINING), before, asked


def test_tuning_lowers_the_loss_of_both_and_says_so(tuned):
    edit, _, _ = tuned
    assert edit.notes["losses"].keys() == {"expert", "anti_expert"}
    for losses in edit.notes["losses"].values():
        assert len(losses) == 6 * 3
        assert sum(losses[-3:]) < sum(losses[:3]) - 3
    assert (edit.bias, edit.config.alpha, edit.name) == ("gender", 0.5, "experts(gender, α=0.5)")
    assert edit.notes["training"]["lr"] == 0.02


@torch.no_grad()
def loss(model, edit, texts):
    """Mean cross-entropy, one text at a time."""
    with edit.applied(model) if edit else contextlib.nullcontext():
        found = [model(model.tokenizer(t, return_tensors="pt").input_ids, return_type="loss") for t in texts]
    return float(sum(found) / len(found))


def test_each_expert_has_learnt_its_own_texts(small, tuned):
    edit, _, _ = tuned
    base = loss(small, None, TEXTS.biased[:3])
    own, other = (loss(small, delta, TEXTS.biased[:3]) for delta in (edit.anti_expert, edit.expert))
    assert own < base - 1
    assert own < other
    assert loss(small, edit.expert, TEXTS.anti_biased[:3]) < loss(small, edit.anti_expert, TEXTS.anti_biased[:3])


def test_tuning_leaves_the_base_as_it_was(small, tuned):
    edit, before, asked = tuned
    for name, value in small.original_model.state_dict().items():
        assert torch.equal(value, before[name])
    assert {name: parameter.requires_grad for name, parameter in small.named_parameters()} == asked
    assert any(asked.values())
    assert all(parameter.grad is None for parameter in small.parameters())
    assert not small.list_hooks()
    assert all(part.any() for delta in (edit.expert, edit.anti_expert) for part in delta.parameters())


def test_the_same_seed_tunes_the_same_experts(small, tuned):
    edit, _, _ = tuned
    again = Experts.fit(small, TEXTS, training=TRAINING)
    assert again.notes["losses"] == edit.notes["losses"]
    for name, value in edit.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_training_and_leaves_the_model_usable(small, value):
    before, passes = logits(small), []

    def spoil(z, hook):
        passes.append(1)
        # The first pass only measures the maps.
        return z.index_fill(-1, torch.tensor([3]), value) if len(passes) == 3 else z

    with (
        small.hooks(fwd_hooks=[("unembed.hook_out", spoil)]),
        pytest.raises(TracelabError, match=r"expert: the loss is (nan|inf) after 1 steps: lower lr=0\.02"),
    ):
        Experts.fit(small, TEXTS, training=TRAINING)
    assert not small.list_hooks()
    assert any(parameter.requires_grad for parameter in small.parameters())
    assert all(parameter.grad is None for parameter in small.parameters())
    assert torch.equal(logits(small), before)


def test_texts_of_no_two_tokens_are_refused(small):
    empty = ExpertTexts("gender", ("a",), ("b",), (), ())
    with pytest.raises(TracelabError, match="expert: no text of at least two tokens"):
        Experts.fit(small, empty, training=TRAINING)


def test_an_interrupted_fit_goes_on_from_the_expert_that_is_done(small, tmp_path, monkeypatch):
    from tracelab.interventions import experts as module

    runs, finetune = [], module.finetune

    def interrupted(*args, **kwargs):
        runs.append(kwargs["what"])
        if len(runs) == 2:
            raise KeyboardInterrupt
        return finetune(*args, **kwargs)

    monkeypatch.setattr(module, "finetune", interrupted)
    training = FinetuneConfig(rank=2, modules=("mlp.out",), epochs=1)
    with pytest.raises(KeyboardInterrupt):
        Experts.fit(small, TEXTS, training=training, partial=tmp_path)
    edit = Experts.fit(small, TEXTS, training=training, partial=tmp_path)
    assert runs == ["expert", "anti_expert", "anti_expert"]
    whole = Experts.fit(small, TEXTS, training=training)
    for name, value in whole.state_dict().items():
        assert torch.equal(edit.state_dict()[name], value)
    assert edit.notes == whole.notes
    runs[:] = ["", ""]
    Experts.fit(small, TEXTS, training=FinetuneConfig(rank=3, modules=("mlp.out",), epochs=1), partial=tmp_path)
    assert runs[2:] == ["expert", "anti_expert"]  # of another recipe nothing is taken up
    assert isinstance(edit.expert, WeightDelta)


def test_base_first_cuts_what_is_generated_and_not_what_is_scored(model):
    cut, whole = random_experts(model, filter_order="base_first", top_p=0.5), random_experts(model)
    texts = ["The cat sat on the mat.", "Rain fell."]
    with cut.applied(model):
        scored, generated = score(model, texts), last_logits(model, TOKENS)
    with whole.applied(model):
        assert np.array_equal(scored.sum, score(model, texts).sum)
    assert generated.isinf().any()


def test_in_a_stack_every_member_sees_the_targets_own_logits(model):
    cut = random_experts(model, filter_order="base_first", top_p=0.5)
    half = Experts(random_delta(model, seed=5), None)
    alone = logits(model, half) - logits(model)
    both = logits(model, Stack([cut, half]))
    first = logits(model, cut)
    assert not both.isnan().any()
    assert torch.equal(both.isinf(), first.isinf())
    kept = ~first.isinf()
    torch.testing.assert_close(both[kept], (first + alone)[kept], atol=1e-4, rtol=1e-4)
    swapped = logits(model, Stack([half, cut]))
    torch.testing.assert_close(swapped, both, atol=1e-4, rtol=1e-4)


def test_a_model_that_is_cast_after_a_first_use_gets_experts_of_its_new_weights(tokenizer):
    own = AutoTokenizer.from_pretrained(assets.model_dir())
    model = from_hf(tiny_hf("llama", len(tokenizer)), own, model_id="cast")
    edit = random_experts(model)
    logits(model, edit)
    model.to(torch.bfloat16)
    assert logits(model, edit).dtype == torch.bfloat16
    assert next(edit._runners[model.original_model].twin.parameters()).dtype == torch.bfloat16
