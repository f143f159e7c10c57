"""A delta as hooks against the same delta added to the weights of a twin."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer

from tests.interventions.edits import random_delta
from tests.tiny import D_MODEL, tiny_hf
from tracelab.errors import TracelabError
from tracelab.interventions import WeightDelta
from tracelab.interventions.training.finetune import frozen
from tracelab.model import assets
from tracelab.model.hook_points import LINEAR_MAPS, Point
from tracelab.model.load import from_hf

TOKENS = torch.arange(40, 52).reshape(2, 6)
LLAMA = {
    "mlp.in": "mlp.up_proj",
    "mlp.gate": "mlp.gate_proj",
    "mlp.out": "mlp.down_proj",
    "attn.q": "self_attn.q_proj",
    "attn.k": "self_attn.k_proj",
    "attn.v": "self_attn.v_proj",
    "attn.o": "self_attn.o_proj",
}
# What GPT-2 computes together: the module, and the columns of its weight that are the map's.
GPT2 = {
    "mlp.in": ("mlp.c_fc", slice(None)),
    "mlp.out": ("mlp.c_proj", slice(None)),
    "attn.q": ("attn.c_attn", slice(0, D_MODEL)),
    "attn.k": ("attn.c_attn", slice(D_MODEL, 2 * D_MODEL)),
    "attn.v": ("attn.c_attn", slice(2 * D_MODEL, 3 * D_MODEL)),
    "attn.o": ("attn.c_proj", slice(None)),
}


def change(delta: WeightDelta, point: Point) -> torch.Tensor:
    """ΔW ``[d_out, d_in]`` of a map."""
    tensors = dict(delta.part(point).named_parameters())
    return tensors["delta"] if "delta" in tensors else tensors["lora_B"] @ tensors["lora_A"]


@torch.no_grad()
def with_edited_weights(kind: str, vocab: int, delta: WeightDelta) -> torch.Tensor:
    """Logits of a plain twin whose own weights have the delta added."""
    twin = tiny_hf(kind, vocab)
    for shape in delta.spec().maps:
        if kind == "llama":
            twin.model.layers[shape.layer].get_submodule(LLAMA[shape.module]).weight += change(
                delta, shape.point
            )
        else:
            name, columns = GPT2[shape.module]
            # GPT-2's Conv1D keeps [d_in, d_out].
            twin.transformer.h[shape.layer].get_submodule(name).weight[:, columns] += change(
                delta, shape.point
            ).T
    return twin(TOKENS).logits


@pytest.mark.parametrize("rank", [4, None], ids=["low-rank", "dense"])
@pytest.mark.parametrize(
    ("kind", "module"), [*(("llama", name) for name in LLAMA), *(("gpt2", name) for name in GPT2)]
)
def test_a_delta_is_the_weight_itself_changed_by_it(tiny_model, tokenizer, kind, module, rank):
    model = tiny_model(kind)
    delta = random_delta(model, modules=(module,), layers=(0, 2), rank=rank, scale=0.2)
    with torch.no_grad():
        before = model(TOKENS)
        with delta.applied(model):
            hooked = model(TOKENS)
    assert (hooked - before).abs().max() > 0.1
    torch.testing.assert_close(
        hooked, with_edited_weights(kind, len(tokenizer), delta), atol=1e-5, rtol=1e-5
    )


def test_deltas_of_several_maps_and_layers_add_up(tiny_model, tokenizer):
    model = tiny_model("llama")
    delta = random_delta(model, modules=LINEAR_MAPS, layers=range(4), scale=0.1)
    assert len(list(delta.parameters())) == 2 * 7 * 4
    with torch.no_grad(), delta.applied(model):
        hooked = model(TOKENS)
    torch.testing.assert_close(
        hooked, with_edited_weights("llama", len(tokenizer), delta), atol=1e-5, rtol=1e-5
    )


def test_a_layer_or_map_named_twice_is_edited_once(tiny_model, tokenizer):
    model = tiny_model("llama")
    delta = random_delta(model, modules=("mlp.out", "mlp.out"), layers=(1, 1))
    assert len(delta.spec().maps) == 1
    with torch.no_grad(), delta.applied(model):
        hooked = model(TOKENS)
    torch.testing.assert_close(
        hooked, with_edited_weights("llama", len(tokenizer), delta), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("rank", [4, None], ids=["low-rank", "dense"])
def test_gradients_reach_the_delta_and_are_those_of_the_weight(tiny_model, tokenizer, rank):
    model, point = tiny_model("llama"), Point("mlp.out", 1)
    delta = random_delta(model, modules=("mlp.out",), layers=(1,), rank=rank, scale=0.2)
    with frozen(model), delta.applied(model):
        model(TOKENS).log_softmax(-1)[..., 7].sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())

    twin = tiny_hf("llama", len(tokenizer)).requires_grad_(False)
    weight = twin.model.layers[1].mlp.down_proj.weight
    weight.add_(change(delta, point).detach()).requires_grad_()
    twin(TOKENS).logits.log_softmax(-1)[..., 7].sum().backward()
    part = delta.part(point)
    assert weight.grad.abs().max() > 0.1
    if rank is None:
        torch.testing.assert_close(part.delta.grad, weight.grad, atol=1e-4, rtol=1e-4)
    else:
        torch.testing.assert_close(
            part.lora_A.grad, part.lora_B.detach().T @ weight.grad, atol=1e-4, rtol=1e-4
        )
        torch.testing.assert_close(
            part.lora_B.grad, weight.grad @ part.lora_A.detach().T, atol=1e-4, rtol=1e-4
        )


def test_a_new_low_rank_delta_has_peft_s_start(tiny_model):
    model = tiny_model("llama")
    first, again, other = (
        WeightDelta.low_rank(model, layers=[1], rank=8, seed=seed) for seed in (0, 0, 1)
    )
    a, b = (getattr(first.part(Point("mlp.out", 1)), name) for name in ("lora_A", "lora_B"))
    assert a.shape == (8, 64)
    assert b.shape == (D_MODEL, 8)
    assert not b.any()
    assert a.abs().max() <= 1 / 64**0.5  # kaiming_uniform(a=√5) is uniform within 1/√d_in
    assert a.std() > 0.5 / 64**0.5
    tensors = [
        delta.state_dict()["maps.blocks-1-mlp-out.lora_A"] for delta in (first, again, other)
    ]
    assert torch.equal(tensors[0], tensors[1])
    assert not torch.equal(tensors[0], tensors[2])


def test_on_a_bf16_model_the_delta_stays_in_fp32(tokenizer):
    own = AutoTokenizer.from_pretrained(assets.model_dir())
    model = from_hf(tiny_hf("llama", len(tokenizer)).to(torch.bfloat16), own, model_id="bf16")
    delta = random_delta(model, scale=0.2)
    with delta.applied(model):
        logits = model(TOKENS)
        logits.float().log_softmax(-1)[..., 7].sum().backward()
    assert logits.dtype == torch.bfloat16
    for parameter in delta.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"modules": ["mlp.up"]},
            r"unknown linear map 'mlp\.up': choose one of mlp\.in, mlp\.gate, .*attn\.o",
        ),
        ({"modules": ["mlp.gate"]}, r"tiny-gpt2 has no linear map blocks\.1\.mlp\.gate"),
        ({"layers": [4]}, "layer 4 is out of range: tiny-gpt2 has layers 0 to 3"),
        ({"layers": [-1]}, "layer -1 is out of range"),
        ({"layers": []}, "a weight delta needs at least one layer and one linear map"),
        ({"modules": []}, "a weight delta needs at least one layer and one linear map"),
        ({"rank": 0}, "the rank of a delta is at least 1, not 0"),
        ({"rank": -3}, "the rank of a delta is at least 1, not -3"),
    ],
)
def test_a_delta_that_cannot_be_is_refused(tiny_model, options, message):
    with pytest.raises(TracelabError, match=message):
        WeightDelta.low_rank(tiny_model("gpt2"), **{"layers": [1], **options})
