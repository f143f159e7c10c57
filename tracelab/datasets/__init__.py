"""Benchmarks as frozen records: one file a benchmark, file in, records out."""

from tracelab.datasets.crows_pairs import CrowsPair, crows_pairs
from tracelab.datasets.records import Pair, Sentence, data_hash
from tracelab.datasets.stereoset import StereoSetRecord, stereoset
from tracelab.datasets.templates import Corpus, bracketed, templates

__all__ = [
    "Corpus",
    "CrowsPair",
    "Pair",
    "Sentence",
    "StereoSetRecord",
    "bracketed",
    "crows_pairs",
    "data_hash",
    "stereoset",
    "templates",
]
