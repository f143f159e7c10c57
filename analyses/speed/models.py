"""Random Llama models of any size, with the embedded model's tokenizer: for what does not depend on
what a model has learnt."""

from __future__ import annotations

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import tracelab
from tracelab.model import assets


def random_llama(*, layers: int, width: int):
    """A bridge around a Llama of that many layers and that width, in fp32."""
    tokenizer = AutoTokenizer.from_pretrained(assets.model_dir())
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=8 * width // 3 // 8 * 8,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
        num_key_value_heads=max(1, width // 64),
        tie_word_embeddings=True,
        max_position_embeddings=2048,
    )
    return tracelab.load(LlamaForCausalLM(config), tokenizer=tokenizer, dtype="float32")
