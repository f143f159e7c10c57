"""Experts against three separate forward passes, sorting, and generation without a cache."""

from __future__ import annotations

import contextlib
import copy
import math

import pytest
import torch

import tracelab
from tests.interventions.edits import CLOSE, TOKENS, logits, random_delta, random_experts
from tests.tiny import tiny_hf
from tracelab.errors import TracelabError
from tracelab.evaluate import perplexity
from tracelab.interventions import Experts, ExpertsConfig, FinetuneConfig, Stack
from tracelab.model.forward_pass import reading

PROMPTS = ["The nurse said that", "He", "My neighbours from the north are all"]


# --- the formula
# --------------------------------------------------------------------------------------------------


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
        (
            only := random_experts(model, anti=False, alpha=1.5),
            z + 1.5 * (logits(model, only.expert) - z),
        ),
        (
            only := random_experts(model, expert=False, alpha=1.5),
            z + 1.5 * (z - logits(model, only.anti_expert)),
        ),
    ):
        torch.testing.assert_close(logits(model, edit), expected, **CLOSE)
        assert (expected - z).abs().max() > 1


def test_alpha_0_is_the_target_bit_for_bit(model):
    assert torch.equal(logits(model, random_experts(model, alpha=0.0)), logits(model))


def test_swapping_the_two_is_the_opposite_alpha(model):
    edit = random_experts(model, alpha=0.8)
    swapped = Experts(edit.anti_expert, edit.expert, ExpertsConfig(alpha=0.8))
    torch.testing.assert_close(
        logits(model, swapped), logits(model, edit.with_alpha(-0.8)), **CLOSE
    )


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
            torch.testing.assert_close(
                mixed[row, place][finite], unfiltered[row, place][finite], **CLOSE
            )


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
        torch.testing.assert_close(
            logits(model, edit), logits(model, random_experts(model)), **CLOSE
        )
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
            TOKENS[:1],
            attention_mask=torch.ones(1, 6),
            max_new_tokens=6,
            do_sample=True,
            top_k=0,
            pad_token_id=0,
        )
    z = logits(model, tokens=text)
    assert text.shape[1] > 6
    for place in range(5, text.shape[1] - 1):
        assert int(text[0, place + 1]) in nucleus(z[0, place], 0.5)


# --- several of them
# ----------------------------------------------------------------------------------------------


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
    second = Experts(
        random_delta(model, seed=3),
        random_delta(model, seed=4),
        ExpertsConfig(alpha=-0.5),
        bias="race",
    )
    z = logits(model)
    parts = [
        logits(model, delta)
        for edit in (first, second)
        for delta in (edit.expert, edit.anti_expert)
    ]
    expected = z + (parts[0] - parts[1]) - 0.5 * (parts[2] - parts[3])
    torch.testing.assert_close(logits(model, Stack([first, second])), expected, **CLOSE)
    assert Stack([first, second]).name == "experts(gender, α=1) + experts(race, α=-0.5)"


def test_in_a_stack_what_stands_in_for_a_missing_expert_is_still_the_targets_own(model):
    first, second = (
        random_experts(model),
        Experts(random_delta(model, seed=3), None, ExpertsConfig(alpha=2.0)),
    )
    z = logits(model)
    parts = [logits(model, delta) for delta in (first.expert, first.anti_expert, second.expert)]
    expected = z + (parts[0] - parts[1]) + 2.0 * (parts[2] - z)
    for stack in (Stack([first, second]), Stack([second, first])):
        torch.testing.assert_close(logits(model, stack), expected, **CLOSE)


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


# --- caches
# -------------------------------------------------------------------------------------------------------  # noqa: E501


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}],  # noqa: E501
                         ids=["greedy", "beams", "beams of two"])  # fmt: skip
def test_text_is_the_same_with_and_without_a_cache_and_whatever_the_batch(
    tiny_model, kind, options
):
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
        cached, uncached = (
            tracelab.generate(model, PROMPTS, use_cache=use, **options) for use in (True, False)
        )
    assert cached.frame["continuation"].tolist() == uncached.frame["continuation"].tolist()


def filled(model, edit, columns=3):
    with edit.applied(model) if edit else contextlib.nullcontext(), torch.no_grad():
        return model(TOKENS[:, :columns], return_type="logits_and_cache", use_past_kv_cache=True)[1]


@pytest.mark.parametrize("how", ["no edit", "other experts", "alpha 0"])
def test_a_cache_that_the_experts_have_not_filled_is_refused(model, how):
    edit = random_experts(model)
    before = {
        "no edit": None,
        "other experts": random_experts(model),
        "alpha 0": edit.with_alpha(0.0),
    }[how]
    cache = filled(model, before)
    with pytest.raises(
        TracelabError,
        match="the cache holds 3 columns that were computed without the experts: fill",
    ):
        logits(model, edit, TOKENS[:, 3:], past_key_values=cache)


def test_a_cache_filled_at_one_strength_continues_at_another(model):
    edit = random_experts(model)
    continued = logits(
        model, edit.with_alpha(2.0), TOKENS[:, 3:], past_key_values=filled(model, edit)
    )
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
        pytest.raises(
            TracelabError, match="experts read tokens: give the model input_ids, not embeddings"
        ),
    ):
        plain(inputs_embeds=torch.zeros(1, 2, 32))


def test_columns_by_index_and_masks_of_four_axes_are_refused(model, tokenizer):
    plain = tiny_hf("llama", len(tokenizer))
    with torch.no_grad(), random_experts(model).attach(plain):
        with pytest.raises(
            TracelabError, match="logits_to_keep as a number of last columns, not as indices"
        ):
            plain(TOKENS, logits_to_keep=torch.tensor([0, 3]))
        with pytest.raises(
            TracelabError, match=r"experts need a mask of \[batch, columns\], not one a query"
        ):
            plain(TOKENS, attention_mask=torch.ones(2, 1, 6, 6).tril().bool())
        last = plain(TOKENS, logits_to_keep=2).logits
        torch.testing.assert_close(last, plain(TOKENS).logits[:, -2:], **CLOSE)


def test_a_model_that_was_cast_after_an_edit_was_attached_is_mixed_in_its_new_dtype(
    model, tokenizer
):
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
    with (
        torch.no_grad(),
        random_experts(model).attach(plain),
        pytest.raises(TracelabError, match="from the logits"),
    ):
        plain(TOKENS, labels=TOKENS)


# --- what is refused
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"alpha": float("nan")}, "alpha is a finite number, not nan"),
        ({"alpha": -float("inf")}, "alpha is a finite number, not -inf"),
        ({"top_p": 0.0}, "top_p is above 0, not 0.0"),
        ({"top_p": 1.5}, "top_p is at most 1, not 1.5"),
        ({"top_p": float("nan")}, "top_p is at most 1, not nan"),
        (
            {"filter_order": "before"},
            "unknown filter_order 'before': choose one of after, base_first",
        ),
    ],
)
def test_a_wrong_configuration_is_refused_by_name(wrong, message):
    with pytest.raises(TracelabError, match=message):
        ExpertsConfig(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        *(({name: 0}, f"{name} is at least 1, not 0") for name in ("rank", "epochs", "batch_size")),
        ({"block_size": -1}, "block_size is at least 1, not -1"),
        ({"lr": 0.0}, "lr is above 0, not 0.0"),
        ({"lr": float("nan")}, "lr is a finite number, not nan"),
        ({"lr": float("inf")}, "lr is a finite number, not inf"),
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
    with pytest.raises(
        TracelabError, match=r"no module 'transformer\.h\.1\.attn\.q' \(it may be computed together"
    ):
        edit.hooks(gpt2)
