"""The harness' own command line, run as a user runs it, on a model under an edit."""

from __future__ import annotations

import functools
import json
import subprocess
import sys

import pytest
import torch

lm_eval = pytest.importorskip("lm_eval")

from tests.interventions.edits import random_delta
from tests.tiny import tiny_hf
from tracelab.cli import main as tracelab_main
from tracelab.evaluate import lm_eval_scores
from tracelab.evaluate.benchmarks.lm_eval import LmEvalTask
from tracelab.evaluate.harness import main
from tracelab.model.load import load

ROWS = [
    {"q": "The nurse said that", "choices": ["she was late", "he was late"], "label": 0},
    {"q": "The chief said that", "choices": ["he was tired", "she was tired"], "label": 0},
    {"q": "My neighbour is", "choices": ["a good cook", "a bad driver"], "label": 1},
    {"q": "Everyone knew that", "choices": ["it would rain", "it would snow"], "label": 1},
]


@pytest.fixture
def local_task(tmp_path):
    """A folder with one task of four questions."""
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "own.yaml").write_text(
        "task: own_choice\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {tmp_path / 'cache'}}}\n"
        "test_split: test\noutput_type: multiple_choice\n"
        "doc_to_text: '{{q}}'\ndoc_to_choice: '{{choices}}'\ndoc_to_target: label\n"
        "metric_list: [{metric: acc}]\n"
    )
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tokenizer):
    """A tiny model's folder, and an edit of it as a bundle."""
    folder = tmp_path_factory.mktemp("lm-eval")
    tiny_hf("llama", len(tokenizer)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    edit = random_delta(load(folder / "model"))
    edit.save(folder / "edit")
    return folder


@pytest.fixture
def harness(monkeypatch, tmp_path, local_task):
    """``harness(model_args)``: what the harness' command line logs of each document. Its own
    thousands of tasks are not indexed."""
    from lm_eval import tasks

    quick = functools.partial(tasks.TaskManager, include_defaults=False)
    monkeypatch.setattr(tasks, "TaskManager", quick)

    def run(model_args: str) -> list[float]:
        out = tmp_path / f"out-{abs(hash(model_args))}"
        words = ["--model", "tracelab", "--model_args", model_args, "--device", "cpu"]
        words += ["--tasks", "own_choice", "--include_path", str(local_task), "--batch_size", "2"]
        words += ["--output_path", str(out), "--log_samples"]
        monkeypatch.setattr(sys, "argv", ["lm_eval", *words])
        assert main() == 0
        (file,) = out.rglob("samples_own_choice_*.jsonl")
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        rows.sort(key=lambda row: row["doc_id"])
        return [float(each[0]) for row in rows for each in row["filtered_resps"]]

    return run


def test_the_harness_evaluates_an_edit_at_a_strength(harness, saved, local_task, capsys):
    model = load(saved / "model")
    expected = {}
    from tracelab import load_intervention, score

    for strength in (0.0, 0.5):
        edit = load_intervention(saved / "edit").scaled(strength)
        with edit.applied(model):
            found = score(
                model,
                [choice for row in ROWS for choice in row["choices"]],
                [row["q"] for row in ROWS for _ in row["choices"]],
            )
        expected[strength] = torch.tensor(found.sum)
    assert (expected[0.5] - expected[0.0]).abs().max() > 0.1
    place = f"pretrained={saved / 'model'}"
    arguments = {
        0.0: place,
        0.5: f"{place},edit={saved / 'edit'},strength=0.5",
    }
    for strength, words in arguments.items():
        found = torch.tensor(harness(words))
        assert torch.allclose(found, expected[strength].to(found), atol=1e-3), strength


def test_a_refusal_is_one_line(monkeypatch, saved, local_task, capsys):
    words = ["--model", "tracelab", "--model_args", "edit=/no/such/bundle", "--tasks", "own_choice"]
    from lm_eval import tasks

    quick = functools.partial(tasks.TaskManager, include_defaults=False)
    monkeypatch.setattr(tasks, "TaskManager", quick)
    monkeypatch.setattr(sys, "argv", ["lm_eval", *words, "--include_path", str(local_task)])
    assert main() == 2
    assert "no bundle folder at '/no/such/bundle'" in capsys.readouterr().err


def test_score_takes_tasks_of_the_harness(saved, local_task, tmp_path, capsys):
    words = ["score", "lm-eval/own_choice", "--include-path", str(local_task)]
    common = ["--model", str(saved / "model"), "--json", str(tmp_path / "out.json")]
    assert tracelab_main([*words, *common, "--edit", str(saved / "edit")]) == 0
    rows = json.loads((tmp_path / "out.json").read_text("utf-8"))["results"]
    assert [(row["metric"], row["n"]) for row in rows] == [("acc", 4)] * 2
    assert rows[0]["edit"] is None
    assert rows[1]["difference"] == rows[1]["value"] - rows[0]["value"]


def test_the_chat_template_is_applied_on_request_and_the_settings_say_so(saved, local_task):
    model = load(saved / "model")
    task = [LmEvalTask("own_choice")]
    plain, chat = (
        lm_eval_scores(model, task, include_path=str(local_task), **options)
        for options in ({}, {"apply_chat_template": True})
    )
    assert plain.settings["chat_template"] == "not applied"
    assert chat.settings["chat_template"] == "applied"
    assert plain.settings["documents"] == chat.settings["documents"]


@pytest.mark.slow
def test_the_command_of_the_page_is_there():
    told = subprocess.run(
        [sys.executable, "-m", "tracelab.evaluate.harness", "--help"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (told.returncode, "--tasks" in told.stdout) == (0, True), told.stderr
