from __future__ import annotations

from pathlib import Path

import pytest

import tracelab
from tests.runtime_types import UNCHECKABLE
from tests.tiny import tiny_hf
from tracelab.errors import TracelabError, require_choice
from tracelab.localize.probing.prober import ProberConfig


def test_a_known_choice_is_handed_back():
    assert require_choice("split", "dev", ("dev", "test")) == "dev"


def test_an_unknown_choice_is_named_with_the_choices():
    with pytest.raises(TracelabError) as caught:
        require_choice("split", "train", (name for name in ("dev", "test")))
    assert str(caught.value) == "unknown split 'train': choose one of dev, test"


def test_every_annotation_can_be_checked_at_run_time(real_model):
    import tracelab.evaluate.benchmarks.crows_pairs
    import tracelab.evaluate.benchmarks.stereoset
    import tracelab.localize.probing.probes
    import tracelab.localize.tracing.causal_trace

    assert tracelab.localize.probing.probes.probe_layers.__wrapped__  # the checks are on
    assert not UNCHECKABLE


def test_no_file_warns_past_the_function_that_finds_the_users_line():
    root = Path(tracelab.__file__).parent
    found = [
        str(file.relative_to(root))
        for file in root.rglob("*.py")
        if "warnings.warn(" in file.read_text(encoding="utf-8")
    ]
    assert sorted(found) == ["errors.py", "moved.py"]


def test_a_warning_shows_the_users_own_line(tiny_model, tokenizer, tmp_path):
    model = tiny_model("llama")
    broken = tiny_hf("llama", len(tokenizer))
    broken.lm_head.weight.data[0] = float("nan")
    broken.save_pretrained(tmp_path / "broken")
    tokenizer.save_pretrained(tmp_path / "broken")
    for use in (
        lambda: tracelab.load(tmp_path / "broken"),
        lambda: tracelab.generate(model, "a " * 200, max_new_tokens=1),
        lambda: tracelab.probe_layers(
            model,
            tracelab.datasets.templates("gender", limit=8),
            n_seeds=1,
            config=ProberConfig(hidden=8, epochs=1),
        ),
    ):
        with pytest.warns(UserWarning, match=".") as caught:
            use()
        assert {Path(warning.filename).name for warning in caught} == {Path(__file__).name}
