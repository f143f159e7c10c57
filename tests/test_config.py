"""Configurations: what they refuse, in a sentence, and how they become other ones."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import pytest
from pydantic import BaseModel, Field

from tracelab.config import Config, Count, Finite, NonNegative, Positive, Seed
from tracelab.errors import TracelabError
from tracelab.interventions import ExpertsConfig, FinetuneConfig
from tracelab.interventions.experts.config import LinearMap
from tracelab.model.hook_points import LINEAR_MAPS


class Inner(Config):
    seed: Seed = 0
    rate: Positive = 0.1


class Outer(Config):
    n: Count = 3
    x: Finite = 0.5
    y: NonNegative = 0.0
    kind: Literal["a", "b"] = "a"
    on: bool = False
    pair: tuple[int, ...] = (0, 1)
    words: tuple[str, ...] = ("w",)
    some: str | tuple[str, ...] = "all"
    most: Count | None = None
    inner: Inner = Field(Inner(), description="a configuration in a configuration")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"n": 0}, "n is at least 1, not 0"),
        ({"n": 2**31}, "n is at most 2147483647, not 2147483648"),
        ({"n": 1.5}, "n is a whole number, not 1.5"),
        ({"n": True}, "n is a whole number, not True"),
        ({"x": float("nan")}, "x is a finite number, not nan"),
        ({"x": "1"}, "x is a number, not '1'"),
        ({"x": None}, "x is a number, not None"),
        ({"y": -0.5}, "y is at least 0, not -0.5"),
        ({"kind": "c"}, "unknown kind 'c': choose one of a, b"),
        ({"on": 1}, "on is True or False, not 1"),
        ({"inner": {"rate": 0.0}}, "rate is above 0, not 0.0"),
        (
            {"m": 1},
            "Outer has no field m: it has n, x, y, kind, on, pair, words, some, most, inner",
        ),
    ],
)
def test_the_first_violation_is_one_sentence(values, sentence):
    with pytest.raises(TracelabError) as refused:
        Outer(**values)
    assert str(refused.value) == sentence


def test_numbers_of_numpy_lists_and_single_words_are_taken_for_what_they_are():
    made = Outer(n=np.int64(4), x=np.float32(0.5), pair=[2, 3], words="one", some=["p", "q"])
    assert (made.n, made.x, made.pair, made.words, made.some) == (
        4,
        0.5,
        (2, 3),
        ("one",),
        ("p", "q"),
    )
    assert type(made.n) is int
    assert Outer(some="p").some == "p"


def test_it_comes_back_from_json_inside_another_model():
    class Spec(BaseModel):
        config: Outer

    made = Outer(pair=(4, 5), some=("p", "q"), inner=Inner(rate=0.2))
    text = Spec(config=made).model_dump_json()
    assert Spec.model_validate_json(text, strict=True).config == made


def test_a_changed_copy_is_checked_like_a_new_one():
    config = Outer()
    assert config.replace(n=5) == Outer(n=5)
    assert config == Outer()
    for change in (config.replace, lambda **values: config.model_copy(update=values)):
        with pytest.raises(TracelabError, match="n is at least 1"):
            change(n=0)


def test_one_seed_reaches_every_field_of_that_name():
    assert Outer().seeded(7).inner.seed == 7
    assert ExpertsConfig().seeded(7).training == FinetuneConfig(seed=7)


def test_choices_are_told():
    assert Outer.choices("kind") == ("a", "b")
    with pytest.raises(TracelabError, match="Outer has no preset 'fast': it has none"):
        Outer.preset("fast", "gender")


def test_the_linear_maps_that_need_no_torch_are_those_of_the_model():
    assert get_args(LinearMap) == LINEAR_MAPS
