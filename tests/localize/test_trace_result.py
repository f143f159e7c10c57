"""Total effects by hand, and a sentence that ends in an attribute word."""

import pandas as pd
import pytest

from tracelab.datasets import stereoset
from tracelab.localize.causal_trace import causal_trace
from tracelab.localize.trace_cases import make_cases
from tracelab.localize.trace_result import CausalTrace


def test_totals_are_the_means_over_cases():
    cases = pd.DataFrame({"high": [2.0, -1.0, 0.5], "low": [1.0, -2.0, 0.0]})
    cases["te"] = cases["high"] - cases["low"]
    totals = CausalTrace({"seed": 0}, pd.DataFrame(), cases, pd.DataFrame()).totals
    values = totals.set_index("quantity")["value"]
    assert values["gap_clean"] == pytest.approx(0.5)
    assert values["te"] == pytest.approx(2.5 / 3)
    assert values["|te|"] == pytest.approx(2.5 / 3)
    assert values["shrunk"] == pytest.approx(200 / 3)
    assert (totals["low"] <= totals["value"]).all()
    assert (totals["value"] <= totals["high"]).all()


def test_noise_on_the_last_token_is_the_same_fast_and_plain(tiny_model):
    model = tiny_model("llama")
    records = stereoset("gender")
    cases, _ = make_cases(model, records)
    ending = {case.id for case in cases if case.noised[-1] == len(case.columns) - 1}
    assert ending
    chosen = [record for record in records if record.id in ending][:2]
    options = {"n_samples": 2, "window": 2, "positions": "all"}
    fast = causal_trace(model, chosen, run="fast", **options).states["gap"]
    plain = causal_trace(model, chosen, run="plain", **options).states["gap"]
    assert fast.to_numpy() == pytest.approx(plain.to_numpy(), abs=1e-4)
