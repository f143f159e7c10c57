"""EleutherAI's lm-evaluation-harness, with its own task definitions on local data, as oracle of our
scores."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest

lm_eval = pytest.importorskip("lm_eval")

from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from tests.interventions.edits import random_delta, random_experts
from tracelab.datasets import bbq, crows_pairs
from tracelab.errors import TracelabError
from tracelab.evaluate import bbq_scores, crows_pairs_scores
from tracelab.evaluate.benchmarks.bbq import FORMATS, choice_scores
from tracelab.evaluate.benchmarks.lm_eval import _documents, lm_eval_benchmark
from tracelab.evaluate.scoreboard.scoreboard import evaluate
from tracelab.model import assets

TASKS = {
    "bbq": "bbq/bbq_multiple_choice.yaml",
    "crows_pairs": "crows_pairs/crows_pairs_english.yaml",
}


@pytest.fixture
def harness(tmp_path, tokenizer):
    """``harness(model, task, rows)``: what the harness reports of a task on these rows, and its
    samples."""

    def run(model, task, rows):
        file = tmp_path / f"{task}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        (tmp_path / f"{task}.yaml").write_text(
            f"include: {Path(lm_eval.__file__).parent / 'tasks' / TASKS[task]}\n"
            f"task: {task}_local\n"
            "dataset_path: json\n"
            "dataset_name: null\n"
            f"dataset_kwargs: {{data_files: {{test: {file}}}, cache_dir: {tmp_path / 'cache'}}}\n"
        )
        # The tokenizer from disk: the bridge's own adds BOS.
        found = lm_eval.simple_evaluate(
            model=HFLM(pretrained=model.original_model, tokenizer=tokenizer, batch_size=4),
            tasks=[f"{task}_local"],
            task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
            bootstrap_iters=0,
            log_samples=True,
        )
        results = {
            name.removesuffix(",none"): value
            for name, value in found["results"][f"{task}_local"].items()
        }
        samples = sorted(found["samples"][f"{task}_local"], key=lambda sample: sample["doc_id"])
        return results, np.array([[ll for ll, _ in sample["filtered_resps"]] for sample in samples])

    run.folder = tmp_path
    return run


def rows_of(items):
    """The rows of the official file that items were read from."""
    chosen = {item.id: None for item in items}
    for name in dict.fromkeys(item.bias_type for item in items):
        lines = (assets.data_dir() / f"BBQ/data/{name}.jsonl").read_text("utf-8").splitlines()
        for row in map(json.loads, filter(None, lines)):
            if (key := f"{name}-{row['example_id']}") in chosen:
                chosen[key] = row
    return list(chosen.values())


def short_blocks(bias, n):
    """Blocks whose items fit into a tiny model's 128 positions."""
    items = bbq(bias)
    blocks = [items[k : k + 4] for k in range(0, len(items), 4)]
    fitting = [
        b for b in blocks if all(len(i.context) < 200 and i.target_loc is not None for i in b)
    ]
    return [item for block in fitting[:: len(fitting) // n][:n] for item in block]


def check_bbq(harness, model, items):
    results, theirs = harness(model, "bbq", rows_of(items))
    ours = choice_scores(model, items, FORMATS["lm-eval"], normalisation="sum", prepend_bos=False)
    assert np.abs(np.stack(ours) - theirs).max() < 1e-4
    scores = bbq_scores(model, items, format="lm-eval")
    values = {
        bias: part.set_index("metric")["value"] for bias, part in scores.table.groupby("bias")
    }
    overall = values.get("overall", next(iter(values.values())))
    assert overall["acc_amb"] == pytest.approx(100 * results["accuracy_amb"])
    assert overall["acc_dis"] == pytest.approx(100 * results["accuracy_disamb"])
    for bias in {item.bias_type for item in items}:
        for metric, name in (("s_amb", "amb_bias_score"), ("s_dis", "disamb_bias_score")):
            check_bias_score(
                scores.items, bias, values[bias][metric], results[f"{name}_{bias}"], metric
            )
            check_bias_score(scores.items, None, overall[metric], results[name], metric)
    return scores


def check_bias_score(items, bias, ours, theirs, metric):
    """Equal, but where no answer is biased: there the harness says 0, whatever else was
    answered."""
    part = items[
        (items["ambiguous"] == (metric == "s_amb"))
        & ((items["bias_type"] == bias) if bias else True)
    ]
    if (part["chosen"] == part["target_loc"]).any():
        assert ours == pytest.approx(100 * theirs)
    else:
        assert theirs == 0
        assert np.isnan(ours) or ours <= 0


def check_crows_pairs(harness, model, records):
    rows = [
        {"sent_more": r.sent_more, "sent_less": r.sent_less, "bias_type": r.bias_type}
        for r in records
    ]
    results, theirs = harness(model, "crows_pairs", rows)
    # The harness scores a text without context after BOS, also where the model's texts get none.
    scores = crows_pairs_scores(model, records, prepend_bos=True)
    ours = scores.pairs[["crows_sum_more", "crows_sum_less"]].to_numpy()
    # its fp32 log_softmax is 1e-5 a token off fp64
    assert np.allclose(ours, theirs, rtol=1e-5, atol=1e-4)
    # records of one bias type
    (pct_stereotype,) = scores.table[scores.table["metric"] == "crows_sum"]["value"]
    assert pct_stereotype == pytest.approx(100 * results["pct_stereotype"])
    assert np.abs(ours[:, 0] - ours[:, 1]).mean() == pytest.approx(
        results["likelihood_diff"], abs=1e-3
    )


@pytest.mark.parametrize(
    ("kind", "n"),
    [
        ("llama", 2),
        *(
            pytest.param(kind, n, marks=pytest.mark.slow)
            for kind, n in (("gpt_neo", 1), ("llama", 8))
        ),
    ],
)
def test_bbq_is_that_of_the_harness(tiny_model, harness, kind, n):
    items = [
        item
        for bias in ("gender", "nationality", "physical-appearance")
        for item in short_blocks(bias, n)
    ]
    scores = check_bbq(harness, tiny_model(kind), items)
    if (
        kind == "llama"
    ):  # the other one answers UNKNOWN to all: there the log-probabilities are what is compared
        assert 0 < (scores.items["chosen"] != scores.items["unknown"]).mean() < 1


def test_items_without_a_biased_answer_stay_in_the_harness_and_leave_ours(tiny_model, harness):
    model = tiny_model("llama")
    items = [*short_blocks("gender", 2), *[i for i in bbq("gender") if i.target_loc is None][:8]]
    results, _ = harness(model, "bbq", rows_of(items))
    answers = bbq_scores(model, items, format="lm-eval").items
    ambiguous = answers[answers["ambiguous"]]
    assert (ambiguous["chosen"] == ambiguous["label"]).mean() == pytest.approx(
        results["accuracy_amb"]
    )
    kept = ambiguous[ambiguous["target_loc"] >= 0]
    assert len(ambiguous) - len(kept) == 4
    overall = bbq_scores(model, items, format="lm-eval").table.set_index(["bias", "metric"])[
        "value"
    ]
    assert overall["Gender_identity", "acc_amb"] == pytest.approx(
        100 * (kept["chosen"] == kept["label"]).mean()
    )


def test_crows_pairs_is_that_of_the_harness(tiny_model, harness):
    check_crows_pairs(harness, tiny_model("llama"), crows_pairs("age", limit=20))


@pytest.mark.parametrize(
    "make", [random_delta, pytest.param(random_experts, marks=pytest.mark.slow)]
)
def test_the_harness_scores_an_edited_model_as_we_do(tiny_model, harness, make):
    model, items = tiny_model("llama"), short_blocks("age", 1)
    edit = make(model)
    before = choice_scores(model, items, FORMATS["lm-eval"], normalisation="sum", prepend_bos=False)
    with edit.applied(model):
        check_bbq(harness, model, items)
        check_crows_pairs(harness, model, crows_pairs("gender", limit=6))
        after = choice_scores(
            model, items, FORMATS["lm-eval"], normalisation="sum", prepend_bos=False
        )
    assert np.abs(np.stack(before) - np.stack(after)).max() > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("edited", [pytest.param(False, marks=pytest.mark.nightly), True])
def test_on_the_real_model_both_benchmarks_are_those_of_the_harness(real_model, harness, edited):
    edit = random_delta(real_model, layers=(10, 20), scale=0.02).applied(real_model)
    with edit if edited else contextlib.nullcontext():
        check_bbq(harness, real_model, short_blocks("gender", 1))
        check_crows_pairs(harness, real_model, crows_pairs("gender", limit=6))


def test_a_task_as_a_benchmark_has_the_figures_of_the_harness_before_and_under_an_edit(
    tiny_model, harness
):
    model, records = tiny_model("llama"), crows_pairs("age", limit=12)
    rows = [
        {"sent_more": r.sent_more, "sent_less": r.sent_less, "bias_type": r.bias_type}
        for r in records
    ]
    edit = random_delta(model)
    expected = {}
    for name, applied in (("unedited", contextlib.nullcontext()), ("edited", edit.applied(model))):
        with applied:
            expected[name], _ = harness(model, "crows_pairs", rows)
    task = lm_eval_benchmark("lm-eval/crows_pairs_local")
    options = {task.name: {"include_path": str(harness.folder)}}
    board = evaluate(model, {"edited": edit}, [task], options=options, costs=False)
    assert not board.failures
    for row in board.frame.to_dict("records"):
        assert row["value"] == pytest.approx(expected[row["edit"]][row["metric"]], abs=1e-4)
        assert row["n"] == 12
    assert set(board.frame["metric"]) == {"pct_stereotype", "likelihood_diff"}
    gap = board.frame[board.frame["metric"] == "likelihood_diff"].set_index("edit")
    assert gap.loc["edited", "difference"] == pytest.approx(
        gap.loc["edited", "value"] - gap.loc["unedited", "value"]
    )
    assert gap.loc["edited", "difference"] != 0


def test_a_cell_is_of_the_task_files_as_they_are(tiny_model, harness, tmp_path):
    model = tiny_model("llama")
    rows = [
        {"sent_more": r.sent_more, "sent_less": r.sent_less, "bias_type": r.bias_type}
        for r in crows_pairs("age", limit=4)
    ]
    harness(model, "crows_pairs", rows)  # writes the task
    task = lm_eval_benchmark("lm-eval/crows_pairs_local")
    options = {task.name: {"include_path": str(harness.folder)}}

    def cells():
        board = evaluate(model, {}, [task], options=options, costs=False, folder=tmp_path / "cells")
        assert not board.failures
        return len(list((tmp_path / "cells").glob("*/")))

    assert cells() == cells() == 1
    (file,) = harness.folder.glob("crows_pairs*.yaml")
    file.write_text(file.read_text() + "# another version\n")
    assert cells() == 2


def test_a_task_that_the_harness_does_not_have_is_told_in_its_cell(tiny_model):
    board = evaluate(tiny_model("llama"), {}, ["lm-eval/nonsense_task"], costs=False)
    assert "no task 'nonsense_task'" in board.failed["reason"].iloc[0]


def test_only_metrics_whose_mean_the_harness_reports_are_taken_each_filter_a_metric():
    def row(doc, filter, **values):
        return {
            "doc_id": doc,
            "doc_hash": f"h{doc}",
            "filter": filter,
            "metrics": list(values),
            **values,
        }

    samples = {
        "t": [
            *(
                row(i, "none", acc=float(i == 0), perplexity=-2.0 * i, tuple=(1, 2))
                for i in range(4)
            ),
            *(row(i, "strict", acc=1.0) for i in range(4)),
        ]
    }
    results = {
        "t": {"acc,none": 0.25, "acc,strict": 1.0, "perplexity,none": 20.1, "tuple,none": 0.5}
    }
    made = _documents(samples, results)
    assert list(made.columns.difference(["task", "doc"])) == ["acc", "acc,strict"]
    assert made["doc"].tolist() == ["h0", "h1", "h2", "h3"]
    assert made["acc"].tolist() == [1, 0, 0, 0]
    with pytest.raises(TracelabError, match="no metric of t is a mean"):
        _documents(samples, {"t": {"perplexity,none": 20.1}})
