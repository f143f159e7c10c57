"""Benchmarks, each by its official scorer."""

from tracelab.evaluate.crows_pairs import crows_pairs_scores
from tracelab.evaluate.stereoset import stereoset_scores

__all__ = ["crows_pairs_scores", "stereoset_scores"]
