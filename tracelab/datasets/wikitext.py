"""WikiText-2 (Merity et al., 2017): Wikipedia articles, on which papers report perplexity.

The word-level release, with ``<unk>`` for rare words and spaces around punctuation. It is on no
package index, so it comes from the hub or from a file of yours. Licence of the data: CC BY-SA 3.0.
"""

from __future__ import annotations

from pathlib import Path

from tracelab.datasets.records import Records
from tracelab.datasets.sources import file_at, is_named, lines_of, text_of
from tracelab.errors import TracelabError, require_choice
from tracelab.ranges import require_whole_limit

HUB_ID = "Salesforce/wikitext"
SPLITS = ("test", "validation", "train")


def wikitext(
    split: str = "test", *, source: str | Path = "hub", limit: int | None = None
) -> list[str]:
    """Lines of WikiText-2: paragraphs, headings and the empty lines between them.

    Args:
        split: one of :data:`SPLITS`, of the hub's copy.
        source: ``"hub"`` or a path to one split's file (``wiki.test.tokens``), or to the folder of
            it.
        limit: at most so many lines: the first. Elsewhere a limit subsamples the file, but
            perplexity is of running text, whose lines follow each other.

    Raises:
        TracelabError: unknown split, a file that is not there or not text, a hub out of reach, or
            no text.
    """
    require_choice("split", split, SPLITS)
    if is_named(source, "hub"):
        lines = _hub(split)
    else:
        path = file_at(source, "WikiText", inside=f"wiki.{split}.tokens")
        lines = lines_of(text_of(path))
    limit = require_whole_limit(limit)
    most = None if limit is None else max(limit, 0)
    lines = [line if line.strip() else "" for line in lines[:most]]  # as the hub's copy has them
    if not any(lines):
        raise TracelabError(f"no text in WikiText (source={str(source)!r}, limit={limit})")
    return Records(lines)


def _hub(split: str) -> list[str]:
    from datasets import load_dataset  # seconds, which reading a file does not take

    try:
        return list(load_dataset(HUB_ID, "wikitext-2-v1", split=split)["text"])
    except (OSError, ValueError, RuntimeError) as error:
        raise TracelabError(
            f"cannot load {HUB_ID} from the hub: {error} Give a file as source"
        ) from error
