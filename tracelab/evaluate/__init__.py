"""Benchmarks, each by its official scorer, and the comparison of two results."""

from tracelab.evaluate.crows_pairs import crows_pairs_scores
from tracelab.evaluate.edited import EditedScores, edited_scores
from tracelab.evaluate.group_bias import group_bias
from tracelab.evaluate.hellinger import hellinger, prompt_pairs
from tracelab.evaluate.paired import paired
from tracelab.evaluate.perplexity import perplexity
from tracelab.evaluate.stereoset import stereoset_scores
from tracelab.evaluate.transductive import transductive_scores

__all__ = [
    "EditedScores",
    "crows_pairs_scores",
    "edited_scores",
    "group_bias",
    "hellinger",
    "paired",
    "perplexity",
    "prompt_pairs",
    "stereoset_scores",
    "transductive_scores",
]
