from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer

from tests.tiny import KINDS, N_LAYERS, tiny_hf
from tracelab.errors import TracelabError
from tracelab.model import assets, plain_blocks
from tracelab.model.load import from_hf
from tracelab.model.partial_forward import BlockRunner
from tracelab.model.plain_blocks import PlainBlockRunner, block_runner, use_onednn

LENGTH = 9


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(10, 40_000, (2, LENGTH), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def own_model(tokenizer):
    """A model that no other test uses."""
    own = AutoTokenizer.from_pretrained(assets.model_dir())
    return from_hf(tiny_hf("llama", len(tokenizer)), own, model_id="own")


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_blocks_of_the_plain_twin_give_the_bridges_residuals_and_logits(tiny_model, tokens, kind):
    model, start = tiny_model(kind), 4
    bridge, plain = BlockRunner(model), PlainBlockRunner(model)
    names = ["blocks.0.hook_resid_pre"]
    names += [f"blocks.{layer}.hook_resid_post" for layer in range(N_LAYERS)]
    logits, cache = model.run_with_cache(tokens, names_filter=names)
    for layer, (keys, values) in enumerate(plain.key_values(tokens)):
        given = {
            "start": start,
            "length": LENGTH,
            "prefix": (keys[:, :, :start], values[:, :, :start]),
        }
        after, whole = plain.extend(layer, cache[names[layer]][:, start:], **given)
        assert torch.allclose(after, cache[names[layer + 1]][:, start:], atol=1e-4)
        assert torch.allclose(whole[0], keys, atol=1e-4)
        again = bridge.run(layer, cache[names[layer]][:, start:], **given)
        assert torch.allclose(after, again, atol=1e-4)
    assert torch.allclose(plain.head(cache[names[-1]]), logits, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("point", ["embed", "resid_post", "mlp_out", "attn_out"])
@torch.no_grad()
def test_what_is_put_back_acts_as_on_the_bridge(tiny_model, tokens, kind, point):
    model = tiny_model(kind)
    place = (point, None if point == "embed" else 1, lambda value: 0.5 * value)
    found = []
    for runner in (BlockRunner(model), PlainBlockRunner(model)):
        with runner.watching([place]):
            found.append(runner.logits(tokens))
    assert torch.allclose(*found, atol=1e-4)
    assert (found[0] - model(tokens)).abs().max() > 0.01


@torch.no_grad()
def test_the_twin_has_the_weights_of_the_model_not_copies(own_model, tokens):
    runner = PlainBlockRunner(own_model)
    before = runner.logits(tokens)
    own_model.original_model.model.norm.weight.mul_(2)
    assert torch.allclose(runner.logits(tokens), own_model(tokens), atol=1e-4)
    assert (runner.logits(tokens) - before).abs().max() > 0.1


def test_with_hooks_on_the_bridge_itself_is_run(own_model):
    assert type(block_runner(own_model)) is PlainBlockRunner
    with own_model.hooks(fwd_hooks=[("blocks.1.hook_mlp_out", lambda value, hook: 0 * value)]):
        assert type(block_runner(own_model)) is BlockRunner
        with pytest.raises(TracelabError, match="hooks are on"):
            PlainBlockRunner(own_model)
    own_model.original_model.train()
    assert type(block_runner(own_model)) is BlockRunner


def test_a_twin_with_other_numbers_is_not_taken(own_model, monkeypatch):
    real = plain_blocks.plain_twin

    def changed(hf_model):
        twin = real(hf_model)
        twin.config.rms_norm_eps = 1.0
        for module in twin.modules():
            if hasattr(module, "variance_epsilon"):
                module.variance_epsilon = 1.0
        return twin

    monkeypatch.setattr(plain_blocks, "plain_twin", changed)
    with pytest.raises(TracelabError, match="computes others"):
        PlainBlockRunner(own_model)
    assert type(block_runner(own_model)) is BlockRunner


def test_where_no_module_shows_a_contribution_the_bridge_itself_is_run(tiny_model):
    with pytest.raises(TracelabError, match=r"no module of a plain model shows blocks\.0"):
        PlainBlockRunner(tiny_model("granite"))
    assert type(block_runner(tiny_model("granite"))) is BlockRunner


@torch.no_grad()
def test_linear_maps_by_onednn_give_the_same_logits(tokenizer, tokens):
    model = tiny_hf("qwen2", len(tokenizer))  # its queries have a bias
    expected = model(tokens).logits
    assert use_onednn(model) == torch.backends.mkldnn.is_available()
    assert torch.allclose(model(tokens).logits, expected, atol=1e-4)
    assert not use_onednn(tiny_hf("qwen2", len(tokenizer)).bfloat16())


@torch.no_grad()
def test_without_onednn_the_twin_is_run_all_the_same(own_model, tokens, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    runner = PlainBlockRunner(own_model)
    assert any(type(module) is torch.nn.Linear for module in runner.runs.modules())
    assert torch.allclose(runner.logits(tokens), own_model(tokens), atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_map_by_onednn_has_the_gradient_of_pytorchs(bias):
    torch.manual_seed(0)
    plain = torch.nn.Linear(24, 40, bias=bias).requires_grad_(False)
    model = torch.nn.Sequential(plain)
    if not use_onednn(model):
        pytest.skip("oneDNN is not there")
    x, weights = torch.randn(3, 5, 24), torch.randn(3, 5, 40)
    found, expected = (
        torch.autograd.grad((map_(y) * weights).sum(), y)[0]
        for map_ in (model, plain)
        for y in [x.clone().requires_grad_()]
    )
    assert torch.allclose(found, expected, atol=1e-5)
    assert expected.abs().max() > 0.1
