"""How much faster the sentences of StereoSet and CrowS-Pairs are scored than by lm-eval, on the
embedded model.

    python analyses/speed/scoring.py [--quick] [--rounds 5] [--bias gender] [--batch-tokens 1024]

Ours is ``token_logprobs``, which runs what sentences begin with in common once
(``tracelab/model/packed.py``). The references are given the same token ids, BOS first:

    scoring_plain   plain transformers (PyTorch's attention), sentences sorted by length, only the
                    needed logits kept: what a careful loop does without sharing
    scoring         lm-eval's Hugging Face backend (``HFLM.loglikelihood``) on a plain model, at the
                    best of the batch sizes 8, 16, 32 and 64

``agreement`` is the largest difference of a sentence's log-probability, ``decisions`` how many pairs
are ordered otherwise, and ``bfloat16_decisions`` how many of the pairs are when ours computes in
bfloat16, with the largest margin (nats) that was turned.
"""  # noqa: E501

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from comparison import compare, options, say
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM

import tracelab
from tracelab.datasets import crows_pairs, stereoset
from tracelab.model import assets
from tracelab.model.scoring import BATCH_TOKENS, token_logprobs
from tracelab.model.tokens import encode, length_batches


def sentences(bias: str, limit: int | None) -> list[str]:
    """Stereotype and anti-stereotype of each record in turn, then what is unrelated."""
    records, pairs = stereoset(bias, limit=limit), crows_pairs(bias, limit=limit)
    made = [s.text for r in records for s in (r.stereotype, r.anti_stereotype)]
    made += [text for pair in pairs for text in (pair.sent_more, pair.sent_less)]
    return made + [record.unrelated.text for record in records if record.unrelated]


@torch.no_grad()
def plainly(hf_model: Any, sequences: list[tuple[int, ...]], batch_tokens: int) -> np.ndarray:
    """Sums by batches of similar length, each padded on the right."""
    found = np.empty(len(sequences))
    for batch in length_batches(map(len, sequences), batch_tokens):
        longest = max(len(sequences[i]) for i in batch)
        tokens = torch.tensor(
            [[*sequences[i], *[0] * (longest - len(sequences[i]))] for i in batch]
        )
        mask = torch.tensor([[k < len(sequences[i]) for k in range(longest)] for i in batch])
        hidden = hf_model.model(tokens, attention_mask=mask.long()).last_hidden_state[:, :-1]
        logits = hf_model.lm_head(hidden[mask[:, 1:]]).log_softmax(-1)
        values = logits.gather(-1, tokens[:, 1:][mask[:, 1:]][:, None])[:, 0]
        parts = values.split([len(sequences[i]) - 1 for i in batch])
        found[batch] = [float(part.sum()) for part in parts]
    return found


def turned(one: np.ndarray, other: np.ndarray, n_pairs: int) -> tuple[int, float]:
    """How many pairs are ordered otherwise, and the largest margin among them."""
    margins = [v[0 : 2 * n_pairs : 2] - v[1 : 2 * n_pairs : 2] for v in (one, other)]
    chosen = np.sign(margins[0]) != np.sign(margins[1])
    return int(chosen.sum()), float(np.abs(margins[0][chosen]).max(initial=0))


def main() -> None:
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument("--bias", default="gender")
    parent.add_argument("--batch-tokens", type=int, default=BATCH_TOKENS)
    chosen = options(__doc__, rounds=5, parent=parent)
    limit = 24 if chosen.quick else None
    model = tracelab.load()
    plain = AutoModelForCausalLM.from_pretrained(assets.model_dir(), dtype=torch.float32).eval()
    texts = sentences(chosen.bias, limit)
    n_pairs = (len(texts) - len(stereoset(chosen.bias, limit=limit))) // 2
    sequences = [encode(model, text, prepend_bos=True).ids for text in texts]
    print(f"{len(texts)} sentences, {sum(map(len, sequences))} tokens")

    def ours(given: Any = model) -> np.ndarray:
        values = token_logprobs(
            given, sequences, [1] * len(sequences), batch_tokens=chosen.batch_tokens
        )
        return np.array([float(each.sum()) for each in values])

    def difference(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.abs(one - other).max())

    def backend(batch_size: int) -> np.ndarray:
        harness = HFLM(pretrained=plain, tokenizer=model.tokenizer, batch_size=batch_size)
        asked = [
            Instance("loglikelihood", {}, ("", text), number) for number, text in enumerate(texts)
        ]
        return np.array([value for value, _ in harness.loglikelihood(asked, disable_tqdm=True)])

    def seconds(batch_size: int) -> float:
        started = time.perf_counter()
        backend(batch_size)
        return time.perf_counter() - started

    best = min((8, 16, 32, 64), key=seconds)
    half = turned(ours(), ours(tracelab.load(dtype="bfloat16")), n_pairs)
    found = []
    for name, goal, reference in (
        ("scoring", 2.0, lambda: backend(best)),
        ("scoring_plain", 1.0, lambda: plainly(plain, sequences, chosen.batch_tokens)),
    ):
        facts = compare(name, goal, ours, reference, difference, rounds=chosen.rounds, close=1e-2)
        found.append(facts | {"decisions": turned(ours(), reference(), n_pairs)[0]})
    found[0] |= {"batch_size": best, "pairs": n_pairs}
    found[0] |= {"bfloat16_decisions": half[0], "bfloat16_margin": half[1]}
    say(*found)


if __name__ == "__main__":
    main()
