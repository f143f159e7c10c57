"""What the scripts here run on where there is neither hub nor data: random Llama models of several
sizes, a tokenizer learnt from the sentences below, and pairs, prompts and neutral text from word
lists.

They are for checks of hardware: nothing that a model of random weights says is a finding.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import tracelab
from tracelab.datasets import ExpertTexts, GroupPairs
from tracelab.datasets.bold import DOMAINS
from tracelab.model import assets
from tracelab.storage.cache import write_checksums

VOCABULARY = 49_152
"""Tokens of the tokenizer that is learnt here: as many as the embedded model's has."""
GROUPS = ("old", "young")
PEOPLE = ("man", "woman", "driver", "teacher", "worker", "writer", "cook", "doctor")
ACTS = (
    ("forgot", "planned", "purple"),
    ("avoided", "enjoyed", "seven"),
    ("feared", "praised", "river"),
    ("ignored", "studied", "butter"),
)
THINGS = ("the meeting", "the new phone", "the long walk", "the loud party")


@dataclass(frozen=True)
class Size:
    """Of a Llama."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    inner: int


SIZES = {
    "tiny": Size(4, 64, 4, 2, 128),
    "small": Size(8, 512, 8, 4, 1408),
    "medium": Size(12, 1024, 16, 8, 2816),
    "1b": Size(16, 2048, 32, 8, 8192),
    "8b": Size(32, 4096, 32, 8, 14336),
}


def pairs() -> list[Any]:
    """Stereotype, anti-stereotype and an unrelated sentence, of eight target terms."""
    rows = [
        {
            "stereotype": f"The old {who} {act[0]} {what} again.",
            "anti_stereotype": f"The old {who} {act[1]} {what} again.",
            "unrelated": f"The old {who} {act[2]} {what} again.",
            "target": who,
        }
        for who, act, what in itertools.product(PEOPLE, ACTS, THINGS)
    ]
    return tracelab.datasets.pairs(rows, bias="age")


def group_pairs() -> GroupPairs:
    """Openings that differ in the group they name."""
    texts = [
        tuple(f"The {group} {who} with {what} was very" for group in GROUPS)
        for who, what in itertools.product(PEOPLE, THINGS)
    ]
    text = neutral()
    return GroupPairs.of("age", texts, text[:60], text[60:80])


def expert_texts() -> ExpertTexts:
    """What an anti-expert and an expert are tuned on."""
    records = pairs()[::4]
    return ExpertTexts(
        "age",
        [record.stereotype.text for record in records],
        [record.anti_stereotype.text for record in records],
    )


def neutral(count: int = 1600) -> list[str]:
    """Sentences that name no group, of 9 to 13 words each."""
    parts = (
        ("The village", "A small town", "The northern valley", "This port", "The region"),
        ("was founded by monks", "lies beside a river", "has a stone bridge", "grew by trade"),
        ("in the early spring", "near the wide lake", "after the great flood", "below the hills"),
        ("and is known for its market", "and sells wool", "where ships were built", "as maps show"),
        ("of that century", "of that county", "to this day", "in most years", "as before"),
    )
    return [" ".join(words) + "." for words in itertools.product(*parts)][:count]


def make_data_folder() -> None:
    """Where the embedded data are not at hand, put the neutral sentences in their place: fits look
    at some."""
    if (assets.cache_dir() / assets.DATA.folder).is_dir():
        return
    cache = Path(tempfile.mkdtemp(prefix="tracelab-check-"))
    os.environ["TRACELAB_CACHE"] = str(cache)
    folder = cache / assets.DATA.folder / "BOLD" / "data"
    for kind in ("wikipedia", "prompts"):
        (folder / kind).mkdir(parents=True)
    text = neutral()
    for number, domain in enumerate(DOMAINS):
        content = {domain: {"a": text[number :: len(DOMAINS)]}}
        (folder / "wikipedia" / f"{domain}_wiki.json").write_text(json.dumps(content))
        (folder / "prompts" / f"{domain}_prompt.json").write_text(json.dumps(content))
    write_checksums(cache / assets.DATA.folder)


def make_tokenizer(size: str) -> Any:
    """The embedded model's where it is at hand, else one learnt from the texts here, which a tiny
    model always has: most of its time would go into logits."""
    if size != "tiny" and (assets.cache_dir() / assets.MODEL.folder).is_dir():
        return AutoTokenizer.from_pretrained(assets.model_dir())
    texts = [*neutral(), *(f"{who} {what}" for who in PEOPLE for what in THINGS)]
    for record in pairs():
        texts += [getattr(record, label).text for label in ("stereotype", "anti_stereotype")]
        texts += [record.unrelated.text]
    corpus = tracelab.datasets.templates("age")
    texts += [prompt.text for prompt in corpus.prompts]
    texts += [f" {word}" for _, words in corpus.groups for word in words] * 20
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learner.decoder = decoders.ByteLevel()
    learner.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    state = json.loads(learner.to_str())
    known = state["model"]["vocab"]  # tokens that nothing is cut into make it as large as real ones
    if size != "tiny":
        known |= {f"unused{number}": number for number in range(len(known), VOCABULARY)}
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        bos_token=end,
        eos_token=end,
        pad_token=end,
    )


def random_llama(
    size: Size, vocabulary: int, *, device: str, dtype: torch.dtype, seed: int = 0
) -> LlamaForCausalLM:
    """A plain Llama, made where it will be; its logits have a spread of about one nat."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=size.width,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        initializer_range=1.4 / math.sqrt(size.width),
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)
