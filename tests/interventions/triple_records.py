"""StereoSet-like records made on the spot, of several lengths and target terms, which take no time to read."""

from __future__ import annotations

from tracelab.datasets.records import Sentence
from tracelab.datasets.spans import filler_spans
from tracelab.datasets.stereoset import StereoSetRecord

CONTEXTS = (
    "The {} is BLANK.",
    "Everyone at the station said that the {} was BLANK and left.",
    "My BLANK neighbour, a {}, came late",
    "A {} can be very BLANK on a long day at work!",
    "{} people: BLANK.",
)
FILLERS = (
    ("lazy", "diligent", "triangular"),
    ("extraordinarily rude", "kind", "of"),
    ("loud", "quiet", "uncoiled"),
    ("poor", "rich and well known", "banana"),
)
TARGETS = ("nurse", "plumber", "Norwegian", "schoolgirl", "grandfather", "engineer", "Ethiopian")


def record(context: str, *fillers: str, number: int = 0, bias: str = "race", target: str = "them") -> StereoSetRecord:
    """An intrasentence record from its context and its stereotypical, anti-stereotypical and unrelated filler."""
    texts = [context.replace("BLANK", filler) for filler in fillers]
    sentences = [Sentence(f"{number}-{i}", text, filler_spans(context, text)) for i, text in enumerate(texts)]
    return StereoSetRecord(str(number), "intrasentence", bias, target, context, *sentences)


def records(n: int, *, start: int = 0, targets: tuple[str, ...] = TARGETS, bias: str = "race") -> list[StereoSetRecord]:
    """``n`` different records; two in a row never have one target, if there are several."""
    made = []
    for i in range(start, start + n):
        target = targets[i % len(targets)]
        context = CONTEXTS[(i // 2) % len(CONTEXTS)].format(target)
        made.append(record(context, *FILLERS[(i // 3) % len(FILLERS)], number=i, bias=bias, target=target))
    return made
