"""What an edit does at a point is the same on a bridge and in plain ``transformers``, at every
point that edits act on, on every architecture; where it cannot be, that is one sentence."""

from __future__ import annotations

import pytest
import torch
from pydantic import BaseModel
from torch import nn
from transformers import AutoTokenizer

from tests.interventions.edits import CLOSE, TOKENS, logits
from tests.tiny import D_MODEL, MORE_KINDS, N_LAYERS, tiny_hf
from tracelab.errors import TracelabError
from tracelab.interventions.base import Intervention
from tracelab.interventions.origin import Origin
from tracelab.interventions.point_edit import PointEdit
from tracelab.model import assets
from tracelab.model.hook_points import EDITED, LINEAR_MAPS, Point, hook_name, linear_maps
from tracelab.model.load import from_hf

REFUSED = {
    ("gemma2", "logits"): r"unembed.hook_out cannot be used on gemma2: .*a soft cap or a scale",
    ("cohere", "logits"): r"unembed.hook_out cannot be used on cohere: .*a soft cap or a scale",
}
"""On the bridge, and so anywhere."""

ON_THE_BRIDGE_ALONE = {("granite", "mlp_out"), ("granite", "attn_out")}
"""Granite's blocks scale what they add to the stream, which no module gives out."""

EXPERTS = ("mixtral", "qwen3_moe")
"""Mixtures of experts have no one linear map in their MLP."""

LAYERED = tuple(kind for kind in EDITED if kind not in ("embed", "logits"))


class NudgeSpec(BaseModel):
    kind: str
    layer: int | None
    width: int


class Nudge(Intervention):
    """The smallest edit: a constant is added at one point."""

    kind, Spec = "nudge", NudgeSpec

    def __init__(self, spec, origin):
        super().__init__(origin)
        self._spec = spec
        self.vector = nn.Parameter(torch.zeros(spec.width))

    def spec(self):
        return self._spec

    @classmethod
    def build(cls, spec, origin):
        return cls(spec, origin)

    def edits(self, hf_model):
        def change(*values):
            return values[-1] + self.vector

        width = None if self._spec.kind == "logits" else self._spec.width
        return [PointEdit(Point(self._spec.kind, self._spec.layer), change, d_out=width)]


def nudge(model, kind, layer=None):
    width = model.cfg.d_vocab if kind == "logits" else D_MODEL
    spec = NudgeSpec(kind=kind, layer=layer, width=width)
    edit = Nudge.build(spec, Origin.of(model, [Point(kind, layer)]))
    with torch.no_grad():
        edit.vector += 2 * torch.randn(width, generator=torch.Generator().manual_seed(0))
    return edit


@pytest.fixture(scope="module", params=MORE_KINDS)
def pair(request, tokenizer):
    """A bridge and a plain model of one architecture."""
    own = AutoTokenizer.from_pretrained(assets.model_dir())
    made = [tiny_hf(request.param, len(tokenizer)) for _ in range(2)]
    return request.param, from_hf(made[0], own, model_id=request.param), made[1]


@pytest.mark.parametrize("kind", [*EDITED, "mlp.out", "attn.o"])
def test_an_edit_of_a_point_is_one_on_a_bridge_and_in_plain_transformers(pair, kind):
    architecture, model, plain = pair
    if said := REFUSED.get((architecture, kind)):
        with pytest.raises(TracelabError, match=said):
            nudge(model, kind)
        return
    if architecture in EXPERTS and kind == "mlp.out":
        with pytest.raises(
            TracelabError, match=rf"{architecture} has no linear map blocks\.1\.mlp"
        ):
            nudge(model, kind, 1)
        return
    for layer in (None,) if kind in ("embed", "logits") else (0, 1, N_LAYERS - 1):
        edit = nudge(model, kind, layer)
        bridged = logits(model, edit)
        assert (bridged - logits(model)).abs().max() > 0.01  # it does something
        if (architecture, kind) in ON_THE_BRIDGE_ALONE:
            with pytest.raises(
                TracelabError, match=rf"no module whose output is {Point(kind, layer)} .* cannot be"
            ):
                edit.attach(plain)
            continue
        with torch.no_grad(), edit.attach(plain):
            torch.testing.assert_close(plain(TOKENS).logits, bridged, **CLOSE)


def test_an_unknown_point_is_one_sentence_with_the_possible_ones(tiny_model):
    model = tiny_model("llama")
    for kind in ("residual", "resid_mid", "pattern"):  # the last two are read, not written to
        with pytest.raises(TracelabError, match=f"unknown point of an edit '{kind}'") as caught:
            nudge(model, kind, 1)
        assert all(name in str(caught.value) for name in (*EDITED, *LINEAR_MAPS))
    with pytest.raises(TracelabError, match="unknown hook point 'residual': choose one of embed,"):
        hook_name("residual", 1)


@pytest.mark.parametrize("kind", [*LAYERED, *LINEAR_MAPS])
def test_a_point_of_every_layer_needs_one(tiny_model, kind):
    with pytest.raises(TracelabError, match=f"the point '{kind}' is in every layer: say in which"):
        nudge(tiny_model("llama"), kind)


@pytest.mark.parametrize("kind", EXPERTS)
def test_the_router_of_a_mixture_of_experts_is_no_linear_map_to_edit(kind, tiny_model):
    model = tiny_model(kind)
    assert linear_maps(model) == ["attn.q", "attn.k", "attn.v", "attn.o"]
    said = (
        r"has no linear map blocks\.1\.mlp\.gate: that block has attn\.q, attn\.k, attn\.v, attn\.o"
    )
    with pytest.raises(TracelabError, match=said):
        nudge(model, "mlp.gate", 1)


@pytest.mark.parametrize("layer", [-1, N_LAYERS])
def test_a_layer_out_of_range_is_named_with_the_range(tiny_model, layer):
    with pytest.raises(TracelabError, match=f"layer {layer} is out of range: .* layers 0 to 3"):
        nudge(tiny_model("llama"), "resid_post", layer)
