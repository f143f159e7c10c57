"""A cache folder in which everything is small: for examples that run as a user types them.

``tracelab.load()`` finds a random model of three layers in it, with the commonest tokens of the
embedded model's tokenizer, and ``tracelab.datasets`` every n-th record of the embedded benchmarks.
Nothing of tracelab is replaced: it reads other files.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tests.tiny import tiny_hf
from tracelab.model import assets
from tracelab.storage.cache import write_checksums

LAYERS = 3
"""BiasEdit's default edits the last three."""
TOKENS = 8192
"""Most of a tiny model's time goes into logits."""


def make_small_cache(folder: Path) -> Path:
    """Fill an empty folder; ``TRACELAB_CACHE`` set to it makes it the cache."""
    _model(assets.model_dir(), folder / assets.MODEL.folder)
    _data(assets.data_dir(), folder / assets.DATA.folder)
    return folder


def _model(source: Path, folder: Path) -> None:
    small = {"num_hidden_layers": LAYERS, "max_position_embeddings": 2048}
    tiny_hf("llama", TOKENS, **small).save_pretrained(folder)
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(source / name, folder)
    tokenizer = json.loads((source / "tokenizer.json").read_text("utf-8"))
    bpe = tokenizer["model"]
    bpe["vocab"] = {token: number for token, number in bpe["vocab"].items() if number < TOKENS}
    # Merges are in the order of what they make, so a beginning of them is a tokenizer too.
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in bpe["merges"])
    bpe["merges"] = [pair for pair in pairs if "".join(pair) in bpe["vocab"]]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    write_checksums(folder)


def _data(source: Path, folder: Path) -> None:
    for name in ("BOLD", "WinoBias"):
        shutil.copytree(source / name / "data", folder / name / "data")
    for split, terms in (("dev", 2), ("test", 5)):
        _thin(
            source,
            folder,
            f"StereoSet/data/{split}.json",
            partial(_stereoset, n_terms=terms),
        )
    _thin(source, folder, "StereoSet/data/bias_attribute_words.json", str)
    _thin(source, folder, "CrowS-Pairs/data/crows_pairs_anonymized.csv", _crows_pairs)
    _thin(source, folder, "BBQ/data/additional_metadata.csv", str)
    for file in (source / "BBQ/data").glob("*.jsonl"):
        _thin(source, folder, f"BBQ/data/{file.name}", lambda text: "".join(_blocks(text, 4)))
    for file in (source / "RedditBias/data").glob("*/*_reduced.csv"):
        _thin(source, folder, file.relative_to(source).as_posix(), lambda text: _rows(text, 8))
    for file in (source / "RedditBias/data").glob("*/*_annotated.csv"):
        _thin(source, folder, file.relative_to(source).as_posix(), lambda text: _rows(text, 60))
    write_checksums(folder)


def _thin(source: Path, folder: Path, name: str, thin: Callable[[str], str]) -> None:
    """Copy a file with fewer records. Bytes are kept as they are, whatever their encoding."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    text = (source / name).read_bytes().decode("latin-1")
    (folder / name).write_bytes(thin(text).encode("latin-1"))


def _spread(items: Sequence[Any], n: int) -> list[Any]:
    step = max(1, len(items) // n)
    return list(items[::step][:n])


def _stereoset(text: str, n_terms: int) -> str:
    """Two records of each of some target terms of each bias type."""
    content = json.loads(text.encode("latin-1"))
    for task, records in content["data"].items():
        chosen = []
        for bias in sorted({record["bias_type"] for record in records}):
            of_bias = [record for record in records if record["bias_type"] == bias]
            terms = _spread(sorted({record["target"] for record in of_bias}), n_terms)
            for term in terms:
                chosen += [record for record in of_bias if record["target"] == term][:2]
        content["data"][task] = chosen
    return json.dumps(content)  # ASCII


def _table(text: str) -> tuple[list[str], list[list[str]]]:
    header, *rows = csv.reader(io.StringIO(text, newline=""))
    return header, rows


def _text(header: list[str], rows: Iterable[list[str]]) -> str:
    out = io.StringIO(newline="")
    csv.writer(out).writerows([header, *rows])
    return out.getvalue()


def _rows(text: str, n: int) -> str:
    header, rows = _table(text)
    return _text(header, _spread(rows, n))


def _crows_pairs(text: str) -> str:
    header, rows = _table(text)
    kind = header.index("bias_type")
    kinds = sorted({row[kind] for row in rows})
    return _text(header, (r for k in kinds for r in _spread([r for r in rows if r[kind] == k], 12)))


def _blocks(text: str, n: int) -> list[str]:
    """Whole blocks of BBQ: four lines that follow each other."""
    lines = text.splitlines(keepends=True)
    blocks = ["".join(lines[k : k + 4]) for k in range(0, len(lines), 4)]
    return _spread(blocks, n)
