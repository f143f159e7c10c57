"""What trains an intervention: the loop, fine-tuning, triples and their losses."""

from tracelab.moved import names_of

__getattr__ = names_of(__name__, "tracelab.interventions.training.loop")
