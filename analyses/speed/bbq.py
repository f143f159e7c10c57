"""How much faster BBQ is scored when a prompt is run once for all its answers, on the embedded
model.

    python analyses/speed/bbq.py [--items 24] [--repeats 3] [--bias gender]

Both ways run in turn in this process on the same items: whole sequences (each answer with its
prompt before it), and the prompt once, its keys and values given to every answer. Prints, a format,
the tokens that the model is given, the seconds (medians), the ratio of each repeat (smallest,
median, largest) and the largest difference of an answer's log-probability. The more and the shorter
the answers are beside the prompt, the larger the ratio; on a machine that does other work too it
varies widely.
"""

import argparse
import statistics
import time

import numpy as np

import tracelab
from tracelab.evaluate.benchmarks.bbq import FORMATS, choice_scores
from tracelab.model.continuations import encode_continuations


def tokens(model, items, format) -> tuple[int, int]:
    """Tokens of whole sequences, and with the prompt once."""
    made = [
        encode_continuations(model, format.prompt(i), [text for _, text in format.choices(i)])
        for i in items
    ]
    whole = sum(len(ids) for prompt in made for ids in prompt.sequences)
    saved = sum(prompt.shared * (len(prompt.sequences) - 1) for prompt in made)
    return whole, whole - saved


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--items", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--bias", default="gender")
    options = parser.parse_args()
    model = tracelab.load()
    items = tracelab.datasets.bbq(options.bias, limit=options.items)
    print(
        "format   items  plain_tokens  shared_tokens  plain_s  shared_s  ratio (min, median, max)  "
        "max_difference"
    )
    for name, format in FORMATS.items():
        seconds, scores = {True: [], False: []}, {}
        for share in [True, False] * options.repeats:
            started = time.perf_counter()
            scores[share] = choice_scores(
                model, items, format, normalisation="sum", prepend_bos=False, share_prefix=share
            )
            seconds[share].append(time.perf_counter() - started)
        plain, shared = (statistics.median(seconds[share]) for share in (False, True))
        ratios = sorted(a / b for a, b in zip(seconds[False], seconds[True], strict=True))
        difference = max(
            np.abs(a - b).max() for a, b in zip(scores[True], scores[False], strict=True)
        )
        whole, once = tokens(model, items, format)
        spread = f"{ratios[0]:6.2f} {statistics.median(ratios):8.2f} {ratios[-1]:8.2f}"
        print(
            f"{name:7}  {len(items):5}  {whole:12}  {once:13}  {plain:7.1f}  {shared:8.1f}  "
            f"{spread}  {difference:.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
