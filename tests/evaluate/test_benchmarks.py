from __future__ import annotations

from collections import Counter

import pytest

from tracelab.errors import TracelabError
from tracelab.evaluate.registry import BENCHMARKS, benchmark
from tracelab.evaluate.scores import BenchmarkScores

# that one is on the hub only
HERE = {name: each for name, each in BENCHMARKS.items() if name != "wikitext-2"}
CASES = [(name, bias) for name, each in HERE.items() for bias in each.biases or (None,)]


@pytest.mark.parametrize(("name", "bias"), CASES)
def test_every_benchmark_is_read_for_every_bias_type_it_names(name, bias):
    made = BENCHMARKS[name]
    records = made.read(bias, 8)
    assert 0 < len(records) <= 8
    assert issubclass(made.kind, BenchmarkScores)
    assert made.metrics


def test_a_few_stereoset_records_are_of_every_target_term_of_gender():
    assert len({record.target for record in BENCHMARKS["stereoset"].read("gender", 60)}) == 10


@pytest.mark.parametrize("name", ["stereoset", "crows-pairs", "local-bias", "bold"])
def test_no_record_is_not_a_limit(name):
    with pytest.raises(TracelabError, match="no record is left with limit=0"):
        BENCHMARKS[name].read("gender", 0)


def test_a_few_bold_prompts_are_of_every_group_that_is_compared():
    for bias, n in (("gender", 2), ("race", 2), ("religion", 3)):
        groups = Counter(prompt.group for prompt in BENCHMARKS["bold"].read(bias, 60))
        assert len(groups) == n


def test_a_few_winobias_pairs_are_of_both_types():
    assert {pair.bias_type for pair in BENCHMARKS["winobias"].read("gender", 10)} == {
        "type1",
        "type2",
    }


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(
        TracelabError, match="unknown benchmark 'boldd': choose one of stereoset, .*lm-eval/TASK"
    ):
        benchmark("boldd")
