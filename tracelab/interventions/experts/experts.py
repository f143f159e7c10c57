"""Expert / anti-expert decoding: shift the logits by what two small fine-tuned models disagree on.

    z̃ = z + α (z⁺ - z⁻)

``z`` are the target's logits, ``z⁺`` those of an expert tuned on anti-biased text, ``z⁻`` those of
an anti-expert tuned on biased text; all before the softmax, at every position (arXiv 2412.01711;
DExperts, arXiv 2105.03023). Where one is missing, the target's own logits stand in for it. The
log-odds of two tokens move by ``α (Δz⁺ - Δz⁻)``.

Both experts are weight deltas of one small model with the target's vocabulary; by default the
target itself. They run as one batch and keep their keys and values along with the target's own
(:mod:`.expert_runner`). Other edits of the target do not act inside its experts.

``filter_order`` says what nucleus sampling cuts. ``"after"`` (2412.01711): the sum, by the sampler.
``"base_first"`` (DExperts): the target's own distribution, before the difference is added, by the
edit itself; sample with ``top_p=1`` then. When given tokens are scored nothing is cut.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformers.generation.logits_process import TopPLogitsWarper

from tracelab.datasets.redditbias import ExpertTexts
from tracelab.errors import TracelabError, require_choice
from tracelab.gradients import learning
from tracelab.interventions.base import Edit, Intervention
from tracelab.interventions.bundle import read_bundle
from tracelab.interventions.experts.runner import ExpertRunner
from tracelab.interventions.origin import Origin
from tracelab.interventions.training.finetune import finetune
from tracelab.interventions.weight_delta import WeightDelta, WeightDeltaSpec
from tracelab.model.forward_pass import current_call
from tracelab.model.hook_points import Point
from tracelab.model.hooked import require_unedited
from tracelab.model.load import model_facts, model_info, model_key
from tracelab.model.settings import request_of
from tracelab.model.texts import Texts
from tracelab.ranges import (
    EPOCHS_MOST,
    INT_MOST,
    WIDTH_MOST,
    require_int,
    require_number,
    require_seed,
)
from tracelab.storage.checkpoint import require_entries, resumed

FILTER_ORDERS = ("after", "base_first")


@dataclass(frozen=True)
class ExpertsConfig:
    """How logits are mixed.

    Attributes:
        alpha: strength; 0 is the unedited model, negative swaps the two.
        filter_order: ``"after"`` or ``"base_first"`` (see the module's docstring).
        top_p: the nucleus that ``"base_first"`` keeps.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")  # in a bundle's manifest

    alpha: float = 1.0
    filter_order: str = "after"
    top_p: float = 0.9

    def __post_init__(self) -> None:
        require_number("alpha", self.alpha)
        if not 0 < self.top_p <= 1:
            raise TracelabError(f"top_p is above 0 and at most 1, not {self.top_p}")
        require_choice("filter_order", self.filter_order, FILTER_ORDERS)


@dataclass(frozen=True)
class FinetuneConfig:
    """How an expert is tuned: low-rank deltas of these linear maps in every layer, AdamW, texts
    line by line.

    The paper's recipe is not public. On the embedded model these values give each gender expert
    alone 1.8 times the base's perplexity on neutral text (``analyses/03_experts.ipynb``); the
    authors' own have 1.2 to 2 times.
    """

    rank: int = 16
    modules: tuple[str, ...] = ("mlp.in", "mlp.out", "attn.o")
    lr: float = 5e-4
    epochs: int = 1
    batch_size: int = 8
    block_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        most = {
            "rank": WIDTH_MOST,
            "epochs": EPOCHS_MOST,
            "batch_size": INT_MOST,
            "block_size": INT_MOST,
        }
        for name, largest in most.items():
            require_int(f"{name} of the fine-tuning", getattr(self, name), most=largest)
        require_number("the learning rate", self.lr, above=0)
        require_seed(self.seed)


class ExpertsSpec(BaseModel):
    """The configuration, what the experts are for, and the shapes of their deltas."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: ExpertsConfig
    bias: str
    expert: WeightDeltaSpec | None
    anti_expert: WeightDeltaSpec | None


class Experts(Intervention):
    """Expert / anti-expert decoding.

    >>> edit = Experts.fit(model, tracelab.datasets.expert_texts("gender"))
    >>> with edit.with_alpha(0.5).applied(model):
    ...     tracelab.generate(model, ["The nurse said that"]).frame

    Several directions at once are a :class:`~tracelab.interventions.stack.Stack` of them: the
    differences add up.

    Attributes:
        expert_base: the model that the experts are deltas of, where it is not the edited model
            itself; set it to the loaded small model.
    """

    kind = "experts"
    Spec = ExpertsSpec

    def __init__(
        self,
        expert: WeightDelta | None,
        anti_expert: WeightDelta | None,
        config: ExpertsConfig | None = None,
        *,
        bias: str = "",
        origin: Origin | None = None,
        notes: dict[str, Any] | None = None,
    ) -> None:
        given = [delta for delta in (expert, anti_expert) if delta is not None]
        if not given:
            raise TracelabError("experts need an expert, an anti-expert or both")
        prints = {delta.origin.fingerprint for delta in given if delta.origin is not None}
        if len(prints) > 1:
            raise TracelabError(
                "the expert and the anti-expert are deltas of different models: tune both on one"
            )
        super().__init__(origin or _origin_of_all(given), notes)
        self.expert, self.anti_expert = expert, anti_expert
        self.config = config or ExpertsConfig()
        self.bias = bias
        self._bases: list[
            TransformerBridge
        ] = []  # in a list, as a module's attribute would be saved with it
        self._runners: WeakKeyDictionary[nn.Module, ExpertRunner] = WeakKeyDictionary()

    @classmethod
    @learning()
    def fit(
        cls,
        model: TransformerBridge,
        data: ExpertTexts,
        config: ExpertsConfig | None = None,
        *,
        training: FinetuneConfig | None = None,
        checkpoint: Path | str | None = None,
        allow_hooks: bool = False,
    ) -> Experts:
        """Tune an expert on ``data.anti_biased`` and an anti-expert on ``data.biased``.

        Args:
            model: the small model; the edited model itself, or one with its vocabulary.
            checkpoint: folder in which each finished expert is stored, so that an interrupted fit
                resumes from there.
            allow_hooks: fit on a model with hooks on, as it is with them.

        Raises:
            TracelabError: no usable text, hooks on the model, or training that diverges (lower
                ``lr``).
        """
        began = perf_counter()
        config, training = config or ExpertsConfig(), training or FinetuneConfig()
        require_unedited(model, "a fit of experts", allow_hooks=allow_hooks)
        require_entries(checkpoint, "expert", "anti_expert")
        key = request_of(model, [data], training=asdict(training))
        tuned: dict[str, WeightDelta] = {}
        for what, texts in (("expert", data.anti_biased), ("anti_expert", data.biased)):
            tune = partial(_tuned, model, texts, training, what)
            tuned[what] = resumed(checkpoint, what, _load_delta, key, tune)
        losses = {what: delta.notes["losses"] for what, delta in tuned.items()}
        notes: dict[str, Any] = {
            "data_hash": key["data_hash"],
            "training": key["training"],
            "losses": losses,
        }
        notes["fit_seconds"] = round(perf_counter() - began, 1)
        return cls(tuned["expert"], tuned["anti_expert"], config, bias=data.bias, notes=notes)

    def with_config(self, config: ExpertsConfig) -> Experts:
        """The same experts, mixed in another way."""
        other = Experts(
            self.expert,
            self.anti_expert,
            config,
            bias=self.bias,
            origin=self.origin,
            notes=self.notes,
        )
        other._bases, other._runners, other.allow_mismatch = (
            list(self._bases),
            self._runners,
            self.allow_mismatch,
        )
        return other

    def with_alpha(self, alpha: float) -> Experts:
        """The same experts at another strength."""
        return self.with_config(replace(self.config, alpha=alpha))

    @property
    def name(self) -> str:
        """``experts(gender, α=1)``."""
        return f"experts({f'{self.bias}, ' if self.bias else ''}α={self.config.alpha:g})"

    @property
    def expert_base(self) -> TransformerBridge | None:
        """The small model, where it is not the edited one."""
        return self._bases[0] if self._bases else None

    @expert_base.setter
    def expert_base(self, model: TransformerBridge | None) -> None:
        if model is not None:
            super().require(model)
        self._bases[:] = [] if model is None else [model]

    def __setattr__(self, name: str, value: Any) -> None:
        if (
            name == "expert_base"
        ):  # torch would make the model a part of the edit, past the property
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def require(self, model: TransformerBridge) -> None:
        """Refuse a model with another vocabulary, or one that is not the experts' base if none is
        set."""
        base = self.expert_base
        if base is None:
            try:
                super().require(model)
            except TracelabError as error:
                raise TracelabError(
                    f"{error}; or set edit.expert_base to the loaded model they were tuned on"
                ) from None
        elif model.tokenizer.get_vocab() != base.tokenizer.get_vocab():
            raise TracelabError(
                f"the experts' base {model_info(base).model_id} has another vocabulary than "
                f"{model_info(model).model_id}: logits of different tokens cannot be mixed"
            )
        elif model.cfg.d_vocab != base.cfg.d_vocab:  # one tokenizer, padded to different sizes
            raise TracelabError(
                f"the experts' base {model_info(base).model_id} has {base.cfg.d_vocab} logits, "
                f"{model_info(model).model_id} has {model.cfg.d_vocab}: they cannot be mixed"
            )

    def require_plain(self, hf_model: Any) -> None:
        """Refuse a vocabulary of another size, or a model that is not the experts' base if none is
        set."""
        base = self.expert_base
        if base is None:
            super().require_plain(hf_model)
            return
        size, own = hf_model.config.get_text_config().vocab_size, base.cfg.d_vocab
        if size != own:
            raise TracelabError(
                f"the experts have a vocabulary of {own} tokens, the model one of {size}"
            )

    def paths(self) -> dict[str, str]:
        """None: logits are what the model returns."""
        return {}

    def edits(self, hf_model: nn.Module) -> list[Edit]:
        """One edit, of the logits."""
        small = hf_model if self.expert_base is None else self.expert_base.original_model
        deltas = [delta for delta in (self.expert, self.anti_expert) if delta is not None]
        runner = self._runners.get(small)
        if runner is None or not runner.is_current(small):  # the model was moved or cast since
            runner = self._runners[small] = ExpertRunner(small, deltas)
        for delta in deltas:
            delta.to(next(small.parameters()).device)
        config = self.config

        def mix(logits: Float[Tensor, "batch n_last vocab"]) -> Tensor:
            call = current_call(hf_model)
            scoring = call.reading is not None and not call.reading.generating
            cut = config.filter_order == "base_first" and not scoring
            if config.alpha == 0 and not cut and not self.is_observed:
                return logits
            # In a stack, other experts may have mixed the logits already: z is the target's own.
            z = call.made.setdefault("z", logits.float())
            found = list(runner.logits(call, logits.shape[1]).to(z.device))
            plus = found.pop(0) if self.expert is not None else z
            minus = found.pop(0) if self.anti_expert is not None else z
            self.observe(method=self.kind, name=self.name, z=z, z_plus=plus, z_minus=minus)
            if config.alpha == 0 and not cut:
                return logits
            mixed = logits.float() + config.alpha * (plus - minus)
            return (
                mixed.masked_fill(_nucleus(z, config.top_p).isinf(), float("-inf"))
                if cut
                else mixed
            )

        return [Edit(Point("logits"), mix)]

    def identity(self) -> dict[str, Any]:
        """With the model that the experts are deltas of, where it is not the edited one."""
        base = self.expert_base
        return super().identity() | ({} if base is None else {"expert_base": model_key(base)})

    def __getstate__(self) -> dict[str, Any]:
        """Without what runs the experts, which is made anew, and without their base: set it again
        where it was set."""
        return super().__getstate__() | {"_bases": [], "_runners": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._runners = WeakKeyDictionary()

    def __deepcopy__(self, memo: dict[int, Any]) -> Experts:
        # In one process the base is at hand: the copy has the same one.
        made = memo[id(self)] = type(self).__new__(type(self))
        made.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        made._bases[:] = self._bases
        return made

    def spec(self) -> ExpertsSpec:
        """The configuration and the deltas' shapes."""
        return ExpertsSpec(
            config=self.config,
            bias=self.bias,
            expert=None if self.expert is None else self.expert.spec(),
            anti_expert=None if self.anti_expert is None else self.anti_expert.spec(),
        )

    @classmethod
    def build(cls, spec: ExpertsSpec, origin: Origin | None) -> Experts:
        """With zero deltas."""
        expert, anti = (
            None if part is None else WeightDelta.build(part, origin)
            for part in (spec.expert, spec.anti_expert)
        )
        return cls(expert, anti, spec.config, bias=spec.bias, origin=origin)


def _origin_of_all(deltas: Sequence[WeightDelta]) -> Origin | None:
    """The model that all deltas are of, with the paths of each."""
    origin = deltas[0].origin
    paths = {point: path for delta in deltas for point, path in delta.paths().items()}
    return origin and origin.model_copy(update={"paths": paths})


def _nucleus(z: Float[Tensor, "batch pos vocab"], top_p: float) -> Tensor:
    """Logits with all but the smallest set of tokens of probability ``top_p`` at -inf."""
    flat = TopPLogitsWarper(top_p)(
        torch.empty(0, dtype=torch.long, device=z.device), z.flatten(0, 1)
    )
    return flat.reshape(z.shape)


def _tuned(
    model: TransformerBridge, texts: Texts, training: FinetuneConfig, what: str
) -> WeightDelta:
    """A delta of every layer of the model, fine-tuned on texts; its losses are in its notes."""
    layers = range(model_facts(model).n_layers)
    delta = WeightDelta.low_rank(
        model, layers=layers, modules=training.modules, rank=training.rank, seed=training.seed
    )
    losses = finetune(
        model,
        delta,
        texts,
        lr=training.lr,
        epochs=training.epochs,
        batch_size=training.batch_size,
        block_size=training.block_size,
        seed=training.seed,
        what=what,
    )
    delta.notes["losses"] = [round(loss, 4) for loss in losses]
    return delta


def _load_delta(folder: Path) -> WeightDelta:
    """The delta that an interrupted fit finished."""
    delta = read_bundle(folder, (WeightDelta,))
    if not isinstance(delta, WeightDelta):
        raise TracelabError(f"{folder} holds no expert")
    return delta
