"""Benchmarks as frozen records: one file a benchmark, file in, records out."""

from tracelab.datasets.crows_pairs import CrowsPair, crows_pairs
from tracelab.datasets.records import Pair, Sentence, data_hash
from tracelab.datasets.stereoset import StereoSetRecord, stereoset

__all__ = [
    "CrowsPair",
    "Pair",
    "Sentence",
    "StereoSetRecord",
    "crows_pairs",
    "data_hash",
    "stereoset",
]
