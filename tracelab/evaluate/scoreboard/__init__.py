"""Edits beside each other: cells, costs, interference."""

from tracelab.moved import names_of

__getattr__ = names_of(__name__, "tracelab.evaluate.scoreboard.scoreboard")
