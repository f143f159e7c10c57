from __future__ import annotations

import pytest

from tests.runtime_types import UNCHECKABLE
from tracelab.errors import TracelabError, require_choice


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
