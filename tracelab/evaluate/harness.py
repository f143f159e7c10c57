"""EleutherAI's lm-evaluation-harness by its own command line, on any edit.

    python -m tracelab.evaluate.harness --model tracelab \\
        --model_args pretrained=HuggingFaceTB/SmolLM2-135M,edit=erasure-gender,strength=1 --tasks lambada_openai

This is ``lm_eval`` with one model more, as the harness finds no model outside its own package: all
words are the harness' own, and so are the prompts and the numbers. The model is plain
``transformers``, on which the edit acts by forward hooks. For scores with intervals and paired
tests, see the benchmark ``lm-eval/TASK`` (:mod:`~tracelab.evaluate.benchmarks.lm_eval`).
"""  # noqa: E501

from __future__ import annotations

import sys
from typing import Any

from tracelab.errors import TracelabError
from tracelab.interventions.methods import load_intervention
from tracelab.model import assets

try:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
except ImportError as error:
    raise TracelabError(
        "lm-evaluation-harness is not installed: pip install 'tracelab[lm-eval]'"
    ) from error


@register_model("tracelab")
class EditedLM(HFLM):
    """The harness' ``hf`` model under an edit.

    Args:
        pretrained: hub id or folder; default: the embedded model.
        edit: folder or hub id of a bundle; none: the model as it is.
        strength: the share of the edit that is applied.
        allow_mismatch: take an edit made for other weights of the same shapes.
        options: of the harness' ``hf`` model: ``dtype``, ``revision``, ``batch_size``, …
    """

    def __init__(
        self,
        pretrained: str = "",
        *,
        edit: str | None = None,
        strength: float = 1.0,
        allow_mismatch: bool = False,
        **options: Any,
    ) -> None:
        chosen = None
        if edit is not None:  # first: it is the quicker to be refused
            chosen = load_intervention(str(edit), allow_mismatch=allow_mismatch).scaled(strength)
        super().__init__(pretrained or str(assets.model_dir()), **options)
        self.attached = None if chosen is None else chosen.attach(self.model)


def main() -> int:
    """The harness' command line; a refusal of ours is one line, and status 2."""
    try:
        cli_evaluate()
    except TracelabError as error:
        print(f"tracelab: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
