from __future__ import annotations

import pytest
import torch

from tests.interventions.edits import random_delta
from tests.tiny import KINDS, N_LAYERS
from tracelab.interventions.training.finetune import frozen
from tracelab.model.load import require_hook
from tracelab.model.partial_forward import (
    BlockRunner,
    LayerStates,
    SuffixRunner,
    _Return,
    last_logits,
    replaced_blocks,
)
from tracelab.model.states import token_states

LENGTH = 9


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(10, 40_000, (2, LENGTH), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def residuals(model, tokens):
    """Logits, and the residual stream before each block and after the last, by hooks on a whole
    pass."""
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
        after = runner.run(
            1, expected[1], start=0, length=LENGTH, prefix=(keys[:, :, :0], values[:, :, :0])
        )
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


SUFFIX_LENGTHS = (7, 3, 9, 1, 5)


@pytest.fixture(scope="module")
def sequences() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(10, 40_000, (n,), generator=generator).tolist() for n in SUFFIX_LENGTHS]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", [0, 1, 3])
@torch.no_grad()
def test_sequences_run_from_a_block_on_have_the_whole_models_logits(
    tiny_model, sequences, kind, start
):
    model = tiny_model(kind)
    runner = SuffixRunner(model, sequences, start, batch_tokens=16)  # several batches, with padding
    tokens, mask, logits = runner([2, 0, 1, 3, 2])
    for row, index in enumerate([2, 0, 1, 3, 2]):
        length = len(sequences[index])
        assert tokens[row, :length].tolist() == sequences[index]
        assert mask[row].tolist() == [1] * length + [0] * (9 - length)
        alone = model(torch.tensor([sequences[index]]))[0]  # unpadded
        torch.testing.assert_close(logits[row, :length], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", [0, 1, 3])
def test_edits_of_late_blocks_are_in_force_in_a_suffix_and_get_the_whole_models_gradients(
    tiny_model, sequences, kind, start
):
    model, indices = tiny_model(kind), [0, 1, 4]
    edit = random_delta(model, modules=("mlp.out",), layers=(3,), rank=None, scale=0.1)
    runner = SuffixRunner(model, sequences, start)
    _, _, plain = runner(indices)
    found, grads = [], []
    with frozen(model), edit.applied(model):
        _, _, logits = runner(indices)
        found.append([logits[row, : len(sequences[i])] for row, i in enumerate(indices)])
        found.append([model(torch.tensor([sequences[i]]))[0] for i in indices])
        for each in found:
            loss = sum(part.log_softmax(-1)[:, 7].sum() for part in each)
            grads += torch.autograd.grad(loss, list(edit.parameters()))
    assert (logits[0] - plain[0]).abs().max() > 0.1
    for suffix, whole in zip(*found, strict=True):
        torch.testing.assert_close(suffix, whole, atol=1e-4, rtol=1e-4)
    assert grads[0].abs().max() > 0.1
    torch.testing.assert_close(grads[0], grads[1], atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_blocks_before_the_start_are_not_computed_again(tiny_model, sequences):
    model, fired = tiny_model("llama"), []
    runner = SuffixRunner(model, sequences, 2)
    names = [f"blocks.{layer}.mlp.out.hook_in" for layer in range(N_LAYERS)]
    with model.hooks(
        fwd_hooks=[(name, lambda value, hook: fired.append(hook.name)) for name in names]
    ):
        runner([0, 1])
    assert fired == names[2:]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_what_a_suffix_keeps_is_a_constant(tiny_model, sequences, kind):
    # Made where gradients are on, too: otherwise each call would backpropagate into the blocks
    # before.
    model = tiny_model(kind)
    with torch.enable_grad():
        runner = SuffixRunner(model, sequences, 2)
        _, _, logits = runner([0, 1])
        early, late = model.blocks[1].mlp.out.weight, model.blocks[2].mlp.out.weight
        gradients = torch.autograd.grad(logits.sum(), [early, late], allow_unused=True)
    assert gradients[0] is None
    assert gradients[1].any()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@torch.no_grad()
def test_after_a_suffix_all_blocks_are_back_in_place_also_after_an_error(
    tiny_model, tokens, sequences, kind
):
    model = tiny_model(kind)
    logits, blocks = model(tokens), list(model.blocks)
    runner = SuffixRunner(model, sequences, 2)
    runner([0, 1])
    assert list(model.blocks) == blocks
    assert torch.equal(model(tokens), logits)

    def fail(value, hook):
        raise RuntimeError("from inside the suffix")

    hooks = model.hooks(fwd_hooks=[("blocks.3.hook_mlp_out", fail)])
    with hooks, pytest.raises(RuntimeError, match="from inside the suffix"):
        runner([0, 1])
    assert list(model.blocks) == blocks
    assert torch.equal(model(tokens), logits)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@torch.no_grad()
def test_an_error_while_a_suffix_is_prepared_leaves_no_trace(tiny_model, tokens, sequences, kind):
    model = tiny_model(kind)
    logits, blocks = model(tokens), list(model.blocks)

    def fail(value, hook):
        raise RuntimeError("while preparing")

    hooks = model.hooks(fwd_hooks=[("blocks.1.hook_mlp_out", fail)])
    with hooks, pytest.raises(RuntimeError, match="while preparing"):
        SuffixRunner(model, sequences, 2)
    assert list(model.blocks) == blocks
    assert not any(block._forward_hooks for block in model.blocks)
    assert torch.equal(model(tokens), logits)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_layer_states_are_those_of_whole_passes_under_what_was_left_before(
    tiny_model, sequences, kind
):
    model = tiny_model(kind)
    runs = []
    handle = model.blocks[0].register_forward_hook(lambda *_: runs.append(1))
    states = LayerStates(model, sequences, batch_tokens=16)  # several batches, with padding
    first = states.after(0)
    once = len(runs)
    states.leave([0.5 * x + 1 for x in first])
    third, last = states.after(2), states.after(N_LAYERS - 1)
    assert len(runs) == once > 1
    handle.remove()

    def change(value, hook):
        return 0.5 * value + 1

    name = require_hook(model, "resid_post", 0)
    for found, layer, hooks in (
        (first, 0, []),
        (third, 2, [(name, change)]),
        (last, N_LAYERS - 1, [(name, change)]),
    ):
        for ids, own in zip(sequences, found, strict=True):
            with model.hooks(fwd_hooks=hooks):
                (whole,) = token_states(model, [ids], "resid_post", layer)
            torch.testing.assert_close(own, whole, atol=1e-4, rtol=1e-4)
    assert (third[0] - token_states(model, sequences, "resid_post", 2)[0]).abs().max() > 0.1
    model(torch.tensor([sequences[0]]))  # no block stays replaced
