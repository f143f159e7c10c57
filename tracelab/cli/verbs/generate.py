"""``tracelab generate``: continuations, before and under edits."""

from __future__ import annotations

import argparse
from typing import Any

import pandas as pd

from tracelab.cli import loading
from tracelab.errors import TracelabError
from tracelab.model.generation import Generations, generate
from tracelab.results import Result

SAMPLING = ("temperature", "top_p", "top_k")


def run(options: argparse.Namespace) -> Result:
    """``tracelab generate``: rows of the unedited model, and with edits those of the edited one
    from the same seed."""
    loading.strengths(options, len(options.edit or []))
    if options.allow_mismatch and not options.edit:
        raise TracelabError("--allow-mismatch is of edits: name them with --edit")
    sampling = {name: given for name in SAMPLING if (given := getattr(options, name)) is not None}
    if options.greedy and sampling:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in sampling)
        raise TracelabError(f"{named}: nothing is sampled with --greedy")
    edit = loading.one_edit(options) if options.edit else None
    model = loading.load_model(options)

    def made() -> Generations:
        return generate(
            model,
            options.prompt,
            max_new_tokens=options.max_new_tokens,
            num_return_sequences=options.num,
            do_sample=not options.greedy,
            num_beams=options.num_beams,
            batch_size=options.batch_size,
            apply_chat_template=options.apply_chat_template,
            seed=options.seed,
            **sampling,
        )

    before = made()
    if edit is None:
        return before
    with edit.applied(model):
        after = made()
    return Generations(
        after.settings | {"edit": edit.settings()},
        pd.concat([_under(before, None), _under(after, edit.name)], ignore_index=True),
    )


def _under(found: Generations, name: str | None) -> Any:
    table = found.table.copy()
    table.insert(0, "edit", name)
    return table
