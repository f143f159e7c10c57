"""Every figure of tracelab: localisers (:mod:`.localize`), edits (:mod:`.edits`), scores (:mod:`.scores`); what
they share is in :mod:`.style`.
"""

from tracelab.figures.edits import before_after
from tracelab.figures.localize import attention_maps, f1_per_layer, gap_distributions, trace_example, trace_heatmap
from tracelab.figures.scores import scores, sweep
from tracelab.figures.style import save_figures

__all__ = [
    "attention_maps",
    "before_after",
    "f1_per_layer",
    "gap_distributions",
    "save_figures",
    "scores",
    "sweep",
    "trace_example",
    "trace_heatmap",
]
