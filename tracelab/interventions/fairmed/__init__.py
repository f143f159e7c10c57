"""FairMed: the neutraliser of MLP activations."""

from tracelab.moved import names_of

__getattr__ = names_of(__name__, "tracelab.interventions.fairmed.fairmed")
