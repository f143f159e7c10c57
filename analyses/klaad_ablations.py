"""What each of KLAAD's losses does to attention, to association, and to text that has nothing to do
with it.

    python analyses/klaad_ablations.py [--only ROW …] [--steps 12] [--records 60] [--out FILE.csv]

Every row is a fit of the same number of steps on gender records of 20 of StereoSet `test`'s 30
target terms, its last state, measured on records of the other ten that have a gender-swapped twin
(bf16). Differences to the unedited model are paired; intervals are over target terms and records in
them (attention: over pairs). No state is chosen and the official set is not read.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

import tracelab
from tracelab import KLAAD, KLAADConfig
from tracelab.datasets import development_sentences, gender_twins, stereoset
from tracelab.datasets.records import subsample
from tracelab.evaluate import attention_scores, stereoset_scores
from tracelab.interventions.drift import drift
from tracelab.statistics import mean_interval, percentile_interval, two_stage_means

OUT = Path(__file__).parents[1] / "figures/05_klaad_ablations.csv"
MEAN, BATCHMEAN = ({"reduction": reduction} for reduction in ("mean", "batchmean"))


def lams(language: float, attention: float, triplet: float) -> dict[str, float]:
    return {"lam1": language, "lam2": attention, "lam3": triplet}


UPPER = range(20, 30)
VARIANTS = {
    "CE only": (lams(1, 0, 0), None),
    "CE only, anti-stereotype": (lams(1, 0, 0) | {"language_on": "anti_stereotype"}, None),
    "attention only, mean": (lams(0, 1, 0) | MEAN, None),
    "attention only, batchmean": (lams(0, 1, 0) | BATCHMEAN, None),
    "attention only, batchmean, layers 20-29": (lams(0, 1, 0) | BATCHMEAN, UPPER),
    "attention only, batchmean, last q and k": (
        lams(0, 1, 0) | BATCHMEAN | {"trainable": "attn_last"},
        None,
    ),
    "full, mean": (lams(0.7, 0.15, 0.15) | MEAN, None),
    **{
        f"full, batchmean, lam2 = {lam2:g}": (lams(0.7, lam2, 0.15) | BATCHMEAN, None)
        for lam2 in (0, 0.1, 1, 10, 100)
    },
}


class Measure:
    """Figures of held-out records, a column a record, under any edit."""

    def __init__(self, model, records, twins, texts):
        self.model, self.records, self.twins, self.texts = model, records, twins, texts

    def __call__(self, edit=None) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, float]]:
        """Records, pairs of which attention is compared, and neutral text."""
        with (edit or tracelab.Stack([])).applied(self.model):
            own, other = (
                stereoset_scores(self.model, each).sentences for each in (self.records, self.twins)
            )
            pairs = attention_scores(self.model, [r.pair() for r in self.records[::2]]).pairs
        gap = own["stereotype"] - own["anti_stereotype"]
        swapped = other["anti_stereotype"] - other["stereotype"]
        likelier = [own[label] > own["unrelated"] for label in ("stereotype", "anti_stereotype")]
        found = pd.DataFrame(
            {
                "gap": gap,
                "gap_group": (gap - swapped) / 2,
                "gap_blind": (gap + swapped) / 2,
                "ss": 100.0 * (gap > 0),
                "lms": 50.0 * (likelier[0].astype(float) + likelier[1]),
            }
        )
        moved = drift(self.model, edit or tracelab.Stack([]), self.texts)
        return (
            found.assign(target=own["target"]),
            pairs[["sensitive", "other"]].add_prefix("attention_"),
            {"kl": moved.kl, "perplexity_change": moved.perplexity_change},
        )


def rows(before, after) -> list[dict]:
    """A row a metric: value, difference to the unedited model, interval of the difference."""
    made = []
    targets = before[0]["target"]
    for old, new in zip(before[:2], after[:2], strict=True):
        for metric in (name for name in old if name != "target"):
            change = (new[metric] - old[metric]).to_numpy(float)
            value, difference = new[metric].mean(), change.mean()
            if "target" in old:
                groups = [change[(targets == term).to_numpy(), None] for term in targets.unique()]
                means = new[metric].groupby(targets).mean()
                value, difference = means.mean(), np.mean([group.mean() for group in groups])
                low, high = percentile_interval(two_stage_means(groups)[:, 0])
            else:
                low, high = mean_interval(change)
            if not change.any():  # no record moved: that is no interval
                low = high = float("nan")
            figures = {"value": value, "difference": difference, "low": low, "high": high}
            made.append({"metric": metric, **figures, "n": len(change)})
    return made + [{"metric": name, "value": value} for name, value in after[2].items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--records", type=int, default=60)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--only", nargs="*", help="names of rows; others stay in the file")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()

    model = tracelab.load(dtype="bfloat16")
    records = stereoset("gender", split="test")
    held_terms = set(sorted({record.target for record in records})[::3])
    train = [record for record in records if record.target not in held_terms]
    train = subsample(train, given.steps * given.batch_size)
    pairs = gender_twins([record for record in records if record.target in held_terms])
    held = subsample(pairs, given.records)
    texts = development_sentences("choose", 16)
    measure = Measure(model, *map(list, zip(*held, strict=True)), texts)

    before = measure()
    size = {"steps": given.steps, "n_train": len(train), "lr": given.lr}
    table = [{"edit": "unedited", **row} for row in rows(before, before)]
    if given.only and given.out.exists():
        old = pd.read_csv(given.out)
        table += old[~old["edit"].isin(["unedited", *given.only])].to_dict("records")
    for name, (changes, layers) in VARIANTS.items():
        if given.only and name not in given.only:
            continue
        config = KLAADConfig(
            **{"lr": given.lr, "batch_size": given.batch_size, "eval_every": given.steps},
            **{"choose": "loss", "max_kl": 1e9, "max_lms_loss": 100.0, **changes},
        )
        # looked at on what it is trained on, which falls: the last state is kept
        edit = KLAAD.fit(model, train, config, layers=layers and list(layers), dev=train[:8])
        looks = [row for row in edit.notes["curves"] if row["split"] == "dev"]
        told = {
            f"{part}_start": looks[0][f"grad_{part}"] for part in ("ce", "attention", "triplet")
        }
        told |= size | {"kept": min(looks, key=lambda row: row["score"])["step"]}
        found = [{"edit": name, **row, **changes, **told} for row in rows(before, measure(edit))]
        table += found
        shown = pd.DataFrame(found)[["metric", "value", "difference", "low", "high"]]
        print(name, shown.round(4).to_string(index=False), sep="\n", flush=True)
        pd.DataFrame(table).to_csv(given.out, index=False, float_format="%.6g")


if __name__ == "__main__":
    main()
