"""How the words of a command line are read: whole numbers, numbers, texts, layers.

Digits are ASCII's. Python's own ``int`` and ``float`` also take ``٣``, ``１２`` and ``1_000``, which
nobody means.
"""  # noqa: E501

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Collection, Sequence
from math import isfinite

from tracelab.errors import TracelabError
from tracelab.ranges import INT_MOST, SEED_MOST, require_int, shown

LAYER_MOST = 9999
"""No model has as many layers: ``0:99999999999`` is refused before it is written out."""


def require_text(arguments: Sequence[str]) -> None:
    """Refuse what cannot be written into a result's settings or its page, and what argparse would
    drop.

    Raises:
        TracelabError: naming the argument that is no text, or an option whose value is ``--``.
    """
    for number, argument in enumerate(arguments, 1):
        if "\0" in argument or any("\ud800" <= c <= "\udfff" for c in argument):
            raise TracelabError(
                f"argument {number} is no text in UTF-8: {shown(argument)}; rename or rewrite it"
            )
        if re.fullmatch(
            r"-.*=--", argument
        ):  # argparse takes the value out and hands on an empty list, unread
            raise TracelabError(f"argument {number} has no value: {shown(argument)}")


def method_first(arguments: Sequence[str], methods: Collection[str]) -> list[str]:
    """The arguments of ``fit`` with the method before its options, wherever it stood."""
    found = list(arguments)
    places = [place for place, word in enumerate(found) if place > 1 and word in methods]
    if found[:1] == ["fit"] and places and found[1] not in methods:
        found.insert(1, found.pop(places[-1]))
    return found


def whole(least: int = 1, most: int = INT_MOST) -> Callable[[str], int]:
    """What reads a whole number from ``least`` to ``most``."""

    def read(text: str) -> int:
        return _refused_as_argument(lambda: parse_int("the value", text, least, most))

    return read


seed = whole(0, SEED_MOST)


def integer(text: str) -> int:
    """A whole number; its range is that of the configuration."""
    if not re.fullmatch(r"[+-]?[0-9]{1,4000}", text):  # Python reads no more than 4300
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a whole number")
    return int(text)


def number(text: str) -> float:
    """A number; its range is that of the method's configuration."""
    try:
        if not text.isascii() or "_" in text:
            raise ValueError
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a number") from None


def finite(text: str) -> float:
    """A number that has an end."""
    if not isfinite(value := number(text)):
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a finite number")
    return value


def positive(text: str) -> float:
    """A number above 0 that has an end."""
    if (value := finite(text)) <= 0:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not above 0")
    return value


def share(text: str) -> float:
    """A number above 0, at most 1."""
    if (value := positive(text)) > 1:
        raise argparse.ArgumentTypeError(f"{shown(text)} is above 1, not a share")
    return value


def text(given: str) -> str:
    """Anything but nothing."""
    if not given.strip():
        raise argparse.ArgumentTypeError(
            f"{given!r} is empty: give it a value, or leave the option out"
        )
    return given


def parse_int(what: str, text: str, least: int = 1, most: int = INT_MOST) -> int:
    """The whole number that a text is.

    Raises:
        TracelabError: another text, or a number out of its range.
    """
    if not re.fullmatch(r"[+-]?[0-9]{1,4000}", text):  # Python reads no more than 4300
        raise TracelabError(f"{what} is a whole number from {least} to {most}, not {shown(text)}")
    return require_int(what, int(text), least, most)


def parse_layers(text: str | None) -> list[int] | None:
    """Layers from ``"0,5,9"`` or ``"0:30:3"``.

    Raises:
        TracelabError: another form, or a form that names no layer.
    """
    if text is None:
        return None
    try:
        found = [parse_int("a layer", part, 0, LAYER_MOST) for part in re.split("[:,]", text)]
        if ":" in text and "," in text:
            raise ValueError
        layers = list(range(*found)) if ":" in text else found
    except (ValueError, TypeError):  # also of range(): a step of 0, four numbers
        raise TracelabError(
            f"layers {shown(text)} are not understood: write 0,5,9 or 0:30:3, with numbers from 0 "
            f"to {LAYER_MOST}"
        ) from None
    if not layers:
        raise TracelabError(f"layers {shown(text)} name no layer: nothing to trace or to edit")
    return layers


def _refused_as_argument(read: Callable[[], int]) -> int:
    try:
        return read()
    except TracelabError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
