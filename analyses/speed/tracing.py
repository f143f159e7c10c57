"""What the comparisons of tracing share: the published procedure, and pairs under one noise.

The reference is what ROME's and BiasEdit's code does, on a plain ``transformers`` model that was
never wrapped: for each restored state one forward pass of a batch whose first row is clean and
whose others carry the noise; hooks copy the clean row's state to the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM

import tracelab
from tracelab.localize.tracing.cases import Case, make_cases
from tracelab.localize.tracing.noise import attribute_embedding_std
from tracelab.model import assets

WINDOW = 10
State = tuple[str, int, int]
"""Component, layer and column."""


class Reference:
    """Tracing on a plain Llama, one forward pass a state."""

    def __init__(self) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(
            assets.model_dir(), dtype=torch.float32
        ).eval()
        self.layers = self.model.model.layers

    def module(self, component: str, layer: int) -> torch.nn.Module:
        """Whose output is the state."""
        block = self.layers[layer]
        return {"resid": block, "mlp": block.mlp, "attn": block.self_attn}[component]

    @torch.no_grad()
    def score(
        self, ids: list[int], noised: list[int], noise: torch.Tensor, first: int, component: str,
        layers: range, position: int,
    ) -> float:  # fmt: skip
        """Mean log-probability from ``first`` on of the noisy rows, a state of ``layers``
        restored."""

        def add_noise(module, args, output):
            output[1:, noised] += noise
            return output

        def restore(module, args, output):
            state = output[0] if isinstance(output, tuple) else output
            state[1:, position] = state[0, position]
            return output

        handles = [self.model.get_input_embeddings().register_forward_hook(add_noise)]
        handles += [
            self.module(component, n).register_forward_hook(restore) for n in layers
        ]  # fmt: skip
        rows = torch.tensor(ids).expand(1 + len(noise), -1)
        logits = self.model(rows, use_cache=False).logits
        for handle in handles:
            handle.remove()
        logprobs = logits[1:, first - 1 : -1].log_softmax(dim=-1)
        return float(logprobs.gather(2, rows[1:, first:, None]).sum() / len(noise))

    def gap(self, case: Case, noise: torch.Tensor, state: tuple[str, int, int]) -> float:
        """Of a pair, with the state of (component, layer, column) restored."""
        component, layer, column = state
        n_layers = len(self.layers)
        low, high = layer - WINDOW // 2, layer + (WINDOW + 1) // 2
        layers = (
            range(layer, layer + 1)
            if component == "resid"
            else range(max(0, low), min(n_layers, high))
        )
        return self._gap(case, noise, component, layers, column)

    def low(self, case: Case, noise: torch.Tensor) -> float:
        """Gap of a pair with nothing restored."""
        return self._gap(case, noise, "resid", range(0), 0)

    def _gap(
        self, case: Case, noise: torch.Tensor, component: str, layers: range, column: int
    ) -> float:
        scores = []
        for side, encoding in enumerate((case.stereotype, case.anti_stereotype)):
            noised = [case.columns[c][side] for c in case.noised]
            position = case.columns[column][side]
            scores.append(
                self.score(encoding.ids, noised, noise, case.first, component, layers, position)
            )
        return scores[0] - scores[1]


@dataclass(frozen=True)
class Work:
    """Pairs of equal length, as BiasEdit's are, and the noise of each."""

    cases: list[Case]
    records: list
    noise: dict[str, torch.Tensor]
    generator: torch.Generator

    def some_states(self, component: str, layers: range, number: int) -> list[list[State]]:
        """Of each pair, so many at random."""
        found = []
        for case in self.cases:
            columns = torch.randint(len(case.columns), (number,), generator=self.generator)
            chosen = torch.randint(len(layers), (number,), generator=self.generator)
            found.append(
                [(component, layers[i], c) for i, c in zip(chosen, columns.tolist(), strict=True)]
            )
        return found


def short_pairs(model, number: int, *, samples: int, longest: int | None = None) -> Work:
    """A random choice of StereoSet's pairs of gender, of at most ``longest`` tokens."""
    records = tracelab.datasets.stereoset("gender")
    cases, _ = make_cases(model, records)
    std = 3 * attribute_embedding_std(model, cases)
    cases = [case for case in cases if case.equal_length]
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(cases), generator=generator)
    cases = [cases[i] for i in order.tolist()]
    if longest is not None:
        cases = [case for case in cases if len(case.stereotype.ids) <= longest]
    cases = cases[:number]
    by_id = {record.id: record for record in records}
    noise = {
        case.id: std
        * torch.randn(samples, len(case.noised), model.cfg.d_model, generator=generator)
        for case in cases
    }
    return Work(cases, [by_id[case.id] for case in cases], noise, generator)


def of_all(facts: dict, share: float) -> dict:
    """The facts of a comparison if the reference had done all of its work, not a share of it."""
    ratios = ("ratio", "ratio_min", "ratio_max", "cpu_ratio", "reference_seconds")
    return {
        name: round(value / share, 3) if name in ratios else value for name, value in facts.items()
    } | {"reference_share": round(share, 4)}
