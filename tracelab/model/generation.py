"""Text from a model, edited or not: prompts tokenised once by tracelab, sampled by
``transformers``.

``transformers.generate`` runs on the model inside the bridge, so edits that are applied act at
every step, and its samplers (greedy, beam, temperature, top-k, nucleus) act on the edited logits.
Of the checkpoint's own ``generation_config`` only the end tokens act: a penalty or filter that one
model has and another has not, or that the edit was not made with, would be measured as if it were
the model's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import GenerationConfig
from transformers.generation.logits_process import LogitsProcessor

from tracelab.errors import TracelabError
from tracelab.gradients import measuring
from tracelab.model.chat import begins_with_bos, chat_prompt
from tracelab.model.finite import require_finite_logits
from tracelab.model.forward_pass import reading
from tracelab.model.load import model_facts
from tracelab.model.memory import Sizes, require_room_at
from tracelab.model.settings import run_settings
from tracelab.model.texts import Texts, as_texts
from tracelab.model.tokens import (
    continuation_text,
    encode,
    pad,
    pad_id,
    require_context,
    vocabulary_size,
)
from tracelab.progress import progress
from tracelab.ranges import require_int, require_number, require_seed
from tracelab.results import Result


@dataclass(frozen=True)
class Generations(Result):
    """Sampled continuations: ``prompt_id, sample, prompt, continuation``."""

    table: pd.DataFrame

    @property
    def frame(self) -> pd.DataFrame:
        """One row a sample."""
        return self.table

    def headline(self) -> str:
        """How many prompts and samples."""
        return f"n = {self.table['prompt_id'].nunique()} prompts, {len(self.table)} continuations"


@measuring()
def generate(
    model: TransformerBridge,
    prompts: Texts,
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
    apply_chat_template: bool = False,
    batch_size: int = 8,
    seed: int = 0,
) -> Generations:
    """Continue each prompt; ends early at the model's end-of-text token.

    Args:
        num_return_sequences: samples a prompt.
        do_sample: False for greedy decoding or, with ``num_beams``, beam search.
        top_p, top_k, temperature: of sampling; ``top_k=0`` is off.
        apply_chat_template: whether a prompt is a user's turn, which the model answers.
        batch_size: prompts a batch; the samples of a seed depend on it.

    Raises:
        TracelabError: no prompt, one that is with its continuation beyond the model's context, an
            argument that ``transformers`` refuses, or logits that are not finite.
    """
    require_seed(seed)
    prompts = as_texts(prompts, "prompt")
    if not prompts:
        raise TracelabError("no prompt to continue")
    counts = {
        "batch_size": batch_size,
        "num_return_sequences": num_return_sequences,
        "num_beams": num_beams,
    }
    for name, count in (counts | {"max_new_tokens": max_new_tokens}).items():
        require_int(name, count)
    if do_sample:
        require_int("top_k", top_k, 0)
        require_number("temperature", temperature, above=0)
        require_number("top_p", top_p)
    if do_sample and not 0 < top_p <= 1:  # the one that transformers lets pass
        raise TracelabError(f"top_p is above 0 and at most 1, not {top_p}")
    written = [chat_prompt(model, p) for p in prompts] if apply_chat_template else prompts
    if apply_chat_template and begins_with_bos(model, written[0]):
        prepend_bos = False
    sequences = [encode(model, prompt, prepend_bos=prepend_bos).ids for prompt in written]
    require_context(model, map(len, sequences), new_tokens=max_new_tokens, what="prompt")
    at_once = min(batch_size, len(sequences)) * max(num_return_sequences, num_beams)
    longest = max(map(len, sequences))
    require_room_at(
        model,
        f"batches of {at_once} continuations of up to {longest + max_new_tokens} tokens",
        Sizes.of(model).generation(at_once, longest, max_new_tokens if use_cache else 0),
        "lower batch_size or max_new_tokens, or load the model in bfloat16",
    )
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "num_return_sequences": num_return_sequences,
        "do_sample": do_sample,
        "num_beams": num_beams,
        "use_cache": use_cache,
        "pad_token_id": pad_id(model),
        "eos_token_id": end_tokens(model),
    }
    if do_sample:
        options |= {"top_p": top_p, "top_k": top_k, "temperature": temperature}
    rows = []
    hf_model = cast(Any, model.original_model)
    with (
        plain_generation(model),
        torch.random.fork_rng(),
        progress(total=len(prompts), what="generating", unit="prompt") as bar,
    ):
        torch.manual_seed(seed)
        for start in range(0, len(sequences), batch_size):
            tokens, mask = pad(model, sequences[start : start + batch_size], left=True)
            longest = tokens.shape[1]
            checks = [_Finite(range(start, start + len(tokens)))]
            with reading(longest - 1, generating=True):
                try:
                    made = hf_model.generate(
                        tokens, attention_mask=mask, logits_processor=checks, **options
                    )
                except ValueError as error:
                    if isinstance(error, TracelabError):
                        raise
                    raise TracelabError(f"transformers cannot generate so: {error}") from error
            for number, ids in enumerate(made[:, longest:].tolist()):
                prompt = start + number // num_return_sequences
                text = continuation_text(model, sequences[prompt], ids)
                rows.append((prompt, number % num_return_sequences, prompts[prompt], text))
            bar.update(len(tokens))
    table = pd.DataFrame(rows, columns=["prompt_id", "sample", "prompt", "continuation"])
    options |= {"batch_size": batch_size, "seed": seed}
    options["prepend_bos"] = model_facts(model).prepend_bos if prepend_bos is None else prepend_bos
    if apply_chat_template:
        options["chat_template"] = "applied"
    return Generations(run_settings(model, **options), table)


def end_tokens(model: TransformerBridge) -> list[int] | None:
    """The ids that end a text: the checkpoint's, else the tokenizer's, of those that the model can
    write."""
    hf_model = cast(Any, model.original_model)
    for given in (
        getattr(hf_model.generation_config, "eos_token_id", None),
        model.tokenizer.eos_token_id,
    ):
        ids = [] if given is None else [given] if isinstance(given, int) else list(given)
        if found := [int(i) for i in ids if 0 <= i < vocabulary_size(model)]:
            return found
    return None


@contextmanager
def plain_generation(model: TransformerBridge) -> Iterator[None]:
    """Within the block ``transformers.generate`` does what its arguments say; of the checkpoint the
    end tokens hold.

    The checkpoint's ``generation_config`` fills whatever an argument leaves open, also of a config
    given to ``generate``, so it is replaced and put back.
    """
    hf_model = cast(Any, model.original_model)
    kept = hf_model.generation_config
    hf_model.generation_config = GenerationConfig(
        bos_token_id=getattr(kept, "bos_token_id", None),
        eos_token_id=end_tokens(model),
        pad_token_id=pad_id(model),
    )
    try:
        yield
    finally:
        hf_model.generation_config = kept


class _Finite(LogitsProcessor):
    """Refuses logits that are not finite before a sampler makes tokens of them; changes none."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self.numbers = numbers

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        each = len(scores) // len(self.numbers)  # beams or samples of a prompt, one after the other
        require_finite_logits(
            scores, [number for number in self.numbers for _ in range(each)], "prompt"
        )
        return scores
