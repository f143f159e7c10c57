"""Find where a language model keeps a social stereotype, and look at it.

>>> import tracelab
>>> model = tracelab.load()                                   # the embedded default
>>> probes = tracelab.probe_layers(model, tracelab.datasets.templates("gender"))
>>> probes.plot()
"""

from tracelab import datasets
from tracelab.errors import TracelabError
from tracelab.localize import attention_gap, causal_trace, probe_layers
from tracelab.localize.attention_gap import AttentionGap
from tracelab.localize.probes import LayerProbes
from tracelab.localize.trace_result import CausalTrace
from tracelab.model import load
from tracelab.report import report
from tracelab.scoring import score

__all__ = [
    "AttentionGap",
    "CausalTrace",
    "LayerProbes",
    "TracelabError",
    "attention_gap",
    "causal_trace",
    "datasets",
    "load",
    "probe_layers",
    "report",
    "score",
]
