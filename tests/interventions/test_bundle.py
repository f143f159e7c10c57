"""Bundles: what comes back exactly, from a folder, another process or the hub."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.interventions.edits import TOKENS, logits, random_delta, random_experts, random_fairmed
from tracelab.errors import TracelabError
from tracelab.interventions import (
    Experts,
    FairMed,
    FairMedConfig,
    Intervention,
    Stack,
    WeightDelta,
    load_intervention,
)
from tracelab.interventions import bundle as module
from tracelab.interventions.bundle import MANIFEST, TENSORS


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
    "fairmed published": lambda model: random_fairmed(
        model, **FairMedConfig.published("gender", lam=1.0).settings()
    ),
    "stack": lambda model: Stack([random_fairmed(model, lam=2.0, seed=7), random_experts(model)]),
    "nested stack": lambda model: Stack(
        [
            random_fairmed(model, lam=2.0),
            Stack([random_delta(model), Stack([])]),
            random_experts(model, alpha=-1.0),
        ]
    ),
    "empty stack": lambda model: Stack([]),
}


def parts(edit: Intervention) -> list[Intervention]:
    return [part for part in edit.modules() if isinstance(part, Intervention)]


# --- the way there and back
# ---------------------------------------------------------------------------------------


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
    assert all(
        torch.equal(value, back.state_dict()[key]) for key, value in edit.state_dict().items()
    )
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
from tracelab import load_intervention
from tracelab.model import assets
from tracelab.model.load import from_hf
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


def test_in_another_process_it_gives_the_same_numbers_on_a_bridge_and_on_plain_transformers(
    model, tmp_path
):
    # its noise is of this process, too
    fairmed = random_fairmed(model, lam=2.0, steps=5, init="random")
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
    with pytest.raises(TracelabError):
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
    for said in (
        "experts(gender, α=0.5)",
        "tiny-llama",
        edit.origin.fingerprint,
        '"after": 21.25',
        '"alpha": 0.5',
    ):
        assert said in card


# --- where it is loaded from
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["nowhere", "./nowhere", "/no/such/place", "a/b/c", "~/no such folder", ""]
)
def test_a_path_where_nothing_is_is_named(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TracelabError, match="no bundle folder at|is no tracelab bundle"):
        load_intervention(path)


def test_a_file_is_no_bundle(kept):
    with pytest.raises(TracelabError, match="no bundle folder at"):
        load_intervention(kept / MANIFEST)


def test_a_hub_repository_that_cannot_be_reached_is_one_clear_error():
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(
        TracelabError, match="no folder and no reachable hub repository 'nobody/no-edit': "
    ) as refused:
        load_intervention("nobody/no-edit")
    assert "\n" not in str(refused.value)
    with pytest.raises(TracelabError, match="no folder and no reachable hub repository"):
        load_intervention("no body/with a space")


def as_hub_cache(bundle: Path, root: Path) -> Path:
    """Lay a bundle out as huggingface_hub does: a snapshot of links to blobs."""
    snapshot, blobs = (
        root / "models--me--edit" / "snapshots" / "abc",
        root / "models--me--edit" / "blobs",
    )
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in (MANIFEST, TENSORS):
        (blobs / f"blob-of-{name}").write_bytes((bundle / name).read_bytes())
        (snapshot / name).symlink_to(f"../../blobs/blob-of-{name}")
    return snapshot


def test_a_hub_repository_is_loaded_as_a_folder_with_a_local_fake_of_the_hub(
    kept, tmp_path, monkeypatch, model
):
    snapshot, asked = as_hub_cache(kept, tmp_path / "cache"), []

    def fake(repo_id, **options):
        asked.append((repo_id, options))
        return str(snapshot)

    monkeypatch.setattr(module, "snapshot_download", fake)
    back = load_intervention("me/edit", revision="abc")
    patterns = {"allow_patterns": [MANIFEST, TENSORS]}
    assert asked == [("me/edit", {"revision": "abc", "token": None} | patterns)]
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
