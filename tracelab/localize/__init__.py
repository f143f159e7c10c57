"""Three ways to say where: what can be read, what acts, what attention does."""

from tracelab.localize.attention.attention_gap import attention_gap
from tracelab.localize.probing.probes import probe_layers
from tracelab.localize.tracing.causal_trace import causal_trace

__all__ = ["attention_gap", "causal_trace", "probe_layers"]
