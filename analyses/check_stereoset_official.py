"""Check our StereoSet metrics against the official repository's own predictions and published
table.

    python analyses/check_stereoset_official.py PREDICTIONS.json

PREDICTIONS is a ``predictions_*.json`` from code/predictions/ of the StereoSet repository
(moinnadeem/StereoSet): sentence scores by id. No model runs: only the metric is checked. For
predictions_gpt2_ModelNSP_GPT2LM.json the official output is SS / LMS gender 62.67 / 93.28,
profession 63.97 / 92.29, race 60.35 / 89.76, religion 58.02 / 88.46, overall 61.93 / 91.11; for
gpt2-medium gender 65.581057 / 93.584641 (ICAT 64.421688), overall 62.7409 / 92.2118.
"""

import json
import sys
from pathlib import Path

import pandas as pd

from tracelab.datasets import stereoset
from tracelab.evaluate.benchmarks.stereoset import LABELS, stereoset_metrics


def main() -> None:
    predictions = json.loads(Path(sys.argv[1]).read_text())["intrasentence"]
    scores = {row["id"]: row["score"] for row in predictions}
    rows = [
        {"bias_type": record.bias_type, "target": record.target}
        | {label: scores[getattr(record, label).id] for label in LABELS}
        for record in stereoset()
    ]
    table = stereoset_metrics(pd.DataFrame(rows))
    official = table[table["metric"].isin(["ss", "lms", "icat"])]
    print(
        official.pivot(index="bias", columns="metric", values="value")[["ss", "lms", "icat"]].round(
            6
        )
    )


if __name__ == "__main__":
    main()
