"""Classifiers of text from the model hub or a local folder, asked before anything costly whether
they are there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Float
from transformers import pipeline

from tracelab.errors import TracelabError
from tracelab.model.loading import why_not
from tracelab.model.texts import Texts, as_texts

BATCH_SIZE = 32


@dataclass(frozen=True)
class Classifier:
    """A loaded classifier; ``labels`` are its own, in lower case, in the order of its outputs."""

    name: str
    labels: tuple[str, ...]
    pipe: Any

    def probabilities(self, texts: Texts) -> Float[np.ndarray, "texts labels"]:
        """Probability of each label for each text."""
        rows = []
        for found in self.pipe(as_texts(texts), batch_size=BATCH_SIZE):
            by_label = {entry["label"].lower(): entry["score"] for entry in found}
            rows.append([by_label[label] for label in self.labels])
        return np.array(rows, dtype=np.float64).reshape(-1, len(self.labels))


def load_classifier(name_or_path: str | Path, *, what: str) -> Classifier:
    """Load a text classifier of ``transformers``, the source of the ``what`` of an error message.

    Raises:
        TracelabError: no such folder, no way to reach the hub, or a model that does not classify
            texts.
    """
    folder = Path(name_or_path).expanduser()
    local = folder.is_dir()
    try:
        pipe = pipeline(
            "text-classification",
            model=str(folder if local else name_or_path),
            top_k=None,
            truncation=True,
            trust_remote_code=False,
        )
    except (
        Exception
    ) as error:  # a hub out of reach and a broken file surface as whatever their readers raise
        reason = why_not(error, remote_code="no classifier's is.")
        raise TracelabError(
            f"the {what} classifier {str(name_or_path)!r} is not available here: {reason} "
            "Give a local folder as classifier="
        ) from error
    labels = cast(dict[int, str], pipe.model.config.id2label)
    name = folder.name if local else str(name_or_path)
    return Classifier(name, tuple(labels[index].lower() for index in sorted(labels)), pipe)
