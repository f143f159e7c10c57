"""The pages in ``docs/`` are about the code that is there."""

from __future__ import annotations

import re
from pathlib import Path

from docs.draw_architecture import PICTURE, draw
from tests.test_architecture import FLOORS

PAGE = Path(PICTURE).with_name("architecture.md").read_text(encoding="utf-8")


def test_the_picture_is_what_the_imports_give_now():
    assert PICTURE.read_text(encoding="utf-8") == draw(), "run: python -m docs.draw_architecture"


def test_every_room_is_in_the_picture():
    drawn = set(re.findall(r">([a-z]+)</text>", draw()))
    assert {room.removeprefix("tracelab.") for room in FLOORS} <= drawn


def test_the_table_has_every_room_on_its_floor():
    rows = re.findall(r"^\| ([\d.]+) \| `(\w+)` \|", PAGE, re.MULTILINE)
    assert {f"tracelab.{room}": float(floor) for floor, room in rows} == FLOORS


def test_the_glossary_is_in_alphabetical_order():
    terms = re.findall(r"^- \*\*([\w, -]+)\*\*:", PAGE.partition("## Glossary")[2], re.MULTILINE)
    assert len(terms) > 20
    assert terms == sorted(terms, key=str.casefold)
