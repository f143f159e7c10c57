"""Benchmarks, each by its official scorer, and the comparison of two results."""

from tracelab.evaluate.benchmarks.attention import attention_scores
from tracelab.evaluate.benchmarks.bbq import bbq_scores, score_predictions
from tracelab.evaluate.benchmarks.crows_pairs import crows_pairs_scores
from tracelab.evaluate.benchmarks.group_bias import group_bias
from tracelab.evaluate.benchmarks.hellinger import hellinger, prompt_pairs
from tracelab.evaluate.benchmarks.lm_eval import lm_eval_scores
from tracelab.evaluate.benchmarks.perplexity import perplexity
from tracelab.evaluate.benchmarks.stereoset import stereoset_scores
from tracelab.evaluate.benchmarks.swap_consistency import swap_pairs, swap_scores
from tracelab.evaluate.benchmarks.transductive import transductive_scores
from tracelab.evaluate.benchmarks.winobias import winobias_scores
from tracelab.evaluate.bold.bold import bold_scores
from tracelab.evaluate.edited import EditedScores, edited_scores
from tracelab.evaluate.paired import paired
from tracelab.evaluate.scoreboard.interference import interference
from tracelab.evaluate.scoreboard.noted import metrics_of
from tracelab.evaluate.scoreboard.scoreboard import Scoreboard

__all__ = [
    "EditedScores",
    "Scoreboard",
    "attention_scores",
    "bbq_scores",
    "bold_scores",
    "crows_pairs_scores",
    "edited_scores",
    "group_bias",
    "hellinger",
    "interference",
    "lm_eval_scores",
    "metrics_of",
    "paired",
    "perplexity",
    "prompt_pairs",
    "score_predictions",
    "stereoset_scores",
    "swap_pairs",
    "swap_scores",
    "transductive_scores",
    "winobias_scores",
]
