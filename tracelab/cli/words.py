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
