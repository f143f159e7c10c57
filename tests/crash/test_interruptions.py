"""Every long verb, interrupted at random moments, on a full disk and twice at once: the same final
table.

The moments are drawn from the time that an uninterrupted run takes. ``TRACELAB_CRASH_ROUNDS`` of
each signal are sent to each verb (default 1, with which all takes a few minutes).
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.crash.runs import Command, finish, half_made
from tests.tiny import tiny_hf

pytestmark = [
    pytest.mark.slow,
    pytest.mark.nightly,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
]

COMMON = ("--bias", "gender")
VERBS = {
    "trace": (
        "trace",
        *COMMON,
        "--limit",
        "3",
        "--samples",
        "1",
        "--layers",
        "0,3",
        "--component",
        "resid",
    ),
    "fit experts": ("fit", "experts", *COMMON, "--limit", "4", "--rank", "2"),
    "fit biasedit": (
        "fit",
        "biasedit",
        *COMMON,
        "--limit",
        "8",
        "--steps",
        "2",
        "--rank",
        "2",
        "--layers",
        "last1",
    ),
    "fit klaad": (
        "fit",
        "klaad",
        *COMMON,
        "--limit",
        "6",
        "--rank",
        "2",
        "--trainable",
        "attn_last",
    ),
    "compare": (
        "compare",
        *COMMON,
        "--limit",
        "2",
        "--benchmark",
        "crows-pairs",
        "--benchmark",
        "perplexity",
    ),
    "report": ("report", *COMMON, "--limit", "6", "--preset", "crash", "--no-edits", "--no-png"),
}
ROUNDS = int(os.environ.get("TRACELAB_CRASH_ROUNDS", "1"))


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer) -> Path:
    """A tiny model and an edit of it."""
    folder = tmp_path_factory.mktemp("crash")
    tiny_hf("llama", len(tokenizer)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    fit = (
        "fit",
        "fairmed",
        *COMMON,
        "--limit",
        "6",
        "--layers",
        "1",
        "--model",
        str(folder / "model"),
    )
    assert Command(fit, bundle=True).run(folder / "edit") == 0
    return folder


@pytest.fixture(scope="module", params=VERBS)
def command(request, place) -> Command:
    more = ("--edit", str(place / "edit")) if request.param == "compare" else ()
    arguments = (*VERBS[request.param], *more, "--model", str(place / "model"))
    return Command(arguments, bundle=request.param.startswith("fit"))


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory):
    """What an uninterrupted run gives, and the seconds it takes."""
    out = tmp_path_factory.mktemp("whole") / "out"
    began = time.monotonic()
    assert command.run(out) == 0, command.words(out)
    return command.result(out), time.monotonic() - began


def test_interrupted_at_random_moments_it_ends_with_the_same_table(command, whole, tmp_path):
    expected, seconds = whole
    chance, out = random.Random(0), tmp_path / "out"
    for _ in range(ROUNDS):
        for number, statuses in (
            (signal.SIGKILL, (-9, 0)),
            (signal.SIGTERM, (143, 0)),
            (signal.SIGINT, (130, 0)),
        ):
            keys = {path: path.stat().st_mtime_ns for path in out.rglob("*.key")}
            status = command.interrupted(out, number, chance.uniform(0, seconds))
            assert status in statuses, command.words(out)
            if number != signal.SIGKILL:
                assert not list(out.rglob(".tmp-*")) + list(tmp_path.glob(".tmp-*"))
            if (
                "--preset" not in command.arguments or status == 0
            ):  # finished cells are not made again
                assert all(
                    path.stat().st_mtime_ns == made for path, made in keys.items() if path.exists()
                )
    assert command.run(out) == 0, command.words(out)
    assert command.result(out) == expected
    assert not half_made(out)
    assert "Traceback" not in command.words(out)


def test_on_a_disk_that_fills_up_it_ends_in_one_line_and_goes_on_when_there_is_room(
    command, whole, tmp_path
):
    expected, _ = whole
    chance, out = random.Random(1), tmp_path / "out"
    for _ in range(2 * ROUNDS):
        assert command.run(out, largest_file=int(10 ** chance.uniform(1.5, 5))) in (0, 1, 2), (
            command.words(out)
        )
    assert command.run(out) == 0, command.words(out)
    assert command.result(out) == expected
    assert not half_made(out)
    assert "Traceback" not in command.words(out)


def test_two_at_once_in_one_folder_both_end_with_the_same_table(command, whole, tmp_path):
    expected, _ = whole
    out = tmp_path / "out"
    assert [finish(process) for process in [command.start(out), command.start(out)]] == [0, 0], (
        command.words(out)
    )
    assert command.result(out) == expected
    assert not half_made(out)
    assert "Traceback" not in command.words(out)
