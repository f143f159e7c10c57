"""The directions of weight deltas against plain linear algebra on whole matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from tests.interventions.edits import bridged, random_delta, random_experts, random_fairmed
from tests.tiny import tiny_hf
from tracelab.errors import TracelabError
from tracelab.inspection import weight_directions
from tracelab.inspection.weight_directions import _directions
from tracelab.inspection.weight_directions import weight_directions as directions
from tracelab.interventions import Stack, WeightDelta
from tracelab.model import assets
from tracelab.model.hook_points import LINEAR_MAPS, Point
from tracelab.model.load import from_hf


@pytest.fixture
def model(tiny_model):
    return tiny_model("llama")


def whole(delta, module="mlp.out", layer=1) -> np.ndarray:
    return delta.part(Point(module, layer)).weight().detach().double().numpy()


def dense_copy(model, delta) -> WeightDelta:
    """The same change, kept as whole matrices."""
    shapes = delta.spec().maps
    layers, modules = ({getattr(s, name): None for s in shapes} for name in ("layer", "module"))
    dense = WeightDelta.low_rank(model, layers=list(layers), modules=list(modules), rank=None)
    with torch.no_grad():
        for shape in shapes:
            dense.part(shape.point).delta.copy_(delta.part(shape.point).weight())
    return dense


def rank_one(model, u, sigma=3.0, module="mlp.out", layer=1) -> WeightDelta:
    delta = WeightDelta.low_rank(model, layers=[layer], modules=[module], rank=1)
    part = delta.part(Point(module, layer))
    with torch.no_grad():
        part.lora_A /= part.lora_A.norm()
        part.lora_B[:, 0] = sigma * u / u.norm()
    return delta


def texts(model, ids) -> str:
    return " ".join(model.tokenizer.decode([i]).replace(" ", "·").replace("\n", "⏎") for i in ids)


# --- sizes
# --------------------------------------------------------------------------------------------------------  # noqa: E501


@pytest.mark.parametrize("rank", [4, None])
def test_sizes_are_those_of_whole_matrices(model, rank):
    delta = random_delta(model, rank=rank)
    rows = directions(model, delta, top=3)
    assert [(row["layer"], row["module"], row["direction"]) for row in rows] == [
        (layer, module, k) for layer in (1, 3) for module in ("mlp.out", "attn.o") for k in range(3)
    ]
    for row in rows:
        change = whole(delta, row["module"], row["layer"])
        path = "mlp.down_proj" if row["module"] == "mlp.out" else "self_attn.o_proj"
        base = model.original_model.get_parameter(
            f"model.layers.{row['layer']}.{path}._original_component.weight"
        ).detach()
        sigma = np.linalg.svd(change)[1]
        assert row["norm"] == pytest.approx(np.sqrt((change**2).sum()), rel=1e-5)
        assert row["relative"] == pytest.approx(
            row["norm"] / float((base**2).sum() ** 0.5), rel=1e-5
        )
        assert row["singular_value"] == pytest.approx(sigma[row["direction"]], rel=1e-4)
        assert row["share"] == pytest.approx(
            sigma[row["direction"]] ** 2 / (sigma**2).sum(), rel=1e-4
        )


@pytest.mark.parametrize("rank", [4, None])
def test_shares_of_all_directions_sum_to_one_and_fall(model, rank):
    rows = directions(
        model, random_delta(model, layers=(2,), modules=("mlp.out",), rank=rank), top=1000
    )
    shares = [row["share"] for row in rows]
    assert len(shares) == (4 if rank else 32)
    assert sum(shares) == pytest.approx(1, abs=1e-5)
    assert shares == sorted(shares, reverse=True)


def test_a_low_rank_delta_has_the_directions_of_the_same_dense_one(model):
    delta = random_delta(model)
    low, dense = directions(model, delta), directions(model, dense_copy(model, delta))
    for a, b in zip(low, dense, strict=True):
        for name in ("norm", "relative", "singular_value", "share"):
            assert a[name] == pytest.approx(b[name], rel=1e-4)
        # The sign is arbitrary.
        assert {a["promoted"], a["demoted"]} == {b["promoted"], b["demoted"]}


@pytest.mark.parametrize("form", ["low rank", "dense", "dense, not decomposed whole"])
def test_the_direction_of_a_rank_one_delta_is_its_column(model, form, monkeypatch):
    u = torch.randn(32)
    delta = rank_one(model, u)
    if form != "low rank":
        delta = dense_copy(model, delta)
    if form == "dense, not decomposed whole":
        monkeypatch.setattr(weight_directions, "_EXACT", 0)
    found, sigma, norm = _directions([delta.part(Point("mlp.out", 1))], 1)
    assert float((found[:, 0] @ u).abs() / u.norm()) == pytest.approx(1, abs=1e-5)
    assert float(sigma[0]) == pytest.approx(3, rel=1e-5)
    assert norm == pytest.approx(3, rel=1e-5)


def test_a_large_dense_delta_is_decomposed_without_the_users_random_numbers(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    u, _ = torch.linalg.qr(torch.randn(60, 60, generator=generator))
    v, _ = torch.linalg.qr(torch.randn(90, 60, generator=generator))
    part = torch.nn.Module()
    sigma = 5 * 0.8 ** torch.arange(60.0)
    part.weight = lambda: u * sigma @ v.T  # type: ignore[assignment]
    monkeypatch.setattr(weight_directions, "_EXACT", 8)
    state = torch.get_rng_state()
    found, values, norm = _directions([part], 3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(values, sigma[:3], rtol=1e-4, atol=0)
    torch.testing.assert_close(
        (found * u[:, :3]).sum(dim=0).abs(), torch.ones(3), rtol=1e-4, atol=0
    )
    assert norm == pytest.approx(float(sigma.norm()), rel=1e-5)


# --- tokens
# -------------------------------------------------------------------------------------------------------  # noqa: E501


def heads(kind: str, hf, x: np.ndarray) -> np.ndarray:
    """Logits of a direction by hand: the final norm as this architecture scales (and centres), then
    the unembedding."""
    inner = hf.transformer if kind == "gpt2" else hf.model
    if kind == "gpt2":
        scaled = inner.ln_f.weight.detach().double().numpy() * (x - x.mean())
    else:
        weight = inner.norm.weight.detach().double().numpy()
        scaled = (1 + weight if kind == "gemma2" else weight) * x
    return hf.lm_head.weight.detach().double().numpy() @ scaled


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("module", ["mlp.out", "attn.o"])
def test_promoted_tokens_are_the_largest_logits_of_the_output_direction(tokenizer, kind, module):
    hf = tiny_hf(kind, len(tokenizer))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # norms that scale and shift
        for name, parameter in hf.named_parameters():
            if "norm" in name or "ln_" in name:
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.2)
    u = torch.randn(32, generator=generator)
    # Gemma 2 has a norm between the map and the residual stream.
    before = 1.0
    if kind == "gemma2":
        layer = hf.model.layers[1]
        norm = (
            layer.post_feedforward_layernorm
            if module == "mlp.out"
            else layer.post_attention_layernorm
        )
        before = 1 + norm.weight.detach().double().numpy()
    logits = heads(kind, hf, u.double().numpy() * before)
    own = AutoTokenizer.from_pretrained(assets.model_dir())
    model = from_hf(hf, own, model_id=f"scaled-{kind}")
    (row,) = directions(model, rank_one(model, u, module=module))
    ranked = logits.argsort()
    expected = texts(model, ranked[::-1][:5]), texts(model, ranked[:5])
    assert (row["promoted"], row["demoted"]) in (expected, expected[::-1])


def test_maps_that_do_not_write_to_the_residual_stream_have_no_tokens(model):
    rows = directions(model, random_delta(model, modules=LINEAR_MAPS), top=1)
    assert {row["module"] for row in rows if row["promoted"]} == {"mlp.out", "attn.o"}
    assert all(bool(row["promoted"]) == bool(row["demoted"]) for row in rows)
    assert all(len(row["promoted"].split(" ")) == 5 for row in rows if row["promoted"])
    assert len(rows) == 2 * 7


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "gpt_neo", "qwen2", "gemma2"])
def test_every_map_of_every_architecture_has_its_own_size(tiny_model, kind):
    model = tiny_model(kind)
    modules = [m for m in LINEAR_MAPS if f"blocks.0.{m}.hook_in" in model.hook_dict]
    delta = random_delta(model, modules=modules, layers=(2,))
    for row in directions(model, delta, top=1):
        x = torch.eye(delta.part(Point(row["module"], 2)).weight().shape[1])
        component = model.blocks[2].get_submodule(row["module"]).original_component
        with torch.no_grad():  # the matrix, whichever way it is kept
            matrix = component(x) - component(torch.zeros_like(x))
        assert row["relative"] == pytest.approx(row["norm"] / float(matrix.norm()), rel=1e-4)


# --- edits of several parts, and of none
# ---------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [(4, 4), (4, None)])
def test_of_a_stack_it_is_the_sum_of_its_deltas(model, ranks):
    first = random_delta(model, rank=ranks[0], modules=("mlp.out",))
    second = random_delta(model, rank=ranks[1], modules=("mlp.out",), layers=(1,), seed=7)
    rows = directions(model, Stack([first, random_fairmed(model), Stack([second])]), top=2)
    assert [(row["layer"], row["direction"]) for row in rows] == [(1, 0), (1, 1), (3, 0), (3, 1)]
    sums = {1: whole(first) + whole(second), 3: whole(first, layer=3)}
    for row in rows:
        sigma = np.linalg.svd(sums[row["layer"]])[1]
        assert row["singular_value"] == pytest.approx(sigma[row["direction"]], rel=1e-4)
        assert row["norm"] == pytest.approx(np.sqrt((sums[row["layer"]] ** 2).sum()), rel=1e-5)


@pytest.mark.parametrize("rank", [2, None])
def test_a_zero_delta_has_sizes_of_zero_and_names_no_tokens(model, rank):
    for row in directions(model, WeightDelta.low_rank(model, layers=[0], rank=rank), top=2):
        assert (row["norm"], row["relative"], row["singular_value"]) == (0, 0, 0)
        assert np.isnan(row["share"])
        assert (row["promoted"], row["demoted"]) == ("", "")


def test_directions_that_only_rounding_leaves_name_no_tokens(model):
    first, second = directions(model, dense_copy(model, rank_one(model, torch.randn(32))), top=2)
    assert first["promoted"]
    assert (second["promoted"], second["demoted"]) == ("", "")
    assert second["share"] < 1e-10


def test_edits_that_are_no_weight_deltas_have_no_rows(model):
    for edit in (random_fairmed(model), random_experts(model), Stack([])):
        assert directions(model, edit) == []


def test_another_model_is_refused(model, tokenizer):
    with pytest.raises(TracelabError, match="made for tiny-llama with weights"):
        directions(bridged(len(tokenizer), 1, "other"), random_delta(model))
