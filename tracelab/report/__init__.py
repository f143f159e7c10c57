"""The main job: measure, localise, edit, compare, draw, and put it on one page."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from transformer_lens.model_bridge import TransformerBridge

from tracelab.errors import require_choice
from tracelab.figures import save_figures
from tracelab.files import atomic_file
from tracelab.interventions import Intervention
from tracelab.model import model_info
from tracelab.ranges import require_seed
from tracelab.report import editing
from tracelab.report.page import headline, render, sections
from tracelab.report.parts import Parts, measure
from tracelab.report.presets import BIAS_TYPES, PRESETS, Preset, preset_of
from tracelab.tokens import encode

__all__ = ["BIAS_TYPES", "PRESETS", "Parts", "report"]


def report(
    model: TransformerBridge,
    bias: str,
    out_dir: Path | str,
    *,
    preset: str = "quick",
    limit: int | None = None,
    interventions: Mapping[str, Intervention] | None = None,
    prompts: Sequence[str] = (),
    png: bool = True,
    seed: int = 0,
    command: str | None = None,
) -> Parts:
    """Localise a bias in a model, edit it four ways, and write the page, tables, figures and bundles into ``out_dir``.

    Interrupted and started again with the same request, it takes up the parts that are done.

    Args:
        bias: one of :data:`BIAS_TYPES`.
        preset: ``"quick"`` (minutes on two cores for a model of 135M parameters) or ``"full"``.
        limit: at most so many records of each benchmark and concepts of the corpus.
        interventions: edits to compare, by name; None: the four methods are fitted; empty: no edits.
        prompts: what is looked at before and after; default: two for the bias type.
        png: whether figures are written as PNG too.
        command: how to make the report again, for the page; default: the call of this function.

    Returns:
        The measurements. ``out_dir`` then holds ``index.html``, ``tables/`` (CSV and Parquet), ``figures/*.html`` and
        ``*.png``, ``bundles/`` with each fitted edit, and ``parts/`` with each result, to be loaded again.

    Raises:
        TracelabError: unknown bias type or preset, or data in which nothing can be measured.
    """
    require_seed(seed)
    require_choice("bias type", bias, BIAS_TYPES)
    for edit in (interventions or {}).values():
        edit.hooks(model)  # refuses an edit of another model before anything is measured
    chosen = preset_of(preset, limit)
    for prompt in prompts:
        encode(model, prompt)  # refuses what has no token before hours of work, not after them
    out_dir = Path(out_dir)
    parts = measure(
        model,
        bias,
        out_dir / "parts",
        preset=chosen,
        seed=seed,
        say=_say,
    )
    if interventions is None or interventions:
        parts = _with_edits(model, bias, parts, interventions, prompts, out_dir, preset=chosen, seed=seed)
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


def _with_edits(
    model: TransformerBridge,
    bias: str,
    parts: Parts,
    given: Mapping[str, Intervention] | None,
    prompts: Sequence[str],
    out_dir: Path,
    *,
    preset: Preset,
    seed: int,
) -> Parts:
    """The parts with what edits do: given ones, or those of the four methods."""
    edits = given
    if edits is None:
        edits = editing.fit_edits(model, bias, parts.probes, out_dir / "bundles", preset=preset, seed=seed, say=_say)
    _, held_out = editing.development(bias, preset, seed)
    choice, stack = editing.choose_stack(model, edits, held_out, out_dir / "parts", seed=seed, say=_say)
    rows = {**edits, **stack}
    board = editing.compare(model, bias, rows, out_dir / "parts", preset=preset, seed=seed, say=_say)
    seen = editing.look(model, bias, rows, prompts)
    return replace(parts, choice=choice, scoreboard=board, before_after=seen)


def _say(text: str) -> None:
    print(f"tracelab: {text}", file=sys.stderr)
