"""A model as tracelab sees it: loaded, hooked, run, scored, made to write."""

from tracelab.moved import names_of

__getattr__ = names_of(__name__, "tracelab.model.load")
