"""Weight deltas for people without tracelab: a PEFT LoRA adapter, or merged into a copy of the
checkpoint.

    to_peft(model, edit, folder)      ΔW = B A as lora_A, lora_B with alpha = r, for peft.PeftModel.from_pretrained
    to_merged(model, edit, folder)    W + ΔW, for transformers' from_pretrained

Merging adds in fp32 and rounds to the model's dtype: in bf16 a small delta can be rounded away. An
edit that depends on its input (FairMed) or on other models (Experts) is no change of weights and
leaves as a bundle only.
"""  # noqa: E501

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from tracelab.errors import TracelabError
from tracelab.gradients import measuring
from tracelab.interventions.base import Intervention
from tracelab.interventions.bundle import part_of
from tracelab.interventions.card import adapter_card, merged_card
from tracelab.interventions.names import CARD
from tracelab.interventions.stack import Stack
from tracelab.interventions.weight_delta import WeightDelta
from tracelab.model.finite import require_finite_change
from tracelab.model.load import given_tokenizer, model_facts
from tracelab.model.plain import plain_weights
from tracelab.ranges import require_int
from tracelab.storage.files import atomic_folder
from tracelab.storage.ownership import require_replaceable

MARKER = "tracelab_export.json"


def to_peft(
    model: TransformerBridge,
    edit: Intervention,
    folder: Path | str,
    *,
    rank: int | None = None,
    base_model: str | None = None,
) -> Path:
    """Write a weight delta as a PEFT LoRA adapter of the model.

    Args:
        base_model: what the adapter says that it is of, and where PEFT looks for it; default: the
            hub id or the folder that the model was loaded from. Say the hub id of a model from a
            folder before you share the adapter: a folder is one of this machine.
        rank: for dense deltas (BiasEdit): how many singular directions of each are kept; the share
            of its norm that is lost is written into the adapter's ``tracelab_export.json``.

    Raises:
        TracelabError: no weight delta, a dense one without ``rank``, several at once, or maps that
            the model computes together with others.
    """
    if rank is not None:
        require_int("rank", rank)
    try:
        from peft import LoraConfig
    except ImportError:
        raise TracelabError(
            "an adapter needs peft: pip install 'tracelab[peft]', or export it merged"
        ) from None

    require_export_folder(folder)
    (delta, *more) = _deltas(edit)
    if more:
        raise TracelabError("a LoRA adapter holds one weight delta: export each, or all merged")
    if rank is None and any(shape.rank is None for shape in delta.spec().maps):
        raise TracelabError(
            f"{delta.name} is dense: export it merged, or as an adapter of rank=R (its R largest "
            "directions)"
        )
    delta.require(model)
    if model_facts(model).adapter is not None:
        raise TracelabError(
            f"{model_facts(model).adapter} is an adapter itself, merged when it was loaded: there "
            "is no checkpoint "
            "that another adapter could belong to; export the edit merged"
        )
    facts = model_facts(model)
    if facts.in_memory and base_model is None:
        raise TracelabError(
            "the model was given in memory, so its weights need not be those of "
            f"{base_of(model)!r}: say base_model=, the folder or hub id that has them"
        )
    part = part_of(delta)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    lost: dict[str, float] = {}
    modules = _plain_modules(model, delta)
    for path, _, of_map in modules:
        require_finite_change(of_map.weight().detach(), path)
        a, b = _factors(of_map, rank)
        ranks[path] = len(a)
        whole = of_map.weight().detach()
        lost[path] = float((whole - b @ a).norm() / whole.norm().clamp_min(1e-12))
        tensors[f"base_model.model.{path}.lora_A.weight"] = a.contiguous().cpu()
        tensors[f"base_model.model.{path}.lora_B.weight"] = b.contiguous().cpu()
    base = base_model or base_of(model)
    first = next(iter(ranks.values()))
    others = {path: r for path, r in ranks.items() if r != first}
    config = LoraConfig(
        r=first,
        lora_alpha=first,
        rank_pattern=others,
        alpha_pattern=others,
        target_modules=list(ranks),
        base_model_name_or_path=base,
        revision=facts.revision if base_model is None and not Path(base).is_dir() else None,
        task_type="CAUSAL_LM",
        inference_mode=True,
        fan_in_fan_out=all(isinstance(module, Conv1D) for _, module, _ in modules),
    )
    with _written(folder, delta, {"lost": lost} if rank is not None else {}) as made:
        config.save_pretrained(str(made))
        save_file(tensors, made / "adapter_model.safetensors")
        text = adapter_card(delta.name, part, base, Path(folder).name)
        (made / CARD).write_text(text, encoding="utf-8")
    return Path(folder)


def to_merged(model: TransformerBridge, edit: Intervention, folder: Path | str) -> Path:
    """Write a copy of the model's checkpoint with weight deltas added, and its tokenizer.

    Args:
        edit: a weight delta (WeightDelta, BiasEdit, KLAAD) or a stack of them.

    Raises:
        TracelabError: an edit that is no weight delta, or maps that the model computes together
            with others.
    """
    require_export_folder(folder)
    deltas = _deltas(edit)
    edit.require(model)
    parts = [(path, part) for delta in deltas for path, _, part in _plain_modules(model, delta)]
    with _written(folder, edit, {}) as made, measuring():
        plain = plain_copy(model)
        for path, part in parts:
            module: Any = plain.get_submodule(path)
            change = part.weight().to("cpu", torch.float32)
            weight = module.weight
            weight.copy_(
                (weight.float() + (change.T if isinstance(module, Conv1D) else change)).to(
                    weight.dtype
                )
            )
            require_finite_change(weight, path)
        plain.save_pretrained(made)
        given_tokenizer(model).save_pretrained(made)
        name, base = edit.name, model_facts(model).model_id
        text = merged_card(name, part_of(edit), base, Path(folder).name)
        (made / CARD).write_text(text, encoding="utf-8")
    return Path(folder)


def base_of(model: TransformerBridge) -> str:
    """Where ``transformers`` finds the model again: a hub id, or a folder as a whole path."""
    wrapped: Any = model.original_model
    named = str(getattr(wrapped.config, "name_or_path", "") or "")
    if named and Path(named).is_dir():
        return str(Path(named).resolve())
    return named or model_facts(model).model_id


EXPORTERS = {"peft": to_peft, "merged": to_merged}


def plain_copy(model: TransformerBridge) -> Any:
    """The bridge's model as a new, never wrapped ``transformers`` model on the CPU."""
    wrapped: Any = model.original_model
    plain = _from_config(model, dtype=next(wrapped.parameters()).dtype)
    weights = plain_weights(wrapped, plain.state_dict())
    plain.load_state_dict({name: value.cpu() for name, value in weights.items()}, strict=True)
    plain.generation_config = copy.deepcopy(wrapped.generation_config)  # saving may change it
    return plain.eval()


def _from_config(model: TransformerBridge, **options: Any) -> Any:
    trusted = model_facts(model).trust_remote_code
    return AutoModelForCausalLM.from_config(_config(model), trust_remote_code=trusted, **options)


def _config(model: TransformerBridge) -> Any:
    """The model's configuration, without the mark of a GGUF file, with which transformers saves
    nothing."""
    config: Any = model.original_model.config
    values = {
        name: value for name, value in config.to_dict().items() if name != "quantization_config"
    }
    return type(config).from_dict(values)


def _deltas(edit: Intervention) -> list[WeightDelta]:
    deltas = _flat(edit)
    if not deltas:
        raise TracelabError("an empty stack has nothing to export")
    return deltas


def _flat(edit: Intervention) -> list[WeightDelta]:
    """The weight deltas of an edit, those of stacks in stacks too."""
    if isinstance(edit, Stack):
        return [delta for member in edit for delta in _flat(member)]
    if not isinstance(edit, WeightDelta):
        raise TracelabError(
            f"{edit.name} is no change of weights: keep it as a bundle, and attach it to a "
            "transformers model"
        )
    return [edit]


def _plain_modules(
    model: TransformerBridge, delta: WeightDelta
) -> list[tuple[str, nn.Module, Any]]:
    """By map: its path in plain ``transformers``, its module there (without memory), and its
    delta at the edit's strength."""
    delta = delta.whole()
    with torch.device("meta"):
        plain = _from_config(model)
    paths = delta.paths()
    found = []
    for shape in delta.spec().maps:
        path = paths.get(str(shape.point), "")
        try:
            module = plain.get_submodule(path)
        except AttributeError:
            raise TracelabError(
                f"{shape.point} is computed together with other maps in transformers and has no "
                "weight of its own: "
                "keep the edit as a bundle"
            ) from None
        found.append((path, module, delta.part(shape.point)))
    return found


def _factors(part: Any, rank: int | None) -> tuple[Tensor, Tensor]:
    """``A`` and ``B`` of a delta, or of its best approximation of a rank."""
    if hasattr(part, "lora_A") and (rank is None or rank >= part.lora_A.shape[0]):
        return part.lora_A.detach(), part.lora_B.detach()
    u, s, v = torch.linalg.svd(part.weight().detach(), full_matrices=False)
    return v[:rank], u[:, :rank] * s[:rank]


@contextmanager
def _written(folder: Path | str, edit: Intervention, more: dict[str, Any]) -> Iterator[Path]:
    """The folder being written, with a note of what it is and which files are ours."""
    folder = Path(folder)
    require_export_folder(folder)
    with atomic_folder(folder) as made:
        yield made
        note = {
            "edit": edit.settings(),
            "files": sorted(file.name for file in made.iterdir()),
        } | more
        (made / MARKER).write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")


def require_export_folder(folder: Path | str) -> None:
    """Refuse, before any work, a folder that an export may not replace.

    Raises:
        TracelabError: it holds something else, or cannot be written.
    """
    require_replaceable(folder, [MARKER], marker=MARKER)
