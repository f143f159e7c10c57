"""Finished cases of a trace: what is damaged is no case, what is somebody's own is not written
over."""

from __future__ import annotations

import json

import pytest

from tracelab.errors import TracelabError
from tracelab.localize.tracing.partial import add_case, read_cases, require_cases_file

SETTINGS = {"seed": 0, "versions": {"tracelab": "0.1.0"}}
CASES = {name: {"low": [0.1, number], "resid": [[1.5]]} for number, name in enumerate("abc")}


@pytest.fixture
def partial(tmp_path):
    file = tmp_path / "cases.partial.jsonl"
    assert read_cases(file, SETTINGS) == {}
    for name, values in CASES.items():
        add_case(file, name, values)
    return file


def test_finished_cases_come_back(partial):
    assert read_cases(partial, SETTINGS) == read_cases(partial, SETTINGS) == CASES
    assert read_cases(partial, SETTINGS | {"seed": 1}) == {}


LINES = [
    b"{}",
    b"null",
    b"",
    b"\xff\xfe",
    b"[",
    b'{"case": "b", "low": [0.1, 1], "resid": [[9.5]]}',
]


@pytest.mark.parametrize("line", LINES)
def test_a_line_that_is_no_case_costs_that_case_alone(partial, line):
    lines = partial.read_bytes().split(b"\n")
    lines[2] = line
    partial.write_bytes(b"\n".join(lines))
    assert read_cases(partial, SETTINGS) == {name: CASES[name] for name in "ac"}


def test_one_altered_digit_is_no_case(partial):
    partial.write_text(partial.read_text().replace("0.1, 1]", "0.2, 1]"))
    assert set(read_cases(partial, SETTINGS)) == {"a", "c"}


@pytest.mark.parametrize("content", [b"", b"\xff\xff", b"null"])
def test_a_damaged_file_is_begun_again(partial, content):
    partial.write_bytes(content)
    assert read_cases(require_cases_file(partial), SETTINGS) == {}
    assert json.loads(partial.read_text()) == {"settings": SETTINGS}


def test_a_file_of_somebodys_own_is_refused_and_one_of_0_1_is_not(tmp_path):
    (tmp_path / "mine").write_text("notes")
    with pytest.raises(TracelabError, match="mine' was not written by tracelab"):
        require_cases_file(tmp_path / "mine")
    (tmp_path / "old").write_text(json.dumps({"settings": SETTINGS}) + "\n")
    assert require_cases_file(tmp_path / "old")
