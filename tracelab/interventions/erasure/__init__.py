"""Erasure of the group that a text names."""

from tracelab.moved import names_of

__getattr__ = names_of(__name__, "tracelab.interventions.erasure.erasure")
