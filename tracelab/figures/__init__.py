"""Every figure of tracelab: tables and settings in, a plotly ``Figure`` out.

Localisers (:mod:`.localize`), edits (:mod:`.edits`, :mod:`.deltas`), their training
(:mod:`.training`), scores (:mod:`.scores`, :mod:`.scoreboard`); what they share is in
:mod:`.style`. No class of a result is known here: a result's ``plot`` hands over what is drawn.
"""

from tracelab.figures.edits import before_after
from tracelab.figures.localize import (
    attention_maps,
    f1_per_layer,
    gap_distributions,
    trace_example,
    trace_heatmap,
)
from tracelab.figures.saving import save_figures
from tracelab.figures.scoreboard import scoreboard, tradeoff
from tracelab.figures.scores import log_probabilities, scores, sweep
from tracelab.figures.training import loss_curves, training_curves
from tracelab.figures.tuning import tuning

__all__ = [
    "attention_maps",
    "before_after",
    "f1_per_layer",
    "gap_distributions",
    "log_probabilities",
    "loss_curves",
    "save_figures",
    "scoreboard",
    "scores",
    "sweep",
    "trace_example",
    "trace_heatmap",
    "tradeoff",
    "training_curves",
    "tuning",
]
