"""A model or an edit whose numbers are not finite gets a sentence, never a score."""

from __future__ import annotations

import warnings

import pytest
import torch
from transformers import AutoTokenizer

import tracelab
from tests.interventions.edits import random_delta, random_experts
from tests.tiny import tiny_hf
from tracelab.datasets import bbq, crows_pairs, stereoset, templates, winobias
from tracelab.errors import TracelabError
from tracelab.evaluate import (
    bbq_scores,
    crows_pairs_scores,
    perplexity,
    stereoset_scores,
    winobias_scores,
)
from tracelab.evaluate.benchmarks.attention import attention_scores
from tracelab.evaluate.benchmarks.crows_pairs import crows_pairs_metrics
from tracelab.evaluate.benchmarks.group_bias import group_bias
from tracelab.evaluate.benchmarks.hellinger import hellinger, prompt_pairs
from tracelab.evaluate.benchmarks.stereoset import stereoset_metrics
from tracelab.model import assets
from tracelab.model.finite import require_finite, require_finite_logits
from tracelab.model.load import from_hf, model_info
from tracelab.model.scoring import start_logprobs


@pytest.fixture(scope="module")
def broken(tokenizer):
    """A model with one NaN among its weights."""
    hf_model = tiny_hf("llama", len(tokenizer))
    with torch.no_grad():
        hf_model.model.layers[2].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.warns(
        UserWarning, match="nothing can be measured on 'one-nan': the model's logits are not finite"
    ):
        return from_hf(
            hf_model, AutoTokenizer.from_pretrained(assets.model_dir()), model_id="one-nan"
        )


@pytest.fixture
def model(tiny_model):
    return tiny_model("llama")


MEASURES = {
    "score": lambda m: tracelab.score(m, ["He bakes.", "She bakes."]),
    "generate": lambda m: tracelab.generate(m, ["He bakes."], do_sample=False),
    "sample": lambda m: tracelab.generate(m, ["He bakes."], num_return_sequences=2),
    "beams": lambda m: tracelab.generate(m, ["He bakes."], do_sample=False, num_beams=2),
    "first token": start_logprobs,
    "stereoset": lambda m: stereoset_scores(m, stereoset("gender", limit=4)),
    "crows": lambda m: crows_pairs_scores(m, crows_pairs("gender", limit=4)),
    "bbq": lambda m: bbq_scores(m, bbq("gender", limit=8)),
    "bbq, shared": lambda m: bbq_scores(m, bbq("gender", limit=8), share_prefix=True),
    "winobias": lambda m: winobias_scores(m, winobias(limit=4)),
    "perplexity": lambda m: perplexity(m, ["He bakes."]),
    "windows": lambda m: perplexity(m, ["He bakes."] * 9, max_length=8),
    "hellinger": lambda m: hellinger(m, prompt_pairs("gender")[:2]),
    "group bias": lambda m: group_bias(m, templates("gender", limit=2)),
    "attention": lambda m: attention_scores(m, crows_pairs("gender", limit=4)),
    "tracing": lambda m: tracelab.causal_trace(
        m, stereoset("gender", limit=4), n_samples=1, layers=[1], components=["resid"], run="plain"
    ),
    "fast tracing": lambda m: tracelab.causal_trace(
        m, stereoset("gender", limit=4), n_samples=1, layers=[1], components=["resid"], run="fast"
    ),
    "klaad": lambda m: tracelab.KLAAD.fit(m, stereoset("gender", split="test", limit=40)),
    "biasedit": lambda m: tracelab.BiasEdit.fit(m, stereoset("gender", split="test", limit=40)),
    "experts": lambda m: tracelab.Experts.fit(m, tracelab.datasets.expert_texts("gender", limit=4)),
}


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_a_model_with_one_nan_has_no_number(broken, measure):
    with pytest.raises(TracelabError, match="not finite|loss is nan") as caught:
        measure(broken)
    assert "NaN" in str(caught.value) or "the model's weights" in str(caught.value)


def test_the_first_text_at_fault_is_named(model):
    tokens = model.tokenizer(" baker", add_special_tokens=False).input_ids

    def spoil(logits, hook):
        logits = logits.clone()
        logits[(seen["tokens"] == tokens[0]).any(dim=1)] = float("inf")
        return logits

    seen = {}
    handle = model.original_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(tokens=args[0] if args else kwargs["input_ids"]),
        with_kwargs=True,
    )
    texts = ["He is here.", "She is not.", "The baker and his dog are here.", "A baker."]
    try:
        with (
            model.hooks(fwd_hooks=[("unembed.hook_out", spoil)]),
            pytest.raises(TracelabError, match=r"of text [23] are not finite \(NaN\)"),
        ):
            tracelab.score(model, texts)
    finally:
        handle.remove()


def test_what_is_ruled_out_is_no_fault():
    logits = torch.tensor([[0.0, float("-inf"), 1.0]])
    require_finite_logits(logits, [0])
    for value, kind in ((float("nan"), "NaN"), (float("inf"), "inf")):
        with pytest.raises(TracelabError, match=rf"after text 4 are not finite \({kind}\)"):
            require_finite_logits(torch.stack([logits[0], torch.tensor([value, 0.0, 0.0])]), [3, 4])
    with pytest.raises(TracelabError, match=r"\(-inf\)"):
        require_finite_logits(torch.full((1, 3), float("-inf")), [0])
    with pytest.raises(TracelabError, match=r"of text 1 are not finite \(-inf\)"):
        require_finite([torch.zeros(2), torch.tensor([-1.0, float("-inf")])], [7, 1])


def test_experts_that_cut_the_base_first_still_sample_and_score(model):
    edit = random_experts(model, filter_order="base_first", top_p=0.5)
    with edit.applied(model):
        assert len(tracelab.generate(model, ["He bakes"], top_p=1.0, max_new_tokens=3).frame) == 1
        assert torch.isfinite(start_logprobs(model)).all()
        stereoset_scores(model, stereoset("gender", limit=4))
    assert len(tracelab.inspect(model, edit, ["He bakes"]).tokens)


def test_an_edit_that_overflows_has_a_reason_and_no_score(model):
    edit = random_experts(model).with_alpha(1e38)
    board = tracelab.evaluate(
        model,
        {"overflows": edit},
        ["stereoset", "crows-pairs"],
        bias="gender",
        limit=8,
        costs=False,
        off_target=False,
    )
    rows = board.frame[board.frame["edit"] == "overflows"]
    assert rows["value"].isna().all()
    assert rows["reason"].str.contains("the log-probabilities of text [0-9]+ are not finite").all()
    assert board.frame.loc[board.frame["edit"] == "unedited", "value"].notna().all()
    with pytest.raises(TracelabError, match=r"and prompt 0 are not finite"):
        tracelab.inspect(model, edit, ["He bakes"])


def test_sentence_scores_that_are_not_finite_have_no_metrics(model):
    sentences = stereoset_scores(model, stereoset("gender", limit=4)).sentences
    sentences.loc[1, "stereotype"] = float("nan")
    with pytest.raises(
        TracelabError, match=f"record {sentences['id'][1]!r} .1 of 4. are not finite"
    ):
        stereoset_metrics(sentences)
    pairs = crows_pairs_scores(model, crows_pairs("gender", limit=4)).pairs
    pairs["crows_sum_less"] = float("-inf")
    with pytest.raises(TracelabError, match="4 of 4. are not finite"):
        crows_pairs_metrics(pairs)


def test_a_check_at_load_blames_the_logits_and_no_soft_cap(broken, model):
    assert "the model's logits are not finite" in model_info(broken).faults["logits"]
    with pytest.raises(TracelabError, match="the model's logits are not finite"):
        random_delta(broken, modules=("mlp.out",), layers=(1,)).hooks(broken)
        random_experts(broken).hooks(broken)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "logits" not in model_info(model).faults


def test_a_weight_delta_that_overflows_is_neither_inspected_nor_exported(model, tmp_path):
    edit = random_delta(model, scale=1e30)
    for use in (
        lambda: tracelab.inspect(model, edit, "He bakes"),
        lambda: tracelab.to_peft(model, edit, tmp_path / "peft"),
        lambda: tracelab.to_merged(model, edit, tmp_path / "merged"),
    ):
        with pytest.raises(TracelabError, match=r"the edit overflows at .* \(inf|NaN\)"):
            use()
    assert not list(tmp_path.iterdir())
