"""The main job: measure, localise, edit, compare, draw, and put it on one page."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from transformer_lens.model_bridge import TransformerBridge

from tracelab.errors import require_choice
from tracelab.escaping import csv_table
from tracelab.figures import save_figures
from tracelab.interventions import Intervention
from tracelab.model.hooked import require_unedited
from tracelab.model.load import model_facts
from tracelab.model.texts import Texts, as_texts
from tracelab.model.tokens import encode, require_context
from tracelab.ranges import require_seed
from tracelab.report import editing
from tracelab.report.numbers import headline
from tracelab.report.page import Files, render, small_pictures
from tracelab.report.parts import Data, Parts, measure
from tracelab.report.place import require_report_folder
from tracelab.report.presets import BIAS_TYPES, PRESETS, Preset, preset_of
from tracelab.report.sections import drawn, sections
from tracelab.storage.files import own_file
from tracelab.storage.locks import locked
from tracelab.storage.ownership import claim

__all__ = ["BIAS_TYPES", "PRESETS", "Parts", "report"]


def report(
    model: TransformerBridge,
    bias: str,
    out_dir: Path | str,
    *,
    preset: str = "quick",
    limit: int | None = None,
    interventions: Mapping[str, Intervention] | None = None,
    prompts: Texts = (),
    png: bool = True,
    seed: int = 0,
    command: str | None = None,
) -> Parts:
    """Localise a bias in a model, edit it by every method, and write the page, tables, figures and
    bundles into ``out_dir``.

    Interrupted and started again with the same request, it resumes from the parts that are done.

    Args:
        bias: one of :data:`BIAS_TYPES`.
        preset: ``"quick"`` (minutes on two cores for a model of 135M parameters) or ``"full"``.
        limit: at most so many records of each benchmark and concepts of the corpus.
        interventions: edits to compare, by name; None: every method is fitted; empty: no
            edits.
        prompts: what is looked at before and after; default: two for the bias type.
        png: whether figures are written as PNG too.
        command: how to make the report again, for the page; default: the call of this function.

    Returns:
        The measurements. ``out_dir`` then holds ``index.html``, ``tables/`` (CSV and Parquet),
        ``figures/*.html`` and ``*.png``, ``bundles/`` with each fitted edit, and ``parts/`` with
        each result, to be loaded again.

    Raises:
        TracelabError: unknown bias type or preset, hooks on the model, data in which nothing can be
            measured, a prompt beyond the model's context, or a folder that cannot be written or
            holds a page, tables or figures that tracelab did not write.
    """
    require_seed(seed)
    require_choice("bias type", bias, BIAS_TYPES)
    require_unedited(model, "a report")
    prompts = as_texts(prompts, "prompt")
    require_context(model, [len(encode(model, prompt).ids) for prompt in prompts], what="prompt")
    for edit in (interventions or {}).values():
        edit.hooks(model)  # refuses an edit of another model before anything is measured
    chosen = preset_of(preset, limit)
    for prompt in prompts:
        encode(model, prompt)  # refuses what has no token before hours of work, not after them
    out_dir = Path(out_dir)
    require_report_folder(out_dir)
    data = Data.read(bias, chosen, seed)
    command = command or (
        f"tracelab.report(model, {bias!r}, {str(out_dir)!r}, preset={preset!r}, limit={limit}, "
        f"seed={seed})"
        f"  # model: {model_facts(model).model_id}"
    )
    with locked(out_dir):
        parts = measure(
            model, bias, data, claim(out_dir / "parts"), preset=chosen, seed=seed, say=_say
        )
        if interventions is None or interventions:
            parts = _with_edits(
                model, bias, parts, interventions, prompts, out_dir, preset=chosen, seed=seed
            )
        _write(parts, bias, out_dir, preset=preset, command=command, png=png)
    return parts


def _write(parts: Parts, bias: str, out_dir: Path, *, preset: str, command: str, png: bool) -> None:
    """The tables, the figures and the page."""
    tables = {"headline": headline(parts)}
    for name, result in parts.named().items():
        tables |= {f"{name}_{field}": table for field, table in result.tables().items()}
    folder = claim(out_dir / "tables")
    for name, table in tables.items():
        with own_file(folder / f"{name}.csv") as path:
            path.write_text(csv_table(table), encoding="utf-8")
        with own_file(folder / f"{name}.parquet") as path:
            table.to_parquet(path)
    shown = sections(parts)
    figures = drawn(shown)
    save_figures(figures, claim(out_dir / "figures"), png=png)
    bundles = sorted(each.parent.name for each in (out_dir / "bundles").glob("*/tracelab.json"))
    files = Files(list(tables), list(figures), bundles, small_pictures(figures) if png else {})
    made = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    page = render(parts, bias, preset, command, shown, made, files)
    with own_file(out_dir / "index.html") as path:
        path.write_text(page, encoding="utf-8")


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
    """The parts with what edits do: given ones, or those of every method."""
    edits = given
    if edits is None:
        bundles = claim(out_dir / "bundles")
        edits = editing.fit_edits(
            model, bias, parts.probes, bundles, preset=preset, seed=seed, say=_say
        )
    _, held_out = editing.development(bias, preset, seed)
    choice, stack = editing.choose_stack(
        model, edits, held_out, out_dir / "parts", seed=seed, say=_say
    )
    rows = {**edits, **stack}
    board = editing.compare(
        model, bias, rows, out_dir / "parts", preset=preset, seed=seed, say=_say
    )
    # the log-probabilities under it are not finite
    broken = set(choice.table.loc[choice.table["association"].isna(), "edit"])
    shown = {name: edit for name, edit in rows.items() if name not in broken}
    seen = editing.look(model, bias, shown, prompts) if shown else None
    texts = editing.write(
        model, shown, prompts or editing.WRITTEN[bias], out_dir / "parts", say=_say
    )
    return replace(parts, choice=choice, scoreboard=board, before_after=seen, texts=texts)


def _say(text: str) -> None:
    print(f"tracelab: {text}", file=sys.stderr)
