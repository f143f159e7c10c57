from __future__ import annotations

import re
import sys
from itertools import combinations

import numpy as np
import pandas as pd
import pytest

import tracelab
from tests.interventions.edits import random_delta
from tracelab.datasets import BoldText, bold
from tracelab.errors import TracelabError
from tracelab.evaluate.bold.bold import GROUPS, BoldScores, bold_scores, mean_gap
from tracelab.evaluate.paired import paired

bold_module = sys.modules[bold_scores.__module__]

FEW = {"num_return_sequences": 2, "max_new_tokens": 4}


def prompt(key, group, text="A person was", domain="gender"):
    return BoldText(f"{group}/{key}", domain, group, f"Ann_{key}", text)


PROMPTS = [
    prompt("1", "American_actors", "Tom was"),
    prompt("2", "American_actors", "Rob is an actor who"),
    prompt("3", "American_actresses", "Eve was"),
    prompt("4", "American_actresses", "Zoe is an actress who"),
    prompt("5", "American_actresses", "Mia has"),
]


def n_letters(texts):
    return [float(len(text)) for text in texts]


@pytest.fixture
def model(tiny_model):
    return tiny_model("llama")


@pytest.fixture
def generating_is_an_error(monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("generated")

    monkeypatch.setattr(bold_module, "generate", refuse)


def values(result, bias="gender"):
    return result.table[result.table["bias"] == bias].set_index("metric")["value"]


def scored(texts, **settings):
    """A result with given values of one measure, ``x``."""
    frame = pd.DataFrame(texts, columns=["id", "group", "seed", "x"]).assign(
        bias_type="race", empty=False
    )
    scorers = [{"name": "x", "measures": ["x"], "source": "", "average_gap": False}]
    made = {"benchmark": "bold", "data_hash": "d", "scorers": scorers, **settings}
    return BoldScores(made, pd.DataFrame(), frame, pd.DataFrame())


# Groups and gaps


def test_a_prompts_samples_are_averaged_before_its_group_and_gaps_are_of_pairs():
    result = scored(
        [
            ("a", "one", 0, 1.0),
            ("a", "one", 0, 3.0),
            ("b", "one", 0, 6.0),
            ("c", "two", 0, 1.0),
            ("d", "three", 0, 7.0),
        ]
    )
    found = {name: float(f(s.means)) for s in result.samples() for name, f in s.metrics.items()}
    assert found == pytest.approx(
        {"x[one]": 4.0, "x[two]": 1.0, "x[three]": 7.0, "x_gap": (3 + 3 + 6) / 3, "empty": 0.0}
    )
    counts = {name: s.n for s in result.samples() for name in s.metrics}
    assert counts == {"x[one]": 2, "x[two]": 1, "x[three]": 1, "x_gap": 4, "empty": 4}


@pytest.mark.parametrize("n_groups", [2, 3, 5])
def test_the_gap_is_the_mean_over_pairs_of_groups(n_groups):
    means = np.random.default_rng(0).normal(size=(4, n_groups))
    slow = [
        np.mean([abs(row[i] - row[j]) for i, j in combinations(range(n_groups), 2)])
        for row in means
    ]
    assert mean_gap(means) == pytest.approx(slow)


def test_one_group_has_no_gap():
    result = scored([("a", "one", 0, 1.0), ("b", "one", 0, 2.0)])
    assert {name for sample in result.samples() for name in sample.metrics} == {"x[one]", "empty"}


def test_the_interval_of_a_gap_leaves_out_each_prompt_also_of_a_small_group():
    rng = np.random.default_rng(0)
    rows = [(f"p{i}", "small" if i < 2 else "large", 0, float(rng.normal())) for i in range(30)]
    shift = rng.normal(1, 0.2, size=30)
    after = [
        (key, group, seed, x + (group == "large") * d)
        for (key, group, seed, x), d in zip(rows, shift, strict=True)
    ]
    with np.errstate(all="raise"):
        table = paired(scored(rows), scored(after)).set_index("metric")
    assert table.loc["x[large]", "difference"] == pytest.approx(shift[2:].mean())
    moved = table.loc[["x[large]", "x_gap"]]
    assert np.isfinite(moved[["low", "high", "p"]].to_numpy()).all()
    assert set(table.drop(moved.index)["note"]) == {"no record changed", "no record changed sides"}


# From a model


def test_scores_are_those_of_a_slow_loop_over_the_continuations(model):
    result = bold_scores(model, PROMPTS, scorer=[n_letters, "vader"], **FEW)
    made = tracelab.generate(model, [p.text for p in PROMPTS], **FEW, seed=0).table
    assert result.texts["continuation"].tolist() == made["continuation"].tolist()
    lengths = {}
    for p, start in zip(PROMPTS, range(0, 10, 2), strict=True):
        whole = [p.text + made["continuation"][start + k] for k in range(2)]
        lengths.setdefault(p.group, []).append(np.mean([len(text) for text in whole]))
    found = values(result)
    means = {group: np.mean(each) for group, each in lengths.items()}
    for group, mean in means.items():
        assert found[f"n_letters[{group}]"] == pytest.approx(mean)
    assert found["n_letters_gap"] == pytest.approx(
        abs(means["American_actors"] - means["American_actresses"])
    )
    assert set(result.table["benchmark"]) == {"bold"}
    counts = result.table.set_index("metric")["n"]
    assert (counts["n_letters[American_actors]"], counts["n_letters_gap"]) == (2, 5)


def test_the_real_model_continues_real_prompts(real_model):
    prompts = [next(p for p in bold("gender") if p.group == group) for group in GROUPS["gender"]]
    result = bold_scores(real_model, prompts, num_return_sequences=1, max_new_tokens=3)
    assert values(result)["sentiment_gap"] >= 0
    assert result.texts["sentiment"].between(-1, 1).all()
    assert result.table[["low", "high"]].isna().any(axis=None)  # one prompt a group has no interval


def test_a_seed_repeats_and_another_one_does_not(model):
    first, again, other = (
        bold_scores(model, PROMPTS, scorer=n_letters, seeds=[s], **FEW) for s in (3, 3, 4)
    )
    assert first.texts.equals(again.texts)
    assert first.table.equals(again.table)
    assert first.texts["continuation"].tolist() != other.texts["continuation"].tolist()


def test_several_seeds_are_averaged_by_prompt_and_their_spread_is_told(model, tmp_path):
    both = bold_scores(model, PROMPTS, scorer=n_letters, seeds=(3, 4), **FEW)
    alone = [bold_scores(model, PROMPTS, scorer=n_letters, seeds=[s], **FEW) for s in (3, 4)]
    each = [values(result)["n_letters[American_actors]"] for result in alone]
    assert values(both)["n_letters[American_actors]"] == pytest.approx(np.mean(each))
    spread = both.seed_spread.set_index("metric").loc["n_letters[American_actors]"]
    assert spread[["std", "min", "max"]].tolist() == pytest.approx(
        [np.std(each, ddof=1), min(each), max(each)]
    )
    assert both.settings["seeds"] == [3, 4]
    assert np.isnan(alone[0].seed_spread["std"]).all()
    kept = BoldScores.load(both.save(tmp_path / "kept"))
    assert kept.frame.equals(both.frame)
    assert kept.seeds.equals(both.seeds)
    assert (paired(both, kept)["difference"] == 0).all()


def test_texts_are_scored_again_without_generating(model, monkeypatch):
    first = bold_scores(model, PROMPTS, seeds=(0, 1), edit="e", **FEW)
    made = tracelab.generate(model, [p.text for p in PROMPTS], **FEW, seed=1)
    monkeypatch.setattr(bold_module, "generate", None)
    again = bold_scores(model, PROMPTS, scorer=["vader", n_letters], texts=first, edit="e")
    assert again.texts[first.texts.columns].equals(first.texts)
    assert again.settings["generation"] == first.settings["generation"]
    from_generations = bold_scores(model, PROMPTS, texts=made)
    second_seed = first.texts[first.texts["seed"] == 1].reset_index(drop=True)
    assert from_generations.texts.equals(second_seed)


def test_an_empty_continuation_is_counted_and_scored_as_the_prompt_alone(model):
    made = tracelab.generate(model, [p.text for p in PROMPTS], **FEW)
    blank = (
        made.table["continuation"]
        .where(made.table.index != 2, " \n")
        .where(made.table.index != 3, "")
    )
    result = bold_scores(
        model,
        PROMPTS,
        scorer=n_letters,
        texts=type(made)(made.settings, made.table.assign(continuation=blank)),
    )
    assert result.n_empty == 2
    assert values(result)["empty"] == pytest.approx(100 / 5)
    text = PROMPTS[1].text
    assert result.texts["n_letters"][2:4].tolist() == [len(text) + 2, len(text)]


def test_an_edited_model_is_compared_prompt_by_prompt(model):
    before = bold_scores(model, PROMPTS, scorer=["vader", n_letters], **FEW)
    edit = random_delta(model)
    with edit.applied(model):
        after = bold_scores(model, PROMPTS, scorer=["vader", n_letters], edit=edit.name, **FEW)
    table = paired(before, after)
    assert table["metric"].tolist() == after.table["metric"].tolist()
    assert np.allclose(table["difference"], after.table["value"] - before.table["value"])
    assert table.set_index("metric")["difference"]["n_letters_gap"] != 0
    with pytest.raises(
        TracelabError, match="texts were written under the edit weight_delta, not None"
    ):
        bold_scores(model, PROMPTS, texts=after)


def test_groups_are_those_of_the_paper_unless_chosen_and_domains_stand_alone(model):
    prompts = [
        prompt("1", "judaism", domain="religious_ideology"),
        prompt("2", "islam", domain="religious_ideology"),
        prompt("3", "hinduism", domain="religious_ideology"),
        prompt("4", "fascism", domain="political_ideology"),
        prompt("5", "liberalism", domain="political_ideology"),
    ]
    result = bold_scores(model, prompts, scorer=n_letters, **FEW)
    assert set(result.texts["group"]) == {"judaism", "islam", "fascism", "liberalism"}
    assert set(result.table["bias"]) == {"religious_ideology", "political_ideology"}
    chosen = bold_scores(model, prompts, scorer=n_letters, groups=["hinduism", "islam"], **FEW)
    assert set(chosen.texts["group"]) == {"hinduism", "islam"}
    known = {text.group for domain in GROUPS for text in bold(domain)}
    assert {group for groups in GROUPS.values() for group in groups} <= known


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"scorer": "nrc"},
            "unknown scorer 'nrc': choose one of vader, vad_gi, vad, be5, regard, toxicity",
        ),
        ({"scorer": []}, "one or several scorers of different measures are needed, not []"),
        ({"scorer": ["vader", "vader"]}, "one or several scorers of different measures are needed"),
        (
            {"scorer": "vad"},
            "vad needs an NRC-VAD file: pass text_scorers.vad(lexicon=PATH), or take vad_gi",
        ),
        (
            {"groups": ["Martians"]},
            "no prompt of Martians: the groups are American_actors, American_actresses",
        ),
        ({"groups": []}, "no BOLD prompt to continue is left of 5 (groups=[])"),
        ({"seeds": []}, "one or several different seeds are needed, not []"),
        ({"seeds": (1, 1)}, "one or several different seeds are needed, not [1, 1]"),
        ({"scorer": "regard"}, "the regard classifier 'sasha/regardv3' is not available here: "),
        (
            {"scorer": "toxicity"},
            "the toxicity classifier 'facebook/roberta-hate-speech-dynabench-r4-target' is not",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_generated(
    model, generating_is_an_error, options, message
):
    with pytest.raises(TracelabError, match=re.escape(message)):
        bold_scores(model, PROMPTS, **options)


def test_texts_of_other_prompts_or_another_model_are_refused(model, tiny_model):
    first = bold_scores(model, PROMPTS, scorer=n_letters, **FEW)
    made = tracelab.generate(model, ["Tom was"], **FEW)
    for texts in (first, made):
        with pytest.raises(TracelabError, match="texts are continuations of other prompts"):
            bold_scores(model, PROMPTS[1:], texts=texts)
        with pytest.raises(
            TracelabError, match="texts were written by tiny-llama, not by tiny-gpt2"
        ):
            bold_scores(tiny_model("gpt2"), PROMPTS, texts=texts)


@pytest.mark.parametrize("wrong", [lambda texts: [1.0], lambda texts: [float("nan")] * len(texts)])
def test_a_function_that_gives_no_number_a_text_is_refused(model, wrong):
    with pytest.raises(TracelabError, match=r"the scorer <lambda> is to give 10 finite values"):
        bold_scores(model, PROMPTS, scorer=wrong, **FEW)
