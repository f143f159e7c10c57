"""Measurements in shards are those of one call: tables, whoever works and wherever it goes on."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tests.interventions.edits import random_delta
from tests.tiny import tiny_hf
from tracelab import datasets
from tracelab.errors import TracelabError
from tracelab.evaluate.bold.bold import bold_scores
from tracelab.evaluate.registry import BENCHMARKS
from tracelab.interventions.stack import Stack
from tracelab.localize import attention_gap, causal_trace, probe_layers
from tracelab.model.load import load
from tracelab.shards import EditSpec, ModelSpec, Process, Spec, measure, measure_all
from tracelab.shards.engines.ray import Ray
from tracelab.shards.engines.torchrun import Torchrun
from tracelab.shards.requests import Request
from tracelab.shards.worker import Refused, Task, Worker


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer):
    """A folder with a tiny model and two edits of it."""
    folder = tmp_path_factory.mktemp("shards")
    tiny_hf("llama", len(tokenizer)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    model = load(folder / "model")
    for name, seed in (("edit", 0), ("other", 1)):
        random_delta(model, seed=seed).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def model(place):
    return load(place / "model")


@pytest.fixture
def spec(place):
    """``spec(measurement, **options)`` of the tiny model."""

    def make(measurement, *, edits=(), **options):
        bundles = tuple(EditSpec(str(place / name)) for name in edits)
        return Spec(measurement, ModelSpec(str(place / "model")), bundles, options=options)

    return make


class Counted(Process):
    """This process, which counts what it measures, in an order of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks: list[Task] = []

    def run(self, tasks):
        self.tasks += tasks
        for number in reversed(range(len(tasks))):
            yield number, self.worker(tasks[number])


class Broken(Process):
    """This process, which dies after a number of shards."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def run(self, tasks):
        for number, answer in super().run(tasks):
            if number == self.after:
                raise KeyboardInterrupt
            yield number, answer


def same(ours, theirs, **tolerance):
    """Equal tables, but for how numbers were rounded in batches of other companions."""
    assert list(ours.tables()) == list(theirs.tables())
    for name, table in ours.tables().items():
        pd.testing.assert_frame_equal(
            table, theirs.tables()[name], check_dtype=False, **({"atol": 2e-4} | tolerance)
        )


CUT = {
    "stereoset": "gender",
    "stereoset-intersentence": "gender",
    "crows-pairs": None,
    "bbq": "gender",
    "winobias": None,
    "local-bias": "gender",
    "swap-consistency": "gender",
    "perplexity": None,
}
"""Benchmarks whose records lie in several shards here, and a bias type."""


@pytest.mark.parametrize("name", CUT)
def test_scores_of_shards_are_those_of_one_call(model, spec, name):
    chosen = BENCHMARKS[name]
    records = chosen.read(CUT[name], 40)
    found = measure(spec(f"score/{name}"), records, shard_size=16)
    whole = chosen.score(model, records)
    same(found, whole)
    assert found.settings == whole.settings


def test_attention_is_of_all_records_at_once(model, spec):
    chosen = BENCHMARKS["attention"]
    records = chosen.read("gender", 24)
    found = measure(spec("score/attention"), records, shard_size=16)
    same(found, chosen.score(model, records))


def test_samples_of_bold_are_drawn_in_each_shard(model, spec):
    records = BENCHMARKS["bold"].read("gender", 8)
    how = {"num_return_sequences": 1, "max_new_tokens": 4, "scorer": "vader", "seeds": [0, 3]}
    found = measure(spec("score/bold", **how), records, shard_size=4)
    parts = [bold_scores(model, part, **how) for part in (records[:4], records[4:])]
    texts = pd.concat([part.texts for part in parts], ignore_index=True)
    pd.testing.assert_frame_equal(found.texts, texts)
    means = texts.groupby(["group", "id"])["sentiment"].mean().groupby("group").mean()
    gap = found.table.set_index("metric")["value"]["sentiment_gap"]
    assert gap == pytest.approx(abs(means.iloc[0] - means.iloc[1]))
    assert set(found.seeds["seed"]) == {0, 3}


def test_own_pairs_under_a_stack(model, spec, place):
    rows = [
        {"stereotype": f"The {job} was old.", "anti_stereotype": f"The {job} was young.",
         "unrelated": f"The {job} was banana.", "target": job, "bias_type": "age"}
        for job in ("teacher", "driver", "cook", "nurse", "singer", "writer")
    ]  # fmt: skip
    records = datasets.pairs(rows)
    edits = [EditSpec(str(place / name)).load() for name in ("edit", "other")]
    found = measure(spec("score/own-stereoset", edits=("edit", "other")), records, shard_size=2)
    with Stack(edits).applied(model):
        whole = BENCHMARKS["stereoset"].on(records).score(model, records, edit=Stack(edits).name)
    same(found, whole)
    assert found.benchmark == "own-stereoset"


def test_a_trace_is_the_same_to_the_last_bit(model, spec):
    records = datasets.stereoset("gender")[:60]
    how = {"n_samples": 2, "layers": [0, 2], "max_cases": 9, "components": ["resid", "mlp"]}
    found = measure(spec("trace", **how), records, shard_size=4, engine=Counted())
    whole = causal_trace(model, records, **how)
    same(found, whole, atol=0, rtol=0)
    ours, theirs = (
        {name: value for name, value in each.settings.items() if name != "noise_factor"}
        for each in (found, whole)
    )
    assert ours == theirs
    assert found.agreement(whole)["spearman"].max() == pytest.approx(1)


def test_an_attention_gap(model, spec):
    records = datasets.crows_pairs("gender", limit=30)
    how = {"layer": 1, "keep_maps": 5}
    found = measure(spec("attention", control="none", **how), records, shard_size=8)
    same(found, attention_gap(model, records, control="none", **how))


def test_probers_of_a_harvest_in_shards(model, spec):
    corpus = datasets.templates("gender", limit=60)
    of = {"attribute": corpus.attribute, "groups": corpus.groups}
    found = measure(spec("harvest", **of), corpus.prompts, shard_size=25)
    whole = probe_layers(model, corpus, n_seeds=1)
    joined = probe_layers(model, corpus, n_seeds=1, states=found.harvest)
    np.testing.assert_allclose(joined.labels["mass"], whole.labels["mass"], atol=1e-6)
    same(joined, whole, atol=0.05)


@pytest.fixture
def request_(spec):
    return spec("score/stereoset"), datasets.stereoset("gender", limit=20)


def test_a_run_goes_on_from_finished_shards(request_, tmp_path):
    asked, records = request_
    with pytest.raises(KeyboardInterrupt):
        measure(asked, records, shard_size=5, folder=tmp_path, engine=Broken(after=2))
    again, never = Counted(), Counted()
    found = measure(asked, records, shard_size=5, folder=tmp_path, engine=again)
    assert [len(task.records) for task in again.tasks] == [5, 5]
    same(found, measure(asked, records, shard_size=5), atol=0, rtol=0)
    measure(asked, records, shard_size=5, folder=tmp_path, engine=never)
    assert never.tasks == []


def test_a_shard_of_another_request_or_damaged_is_measured(request_, place, tmp_path):
    asked, records = request_
    edited = replace(asked, edits=(EditSpec(str(place / "edit")),))

    def measured(spec):
        engine = Counted()
        measure(spec, records, shard_size=10, folder=tmp_path, engine=engine)
        return len(engine.tasks)

    assert [measured(edited), measured(edited), measured(asked)] == [2, 0, 2]
    for changed in (
        replace(asked, seed=1),
        replace(asked, options={"batch_tokens": 64}),
        replace(edited, edits=(EditSpec(str(place / "edit"), strength=0.5),)),
        replace(edited, edits=(EditSpec(str(place / "other")),)),
        replace(asked, model=replace(asked.model, dtype="bfloat16")),
    ):
        assert measured(changed) == 2


def test_a_damaged_shard_is_measured_again(request_, tmp_path):
    asked, records = request_
    whole = measure(asked, records, shard_size=10, folder=tmp_path)
    table = next(tmp_path.glob("*/sentences.parquet"))
    table.write_bytes(table.read_bytes()[:-9])
    engine = Counted()
    with pytest.warns(UserWarning, match="cannot be read"):
        again = measure(asked, records, shard_size=10, folder=tmp_path, engine=engine)
    assert len(engine.tasks) == 1
    same(again, whole, atol=0, rtol=0)


def test_a_model_that_was_saved_anew_is_another_request(request_, tmp_path, tokenizer):
    asked, records = request_
    own = replace(asked, model=ModelSpec(str(tmp_path / "model")))
    found = []
    for seed in (0, 1):
        tiny_hf("llama", len(tokenizer), seed=seed).save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        found.append(measure(own, records, folder=tmp_path / "shards"))
    assert not found[0].sentences["gap"].equals(found[1].sentences["gap"])


def test_an_edit_that_changes_while_it_is_measured_is_refused(request_, model, tmp_path):
    asked, records = request_
    edited = replace(asked, edits=(EditSpec(str(tmp_path / "edit")),))
    random_delta(model, seed=2).save(tmp_path / "edit")

    class FitAgain(Process):
        def run(self, tasks):
            for number, answer in super().run(tasks):
                random_delta(model, seed=3).save(tmp_path / "edit")
                yield number, answer

    with pytest.raises(TracelabError, match="is another one than when the request was made"):
        measure(edited, records, shard_size=10, folder=tmp_path / "s", engine=FitAgain())


def test_an_answer_that_is_lost_is_missed(request_):
    class Forgetful(Process):
        def run(self, tasks):
            yield from list(super().run(tasks))[1:]

    asked, records = request_
    with pytest.raises(TracelabError, match="1 shards were lost"):
        measure(asked, records, shard_size=10, engine=Forgetful())


def test_nothing_is_measured_after_a_refusal(spec):
    engine = Counted()
    engine.worker.__class__ = type("Cross", (type(engine.worker),), {"__call__": refuse})
    records = datasets.stereoset("gender", limit=12)
    with pytest.raises(TracelabError, match="no, thank you"):
        measure(spec("score/stereoset"), records, shard_size=3, engine=engine)
    assert refuse.times == 1


def refuse(self, task):
    refuse.times += 1
    return Refused("no, thank you")


refuse.times = 0


def test_task_files_are_part_of_a_request(spec, tmp_path):
    asked = spec("score/lm-eval/mine", include_path=str(tmp_path))
    keys = []
    for text in ("task: mine", "task: other"):
        (tmp_path / "mine.yaml").write_text(text)
        keys.append(asked.key())
    assert keys[0] != keys[1]


def test_an_edit_fitted_anew_is_another_request(request_, place, tmp_path, model):
    asked, records = request_
    random_delta(model, seed=2).save(tmp_path / "edit")
    edited = replace(asked, edits=(EditSpec(str(tmp_path / "edit")),))
    before = measure(edited, records, folder=tmp_path / "shards")
    random_delta(model, seed=3).save(tmp_path / "edit")
    after = measure(edited, records, folder=tmp_path / "shards")
    assert not after.sentences["gap"].equals(before.sentences["gap"])


def test_shards_of_different_weights_are_not_joined(request_, place, tmp_path, tokenizer):
    asked, records = request_
    own = replace(asked, model=ModelSpec(str(tmp_path / "model")))

    def saved(seed):
        tiny_hf("llama", len(tokenizer), seed=seed).save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")

    class Elsewhere(Process):
        """Machines whose models are not the same."""

        def run(self, tasks):
            for number, task in enumerate(tasks):
                saved(seed=number)
                yield number, Worker()(task)

    saved(seed=0)
    with pytest.raises(TracelabError, match="different models"):
        measure(own, records, shard_size=10, folder=tmp_path / "s", engine=Elsewhere())


def test_what_is_refused_is_one_sentence(spec, tmp_path):
    records = datasets.stereoset("gender", limit=4)
    with pytest.raises(TracelabError, match="unknown measurement"):
        measure(spec("trase"), records)
    with pytest.raises(TracelabError, match="unknown benchmark"):
        measure(spec("score/nope"), records)
    with pytest.raises(TracelabError, match="no records"):
        measure(spec("score/stereoset"), [])
    with pytest.raises(TracelabError, match="shard_size"):
        measure(spec("score/stereoset"), records, shard_size=0)
    with pytest.raises(TracelabError, match="layer 99 is out of range"):
        measure(spec("attention", layer=99), records)
    with pytest.raises(TracelabError, match="layer"):  # of the plan's shards
        measure(spec("trace", layers=[99]), records)
    answers = measure_all(
        [Request(spec("attention", layer=99), records), Request(spec("attention"), records)],
        go_on=True,
    )
    assert isinstance(answers[0], Refused)
    assert len(answers[1].frame)


def test_engines_that_are_not_there(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(TracelabError, match="torchrun --no-python"):
        Torchrun()
    monkeypatch.setattr("tracelab.shards.engines.ray.find_spec", lambda name: None)
    with pytest.raises(TracelabError, match="pip install 'tracelab\\[ray\\]'"):
        Ray()


def test_a_request_is_data(spec):
    asked = spec("trace", edits=("edit",), n_samples=2)
    assert json.loads(json.dumps(asked.key())) == asked.key()
