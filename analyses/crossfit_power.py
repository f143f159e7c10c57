"""How much narrower is an edit's interval over all target terms than over `dev`'s ten?

Erasure of gender with its defaults: its effect on `dev`, on `test` cross-fitted (each term by a
fit that has not seen it), and on both. Writes figures/crossfit_power.csv; about six minutes of one
core.

    python analyses/crossfit_power.py
"""

from pathlib import Path

import pandas as pd

import tracelab
from tracelab import Erasure
from tracelab.evaluate.crossfit import HeldOut, folds_of
from tracelab.evaluate.crossfit import with_sentences as scores_of
from tracelab.evaluate.paired import paired

METRICS = ["gap_group", "gap", "gap_blind", "ss", "lms"]


def main() -> None:
    model = tracelab.load(dtype="bfloat16")
    held = HeldOut(model, folds_of("gender", splits=("test", "dev")))
    edits = held.fit(Erasure, "gender", Erasure.Config())
    after = held.score(edits)
    on_dev = held.before.sentences["id"].isin([record.id for record in held.folds[-1].records])
    rows = []
    for name, chosen in {"dev": on_dev, "test": ~on_dev, "test + dev": on_dev | True}.items():
        before, edited = (
            scores_of(held.before, scores.sentences[chosen].reset_index(drop=True), edit)
            for scores, edit in ((held.before, "unedited"), (after, "erasure"))
        )
        table = paired(before, edited)
        terms = held.before.sentences.loc[chosen, "target"].nunique()
        rows.append(table[table["metric"].isin(METRICS)].assign(records_of=name, terms=terms))
    found = pd.concat(rows)
    width = found["high"] - found["low"]
    of_dev = width[found["records_of"] == "dev"].to_numpy()
    found = found.assign(width=width, of_dev=width / [*of_dev, *of_dev, *of_dev])
    found.to_csv(Path(__file__).parent.parent / "figures/crossfit_power.csv", index=False)
    columns = ["records_of", "metric", "n", "terms", "difference", "low", "high", "p", "of_dev"]
    print(found[columns].round(4).to_string(index=False))


if __name__ == "__main__":
    main()
