"""Edits on the hub, and the cards that go with them.

No hub can be reached from a test: the real client talks to a stand-in for its API on this machine
(:mod:`tests.hub_server`), so what is shown is what tracelab sends and reads, not what the hub does
with it.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from tests.hub_server import local_hub
from tests.interventions.edits import random_delta, random_erasure
from tests.tiny import tiny_hf
from tracelab import load_intervention
from tracelab.errors import TracelabError
from tracelab.evaluate import metrics_of
from tracelab.evaluate.scoreboard.scoreboard import evaluate
from tracelab.interventions.export import to_merged, to_peft
from tracelab.model.load import _FACTS, load, model_facts

TOKENS = torch.arange(40, 52)[None]


@pytest.fixture(scope="module")
def home(tmp_path_factory, tokenizer):
    """A folder with a model in it, called ``base``."""
    folder = tmp_path_factory.mktemp("home")
    tiny_hf("llama", len(tokenizer)).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    return folder


@pytest.fixture(scope="module")
def model(home):
    return load(home / "base")


@pytest.fixture
def edit(model):
    return random_delta(model)


def metadata(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def code(card: str) -> str:
    (block,) = re.findall(r"^```python\n(.*?)^```$", card, re.M | re.S)
    return block


def logits(model):
    with torch.no_grad():
        return model(TOKENS).logits if hasattr(model(TOKENS), "logits") else model(TOKENS)


def test_an_edit_is_pushed_and_loaded_back(model, edit, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with local_hub(monkeypatch) as hub:
        address = edit.push_to_hub("me/edit", token="hf_secret")
        assert "/me/edit/commit/" in address
        assert set(hub.repos["me/edit"]) >= {"tracelab.json", "tensors.safetensors", "README.md"}
        assert set(hub.tokens) == {"Bearer hf_secret"}
        loaded = load_intervention("me/edit", token="hf_secret")
        with pytest.raises(TracelabError, match="no reachable hub repository 'me/none'"):
            load_intervention("me/none")
    assert loaded.same_as(edit)
    with edit.applied(model):
        expected = model(TOKENS)
    with loaded.applied(model):
        assert torch.equal(model(TOKENS), expected)
    sent = b"".join(hub.repos["me/edit"].values())
    assert b"hf_secret" not in sent
    card = hub.repos["me/edit"]["README.md"].decode()
    assert 'load_intervention("me/edit")' in code(card)


def test_what_cannot_be_pushed_is_one_sentence(edit):
    with pytest.raises(TracelabError, match="'edit' is no repository of the hub: write OWNER/NAME"):
        edit.push_to_hub("edit")
    with pytest.raises(TracelabError, match="cannot push to 'me/edit': .*offline"):
        edit.push_to_hub("me/edit")


def test_a_repository_of_something_else_keeps_its_card(edit, monkeypatch):
    with local_hub(monkeypatch) as hub:
        hub.repos["me/model"] = {"README.md": b"mine", "model.safetensors": b""}
        with pytest.raises(TracelabError, match="'me/model' holds no bundle but .*model\.safe"):
            edit.push_to_hub("me/model")
        assert hub.repos["me/model"]["README.md"] == b"mine"
        edit.push_to_hub("me/edit")
        edit.push_to_hub("me/edit")  # its own is replaced


def test_an_adapter_follows_its_base_to_the_commit(model, edit, tmp_path, monkeypatch):
    facts = replace(model_facts(model), model_id="owner/base", revision="0f3c")
    monkeypatch.setitem(_FACTS, model, facts)
    monkeypatch.setattr(model.original_model.config, "name_or_path", "owner/base")
    folder = to_peft(model, edit, tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    assert (config["base_model_name_or_path"], config["revision"]) == ("owner/base", "0f3c")
    other = to_peft(model, edit, tmp_path / "other", base_model="me/copy")
    assert json.loads((other / "adapter_config.json").read_text("utf-8"))["revision"] is None


def test_the_code_of_a_card_runs_as_it_stands(home, model, edit, monkeypatch, capsys):
    edit.save(home / "edit")
    monkeypatch.chdir(home)
    found: dict = {}
    exec(code((home / "edit/README.md").read_text("utf-8")), found)
    assert found["edit"].same_as(edit)
    assert model_facts(found["model"]).model_id == "base"
    assert "continuation" in capsys.readouterr().out


def test_a_card_of_the_embedded_model_loads_it_without_a_name(model, edit, tmp_path):
    origin = edit.origin.model_copy(update={"model_id": "SmolLM2-135M-Instruct-Q4_1"})
    embedded = type(edit)(edit.spec(), origin)
    card = (embedded.save(tmp_path / "kept") / "README.md").read_text("utf-8")
    assert "model = tracelab.load()\n" in code(card)
    assert metadata(card)["license"] == "apache-2.0"


def test_the_metadata_of_a_card_names_base_model_and_licence(model, edit, tmp_path):
    origin = edit.origin.model_copy(update={"model_id": "owner/base-1B"})
    notes = {"license": "cc-by-4.0"}
    card = (type(edit)(edit.spec(), origin, notes).save(tmp_path / "a") / "README.md").read_text()
    assert metadata(card) == {
        "library_name": "tracelab",
        "tags": ["tracelab", "weight_delta", "bias"],
        "base_model": "owner/base-1B",
        "license": "cc-by-4.0",
    }
    assert 'tracelab.load("owner/base-1B")' in code(card)
    at = edit.origin.model_copy(update={"model_id": "owner/base-1B", "revision": "0f3c"})
    card = (type(edit)(edit.spec(), at).save(tmp_path / "c") / "README.md").read_text()
    assert 'tracelab.load("owner/base-1B", revision="0f3c")' in code(card)
    plain = metadata((edit.save(tmp_path / "b") / "README.md").read_text())
    assert not {"base_model", "license"} & plain.keys()  # "base" is a folder, no hub id


def test_a_card_shows_metrics_with_their_intervals(model, tmp_path):
    edit = random_erasure(model)
    board = evaluate(model, {"mine": edit}, ["crows-pairs"], bias="gender", limit=12, costs=False)
    edit.notes["metrics"] = metrics_of(board, "mine")
    card = (edit.save(tmp_path / "kept") / "README.md").read_text("utf-8")
    row = board.table.query("edit == 'mine' and metric == 'gap'").iloc[0]
    plain = card.replace("\\", "")
    assert f"| {row['value']:.4g} [{row['low']:.4g}, {row['high']:.4g}] |" in plain
    ends = row["difference_low"], row["difference_high"]
    assert f"| {row['difference']:.4g} [{ends[0]:.4g}, {ends[1]:.4g}] | {row['n']} |" in plain
    kept = load_intervention(tmp_path / "kept").notes["metrics"]
    assert kept == json.loads(json.dumps(metrics_of(board, "mine")))
    with pytest.raises(TracelabError, match="nothing was measured of an edit 'other'"):
        metrics_of(board, "other")


def test_auto_peft_follows_an_adapter_to_its_base(home, model, edit, tmp_path, monkeypatch):
    from peft import AutoPeftModelForCausalLM

    folder = to_peft(model, edit, tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)  # not where the model lies
    found: dict = {}
    exec(code((folder / "README.md").read_text("utf-8")), found)
    with edit.applied(model), torch.no_grad():
        expected = model(TOKENS)
        assert torch.allclose(found["model"](TOKENS).logits, expected, atol=1e-4)
    assert isinstance(found["model"], AutoPeftModelForCausalLM.from_pretrained(folder).__class__)
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    assert config["base_model_name_or_path"] == str((home / "base").resolve())
    shared = to_peft(model, edit, tmp_path / "shared", base_model="owner/base")
    config = json.loads((shared / "adapter_config.json").read_text("utf-8"))
    assert config["base_model_name_or_path"] == "owner/base"
    assert metadata((shared / "README.md").read_text("utf-8"))["base_model"] == "owner/base"


def test_a_merged_checkpoint_has_a_card_that_runs(home, model, edit, tmp_path, monkeypatch):
    folder = to_merged(model, edit, tmp_path / "merged")
    card = (folder / "README.md").read_text("utf-8")
    assert metadata(card)["library_name"] == "transformers"
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(code(card), found)
    plain = AutoModelForCausalLM.from_pretrained(home / "base").eval()
    with torch.no_grad(), edit.attach(plain):
        assert torch.allclose(found["model"](TOKENS).logits, plain(TOKENS).logits, atol=1e-4)
