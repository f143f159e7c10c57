"""What an edit did, before and after."""

from tracelab.moved import names_of

__getattr__ = names_of(__name__, "tracelab.inspection.before_after")
