from __future__ import annotations

import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from tests.interventions.edits import random_delta
from tracelab import Stack
from tracelab.evaluate.scoreboard import costs
from tracelab.evaluate.scoreboard.costs import edit_costs, fit_seconds
from tracelab.model.peak import peak_memory

MIB = 2**20


def test_peak_memory_counts_what_is_alive_at_once_and_neither_weights_nor_views():
    weight = torch.zeros(512, 512)  # 1 MiB in float32
    with peak_memory([weight]) as peak:
        first = weight @ weight  # 1 alive
        second = first + 1  # 2
        view = second.view(-1)[3:]
        third = view.reshape(-1)  # a view too
        fourth = second * 2  # 3
        del first, fourth
        fifth = second.exp()  # 2
        del second, view, third, fifth
        weight.t().reshape(512, 512)
    assert peak[0] == 3 * MIB


def test_latency_is_the_ratio_of_the_edited_to_the_unedited_run(tiny_model, monkeypatch):
    model = tiny_model("llama")
    # each run's begin and end: 1 s unedited, 3 s edited
    clock = iter(np.cumsum([0, 1, 0, 3] * 3).tolist())
    monkeypatch.setattr(costs.time, "perf_counter", lambda: next(clock))
    ratios = costs._ratios(model, Stack([]), lambda: None, repeats=2)
    assert ratios == [3, 3]


def test_a_slow_edit_is_slow_in_both_latencies(tiny_model):
    model = tiny_model("llama")
    edit = random_delta(model)
    applied = edit.applied

    @contextmanager
    def slowly(model):
        def wait(module, args):
            time.sleep(0.05)

        handle = model.original_model.register_forward_pre_hook(wait)
        with applied(model):
            yield
        handle.remove()

    edit.applied = slowly
    found = edit_costs(model, edit, batch=1, length=8, new_tokens=2, repeats=2)
    assert set(found) == set(costs.COLUMNS)
    assert found["latency_scoring"] > 2
    assert found["latency_decode"] > 2


def test_fit_seconds_of_a_stack_are_those_of_its_members_or_unknown(tiny_model):
    first, second = random_delta(tiny_model("llama")), random_delta(tiny_model("llama"))
    first.notes["fit_seconds"] = 3.0
    assert np.isnan(fit_seconds(Stack([first, second])))
    second.notes["fit_seconds"] = 4.5
    assert fit_seconds(Stack([first, second])) == pytest.approx(7.5)
