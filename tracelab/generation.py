"""Text from a model, edited or not: prompts tokenised once by tracelab, sampled by ``transformers``.

``transformers.generate`` runs on the model inside the bridge, so edits that are applied act at every step, and its
samplers (greedy, beam, temperature, top-k, nucleus) act on the edited logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge

from tracelab.calls import reading
from tracelab.errors import TracelabError
from tracelab.model import model_info
from tracelab.progress import progress
from tracelab.ranges import require_int, require_number, require_seed
from tracelab.results import Result, run_settings
from tracelab.tokens import encode, pad, pad_id


@dataclass(frozen=True)
class Generations(Result):
    """Sampled continuations: ``prompt_id, sample, prompt, continuation``."""

    table: pd.DataFrame

    @property
    def frame(self) -> pd.DataFrame:
        """One row a sample."""
        return self.table


@torch.no_grad()
def generate(
    model: TransformerBridge,
    prompts: str | Sequence[str],
    *,
    max_new_tokens: int = 15,
    num_return_sequences: int = 1,
    do_sample: bool = True,
    top_p: float = 0.9,
    top_k: int = 0,
    temperature: float = 1.0,
    num_beams: int = 1,
    use_cache: bool = True,
    prepend_bos: bool | None = None,
    batch_size: int = 8,
    seed: int = 0,
) -> Generations:
    """Continue each prompt; ends early at the model's end-of-text token.

    Args:
        num_return_sequences: samples a prompt.
        do_sample: False for greedy decoding or, with ``num_beams``, beam search.
        top_p, top_k, temperature: of sampling; ``top_k=0`` is off.
        batch_size: prompts a batch; the samples of a seed depend on it.

    Raises:
        TracelabError: no prompt, or an argument that ``transformers`` refuses.
    """
    require_seed(seed)
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not prompts:
        raise TracelabError("no prompt to continue")
    counts = {"batch_size": batch_size, "num_return_sequences": num_return_sequences, "num_beams": num_beams}
    for name, count in (counts | {"max_new_tokens": max_new_tokens}).items():
        require_int(name, count)
    if do_sample:
        require_int("top_k", top_k, 0)
        require_number("temperature", temperature, above=0)
        require_number("top_p", top_p)
    if do_sample and not 0 < top_p <= 1:  # the one that transformers lets pass
        raise TracelabError(f"top_p is above 0 and at most 1, not {top_p}")
    sequences = [encode(model, prompt, prepend_bos=prepend_bos).ids for prompt in prompts]
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "num_return_sequences": num_return_sequences,
        "do_sample": do_sample,
        "num_beams": num_beams,
        "use_cache": use_cache,
        "pad_token_id": pad_id(model),
    }
    if do_sample:
        options |= {"top_p": top_p, "top_k": top_k, "temperature": temperature}
    rows = []
    hf_model = cast(Any, model.original_model)
    with torch.random.fork_rng(), progress(total=len(prompts), what="generating", unit="prompt") as bar:
        torch.manual_seed(seed)
        for start in range(0, len(sequences), batch_size):
            tokens, mask = pad(model, sequences[start : start + batch_size], left=True)
            longest = tokens.shape[1]
            with reading(longest - 1, generating=True):
                try:
                    made = hf_model.generate(tokens, attention_mask=mask, **options)
                except ValueError as error:
                    if isinstance(error, TracelabError):
                        raise
                    raise TracelabError(f"transformers cannot generate so: {error}") from error
            for number, ids in enumerate(made[:, longest:]):
                prompt = start + number // num_return_sequences
                text = model.tokenizer.decode(ids, skip_special_tokens=True)
                rows.append((prompt, number % num_return_sequences, prompts[prompt], text))
            bar.update(len(tokens))
    table = pd.DataFrame(rows, columns=["prompt_id", "sample", "prompt", "continuation"])
    options |= {"batch_size": batch_size, "seed": seed}
    options["prepend_bos"] = model_info(model).prepend_bos if prepend_bos is None else prepend_bos
    return Generations(run_settings(model, **options), table)
