"""Three ways to say where: what can be read, what acts, what attention does."""

from tracelab.localize.attention_gap import attention_gap
from tracelab.localize.causal_trace import causal_trace
from tracelab.localize.probes import probe_layers

__all__ = ["attention_gap", "causal_trace", "probe_layers"]
