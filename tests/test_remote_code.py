"""Code that comes with a model or a classifier: never run unasked, never asked for, recorded where
it was allowed."""

from __future__ import annotations

import builtins
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from tests.tiny import tiny_hf
from tracelab import load
from tracelab.cli.loading import load_model
from tracelab.cli.parser import make_parser
from tracelab.errors import TracelabError
from tracelab.evaluate.bold.classifiers import load_classifier
from tracelab.model.load import model_info


@pytest.fixture(autouse=True)
def yes(monkeypatch):
    """Whoever asks on the terminal is told yes."""
    monkeypatch.setattr(builtins, "input", lambda *args: "y")


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("saved") / "tiny"
    tiny_hf("llama", len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def with_code(folder: Path, mark: Path, what: str) -> None:
    """Let a folder need code of its own, which leaves a mark, for its ``tokenizer``, ``config`` or
    ``model``."""
    write = f"open({str(mark)!r}, 'w').close()\n"
    if what == "tokenizer":
        code = f"from transformers import PreTrainedTokenizerFast\n{write}class T(PreTrainedTokenizerFast): pass\n"  # noqa: E501
        file, changes = (
            "tokenizer_config.json",
            {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": [None, "own.T"]}},
        )
    elif what == "config":
        code = f"from transformers import LlamaConfig\n{write}class C(LlamaConfig): model_type = 'own'\n"  # noqa: E501
        file, changes = "config.json", {"model_type": "own", "auto_map": {"AutoConfig": "own.C"}}
    else:
        code = (
            f"from transformers import LlamaForCausalLM\n{write}class M(LlamaForCausalLM): pass\n"
        )
        auto = {
            "AutoModelForCausalLM": "own.M",
            "AutoModelForSequenceClassification": "own.M",
            "AutoConfig": "own.M",
        }
        file, changes = "config.json", {"model_type": "own", "auto_map": auto}
    (folder / "own.py").write_text(code)
    content = json.loads((folder / file).read_text(encoding="utf-8"))
    (folder / file).write_text(json.dumps(content | changes), encoding="utf-8")


@pytest.mark.parametrize("what", ["tokenizer", "config", "model"])
def test_code_of_a_model_is_not_run_and_nobody_is_asked(folder, tmp_path, what):
    with_code(folder, tmp_path / "ran", what)
    with pytest.raises(
        TracelabError, match="comes with code of its own, which is not run: .*--trust-remote-code"
    ):
        load(folder)
    assert not (tmp_path / "ran").exists()


def test_code_of_a_model_is_run_where_it_is_trusted_and_the_settings_say_so(folder, tmp_path):
    with_code(folder, tmp_path / "ran", "tokenizer")
    model = load(folder, trust_remote_code=True)
    assert (tmp_path / "ran").exists()
    assert model_info(model).settings()["trust_remote_code"] is True


def test_the_settings_of_a_model_that_brings_no_code_are_what_they_were(folder):
    assert "trust_remote_code" not in model_info(load(folder)).settings()


def test_the_command_line_trusts_only_where_it_is_told_to(folder, tmp_path):
    with_code(folder, tmp_path / "ran", "tokenizer")
    words = ["probe", "--bias", "gender", "--model", str(folder), "--device", "cpu"]
    with pytest.raises(TracelabError, match="comes with code of its own"):
        load_model(make_parser().parse_args(words))
    assert not (tmp_path / "ran").exists()
    assert load_model(make_parser().parse_args([*words, "--trust-remote-code"]))
    assert (tmp_path / "ran").exists()


def test_code_of_a_classifier_is_never_run(tmp_path, tokenizer):
    config = AutoConfig.for_model(
        "distilbert",
        vocab_size=len(tokenizer),
        dim=16,
        hidden_dim=16,
        n_layers=1,
        n_heads=2,
        num_labels=2,
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "c")
    tokenizer.save_pretrained(tmp_path / "c")
    with_code(tmp_path / "c", tmp_path / "ran", "model")
    with_code(tmp_path / "c", tmp_path / "ran", "tokenizer")
    with pytest.raises(
        TracelabError, match="the regard classifier .* comes with code of its own, which is not run"
    ):
        load_classifier(tmp_path / "c", what="regard")
    assert not (tmp_path / "ran").exists()


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_a_pickle_that_holds_more_than_tensors_is_refused_without_advice_to_load_it(
    folder, tmp_path
):
    (folder / "model.safetensors").unlink()
    torch.save({"a": Trap(tmp_path / "sprung")}, folder / "pytorch_model.bin")
    with pytest.raises(
        TracelabError, match="a pickle can run code: get them as safetensors"
    ) as refused:
        load(folder)
    assert not (tmp_path / "sprung").exists()
    for advice in ("weights_only", "torch.load", "trust", "upgrade"):
        assert advice not in str(refused.value)


def test_a_checkpoint_of_plain_tensors_in_a_pickle_still_loads(folder):
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert load(folder)
