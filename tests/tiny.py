"""Small random models of several architectures, with the embedded model's tokenizer.

Their weights are wide (``initializer_range``), so that scores, noise and edits move the logits by
whole
nats: a comparison to 1e-5 of models that hardly react would show nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

N_LAYERS = 4
D_MODEL = 32

_COMMON = {"max_position_embeddings": 128, "initializer_range": 0.25}
_ROPE = {
    "hidden_size": D_MODEL,
    "intermediate_size": 64,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    **_COMMON,
}
_LLAMA = {
    **_ROPE,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "gemma2": {**_LLAMA, "head_dim": 8},
    "gpt_neox": _ROPE,
    "gpt2": {
        "n_embd": D_MODEL,
        "n_layer": N_LAYERS,
        "n_head": 4,
        "n_positions": 128,
        "initializer_range": 0.25,
    },
    "gpt_neo": {
        "hidden_size": D_MODEL,
        "num_layers": N_LAYERS,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 2]],
        **_COMMON,
    },
}

KINDS = tuple(CONFIGS)
"""What most tests run on."""

CONFIGS |= {
    "opt": {
        "hidden_size": D_MODEL,
        "word_embed_proj_dim": D_MODEL,
        "ffn_dim": 64,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "init_std": 0.25,
    },
    "phi": {**_ROPE, "partial_rotary_factor": 0.5},
    "phi3": _LLAMA,
    "gemma": {**_LLAMA, "head_dim": 8},
    "qwen3": {**_LLAMA, "head_dim": 8},
    "mistral": _LLAMA,
    "gemma3_text": {**_LLAMA, "head_dim": 8, "architectures": ["Gemma3ForCausalLM"]},
    "mixtral": {**_LLAMA, "num_local_experts": 2},
    "qwen3_moe": {
        **_LLAMA,
        "head_dim": 8,
        "moe_intermediate_size": 32,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
    "olmo2": _LLAMA,
    "granite": _LLAMA,
    "cohere": _LLAMA,
    "falcon": _ROPE,
    "bloom": {
        "hidden_size": D_MODEL,
        "n_layer": N_LAYERS,
        "n_head": 4,
        "initializer_range": 0.25,
    },
    "gptj": {
        "n_embd": D_MODEL,
        "n_layer": N_LAYERS,
        "n_head": 4,
        "n_positions": 128,
        "rotary_dim": 4,
        "initializer_range": 0.25,
    },
}

MORE_KINDS = tuple(CONFIGS)
"""With those that only tests of what differs between architectures run on."""


def tiny_hf(kind: str, vocab_size: int, seed: int = 0, **changes: Any) -> Any:
    """A plain ``transformers`` model with random weights, not wrapped; ``changes`` to its
    configuration."""
    config = AutoConfig.for_model(kind, vocab_size=vocab_size, **CONFIGS[kind] | changes)
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config).eval()
