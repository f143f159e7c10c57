"""What BOS changes in causal tracing: is the first token's noise about the group it names?

    python analyses/trace_bos.py [--pairs 40] [--samples 3] [--layer-step 5] [--out figures]

Without BOS the sentence's first token is the attention sink, and in StereoSet's gender records the
attribute word often is that token. Pairs of ``test`` of both kinds (the first token is noised, or
later ones only), half and half, are measured with BOS and without:

- *total effects* of the same noise on the attribute words, and, as controls, on a token that names
  no group: ``first`` (the sentence's first), ``bos``, and ``neutral`` (a later one before the
  filler);
- how the total effects of the same pairs agree with BOS and without (Pearson's r);
- *profiles*: NIE by component, role and layer of each kind, of half of the pairs, and how those of
  the two kinds agree (Pearson's r over all states).

Written to ``trace_bos.csv``; intervals are 95 % bootstrap over pairs.
"""

import argparse
import random
from pathlib import Path

import pandas as pd
import torch

import tracelab
from tracelab.localize.tracing.cases import Case, make_cases
from tracelab.localize.tracing.fast import fast_traces
from tracelab.localize.tracing.noise import attribute_embedding_std
from tracelab.localize.tracing.result import effect_table
from tracelab.localize.tracing.sentence import Noise, TracedSentence, TracedStates
from tracelab.model.partial_forward import BlockRunner
from tracelab.statistics import mean_interval

COMPONENTS = ("resid", "mlp")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=40, help="of each kind")
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--layer-step", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("figures"))
    options = parser.parse_args()
    model = tracelab.load(dtype="bfloat16")
    records = tracelab.datasets.stereoset("gender", split="test")
    kinds = _kinds(make_cases(model, records, prepend_bos=False)[0], options.pairs)
    rows, effects = [], {}
    for bos in (False, True):
        cases, _ = make_cases(model, records, prepend_bos=bos)
        std = 3.0 * attribute_embedding_std(model, cases)
        chosen = [case for case in cases if case.id in kinds]
        found = _total_effects(model, chosen, std, options.samples, bos)
        found["kind"] = found["case"].map(kinds)
        effects[bos] = found[found["noised"] == "attribute"].set_index("case")
        for (kind, noised), part in found.groupby(["kind", "noised"]):
            for quantity, values in (
                ("te", part["te"]),
                ("|te|", part["te"].abs()),
                ("|gap| clean", part["high"].abs()),
                ("log p clean", part["clean"]),
            ):
                value = (values.mean(), *mean_interval(values.to_numpy(float)), len(values))
                rows.append((bos, kind, noised, quantity, "", -1, *value))
        for kind in ("first", "later"):
            ids = [key for key in kinds if kinds[key] == kind][: options.pairs // 2]
            trace = tracelab.causal_trace(
                model,
                [record for record in records if record.id in ids],
                components=COMPONENTS,
                layers=range(0, model.cfg.n_layers, options.layer_step),
                n_samples=options.samples,
                noise_std=std,
                prepend_bos=bos,
                run="fast",
            )
            for row in effect_table(trace.cases, trace.states).to_dict("records"):
                value = (row["nie"], row["nie_low"], row["nie_high"], row["n_nie"])
                rows.append((bos, kind, row["role"], "nie", row["component"], row["layer"], *value))
    for kind, part in effects[False].groupby("kind"):
        r = part["te"].corr(effects[True].loc[part.index, "te"])
        rows.append(("both", kind, "attribute", "r(te)", "", -1, r, None, None, len(part)))
    rows += _agreement(rows)
    names = ["bos", "kind", "noised_or_role", "quantity", "component", "layer"]
    table = pd.DataFrame(rows, columns=[*names, "value", "low", "high", "n"])
    table.round(4).to_csv(options.out / "trace_bos.csv", index=False)


def _kinds(cases: list[Case], n: int) -> dict[str, str]:
    """So many ids of each kind, drawn by a seed."""
    kinds = {}
    for kind in ("first", "later"):
        ids = [case.id for case in cases if (case.noised[0] == 0) == (kind == "first")]
        kinds |= dict.fromkeys(random.Random(0).sample(ids, n), kind)
    return kinds


def _agreement(rows: list[tuple]) -> list[tuple]:
    found = []
    for bos in (False, True):
        profiles = (
            pd.Series({(*row[4:6], row[2]): row[6] for row in rows if row[:2] == (bos, kind)})
            for kind in ("first", "later")
        )
        first, later = (profile[profile.index.get_level_values(1) >= 0] for profile in profiles)
        found.append((bos, "both", "", "r(nie)", "", -1, first.corr(later), None, None, len(first)))
    return found


def _total_effects(model, cases, std, n_samples, bos) -> pd.DataFrame:
    runner, rows = BlockRunner(model), []
    for number, case in enumerate(cases):
        sentence = range(int(bos), case.first)
        neutral = [c for c in sentence[1:] if case.roles[c] == "other"]
        where = {"attribute": case.noised}
        if sentence[0] not in case.noised:
            where["first"] = (sentence[0],)
        if bos:
            where["bos"] = (0,)
        if neutral:
            where["neutral"] = (random.Random(number).choice(neutral),)
        for noised, columns in where.items():
            shape = (n_samples, len(columns), model.cfg.d_model)
            values = std * torch.randn(shape, generator=torch.Generator().manual_seed(number))
            sentences = [
                TracedSentence(
                    torch.tensor(encoding.ids),
                    Noise(tuple(case.columns[c][side] for c in columns), values),
                    positions=[],
                )
                for side, encoding in enumerate((case.stereotype, case.anti_stereotype))
            ]
            stereo, anti = fast_traces(
                runner, sentences, case.first, TracedStates([0], components=[], window=1)
            )
            high, low = stereo.clean - anti.clean, stereo.corrupted - anti.corrupted
            rows.append((case.id, noised, high, high - low, (stereo.clean + anti.clean) / 2))
    return pd.DataFrame(rows, columns=["case", "noised", "high", "te", "clean"])


if __name__ == "__main__":
    main()
