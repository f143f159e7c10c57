"""How time and memory grow with the text, the model, the noise samples and the corpus.

    python analyses/speed/growth.py [--quick] [--rounds 3]

Random Llama models (fp32, one thread) of one size (4 layers, width 256; text of 24 words, 4 noise
samples, 64 texts), each size varied alone, in a process of its own: the processor's seconds of a
score, a trace, a harvest and plain ``transformers`` forward passes (median), and the memory that
they add at their peak. A slope is that of the logarithms, by least squares: 1 is proportional. Of
what has large fixed costs (here the unembedding) it is lower, so ``seconds_end`` has the slope
between the two largest sizes. Writes ``figures/speed/growth.csv``, ``growth_slopes.csv`` and
``growth.png``.

``ratio`` of the last line is that slope of the plain forward pass over a score's with the number of
layers, ``agreement`` how far a score's slope with the corpus is from 1.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from comparison import forget_peak, in_a_process, options, peak_mib, say
from models import random_llama
from plotly.subplots import make_subplots

import tracelab
from tracelab.figures import save_figures
from tracelab.figures.style import finish, look
from tracelab.localize.probing.harvest import group_token_ids, harvest
from tracelab.model.plain import plain_twin
from tracelab.model.tokens import encode, length_batches, pad

FOLDER = Path(__file__).parents[2] / "figures" / "speed"
BASE = {"layers": 4, "width": 256, "words": 24, "samples": 4, "texts": 64}
SIZES = {
    "layers": (4, 8, 16, 32),
    "width": (128, 256, 512, 1024),
    "words": (12, 24, 48, 96),
    "samples": (2, 4, 8, 16),
    "texts": (32, 64, 128, 256),
}
WORKS = dict.fromkeys(("plain", "score", "harvest"), ("layers", "width", "words", "texts"))
WORKS |= {"trace": ("layers", "width", "words", "samples")}
QUICK = {"layers": (4, 8), "texts": (32, 64)}
LABELS = {
    "layers": "layers",
    "width": "width of the model",
    "words": "words of a text",
    "samples": "noise samples",
    "texts": "texts",
}
FILLING = "and then they went on to the next house on the road by the old mill "


def words(count: int) -> str:
    """So many words."""
    return " ".join((FILLING * (count // 15 + 1)).split()[:count])


def measured(size: dict[str, int], rounds: int) -> dict[str, dict[str, float]]:
    """Seconds and MiB of each work at one size, in this process."""
    model = random_llama(layers=size["layers"], width=size["width"])
    texts = [f"{i} {words(size['words'])}" for i in range(size["texts"])]
    corpus = tracelab.datasets.templates("gender")
    own = corpus.prompts
    prompts = [replace(own[i % len(own)], id=str(i), text=text) for i, text in enumerate(texts)]
    corpus = replace(corpus, prompts=tuple(prompts))
    told = words(size["words"] - 6)
    pair = [(f"The nurse said {told} she was late.", f"The nurse said {told} she was fat.")]
    pair = tracelab.datasets.pairs(pair, bias="gender")
    plain = plain_twin(model.original_model)
    sequences = [encode(model, text).ids for text in texts]

    @torch.no_grad()
    def passes() -> None:
        for batch in length_batches(map(len, sequences), 1024):
            tokens, mask = pad(model, [sequences[i] for i in batch])
            plain(tokens, attention_mask=mask)

    def trace() -> None:
        tracelab.causal_trace(
            model,
            pair,
            components=("resid",),
            n_samples=size["samples"],
        )

    ways = {
        "plain": passes,
        "score": lambda: tracelab.score(model, texts),
        "harvest": lambda: harvest(model, corpus, group_token_ids(model, corpus)),
        "trace": trace,
    }
    found = {}
    for work, way in ways.items():
        forget_peak()
        before, taken = peak_mib(), []
        for _ in range(rounds + 1):
            began = time.process_time()
            way()
            taken.append(time.process_time() - began)
        found[work] = {"seconds": statistics.median(taken[1:]), "mib": peak_mib() - before}
    return found


def slope(sizes, values) -> float:
    """Of the logarithms, by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(values, 1e-3)), 1)[0])


def drawn(table: pd.DataFrame) -> go.Figure:
    """Seconds against each size, a curve a work."""
    figure = make_subplots(rows=2, cols=3, subplot_titles=[LABELS[a] for a in SIZES])
    for place, axis in enumerate(SIZES):
        row, col = divmod(place, 3)
        for number, work in enumerate(WORKS):
            part = table[(table["axis"] == axis) & (table["work"] == work)]
            if len(part):
                figure.add_scatter(
                    x=part["size"],
                    y=part["seconds"],
                    name=work,
                    legendgroup=work,
                    showlegend=place == (3 if work == "trace" else 0),
                    mode="lines+markers",
                    row=row + 1,
                    col=col + 1,
                    **look(number),
                )
        figure.update_xaxes(type="log", tickvals=SIZES[axis], row=row + 1, col=col + 1)
    figure.update_yaxes(type="log", title="seconds", tickvals=[0.1, 0.2, 0.5, 1, 2, 5])
    caption = (
        "random Llama models, 4 layers of width 256, 64 texts of 24 words, 4 noise samples; one "
        "size varied at a time; processor seconds, one thread, median; both axes logarithmic"
    )
    return finish(figure, "How time grows", caption, height=720)


def main() -> None:
    """Print a line a size, then the last line."""
    chosen = options(__doc__, rounds=3)
    if chosen.child:
        print(json.dumps(measured(json.loads(chosen.child), chosen.rounds)))
        return
    rows, known = [], {}
    for axis, values in (QUICK if chosen.quick else SIZES).items():
        for value in values:
            size = json.dumps(BASE | {axis: value})
            found = known[size] = known.get(size) or in_a_process(size)
            rows += [
                {"work": work, "axis": axis, "size": value, **found[work]}
                for work, axes in WORKS.items()
                if axis in axes
            ]
            print(size, found, flush=True)
    table = pd.DataFrame(rows)
    slopes = pd.DataFrame(
        [
            {
                "work": work,
                "axis": axis,
                "seconds": round(slope(part["size"], part["seconds"]), 2),
                "seconds_end": round(slope(part["size"][-2:], part["seconds"][-2:]), 2),
                "mib": round(slope(part["size"], part["mib"]), 2),
            }
            for (work, axis), part in table.groupby(["work", "axis"], sort=False)
        ]
    )
    print(slopes.to_string(index=False))
    if not chosen.quick:  # the folder is in the repository
        table.round(4).to_csv(FOLDER / "growth.csv", index=False)
        slopes.to_csv(FOLDER / "growth_slopes.csv", index=False)
        save_figures({"growth": drawn(table)}, FOLDER, formats=("png",))
    of = {(row.work, row.axis): row.seconds_end for row in slopes.itertuples()}
    ratio = round(of["plain", "layers"] / of["score", "layers"], 3)
    say(
        {
            "name": "growth",
            "ratio": ratio,
            "ratio_min": ratio,
            "ratio_max": ratio,
            "agreement": round(abs(1 - of["score", "texts"]), 3),
            "goal": round(1 / 1.1, 3),
            "slopes": {f"{work} by {axis}": value for (work, axis), value in of.items()},
            "command": " ".join(["python", *sys.argv]),
        }
    )


if __name__ == "__main__":
    main()
