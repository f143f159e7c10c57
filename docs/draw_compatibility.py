"""Tries every capability on every architecture and writes down what became of it.

    python -m docs.draw_compatibility

``figures/compatibility.csv`` has a row a family and capability, and the table of
``docs/compatibility.md`` is made from it. ``tests/test_compatibility.py`` holds both to what
happens.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "figures/compatibility.csv"
PAGE = ROOT / "docs/compatibility.md"
YES = "yes"
MODEL_COLUMNS = {
    "load": "loads",
    "probe_layers": "`probe_layers`",
    "causal_trace": "`causal_trace`",
    "attention_gap": "`attention_gap`",
}
METHOD_COLUMNS = {
    "erasure": "Erasure",
    "biasedit": "BiasEdit",
    "experts": "Experts",
    "fairmed": "FairMed",
    "klaad": "KLAAD",
}
_BEGIN, _END = "<!-- made by docs/draw_compatibility.py -->\n", "<!-- to here -->\n"


def read() -> pd.DataFrame:
    """The table: family, models, capability, outcome ("yes", or the sentence of the refusal)."""
    return pd.read_csv(TABLE)


def in_the_page(table: pd.DataFrame) -> str:
    """The page with its table and its list of refusals made from this table."""
    page = PAGE.read_text("utf-8")
    before, _, rest = page.partition(_BEGIN)
    return before + _BEGIN + _markdown(table) + _END + rest.partition(_END)[2]


def cell(outcomes: Mapping[str, str]) -> str:
    """What stands in the table for some capabilities: yes, no, or what is refused of them."""
    refused = [name for name, outcome in outcomes.items() if outcome != YES]
    if not refused:
        return YES
    return "no" if len(refused) == len(outcomes) else f"no {', '.join(refused)}"


def _markdown(table: pd.DataFrame) -> str:
    columns = ["architecture", *MODEL_COLUMNS.values(), *METHOD_COLUMNS.values()]
    lines = ["", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    refusals = []
    for (_, models), rows in table.groupby(["family", "models"], sort=False):
        outcomes = dict(zip(rows["capability"], rows["outcome"], strict=True))
        cells = [cell({name: outcomes[name]}) for name in MODEL_COLUMNS]
        cells += [cell(_of_method(outcomes, kind)) for kind in METHOD_COLUMNS]
        lines.append(f"| {' | '.join([models, *cells])} |")
        said: dict[str, list[str]] = {}
        for name, outcome in outcomes.items():
            if outcome != YES:
                said.setdefault(outcome, []).append(name)
        refusals += [
            f"- **{models}**, {_shortened(names)}: *{_escaped(outcome)}*"
            for outcome, names in said.items()
        ]
    return "\n".join([*lines, "", "What is said where it is refused:", "", *refusals, "", ""])


def _of_method(outcomes: Mapping[str, str], kind: str) -> dict[str, str]:
    start = f"{kind}: "
    return {n.removeprefix(start): o for n, o in outcomes.items() if n.startswith(start)}


def _shortened(names: list[str]) -> str:
    """Capabilities of methods, each method named once; one that cannot be fitted by its name."""
    of_methods: dict[str, list[str]] = {}
    for name in names:
        kind, _, capability = name.partition(": ")
        of_methods.setdefault(METHOD_COLUMNS.get(kind, kind), []).append(capability)
    return "; ".join(
        kind if "fit" in found else f"{kind}: {', '.join(found)}"
        for kind, found in of_methods.items()
    )


def _escaped(text: str) -> str:
    return re.sub(r"([*_|`])", r"\\\1", text)


def _try_all() -> pd.DataFrame:
    from tests.compatibility import FAMILIES, tried
    from tests.small_cache import make_small_cache

    rows = []
    with tempfile.TemporaryDirectory() as place:
        os.environ["TRACELAB_CACHE"] = str(make_small_cache(Path(place)))
        for family, models in FAMILIES.items():
            found = tried(family)
            rows += [(family, models, name, outcome) for name, outcome in found.items()]
            print(f"{family}: {sum(each == YES for each in found.values())} of {len(found)}")
    return pd.DataFrame(rows, columns=["family", "models", "capability", "outcome"])


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    _try_all().to_csv(TABLE, index=False)
    PAGE.write_text(in_the_page(read()), encoding="utf-8")
