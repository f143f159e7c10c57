"""Benchmarks as frozen records: one file a benchmark, file in, records out."""

from tracelab.datasets.bbq import BBQItem, bbq, bbq_defects
from tracelab.datasets.bold import BoldText, bold, development_sentences, neutral_sentences
from tracelab.datasets.crows_pairs import CrowsPair, crows_pairs
from tracelab.datasets.gender_swap import gender_swapped, gender_twins
from tracelab.datasets.group_pairs import GroupPairs, group_pairs
from tracelab.datasets.own import pairs
from tracelab.datasets.records import Pair, Sentence
from tracelab.datasets.redditbias import (
    ExpertTexts,
    RedditBiasPhrase,
    counter_target,
    expert_texts,
    redditbias,
)
from tracelab.datasets.stereoset import StereoSetRecord, stereoset
from tracelab.datasets.templates import Corpus, bracketed, templates
from tracelab.datasets.wikitext import wikitext
from tracelab.datasets.winobias import WinoBiasPair, WinoBiasSentence, winobias
from tracelab.storage.data_hash import data_hash

__all__ = [
    "BBQItem",
    "BoldText",
    "Corpus",
    "CrowsPair",
    "ExpertTexts",
    "GroupPairs",
    "Pair",
    "RedditBiasPhrase",
    "Sentence",
    "StereoSetRecord",
    "WinoBiasPair",
    "WinoBiasSentence",
    "bbq",
    "bbq_defects",
    "bold",
    "bracketed",
    "counter_target",
    "crows_pairs",
    "data_hash",
    "development_sentences",
    "expert_texts",
    "gender_swapped",
    "gender_twins",
    "group_pairs",
    "neutral_sentences",
    "pairs",
    "redditbias",
    "stereoset",
    "templates",
    "wikitext",
    "winobias",
]
