"""KLAAD: attention alignment."""

from tracelab.moved import names_of

__getattr__ = names_of(__name__, "tracelab.interventions.klaad.klaad")
