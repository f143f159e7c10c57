"""The main job: measure, localise, draw, and put it on one page."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path

from transformer_lens.model_bridge import TransformerBridge

from tracelab.errors import require_choice
from tracelab.figures import save_figures
from tracelab.files import atomic_file
from tracelab.model import model_info
from tracelab.report.page import headline, render, sections
from tracelab.report.parts import Parts, measure
from tracelab.report.presets import BIAS_TYPES, PRESETS, preset_of

__all__ = ["BIAS_TYPES", "PRESETS", "Parts", "report"]


def report(
    model: TransformerBridge,
    bias: str,
    out_dir: Path | str,
    *,
    preset: str = "quick",
    limit: int | None = None,
    png: bool = True,
    seed: int = 0,
    command: str | None = None,
) -> Parts:
    """Localise a bias in a model and write the page, its tables and figures into ``out_dir``.

    Interrupted and started again with the same request, it takes up the parts that are done.

    Args:
        bias: one of :data:`BIAS_TYPES`.
        preset: ``"quick"`` (minutes on two cores for a model of 135M parameters) or ``"full"``.
        limit: at most so many records of each benchmark and concepts of the corpus.
        png: whether figures are written as PNG too.
        command: how to make the report again, for the page; default: the call of this function.

    Returns:
        The measurements. ``out_dir`` then holds ``index.html``, ``tables/`` (CSV and Parquet), ``figures/*.html`` and
        ``*.png``, and ``parts/`` with each result, to be loaded again.

    Raises:
        TracelabError: unknown bias type or preset, or data in which nothing can be measured.
    """
    require_choice("bias type", bias, BIAS_TYPES)
    chosen = preset_of(preset, limit)
    out_dir = Path(out_dir)
    parts = measure(
        model,
        bias,
        out_dir / "parts",
        preset=chosen,
        seed=seed,
        say=lambda text: print(f"tracelab: {text}", file=sys.stderr),
    )
    tables = {"headline": headline(parts)}
    for name, result in parts.named().items():
        tables |= {f"{name}_{field}": table for field, table in result.tables().items()}
    for name, table in tables.items():
        with atomic_file(out_dir / "tables" / f"{name}.csv") as path:
            table.to_csv(path, index=False)
        with atomic_file(out_dir / "tables" / f"{name}.parquet") as path:
            table.to_parquet(path)
    shown = sections(parts)
    save_figures({section.name: section.figure for section in shown}, out_dir / "figures", png=png)
    command = command or (
        f"tracelab.report(model, {bias!r}, {str(out_dir)!r}, preset={preset!r}, limit={limit}, seed={seed})"
        f"  # model: {model_info(model).model_id}"
    )
    made = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    with atomic_file(out_dir / "index.html") as path:
        path.write_text(render(parts, bias, preset, command, shown, made), encoding="utf-8")
    return parts
