"""A small share of the campaign, and that it sees what it is there to see."""

from __future__ import annotations

import pickle

import pytest

from tests.fuzz.campaign import Campaign, alarmed
from tracelab.interventions import base, manifest


@pytest.fixture
def campaign(tmp_path):
    return Campaign(tmp_path)


def test_mutated_bundles_run_no_code_pass_for_no_other_edit_and_end_in_one_line(campaign):
    campaign.run(range(250))
    assert not campaign.faults
    ended = {what.split(": ")[1] for what in campaign.said}
    assert {
        "refused",
        "the same edit",
        "loaded, then ran and ran",
        "loaded, then refused and refused",
    } <= ended


@pytest.mark.slow
def test_the_campaign_finds_what_a_seal_would(campaign, monkeypatch):
    monkeypatch.setattr(manifest, "_closed", lambda body: body + b"}")
    for name, files in campaign.bundles.items():
        text = files["tracelab.json"].decode()
        campaign.bundles[name] = files | {
            "tracelab.json": (text[: text.rindex(",\n")] + ',\n "seal": "x"}').encode()
        }
    campaign.run(range(400))
    assert any(fault.startswith("accepted") for fault in campaign.faults)


@pytest.mark.slow
def test_the_campaign_finds_what_breaks_in_the_forward_pass(campaign, monkeypatch):
    for check in ("require_bridge_fits", "require_plain_fits"):
        monkeypatch.setattr(base, check, lambda *args: None)
    campaign.run(range(600))
    assert any(fault.startswith("broken") for fault in campaign.faults)


def test_the_campaign_hears_code_that_is_run_and_files_that_are_written(tmp_path):
    dumped = pickle.dumps(pytest.raises)
    with alarmed() as alarms:
        pickle.loads(dumped)
        (tmp_path / "written").write_text("x")
    assert alarms[0] == "pickle.find_class"
    assert any("written" in alarm for alarm in alarms)
