"""Bundles that must not be loaded: each is refused with one clear error, and nothing is
executed."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save
from transformers import AutoTokenizer

from tests.interventions.forging import change, put
from tests.tiny import tiny_hf
from tracelab.errors import TracelabError
from tracelab.interventions import load_intervention
from tracelab.interventions.bundle import MANIFEST, TENSORS
from tracelab.model import assets
from tracelab.model.load import from_hf


def member(content, number):
    return content["part"]["members"][number]


FAIRMED, EXPERTS, DELTA = range(3)
MANIFESTS = {
    "an unknown field": (lambda m: m.update(run="rm"), "run: Extra inputs are not permitted"),
    "an unknown field of a part": (
        lambda m: m["part"].update(code="x"),
        r"part\.code: Extra inputs",
    ),
    "an unknown field of an origin": (
        lambda m: member(m, DELTA)["origin"].update(x=1),
        r"members\.2\.origin\.x: Extra inputs",
    ),
    "an unknown field of a spec": (
        lambda m: member(m, DELTA)["spec"].update(x=1),
        "weight_delta is not valid: x: Ext",
    ),
    "an unknown field of a stack's spec": (
        lambda m: m["part"]["spec"].update(x=1),
        "stack is not valid: x: Extra",
    ),
    "an unknown field of a configuration": (
        lambda m: member(m, FAIRMED)["spec"]["config"].update(x=1),
        "fairmed is not valid: config: FairMedConfig has no field x: it has target, ",
    ),
    "a configuration out of range": (
        lambda m: member(m, FAIRMED)["spec"]["config"].update(lam=-1.0),
        "fairmed is not valid: .*lam is at least 0, not -1.0",
    ),
    "a number that is none": (
        lambda m: member(m, EXPERTS)["spec"]["config"].update(alpha=float("nan")),
        "experts is not valid: config: .*alpha is a finite number, not nan",
    ),
    "a text for a number": (
        lambda m: member(m, EXPERTS)["spec"]["config"].update(alpha="1"),
        "experts is not valid: config: alpha is a number, not '1'",
    ),
    "a choice that is none": (
        lambda m: member(m, EXPERTS)["spec"]["config"].update(filter_order="first"),
        "unknown filter_order 'first'",
    ),
    "no expert at all": (
        lambda m: member(m, EXPERTS)["spec"].update(expert=None, anti_expert=None),
        "experts need an expert, an anti-expert or both",
    ),
    "an attribute that is no name": (
        lambda m: member(m, FAIRMED)["spec"]["attributes"][0].update(attribute="a.b"),
        "fairmed is not valid: ",
    ),
    "a map that is none": (
        lambda m: member(m, DELTA)["spec"]["maps"][0].update(module="lm_head"),
        r"unknown linear map 'lm_head': choose one of mlp\.in",
    ),
    "a map twice": (
        lambda m: member(m, DELTA)["spec"]["maps"].append(member(m, DELTA)["spec"]["maps"][0]),
        "a linear map has two deltas: give each once",
    ),
    "an attribute twice": (
        lambda m: member(m, FAIRMED)["spec"]["attributes"].append(
            member(m, FAIRMED)["spec"]["attributes"][0]
        ),
        r"each attribute once, and each of its layers once: not \['gender', 'gender'\]",
    ),
    "a layer twice": (
        lambda m: member(m, FAIRMED)["spec"]["attributes"][0].update(layers=[1, 1]),
        r"each attribute once, and each of its layers once: not \['gender'\]",
    ),
    "a text for a number of an origin": (
        lambda m: member(m, DELTA)["origin"].update(n_layers="4"),
        r"members\.2\.origin\.n_layers: Input should be a valid integer",
    ),
    "members of what has none": (
        lambda m: member(m, DELTA).update(members=[member(m, EXPERTS)]),
        "a bundle of weight_delta has no members, this one has 1",
    ),
    "an activation for a map": (
        lambda m: member(m, DELTA)["spec"]["maps"][0].update(module="mlp_out"),
        "unknown linear map 'mlp_out'",
    ),
    "a size below zero": (
        lambda m: member(m, DELTA)["spec"]["maps"][0].update(d_in=-5),
        "weight_delta is not valid: ",
    ),
    "an unknown kind": (
        lambda m: member(m, DELTA).update(kind="os.system"),
        r"unknown kind of intervention 'os\.system': this version knows fairmed, experts, "
        r"biasedit, klaad, ",
    ),
    "a newer format": (
        lambda m: m.update(format_version=3),
        "has format version 3, this tracelab reads up to 2: install a newer one",
    ),
    "a format that never was": (
        lambda m: m.update(format_version=0),
        "is not valid: format_version",
    ),
    "a format version that is no number": (
        lambda m: m.update(format_version="1"),
        "is not valid: format_version",
    ),
    "another format": (
        lambda m: m.update(format="peft"),
        "is not valid: format: Input should be 'tracelab'",
    ),
    "no checksum": (lambda m: m.pop("sha256"), "is not valid: sha256: Field required"),
    "no tensors": (lambda m: m.pop("tensors"), "is not valid: tensors: Field required"),
    "another checksum": (
        lambda m: m.update(sha256="0" * 64),
        "is not the file that the manifest describes",
    ),
    "a member less": (
        lambda m: m["part"]["members"].pop(),
        r"tensor 'members\.2\..*': the configuration calls for none of that name, the manifest "
        r"lists float32",
    ),
    "a tensor that the manifest does not list": (
        lambda m: m["tensors"].pop("members.0.probers.gender.w1"),
        r"calls for float32 \[2, 32, 16\], the manifest lists none of that name",
    ),
    "a tensor of another shape in the configuration": (
        lambda m: member(m, FAIRMED)["spec"]["attributes"][0].update(hidden=17),
        r"calls for float32 \[2, 1, 17\], the manifest lists float32 \[2, 1, 16\]",
    ),
    "a tensor of another dtype in the manifest": (
        lambda m: m["tensors"]["members.0.probers.gender.w1"].update(dtype="float16"),
        r"calls for float32 \[2, 32, 16\], the manifest lists float16",
    ),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_changed_manifest_is_refused_with_one_clear_error(kept, name):
    edit, message = MANIFESTS[name]
    load_intervention(kept)
    change(kept, edit)
    with pytest.raises(TracelabError, match=message) as refused:
        load_intervention(kept)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "[1, 2]",
        "3",
        '"tracelab"',
        "{}",
        "\x00\xff",
        "[" * 100_000,
        '{"a":' * 100_000,
        "9" * 5000,
    ],
    ids=lambda text: repr(text[:10]),
)
def test_a_manifest_that_is_none_is_refused(kept, text):
    (kept / MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(
        TracelabError, match=r"tracelab\.json is not the manifest of a tracelab bundle"
    ):
        load_intervention(kept)


def test_truncated_and_altered_tensors_are_refused(kept):
    content = (kept / TENSORS).read_bytes()
    flipped = bytearray(content)
    flipped[-1] ^= 1
    for damaged in (content[:-1], content[:7], b"", bytes(flipped), content + b"\0"):
        (kept / TENSORS).write_bytes(damaged)
        with pytest.raises(
            TracelabError, match="is not the file that the manifest describes: truncated or altered"
        ):
            load_intervention(kept)
    (kept / TENSORS).write_bytes(content)
    assert load_intervention(kept)


@pytest.mark.parametrize("size", [0, 7, -1])
def test_tensors_that_are_no_safetensors_are_refused_whatever_their_checksum(kept, size):
    put(kept, (kept / TENSORS).read_bytes()[:size])
    with pytest.raises(TracelabError, match="is not a safetensors file"):
        load_intervention(kept)


NAME = "members.0.probers.gender.w1"
TENSOR_FILES = {
    "another shape": (
        lambda t: t.update({NAME: t[NAME][:1]}),
        r"calls for float32 \[2, 32, 16\], the file holds flo",
    ),
    "another dtype": (lambda t: t.update({NAME: t[NAME].half()}), "the file holds float16"),
    "none": (lambda t: t.pop(NAME), "the file holds none of that name"),
    "one more": (
        lambda t: t.update(more=torch.zeros(3)),
        r"'more': the configuration calls for none .* file holds fl",
    ),
    "nan": (
        lambda t: t[NAME].view(-1)[5].fill_(float("nan")),
        "tensor 'members.0.* has values that are not finite",
    ),
    "inf": (lambda t: t[NAME].view(-1)[5].fill_(float("-inf")), "has values that are not finite"),
}


@pytest.mark.parametrize("name", TENSOR_FILES)
def test_tensors_other_than_the_configuration_calls_for_are_refused_whatever_their_checksum(
    kept, name
):
    edit, message = TENSOR_FILES[name]
    tensors = load_file(kept / TENSORS)
    edit(tensors)
    put(kept, save({key: value.contiguous() for key, value in tensors.items()}))
    with pytest.raises(TracelabError, match=message):
        load_intervention(kept)


def test_an_extra_tensor_is_refused_even_where_the_manifest_lists_it(kept):
    tensors = load_file(kept / TENSORS) | {"more": torch.zeros(3)}
    put(kept, save(tensors), shapes={"more": {"shape": [3], "dtype": "float32"}})
    with pytest.raises(
        TracelabError, match="'more': the configuration calls for none of that name"
    ):
        load_intervention(kept)


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_pickle_in_the_place_of_the_tensors_is_not_executed(kept, tmp_path, how):
    sprung = tmp_path / "sprung"
    if how == "pickle":
        content = pickle.dumps(Trap(sprung))
    else:
        torch.save({NAME: Trap(sprung)}, tmp_path / "trap.pt")
        content = (tmp_path / "trap.pt").read_bytes()
    put(kept, content)
    with pytest.raises(TracelabError, match="is not a safetensors file"):
        load_intervention(kept)
    assert not sprung.exists()
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists()  # the trap works


@pytest.mark.parametrize("name", ["edit.pt", "pytorch_model.bin", "edit.pkl"])
def test_a_folder_of_pickles_is_no_bundle(tmp_path, name):
    (tmp_path / "old").mkdir()
    torch.save({"a": Trap(tmp_path / "sprung")}, tmp_path / "old" / name)
    with pytest.raises(
        TracelabError, match=rf"has no tracelab\.json \({name} may hold code and is never read\)"
    ):
        load_intervention(tmp_path / "old")
    assert not (tmp_path / "sprung").exists()


def test_pickles_beside_a_bundle_are_not_read(kept, tmp_path, model):
    torch.save({"a": Trap(tmp_path / "sprung")}, kept / "tensors.pt")
    assert load_intervention(kept).hooks(model)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", [MANIFEST, TENSORS])
def test_a_link_out_of_the_folder_is_not_followed(kept, tmp_path, name):
    (kept / name).rename(tmp_path / "elsewhere")
    (kept / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(
        TracelabError, match=rf"{name} leads out of the bundle's folder: copy the file itself there"
    ):
        load_intervention(kept)


def test_a_link_within_the_folder_and_a_folder_reached_by_a_link_are_followed(kept, tmp_path):
    (kept / TENSORS).rename(kept / "blob")
    (kept / TENSORS).symlink_to("blob")
    (tmp_path / "shortcut").symlink_to(kept)
    assert load_intervention(tmp_path / "shortcut")


@pytest.mark.parametrize("name", [MANIFEST, TENSORS])
def test_a_bundle_without_one_of_its_files_is_refused(kept, name):
    (kept / name).unlink()
    with pytest.raises(TracelabError, match=f"is no tracelab bundle: it has no {name}"):
        load_intervention(kept)


SIZES = {
    "a dense map": lambda m, n: member(m, DELTA)["spec"]["maps"][0].update(
        d_in=n, d_out=n, rank=None
    ),
    "a rank": lambda m, n: member(m, DELTA)["spec"]["maps"][0].update(rank=n),
    "a prober": lambda m, n: member(m, FAIRMED)["spec"]["attributes"][0].update(hidden=n),
    "an expert": lambda m, n: member(m, EXPERTS)["spec"]["expert"]["maps"][0].update(d_in=n),
}


@pytest.mark.parametrize("n", [10**9, 10**12, 10**18, 2**70], ids="{:.0e}".format)
@pytest.mark.parametrize("name", SIZES)
def test_absurd_sizes_are_refused_without_any_memory(kept, monkeypatch, name, n):
    devices, zeros = [], torch.zeros

    def noted(*args, **kwargs):
        made = zeros(*args, **kwargs)
        devices.append(made.device.type)
        return made

    monkeypatch.setattr(torch, "zeros", noted)
    load_intervention(kept)
    assert set(devices) == {"meta"}
    change(kept, lambda m: SIZES[name](m, n))
    with pytest.raises(TracelabError, match="is not valid: |the configuration calls for float32"):
        load_intervention(kept)
    assert set(devices) == {"meta"}


# --- the wrong model, the wrong place
# -----------------------------------------------------------------------------


def test_another_model_is_refused_unless_the_mismatch_is_allowed_and_other_shapes_always(
    kept, tokenizer, model
):
    own = AutoTokenizer.from_pretrained(assets.model_dir())
    other = from_hf(tiny_hf("llama", len(tokenizer), seed=1), own, model_id="other")
    with pytest.raises(
        TracelabError, match="made for tiny-llama with weights .* other has weights"
    ):
        load_intervention(kept).hooks(other)
    with pytest.raises(
        TracelabError, match="made for tiny-llama with weights .* LlamaForCausalLM has weights"
    ):
        load_intervention(kept).attach(tiny_hf("llama", len(tokenizer), seed=1))
    assert load_intervention(kept, allow_mismatch=True).hooks(other)
    wider = tiny_hf("llama", len(tokenizer) + 8)
    with pytest.raises(
        TracelabError, match=r"\(4, 32, 49152\).* has \(4, 32, 49160\): fit it on that model"
    ):
        load_intervention(kept, allow_mismatch=True).attach(wider)


def test_a_layer_that_the_model_has_not_is_refused_when_applied(kept, model, tokenizer):
    change(kept, lambda m: member(m, FAIRMED)["spec"]["attributes"][0].update(layers=[1, 9]))
    edit = load_intervention(kept)
    with pytest.raises(
        TracelabError, match="layer 9 is out of range: tiny-llama has layers 0 to 3"
    ):
        edit.hooks(model)
    with pytest.raises(TracelabError, match=r"no module whose output is blocks\.9\.hook_mlp_out"):
        edit.attach(tiny_hf("llama", len(tokenizer)))
    assert not model.list_hooks()


def test_a_bundle_that_names_no_model_is_refused(kept):
    change(kept, lambda m: member(m, FAIRMED).update(origin=None))
    with pytest.raises(TracelabError, match="fairmed names no model that it was made for"):
        load_intervention(kept)


def test_a_stack_that_names_a_model_is_refused(kept):
    change(kept, lambda m: m["part"].update(origin=member(m, DELTA)["origin"]))
    with pytest.raises(TracelabError, match="stack names a model"):
        load_intervention(kept)
