"""Bundles damaged, changed or forged, and those of tracelab 0.1: what is found, and what still
loads."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.interventions.edits import logits, random_delta
from tests.interventions.forging import change
from tracelab.errors import TracelabError
from tracelab.interventions import Intervention, Stack, load_intervention
from tracelab.interventions.bundle import DEEPEST, MANIFEST, TENSORS

OLD = sorted((Path(__file__).parent / "data" / "bundles_0_1").iterdir())


@pytest.fixture
def small(model, tmp_path):
    return random_delta(model, layers=(1,), modules=("mlp.out",), rank=1).save(tmp_path / "small")


@pytest.mark.parametrize("name", [MANIFEST, TENSORS])
def test_no_bit_of_a_bundle_can_be_flipped_unseen(small, name):
    whole = (small / name).read_bytes()
    for bit in range(0, 8 * len(whole), 23):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        (small / name).write_bytes(changed)
        with pytest.raises(TracelabError) as refused:
            load_intervention(small)
        assert str(refused.value).isprintable()
    (small / name).write_bytes(whole)
    assert load_intervention(small)


@pytest.mark.parametrize(
    "change_text", [str.upper, lambda t: t.replace("\n", "\r\n"), lambda t: t + " ", str.strip]
)
def test_a_manifest_that_was_written_again_is_refused(small, change_text):
    text = (small / MANIFEST).read_text(encoding="utf-8")
    (small / MANIFEST).write_bytes(change_text(text).encode())
    with pytest.raises(TracelabError, match="is not as it was written|is not the manifest"):
        load_intervention(small)


def test_a_sealed_manifest_cannot_claim_to_be_of_the_version_without_seals(small):
    text = (small / MANIFEST).read_text(encoding="utf-8")
    (small / MANIFEST).write_text(
        text.replace('"format_version": 2', '"format_version": 1'), encoding="utf-8"
    )
    with pytest.raises(TracelabError, match="is not valid: seal: Extra inputs"):
        load_intervention(small)


def test_a_manifest_of_the_old_version_cannot_claim_to_be_sealed(tmp_path):
    folder = shutil.copytree(OLD[0], tmp_path / "old")
    text = (folder / MANIFEST).read_text(encoding="utf-8")
    (folder / MANIFEST).write_text(
        text.replace('"format_version": 1', '"format_version": 2'), encoding="utf-8"
    )
    with pytest.raises(TracelabError, match="is not as it was written"):
        load_intervention(folder)


def test_bytes_that_are_no_utf8_are_refused(tmp_path):
    folder = shutil.copytree(OLD[-1], tmp_path / "old")
    content = (folder / MANIFEST).read_bytes()
    assert b"tiny-llama" in content
    (folder / MANIFEST).write_bytes(content.replace(b"tiny-llama", b"tiny-llam\xe9"))
    with pytest.raises(TracelabError, match="is not the manifest of a tracelab bundle"):
        load_intervention(folder)


def test_a_key_that_stands_twice_is_refused(tmp_path):
    folder = shutil.copytree(OLD[-1], tmp_path / "old")
    text = (folder / MANIFEST).read_text(encoding="utf-8")
    (folder / MANIFEST).write_text(
        text.replace('"format":', '"format": "tracelab", "format":', 1), encoding="utf-8"
    )
    with pytest.raises(TracelabError, match="is not the manifest of a tracelab bundle"):
        load_intervention(folder)


# --- bundles of 0.1
# -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", OLD, ids=lambda folder: folder.name)
def test_a_bundle_that_tracelab_0_1_wrote_loads_and_is_sealed_when_it_is_saved_again(
    folder, model, tmp_path
):
    edit = load_intervention(folder, allow_mismatch=True)
    content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    assert content["format_version"] == 1
    assert edit.kind == content["part"]["kind"] == folder.name
    assert edit.notes == {"seed": 3, "metrics": {"kl": [0.25]}}
    stored, tensors = load_file(folder / TENSORS), edit.state_dict()
    assert stored.keys() == tensors.keys()
    assert all(torch.equal(value, tensors[name]) for name, value in stored.items())
    assert (logits(model, edit) - logits(model)).abs().max() > 0.01
    again = load_intervention(edit.save(tmp_path / "again"), allow_mismatch=True)
    assert (
        json.loads((tmp_path / "again" / MANIFEST).read_text(encoding="utf-8"))["format_version"]
        == 2
    )
    assert again.spec() == edit.spec()
    assert torch.equal(logits(model, again), logits(model, edit))


# --- sizes
# --------------------------------------------------------------------------------------------------------  # noqa: E501


@pytest.mark.parametrize("size", [2**26, 2**40])
@pytest.mark.parametrize("name", [MANIFEST, TENSORS])
def test_a_file_too_large_for_the_bundle_is_refused_before_it_is_read(small, name, size):
    os.truncate(small / name, size)  # sparse: it takes no room on the disk
    with pytest.raises(
        TracelabError, match=rf"has {size} bytes where at most \d+ can belong to the bundle"
    ):
        load_intervention(small)


# --- stacks
# -------------------------------------------------------------------------------------------------------  # noqa: E501


def test_a_stack_that_holds_itself_is_refused_wherever_it_is_used(model, tmp_path):
    inner = Stack([random_delta(model)])
    outer = Stack([inner])
    inner.members.append(outer)
    uses = [
        lambda stack: stack.hooks(model),
        lambda stack: stack.attach(model.original_model),
        lambda stack: stack.save(tmp_path / "kept"),
        lambda stack: stack.settings(),
        lambda stack: stack.name,
        list,
    ]
    for stack in (inner, outer):
        for use in uses:
            with pytest.raises(TracelabError, match="a stack holds itself"):
                use(stack)
    assert not (tmp_path / "kept").exists()


def test_stacks_as_deep_as_can_be_loaded_can_be_saved_and_no_deeper(model, tmp_path):
    edit: Intervention = random_delta(model)
    for _ in range(DEEPEST):
        edit = Stack([edit])
    assert load_intervention(edit.save(tmp_path / "deep")).hooks(model)
    with pytest.raises(TracelabError, match=f"at most {DEEPEST} deep"):
        Stack([edit]).save(tmp_path / "deeper")

    def deepen(content):
        content["part"] = content["part"] | {"members": [content["part"]]}

    change(tmp_path / "deep", deepen)
    with pytest.raises(TracelabError, match=f"at most {DEEPEST} deep"):
        load_intervention(tmp_path / "deep")


# --- what messages quote
# ------------------------------------------------------------------------------------------

HOSTILE = "a\nb\r\x1b[31mred\x00\u202egpj.exe\u2028" + "x" * 100_000


@pytest.mark.parametrize(
    "place",
    [
        lambda m: m["part"].update(kind=HOSTILE),
        lambda m: m["part"].update({HOSTILE: 1}),
        lambda m: m["part"]["spec"]["maps"][0].update(module=HOSTILE),
        lambda m: m["part"]["spec"]["maps"][0].update({HOSTILE: 1}),
        lambda m: m["tensors"].update({HOSTILE: {"shape": [1], "dtype": HOSTILE}}),
        lambda m: m["part"]["origin"].update(n_layers=HOSTILE),
    ],
)
def test_a_message_is_one_short_line_whatever_stands_in_the_bundle(small, place):
    change(small, place)
    with pytest.raises(TracelabError) as refused:
        load_intervention(small)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 1300
