from __future__ import annotations

import tempfile
import warnings

import pytest
import torch

from tests.tiny import D_MODEL, N_LAYERS, tiny_hf
from tracelab.datasets.templates import Corpus, Prompt, templates
from tracelab.errors import TracelabError
from tracelab.localize.probing import harvest as module
from tracelab.localize.probing.harvest import group_token_ids, harvest

TEXTS = (
    "The nurse is a",
    "In films, gossip almost always shows a",
    "He",
    "Fixing engines: for most people this brings to mind a",
    "Gossip is a",
)
GROUPS = (("female", ("woman", "girl", "lady")), ("male", ("man", "boy")))


def corpus(groups=GROUPS, texts=TEXTS) -> Corpus:
    prompts = tuple(
        Prompt(f"p{i}", "gender", f"c{i}", "{concept}", text) for i, text in enumerate(texts)
    )
    return Corpus("gender", tuple(groups), prompts)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("bos", [False, True])
def test_activations_equal_hooks_run_one_prompt_at_a_time(tiny_model, tokenizer, kind, bos):
    model = tiny_model(kind)
    made = harvest(
        model, corpus(), group_token_ids(model, corpus()), prepend_bos=bos, batch_tokens=40
    )
    assert made.activations.shape == (len(TEXTS), N_LAYERS, D_MODEL)
    names = [f"blocks.{layer}.hook_mlp_out" for layer in range(N_LAYERS)]
    for row, text in enumerate(TEXTS):
        ids = [tokenizer.bos_token_id] * bos + tokenizer(text).input_ids
        _, cache = model.run_with_cache(torch.tensor([ids]), names_filter=names)
        for layer, name in enumerate(names):
            assert torch.allclose(made.activations[row, layer], cache[name][0, -1], atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_soft_labels_equal_those_computed_by_hand_from_the_plain_model(tiny_model, tokenizer, kind):
    model = tiny_model(kind)
    made = harvest(model, corpus(), group_token_ids(model, corpus()))
    plain = tiny_hf(kind, len(tokenizer))
    first_ids = [[tokenizer(f" {word}").input_ids[0] for word in words] for _, words in GROUPS]
    for row, text in enumerate(TEXTS):
        with torch.no_grad():
            p = plain(torch.tensor([tokenizer(text).input_ids])).logits[0, -1].double().softmax(-1)
        by_group = [sum(float(p[i]) for i in ids) for ids in first_ids]
        assert float(made.mass[row]) == pytest.approx(sum(by_group), rel=1e-4)
        assert made.labels[row].tolist() == pytest.approx(
            [q / sum(by_group) for q in by_group], abs=1e-5
        )
    assert made.labels.std(dim=0).min() > 0.01  # the prompts do differ


def test_the_embedded_models_labels_are_the_plain_models(real_model, plain_model, tokenizer):
    made = harvest(real_model, corpus(), group_token_ids(real_model, corpus()))
    for row, text in enumerate(TEXTS[:2]):
        with torch.no_grad():
            logits = plain_model(torch.tensor([tokenizer(text).input_ids])).logits[0, -1]
        p = logits.softmax(-1)
        female = sum(float(p[tokenizer(f" {w}").input_ids[0]]) for w in GROUPS[0][1])
        male = sum(float(p[tokenizer(f" {w}").input_ids[0]]) for w in GROUPS[1][1])
        assert float(made.labels[row, 0]) == pytest.approx(female / (female + male), abs=1e-4)
    assert made.labels[3, 1] > made.labels[4, 1]  # engines are more of a man's than gossip


@pytest.mark.parametrize("batch_tokens", [1, 30, 10_000])
def test_batch_size_changes_no_number(tiny_model, batch_tokens):
    model = tiny_model("qwen2")
    words = group_token_ids(model, corpus())
    some, other = (harvest(model, corpus(), words, batch_tokens=n) for n in (batch_tokens, 64))
    assert torch.allclose(some.activations, other.activations, atol=1e-5)
    assert torch.allclose(some.labels, other.labels, atol=1e-5)


def test_activations_spilt_to_a_file_are_the_same_and_leave_no_file(
    tiny_model, monkeypatch, tmp_path
):
    model = tiny_model("llama")
    words = group_token_ids(model, corpus())
    in_memory = harvest(model, corpus(), words)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(module, "SPILL_BYTES", 0)
    asked = []
    from_file = torch.from_file
    monkeypatch.setattr(
        torch, "from_file", lambda name, **rest: asked.append(name) or from_file(name, **rest)
    )
    spilt = harvest(model, corpus(), words)
    assert len(asked) == 1
    assert asked[0].startswith(str(tmp_path))
    assert torch.equal(spilt.activations, in_memory.activations)
    assert list(tmp_path.iterdir()) == []


def test_group_ids_are_first_tokens_after_a_space_each_once(tiny_model, tokenizer):
    groups = (("a", ("man", "man", "fireman")), ("b", ("woman",)))
    ids = group_token_ids(tiny_model("llama"), corpus(groups))
    assert ids[0].tolist() == sorted({tokenizer(f" {w}").input_ids[0] for w in ("man", "fireman")})
    assert ids[1].tolist() == [tokenizer(" woman").input_ids[0]]


def test_a_first_token_of_two_groups_is_left_out_with_a_warning(tiny_model, tokenizer):
    groups = (("a", ("man", "king")), ("b", ("man", "queen")), ("c", ("child",)))
    with pytest.warns(UserWarning, match=r"shared by several groups are left out: '·man'"):
        ids = group_token_ids(tiny_model("llama"), corpus(groups))
    assert [i.tolist() for i in ids] == [
        tokenizer(f" {w}").input_ids for w in ("king", "queen", "child")
    ]


def test_a_token_shared_by_the_first_and_the_last_of_three_groups_is_found(tiny_model):
    groups = (("a", ("man", "king")), ("b", ("queen",)), ("c", ("man", "child")))
    with pytest.warns(UserWarning, match="'·man'"):
        ids = group_token_ids(tiny_model("llama"), corpus(groups))
    assert [len(i) for i in ids] == [1, 1, 1]


def test_a_group_left_without_a_word_is_refused(tiny_model):
    groups = (("a", ("man",)), ("b", ("man", "queen")))
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(
            TracelabError, match=r"no word of the group 'a' \(man\) has a first token of its own"
        ),
    ):
        group_token_ids(tiny_model("llama"), corpus(groups))


@pytest.mark.parametrize("attribute", ["gender", "religion", "age"])
def test_the_template_corpora_have_words_for_every_group(real_model, attribute):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # shared first tokens are left out
        ids = group_token_ids(real_model, templates(attribute))
    assert all(len(group) for group in ids)
    assert len({int(i) for group in ids for i in group}) == sum(map(len, ids))


def test_no_hook_is_left_when_the_pass_is_interrupted(tiny_model):
    model = tiny_model("llama")

    def fail(value, hook):
        raise RuntimeError("interrupted")

    with (
        model.hooks(fwd_hooks=[("blocks.3.hook_resid_post", fail)]),
        pytest.raises(RuntimeError, match="interrupted"),
    ):
        harvest(model, corpus(), group_token_ids(model, corpus()))
    assert not model.list_hooks()
