"""BOLD: texts that the model writes, and what scores them."""

from tracelab.moved import names_of

__getattr__ = names_of(__name__, "tracelab.evaluate.bold.bold")
