"""Bundles: what comes back exactly, and all that must not be loaded."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save
from transformers import AutoTokenizer

from tests.interventions.edits import random_delta, random_experts, random_fairmed
from tests.tiny import tiny_hf
from tracelab import assets
from tracelab.errors import TracelabError
from tracelab.interventions import Experts, FairMed, FairMedConfig, Intervention, Stack, WeightDelta, load_intervention
from tracelab.interventions import bundle as module
from tracelab.interventions.bundle import MANIFEST, TENSORS
from tracelab.model import from_hf

TOKENS = torch.arange(40, 52).reshape(2, 6)


def both_parts_differ(model) -> Experts:
    return Experts(
        random_delta(model, modules=("mlp.in",), layers=(0,), seed=1),
        random_delta(model, modules=("attn.o",), layers=(2, 3), seed=2),
        bias="gender",
    )


EDITS = {
    "delta": random_delta,
    "dense delta": lambda model: random_delta(model, rank=None, scale=0.1),
    "experts": lambda model: random_experts(model, alpha=0.7, filter_order="base_first", top_p=0.8),
    "expert alone": lambda model: random_experts(model, anti=False),
    "experts of different maps": both_parts_differ,
    "fairmed": lambda model: random_fairmed(model, lam=2.0, groups=("female", "male")),
    "fairmed published": lambda model: random_fairmed(model, **FairMedConfig.published("gender", lam=1.0).settings()),
    "stack": lambda model: Stack([random_fairmed(model, lam=2.0, seed=7), random_experts(model)]),
    "nested stack": lambda model: Stack(
        [random_fairmed(model, lam=2.0), Stack([random_delta(model), Stack([])]), random_experts(model, alpha=-1.0)]
    ),
    "empty stack": lambda model: Stack([]),
}


@pytest.fixture
def model(tiny_model):
    return tiny_model("llama")


@torch.no_grad()
def logits(model, edit):
    with edit.applied(model):
        return model(TOKENS)


def parts(edit: Intervention) -> list[Intervention]:
    return [part for part in edit.modules() if isinstance(part, Intervention)]


# --- the way there and back ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EDITS)
def test_a_saved_edit_comes_back_exactly(model, tmp_path, name):
    edit = EDITS[name](model)
    edit.notes = {"data_hash": "abc", "metrics": {"kl": [0.25, 1e-30]}, "seed": 3}
    back = load_intervention(edit.save(tmp_path / "kept"))
    assert type(back) is type(edit)
    assert back.spec() == edit.spec()
    assert back.notes == edit.notes
    assert back.name == edit.name
    assert back.origin == edit.origin
    assert [type(part) for part in parts(back)] == [type(part) for part in parts(edit)]
    assert [part.spec() for part in parts(back)] == [part.spec() for part in parts(edit)]
    assert back.state_dict().keys() == edit.state_dict().keys()
    assert all(torch.equal(value, back.state_dict()[key]) for key, value in edit.state_dict().items())
    assert torch.equal(logits(model, back), logits(model, edit))


def test_the_members_of_a_stack_keep_their_notes(model, tmp_path):
    edit = Stack([random_delta(model), Stack([random_fairmed(model)])])
    for number, part in enumerate(parts(edit)):
        part.notes = {"number": number}
    assert [part.notes for part in parts(load_intervention(edit.save(tmp_path / "kept")))] == [
        {"number": number} for number in range(4)
    ]


def test_a_delta_that_comes_back_can_be_trained_on(model, tmp_path):
    back = load_intervention(random_delta(model).save(tmp_path / "kept"))
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in back.parameters())
    with back.applied(model):
        model(TOKENS)[..., 7].sum().backward()
    try:
        assert all(parameter.grad.any() for parameter in back.parameters())
    finally:
        for parameter in model.parameters():
            parameter.grad = None


PROCESS = """
import sys, torch
torch.set_num_threads(1)
from transformers import AutoTokenizer
from tests.tiny import tiny_hf
from tracelab import assets, load_intervention
from tracelab.model import from_hf
tokens = torch.arange(40, 52).reshape(2, 6)
tokenizer = AutoTokenizer.from_pretrained(assets.model_dir())
edit = load_intervention(sys.argv[1])
plain = tiny_hf("llama", len(tokenizer))
with torch.no_grad(), edit.attach(plain):
    attached = plain(tokens).logits
model = from_hf(tiny_hf("llama", len(tokenizer)), tokenizer, model_id="tiny-llama")
with torch.no_grad(), edit.applied(model):
    bridged = model(tokens)
torch.save({"bridged": bridged, "attached": attached}, sys.argv[2])
"""


def test_in_another_process_it_gives_the_same_numbers_on_a_bridge_and_on_plain_transformers(model, tmp_path):
    fairmed = random_fairmed(model, lam=2.0, steps=5, init="random")  # its noise is of this process, too
    edit = Stack([fairmed, random_delta(model), random_experts(model, alpha=0.5)])
    arguments = [str(edit.save(tmp_path / "kept")), str(tmp_path / "there.pt")]
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", PROCESS, *arguments], check=True, timeout=200, cwd=root)
    there = torch.load(tmp_path / "there.pt", weights_only=True)
    torch.testing.assert_close(there["bridged"], logits(model, edit), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(there["attached"], logits(model, edit), atol=1e-4, rtol=1e-4)


def test_saving_again_replaces_the_bundle_as_a_whole(model, tmp_path):
    folder = tmp_path / "kept"
    random_fairmed(model).save(folder)
    random_delta(model).save(folder)
    assert {file.name for file in folder.iterdir()} == {MANIFEST, TENSORS, "README.md"}
    assert isinstance(load_intervention(folder), WeightDelta)
    assert list(tmp_path.iterdir()) == [folder]


def test_a_save_that_fails_leaves_the_old_bundle(model, tmp_path):
    folder = random_delta(model).save(tmp_path / "kept")
    unsayable = random_fairmed(model)
    unsayable.notes = {"a": object()}
    with pytest.raises(TypeError):
        unsayable.save(folder)
    assert isinstance(load_intervention(folder), WeightDelta)
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_or_file_of_the_users_own_is_not_overwritten(model, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for path in (tmp_path, str(tmp_path), tmp_path / "thesis.tex"):
        with pytest.raises(TracelabError, match="name a folder"):
            random_delta(model).save(path)
    folder = random_delta(model).save(tmp_path / "kept")
    (folder / "thoughts.md").write_text("mine")
    with pytest.raises(TracelabError, match=r"holds other files \(thoughts\.md\)"):
        random_fairmed(model).save(folder)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert (folder / "thoughts.md").read_text() == "mine"


def test_the_card_names_model_method_and_metrics(model, tmp_path):
    edit = random_experts(model, alpha=0.5)
    edit.notes = {"metrics": {"perplexity": {"before": 20.5, "after": 21.25}}}
    card = (edit.save(tmp_path / "kept") / "README.md").read_text(encoding="utf-8")
    for said in ("experts(gender, α=0.5)", "tiny-llama", edit.origin.fingerprint, '"after": 21.25', '"alpha": 0.5'):
        assert said in card


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.fixture
def kept(model, tmp_path):
    """A bundle of a stack of all kinds."""
    edit = Stack([random_fairmed(model), random_experts(model), random_delta(model, layers=(2,))])
    return edit.save(tmp_path / "kept")


def change(folder: Path, edit) -> None:
    """Change the manifest by a function of its content."""
    content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    edit(content)
    (folder / MANIFEST).write_text(json.dumps(content), encoding="utf-8")


def put(folder: Path, content: bytes, *, shapes=None) -> None:
    """Put other bytes in the place of the tensors, with their own SHA-256 in the manifest."""
    (folder / TENSORS).write_bytes(content)

    def sign(manifest):
        manifest["sha256"] = hashlib.sha256(content).hexdigest()
        manifest["tensors"] |= shapes or {}

    change(folder, sign)


def member(content, number):
    return content["part"]["members"][number]


FAIRMED, EXPERTS, DELTA = range(3)
MANIFESTS = {
    "an unknown field": (lambda m: m.update(run="rm"), "run: Extra inputs are not permitted"),
    "an unknown field of a part": (lambda m: m["part"].update(code="x"), r"part\.code: Extra inputs"),
    "an unknown field of an origin": (
        lambda m: member(m, DELTA)["origin"].update(x=1),
        r"members\.2\.origin\.x: Extra inputs",
    ),
    "an unknown field of a spec": (lambda m: member(m, DELTA)["spec"].update(x=1), "weight_delta is not valid: x: Ext"),
    "an unknown field of a stack's spec": (lambda m: m["part"]["spec"].update(x=1), "stack is not valid: x: Extra"),
    "an unknown field of a configuration": (
        lambda m: member(m, FAIRMED)["spec"]["config"].update(x=1),
        r"fairmed is not valid: config\.x: ",
    ),
    "a configuration out of range": (
        lambda m: member(m, FAIRMED)["spec"]["config"].update(lam=-1.0),
        "fairmed is not valid: config: .*lam of FairMed is a finite number from 0 on, not -1.0",
    ),
    "a number that is none": (
        lambda m: member(m, EXPERTS)["spec"]["config"].update(alpha=float("nan")),
        "experts is not valid: config: .*alpha must be a finite number, not nan",
    ),
    "a text for a number": (
        lambda m: member(m, EXPERTS)["spec"]["config"].update(alpha="1"),
        r"experts is not valid: config\.alpha: Input should be a valid number",
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
        lambda m: member(m, FAIRMED)["spec"]["attributes"].append(member(m, FAIRMED)["spec"]["attributes"][0]),
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
        r"unknown kind of intervention 'os\.system': this version knows fairmed, experts, weight_delta, stack",
    ),
    "a newer format": (
        lambda m: m.update(format_version=2),
        "has format version 2, this tracelab reads up to 1: install a newer one",
    ),
    "a format that never was": (lambda m: m.update(format_version=0), "is not valid: format_version"),
    "a format version that is no number": (lambda m: m.update(format_version="1"), "is not valid: format_version"),
    "another format": (lambda m: m.update(format="peft"), "is not valid: format: Input should be 'tracelab'"),
    "no checksum": (lambda m: m.pop("sha256"), "is not valid: sha256: Field required"),
    "no tensors": (lambda m: m.pop("tensors"), "is not valid: tensors: Field required"),
    "another checksum": (lambda m: m.update(sha256="0" * 64), "is not the file that the manifest describes"),
    "a member less": (
        lambda m: m["part"]["members"].pop(),
        r"tensor 'members\.2\..*': the configuration calls for none of that name, the manifest lists float32",
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
    with pytest.raises(TracelabError, match=r"tracelab\.json is not the manifest of a tracelab bundle"):
        load_intervention(kept)


def test_truncated_and_altered_tensors_are_refused(kept):
    content = (kept / TENSORS).read_bytes()
    flipped = bytearray(content)
    flipped[-1] ^= 1
    for damaged in (content[:-1], content[:7], b"", bytes(flipped), content + b"\0"):
        (kept / TENSORS).write_bytes(damaged)
        with pytest.raises(TracelabError, match="is not the file that the manifest describes: truncated or altered"):
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
    "another shape": (lambda t: t.update({NAME: t[NAME][:1]}), r"calls for float32 \[2, 32, 16\], the file holds flo"),
    "another dtype": (lambda t: t.update({NAME: t[NAME].half()}), "the file holds float16"),
    "none": (lambda t: t.pop(NAME), "the file holds none of that name"),
    "one more": (lambda t: t.update(more=torch.zeros(3)), r"'more': the configuration calls for none .* file holds fl"),
    "nan": (lambda t: t[NAME].view(-1)[5].fill_(float("nan")), "tensor 'members.0.* has values that are not finite"),
    "inf": (lambda t: t[NAME].view(-1)[5].fill_(float("-inf")), "has values that are not finite"),
}


@pytest.mark.parametrize("name", TENSOR_FILES)
def test_tensors_other_than_the_configuration_calls_for_are_refused_whatever_their_checksum(kept, name):
    edit, message = TENSOR_FILES[name]
    tensors = load_file(kept / TENSORS)
    edit(tensors)
    put(kept, save({key: value.contiguous() for key, value in tensors.items()}))
    with pytest.raises(TracelabError, match=message):
        load_intervention(kept)


def test_an_extra_tensor_is_refused_even_where_the_manifest_lists_it(kept):
    tensors = load_file(kept / TENSORS) | {"more": torch.zeros(3)}
    put(kept, save(tensors), shapes={"more": {"shape": [3], "dtype": "float32"}})
    with pytest.raises(TracelabError, match="'more': the configuration calls for none of that name"):
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
    with pytest.raises(TracelabError, match=rf"has no tracelab\.json \({name} may hold code and is never read\)"):
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
    with pytest.raises(TracelabError, match=rf"{name} leads out of the bundle's folder: copy the file itself there"):
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
    "a dense map": lambda m, n: member(m, DELTA)["spec"]["maps"][0].update(d_in=n, d_out=n, rank=None),
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


# --- the wrong model, the wrong place -----------------------------------------------------------------------------


def test_another_model_is_refused_unless_the_mismatch_is_allowed_and_other_shapes_always(kept, tokenizer, model):
    own = AutoTokenizer.from_pretrained(assets.model_dir())
    other = from_hf(tiny_hf("llama", len(tokenizer), seed=1), own, model_id="other")
    with pytest.raises(TracelabError, match="made for tiny-llama with weights .* other has weights"):
        load_intervention(kept).hooks(other)
    with pytest.raises(TracelabError, match="made for tiny-llama with weights .* LlamaForCausalLM has weights"):
        load_intervention(kept).attach(tiny_hf("llama", len(tokenizer), seed=1))
    assert load_intervention(kept, allow_mismatch=True).hooks(other)
    wider = tiny_hf("llama", len(tokenizer) + 8)
    with pytest.raises(TracelabError, match=r"\(4, 32, 49152\).* has \(4, 32, 49160\): fit it on that model"):
        load_intervention(kept, allow_mismatch=True).attach(wider)


def test_a_layer_that_the_model_has_not_is_refused_when_applied(kept, model, tokenizer):
    change(kept, lambda m: member(m, FAIRMED)["spec"]["attributes"][0].update(layers=[1, 9]))
    edit = load_intervention(kept)
    with pytest.raises(TracelabError, match="layer 9 is out of range: tiny-llama has layers 0 to 3"):
        edit.hooks(model)
    with pytest.raises(TracelabError, match=r"no module None .* blocks\.9\.hook_mlp_out"):
        edit.attach(tiny_hf("llama", len(tokenizer)))
    assert not model.list_hooks()


def test_a_bundle_that_names_no_model_is_refused_when_its_modules_are_asked_for(kept, model, tokenizer):
    change(kept, lambda m: [part.update(origin=None) for part in m["part"]["members"]])
    edit = load_intervention(kept)
    with pytest.raises(TracelabError, match="has no module None"):
        edit.attach(tiny_hf("llama", len(tokenizer)))
    with pytest.raises(TracelabError, match="has no module None"):
        edit.hooks(model)


@pytest.mark.parametrize("path", ["nowhere", "./nowhere", "/no/such/place", "a/b/c", "~/no such folder", ""])
def test_a_path_where_nothing_is_is_named(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TracelabError, match="no bundle folder at|is no tracelab bundle"):
        load_intervention(path)


def test_a_file_is_no_bundle(kept):
    with pytest.raises(TracelabError, match="no bundle folder at"):
        load_intervention(kept / MANIFEST)


def test_a_hub_repository_that_cannot_be_reached_is_one_clear_error():
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(TracelabError, match="no folder and no reachable hub repository 'nobody/no-edit': ") as refused:
        load_intervention("nobody/no-edit")
    assert "\n" not in str(refused.value)
    with pytest.raises(TracelabError, match="no folder and no reachable hub repository"):
        load_intervention("no body/with a space")


def as_hub_cache(bundle: Path, root: Path) -> Path:
    """Lay a bundle out as huggingface_hub does: a snapshot of links to blobs."""
    snapshot, blobs = root / "models--me--edit" / "snapshots" / "abc", root / "models--me--edit" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in (MANIFEST, TENSORS):
        (blobs / f"blob-of-{name}").write_bytes((bundle / name).read_bytes())
        (snapshot / name).symlink_to(f"../../blobs/blob-of-{name}")
    return snapshot


def test_a_hub_repository_is_loaded_as_a_folder_with_a_local_fake_of_the_hub(kept, tmp_path, monkeypatch, model):
    snapshot, asked = as_hub_cache(kept, tmp_path / "cache"), []

    def fake(repo_id, **options):
        asked.append((repo_id, options))
        return str(snapshot)

    monkeypatch.setattr(module, "snapshot_download", fake)
    back = load_intervention("me/edit", revision="abc")
    assert asked == [("me/edit", {"revision": "abc", "allow_patterns": [MANIFEST, TENSORS]})]
    assert torch.equal(logits(model, back), logits(model, load_intervention(kept)))


def test_a_snapshot_that_links_out_of_its_repository_is_not_followed_with_a_local_fake_of_the_hub(
    kept, tmp_path, monkeypatch
):
    snapshot = as_hub_cache(kept, tmp_path / "cache")
    (snapshot / TENSORS).unlink()
    (snapshot / TENSORS).symlink_to(kept / TENSORS)
    monkeypatch.setattr(module, "snapshot_download", lambda *args, **options: str(snapshot))
    with pytest.raises(TracelabError, match="leads out of the bundle's folder"):
        load_intervention("me/edit")


def test_a_folder_goes_before_a_hub_repository_of_its_name(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random_fairmed(model).save("me/edit")
    assert isinstance(load_intervention("me/edit"), FairMed)
