from __future__ import annotations

import pytest
import torch

from tests.tiny import KINDS, N_LAYERS
from tracelab.forward import BlockRunner, _Return, last_logits, replaced_blocks

LENGTH = 9


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(10, 40_000, (2, LENGTH), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def residuals(model, tokens):
    """Logits, and the residual stream before each block and after the last, by hooks on a whole pass."""
    names = ["blocks.0.hook_resid_pre"]
    names += [f"blocks.{layer}.hook_resid_post" for layer in range(model.cfg.n_layers)]
    logits, cache = model.run_with_cache(tokens, names_filter=names)
    return logits, [cache[name] for name in names]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", [0, 1, 4, LENGTH - 1])
@torch.no_grad()
def test_blocks_from_any_position_on_give_the_models_residuals(tiny_model, tokens, kind, start):
    model = tiny_model(kind)
    _, expected = residuals(model, tokens)
    runner = BlockRunner(model)
    key_values = runner.key_values(tokens)
    for layer, (keys, values) in enumerate(key_values):
        prefix = (keys[:, :, :start], values[:, :, :start])
        resid = expected[layer][:, start:]
        after = runner.run(layer, resid, start=start, length=LENGTH, prefix=prefix)
        assert torch.allclose(after, expected[layer + 1][:, start:], atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_batch_may_grow_from_block_to_block(tiny_model, tokens, kind):
    model, start = tiny_model(kind), 3
    _, expected = residuals(model, tokens)
    runner = BlockRunner(model)
    key_values = runner.key_values(tokens)
    resid = expected[0][:0, start:]
    for layer, (keys, values) in enumerate(key_values):
        resid = torch.cat([resid, expected[layer][:, start:]])  # rows join before each block
        copies = layer + 1
        prefix = tuple(t[:, :, :start].repeat(copies, 1, 1, 1) for t in (keys, values))
        resid = runner.run(layer, resid, start=start, length=LENGTH, prefix=prefix)
        assert torch.allclose(resid, expected[layer + 1][:, start:].repeat(copies, 1, 1), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_blocks_attend_to_the_given_prefix(tiny_model, tokens, kind):
    model, start = tiny_model(kind), 4
    _, expected = residuals(model, tokens)
    runner = BlockRunner(model)
    keys, values = runner.key_values(tokens)[2]
    prefix = (keys[:, :, :start], values[:, :, :start] + 1)
    after = runner.run(2, expected[2][:, start:], start=start, length=LENGTH, prefix=prefix)
    assert (after - expected[3][:, start:]).abs().amax() > 0.01


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_head_gives_the_models_logits(tiny_model, tokens, kind):
    model = tiny_model(kind)
    logits, resid = residuals(model, tokens)
    assert torch.allclose(BlockRunner(model).head(resid[-1]), logits, atol=1e-4)
    # Single positions and other numbers of rows too: the head has no memory of a text.
    part = BlockRunner(model).head(resid[-1][:1, 5:7].repeat(3, 1, 1))
    assert torch.allclose(part, logits[:1, 5:7].repeat(3, 1, 1), atol=1e-4)


@torch.no_grad()
def test_the_embedded_models_blocks_and_head_give_its_logits(real_model, tokens):
    logits, expected = residuals(real_model, tokens)
    runner, start = BlockRunner(real_model), 5
    resid = expected[20][:, start:]
    key_values = runner.key_values(tokens)
    for layer in range(20, 30):
        keys, values = key_values[layer]
        prefix = (keys[:, :, :start], values[:, :, :start])
        resid = runner.run(layer, resid, start=start, length=LENGTH, prefix=prefix)
    assert torch.allclose(runner.head(resid), logits[:, start:], atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_last_logits_are_the_last_of_all_logits(tiny_model, tokens, kind):
    model = tiny_model(kind)
    assert torch.allclose(last_logits(model, tokens), model(tokens)[:, -1], atol=1e-5)


@torch.no_grad()
def test_hooks_are_in_force_in_single_blocks(tiny_model, tokens):
    model = tiny_model("llama")
    _, expected = residuals(model, tokens)
    runner = BlockRunner(model)
    keys, values = runner.key_values(tokens)[1]
    with model.hooks(fwd_hooks=[("blocks.1.hook_mlp_out", lambda value, hook: 0 * value)]):
        after = runner.run(1, expected[1], start=0, length=LENGTH, prefix=(keys[:, :, :0], values[:, :, :0]))
    assert (after - expected[2]).abs().amax() > 0.01


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@torch.no_grad()
def test_no_block_stays_replaced_after_an_exception(tiny_model, tokens, kind):
    model = tiny_model(kind)
    logits, resid = residuals(model, tokens)
    blocks = list(model.blocks)

    def fail(value, hook):
        raise RuntimeError("from inside the head")

    runner = BlockRunner(model)
    runner.head(resid[-1])
    hooks = model.hooks(fwd_hooks=[("ln_final.hook_in", fail)])
    with hooks, pytest.raises(RuntimeError, match="from inside the head"):
        runner.head(resid[-1])
    assert list(model.blocks) == blocks
    assert torch.equal(model(tokens), logits)


@torch.no_grad()
def test_replaced_blocks_are_back_when_the_with_block_ends(tiny_model, tokens):
    model = tiny_model("llama")
    logits, resid = residuals(model, tokens)
    with replaced_blocks(model, _Return(0 * resid[-1], as_tuple=False)):
        assert not torch.allclose(model(tokens), logits, atol=0.01)
    assert torch.equal(model(tokens), logits)


@torch.no_grad()
def test_an_interrupted_recording_leaves_no_trace(tiny_model, tokens):
    model = tiny_model("llama")
    logits, _ = residuals(model, tokens)
    runner = BlockRunner(model)

    def fail(value, hook):
        raise RuntimeError("while recording")

    hooks = model.hooks(fwd_hooks=[(f"blocks.{N_LAYERS - 1}.hook_mlp_out", fail)])
    with hooks, pytest.raises(RuntimeError, match="while recording"):
        runner._arguments(2, LENGTH)
    assert all(not block._forward_pre_hooks for block in model.blocks)
    assert len(runner._arguments(2, LENGTH)) == N_LAYERS
    assert torch.equal(model(tokens), logits)
