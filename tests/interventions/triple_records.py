"""StereoSet-like records made on the spot, and tiny models whose vocabulary is their words.

Training on triples computes softmaxes over the whole vocabulary again and again; with a hundred
words it takes no time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.tiny import tiny_hf
from tracelab.datasets.records import Sentence
from tracelab.datasets.spans import filler_spans, find_words
from tracelab.datasets.stereoset import StereoSetRecord
from tracelab.model.load import from_hf

CONTEXTS = (
    "The {} is BLANK.",
    "Everyone at the station said that the {} was BLANK and left.",
    "My BLANK neighbour, a {}, came late",
    "A {} can be very BLANK on a long day at work!",
    "{} people: BLANK.",
)
FILLERS = (
    ("lazy", "diligent", "triangular"),
    ("extraordinarily rude", "kind", "of"),
    ("loud", "quiet", "uncoiled"),
    ("poor", "rich and well known", "banana"),
)
TARGETS = ("nurse", "plumber", "Norwegian", "schoolgirl", "grandfather", "engineer", "Ethiopian")
OTHER_TARGETS = ("Peruvian", "baker", "uncle")


def record(
    context: str, *fillers: str, number: int = 0, bias: str = "race", target: str = "them"
) -> StereoSetRecord:
    """An intrasentence record from its context and its stereotypical, anti-stereotypical and
    unrelated filler."""
    texts = [context.replace("BLANK", filler) for filler in fillers]
    sentences = [
        Sentence(f"{number}-{i}", text, filler_spans(context, text), find_words(text, [target]))
        for i, text in enumerate(texts)
    ]
    return StereoSetRecord(str(number), "intrasentence", bias, target, context, *sentences)


def records(
    n: int, *, start: int = 0, targets: tuple[str, ...] = TARGETS, bias: str = "race"
) -> list[StereoSetRecord]:
    """``n`` different records of several lengths; two in a row never have one target, if there are
    several."""
    made = []
    for i in range(start, start + n):
        target = targets[i % len(targets)]
        context = CONTEXTS[(i // 2) % len(CONTEXTS)].format(target)
        made.append(
            record(context, *FILLERS[(i // 3) % len(FILLERS)], number=i, bias=bias, target=target)
        )
    return made


def save_word_tokenizer(folder: Path) -> int:
    """Save a tokenizer of the records' words and signs, which adds no BOS; returns the size of its
    vocabulary."""
    texts = [
        *CONTEXTS,
        *TARGETS,
        *OTHER_TARGETS,
        *(filler for fillers in FILLERS for filler in fillers),
    ]
    split = Whitespace()
    words = sorted({word for text in texts for word, _ in split.pre_tokenize_str(text)})
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return len(vocabulary)


def word_hf(kind: str, folder: Path) -> Any:
    """A plain ``transformers`` model for the saved tokenizer; the same one at each call."""
    return tiny_hf(kind, len(AutoTokenizer.from_pretrained(folder)))


def word_model(kind: str, folder: Path) -> TransformerBridge:
    """The same model as a bridge."""
    return from_hf(
        word_hf(kind, folder), AutoTokenizer.from_pretrained(folder), model_id=f"tiny-{kind}"
    )
