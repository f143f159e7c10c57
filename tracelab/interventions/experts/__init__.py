"""Expert / anti-expert decoding."""

from tracelab.moved import names_of

__getattr__ = names_of(__name__, "tracelab.interventions.experts.experts")
