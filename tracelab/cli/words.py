"""What can be named on the command line, said without loading what it names; a test compares
both."""

from __future__ import annotations

BENCHMARKS = (
    "stereoset",
    "stereoset-intersentence",
    "crows-pairs",
    "bbq",
    "winobias",
    "bold",
    "local-bias",
    "swap-consistency",
    "attention",
    "perplexity",
    "wikitext-2",
)
COMPARED = ("stereoset", "crows-pairs", "local-bias", "perplexity")
"""What ``compare`` measures unless it is told."""
LM_EVAL = "lm-eval/"
PAIRED = ("stereoset", "crows-pairs", "attention")
"""What can be measured on pairs of one's own."""
_STEREOSET = ("gender", "profession", "race", "religion")
FITTED = {
    "fairmed": (
        "age",
        "disability",
        "gender",
        "nationality",
        "physical_appearance",
        "profession",
        "race",
        "religion",
        "ses",
        "sexual_orientation",
    ),
    "experts": ("gender", "race", "religion", "orientation"),
    "biasedit": (*_STEREOSET, "all"),
    "klaad": (*_STEREOSET, "all"),
    "erasure": ("gender", "race", "religion", "orientation"),
}
"""Bias types that each method has data of."""
WORDED = "fairmed"
"""The method that is fitted on word lists; the others are on pairs."""
