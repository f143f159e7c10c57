"""BiasEdit: editor networks that make weight deltas of triples."""

from tracelab.moved import names_of

__getattr__ = names_of(__name__, "tracelab.interventions.biasedit.biasedit")
