"""Benchmarks: one file each."""

from tracelab.moved import names_of

__getattr__ = names_of(__name__, "tracelab.evaluate.registry")
