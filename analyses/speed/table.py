"""The last lines of the other scripts, as one table and one picture.

    python analyses/speed/probing.py | tee probing.log
    python analyses/speed/table.py probing.log [more.log …]

Puts each comparison into ``figures/speed/speed.csv``, in the place of an earlier one of its name,
draws ``figures/speed/speed.png``, and prints the rows of the table in ``docs/speed.md``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from tracelab.figures import save_figures
from tracelab.figures.style import BLUE, GREY, ORANGE, finish

FOLDER = Path(__file__).parents[2] / "figures" / "speed"
COLUMNS = ["name", "goal", "ratio", "ratio_min", "ratio_max", "cpu_ratio", "agreement", "command"]


def comparisons(log: Path) -> list[dict]:
    """Of the last line of what a script printed."""
    facts = json.loads(log.read_text().rstrip().splitlines()[-1])
    found = [facts, *facts.pop("more", [])]
    return [{name: each.get(name) for name in COLUMNS} for each in found]


def row(facts: pd.Series) -> str:
    """Of the table in the documentation; a ratio below 1 is told as the cost too."""

    def number(value: float) -> str:
        return f"{value:.2f}" if value < 10 else f"{value:.1f}"

    goal, ratio = number(facts["goal"]), number(facts["ratio"])
    if facts["goal"] < 1:
        goal += f" (cost {1 / facts['goal']:.3g})"
        ratio += f" (cost {1 / facts['ratio']:.2f})"
    spread = f"[{number(facts['ratio_min'])}, {number(facts['ratio_max'])}]"
    cpu = "" if pd.isna(facts["cpu_ratio"]) else number(facts["cpu_ratio"])
    met = "yes" if facts["ratio"] >= facts["goal"] else "no"
    agreement = facts["agreement"]  # a difference, or of attribution a correlation
    agreement = f"{agreement:.1g}" if agreement < 0.1 else f"{agreement:.2f}"
    return f"| `{facts['name']}` | {goal} | {ratio} {spread} | {cpu} | {agreement} | {met} |"


def drawn(table: pd.DataFrame) -> go.Figure:
    """Each ratio over its goal, on a logarithmic axis."""
    table = table.iloc[::-1]
    share = table[["ratio", "ratio_min", "ratio_max"]].div(table["goal"], axis=0)
    met = share["ratio"] >= 1
    figure = go.Figure()
    for name, colour, symbol, rows in (
        ("met", BLUE, "circle", met),
        ("missed", ORANGE, "diamond", ~met),
    ):
        part = share[rows]
        figure.add_scatter(
            x=part["ratio"],
            y=table["name"][rows],
            mode="markers",
            name=name,
            marker={"color": colour, "symbol": symbol, "size": 9},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": part["ratio_max"] - part["ratio"],
                "arrayminus": part["ratio"] - part["ratio_min"],
                "color": colour,
            },
        )
    figure.add_vline(x=1, line_color=GREY, line_dash="dash")
    figure.update_xaxes(
        type="log",
        tickvals=[0.125, 0.25, 0.5, 1, 2, 4, 8],
        title="ratio measured over the ratio aimed at",
    )
    figure.update_yaxes(categoryorder="array", categoryarray=list(table["name"]))
    caption = (
        "median, smallest and largest over the rounds; one thread of a machine that did other work"
    )
    title = "How fast, beside what was aimed at"
    return finish(figure, title, caption, height=230 + 24 * len(table))


def main() -> None:
    """Merge, draw, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("logs", type=Path, nargs="*", help="what scripts printed")
    file = FOLDER / "speed.csv"
    rows = {}
    if file.is_file():
        rows = {facts["name"]: facts for facts in pd.read_csv(file).to_dict("records")}
    for log in parser.parse_args().logs:
        rows |= {facts["name"]: facts for facts in comparisons(log)}
    table = pd.DataFrame(rows.values(), columns=COLUMNS).sort_values("name", ignore_index=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    table.to_csv(file, index=False)
    save_figures({"speed": drawn(table)}, FOLDER, formats=("png",))
    print("\n".join(table.apply(row, axis=1)))


if __name__ == "__main__":
    main()
