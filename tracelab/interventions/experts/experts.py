"""Expert / anti-expert decoding: shift the logits by what two small fine-tuned models disagree on.

    z̃ = z + α (z⁺ - z⁻)

``z`` are the target's logits, ``z⁺`` those of an expert tuned on anti-biased text, ``z⁻`` those of
an anti-expert tuned on biased text; all before the softmax, at every position (arXiv 2412.01711;
DExperts, arXiv 2105.03023). Where one is missing, the target's own logits stand in for it. The
log-odds of two tokens move by ``α (Δz⁺ - Δz⁻)``.

Both experts are weight deltas of one small model with the target's vocabulary; by default the
target itself. They run as one batch and keep their keys and values along with the target's own
(:mod:`.runner`). Other edits of the target do not act inside its experts.

Several attributes at once are a stack, ``z̃ = z + Σ αᵢ (zᵢ⁺ - zᵢ⁻)``: each member's experts are run
from the text by themselves, and ``z`` is the target's own logits for all of them, so their order
does not matter and no shift is computed from what another has mixed (:meth:`Experts.together`). The
weights ``αᵢ`` can be changed without tuning anew. ``edit.scaled(s)`` mixes with ``s α``, and at 0
leaves out the cut below too.

``filter_order`` says what nucleus sampling cuts. ``"after"`` (2412.01711): the sum, by the sampler.
``"base_first"`` (DExperts): the target's own distribution, before the difference is added, by the
edit itself; sample with ``top_p=1`` then. When given tokens are scored nothing is cut.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformers.generation.logits_process import TopPLogitsWarper

from tracelab.datasets.own import are_records, as_expert_texts
from tracelab.datasets.redditbias import BIAS_TYPES, ExpertTexts, expert_texts
from tracelab.errors import TracelabError
from tracelab.interventions.bundle import read_bundle
from tracelab.interventions.experts.config import ExpertsConfig, FinetuneConfig
from tracelab.interventions.experts.runner import ExpertRunner
from tracelab.interventions.method import Method
from tracelab.interventions.origin import Origin
from tracelab.interventions.point_edit import PointEdit
from tracelab.interventions.stack import Stack
from tracelab.interventions.training.finetune import finetune
from tracelab.interventions.weight_delta import WeightDelta, WeightDeltaSpec
from tracelab.model.forward_pass import current_call
from tracelab.model.hook_points import Point
from tracelab.model.load import model_facts, model_info, model_key
from tracelab.model.settings import request_of
from tracelab.model.texts import Texts
from tracelab.storage.checkpoint import resumed


class ExpertsSpec(BaseModel):
    """The configuration, what the experts are for, and the shapes of their deltas."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: ExpertsConfig
    bias: str
    expert: WeightDeltaSpec | None
    anti_expert: WeightDeltaSpec | None


class Experts(Method):
    """Expert / anti-expert decoding.

    >>> edit = Experts.fit(model, tracelab.datasets.expert_texts("gender"))
    >>> with edit.with_alpha(0.5).applied(model):
    ...     tracelab.generate(model, "The nurse said that").frame

    Several attributes at once are a :class:`~tracelab.interventions.stack.Stack` of them: the
    differences add up (:meth:`together`).

    Attributes:
        expert_base: the model that the experts are deltas of, where it is not the edited model
            itself; set it to the loaded small model.
    """

    kind = "experts"
    Config = ExpertsConfig
    Spec = ExpertsSpec
    biases = BIAS_TYPES
    needs = ("bias", "biased", "anti_biased")
    entries = ("expert", "anti_expert")
    scales_itself = True
    unfitted = ("alpha", "filter_order", "top_p")
    tried: ClassVar = {"alpha": (0.25, 0.5, 1.0, 1.5, 2.0)}

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
        self.expert, self.anti_expert = (each and each.whole() for each in (expert, anti_expert))
        self.config = config or ExpertsConfig()
        self.bias = bias
        self._bases: list[
            TransformerBridge
        ] = []  # in a list, as a module's attribute would be saved with it
        self._runners: WeakKeyDictionary[nn.Module, ExpertRunner] = WeakKeyDictionary()

    @classmethod
    def training_data(
        cls,
        bias: str,
        *,
        source: str | Path = "wheel",
        limit: int | None = None,
        without: Collection[str] = (),
    ) -> ExpertTexts:
        """RedditBias' texts of a bias type, biased and anti-biased."""
        return expert_texts(bias, source=source, limit=limit)

    @classmethod
    def accepted(cls, data: Any) -> Any:
        """Pairs of sentences: stereotypes are the biased texts, anti-stereotypes the others."""
        return as_expert_texts(data) if are_records(data) else data

    @classmethod
    def learned(
        cls,
        model: TransformerBridge,
        data: ExpertTexts,
        config: ExpertsConfig,
        *,
        layers: Sequence[int] | None,
        dev: None,
        checkpoint: Path | None,
    ) -> Experts:
        """Tune an expert on ``data.anti_biased`` and an anti-expert on ``data.biased``.

        Args:
            model: the small model; the edited model itself, or one with its vocabulary.
            layers: that get deltas; default: each.
        """
        training = config.training or FinetuneConfig()
        wanted = {} if layers is None else {"layers": list(layers)}
        key = request_of(model, [data], training=training.settings(), **wanted)
        tuned: dict[str, WeightDelta] = {}
        for what, texts in (("expert", data.anti_biased), ("anti_expert", data.biased)):
            tune = partial(_tuned, model, texts, training, what, layers)
            tuned[what] = resumed(checkpoint, what, _load_delta, key, tune)
        losses = {what: delta.notes["losses"] for what, delta in tuned.items()}
        notes = {"data_hash": key["data_hash"], "training": key["training"], "losses": losses}
        config = config.replace(training=training)
        return cls(tuned["expert"], tuned["anti_expert"], config, bias=data.bias, notes=notes)

    def with_config(self, config: ExpertsConfig) -> Experts:
        """The same experts, mixed in another way."""
        other = Experts(
            self.expert,
            self.anti_expert,
            config,
            bias=self.bias,
            origin=self.origin,
            notes=dict(self.notes),
        )
        other._bases, other._runners = list(self._bases), self._runners
        other.allow_mismatch = self.allow_mismatch
        other.set_strength(self.strength)
        return other

    def _copied(self) -> Experts:
        return self.with_config(self.config)  # the experts run once for all strengths

    def with_alpha(self, alpha: float) -> Experts:
        """The same experts at another strength."""
        return self.with_config(self.config.replace(alpha=alpha))

    @staticmethod
    def together(edits: Sequence[Experts], alphas: Sequence[float]) -> Stack:
        """Experts of several attributes as one edit, each with its weight; nothing is tuned.

        Raises:
            TracelabError: not one weight an edit, or one that is no finite number.
        """
        if len(edits) != len(alphas):
            raise TracelabError(
                f"each of {len(edits)} experts needs one alpha: {len(alphas)} were given"
            )
        return Stack([edit.with_alpha(a) for edit, a in zip(edits, alphas, strict=True)])

    @property
    def own_name(self) -> str:
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

    def edits(self, hf_model: nn.Module) -> list[PointEdit]:
        """One edit, of the logits."""
        small = hf_model if self.expert_base is None else self.expert_base.original_model
        deltas = [delta for delta in (self.expert, self.anti_expert) if delta is not None]
        runner = self._runners.get(small)
        if runner is None or not runner.is_current(small):  # the model was moved or cast since
            runner = self._runners[small] = ExpertRunner(small, deltas)
        for delta in deltas:
            delta.to(next(small.parameters()).device)
        config, alpha = self.config, self.strength * self.config.alpha

        def mix(logits: Float[Tensor, "batch n_last vocab"]) -> Tensor:
            call = current_call(hf_model)
            scoring = call.reading is not None and not call.reading.generating
            cut = config.filter_order == "base_first" and not scoring
            if alpha == 0 and not cut and not self.is_observed:
                return logits
            # In a stack, other experts may have mixed the logits already: z is the target's own.
            z = call.made.setdefault("z", logits.float())
            found = list(runner.logits(call, logits.shape[1]).to(z.device))
            plus = found.pop(0) if self.expert is not None else z
            minus = found.pop(0) if self.anti_expert is not None else z
            self.tell_logits(z=z, z_plus=plus, z_minus=minus)
            if alpha == 0 and not cut:
                return logits
            mixed = logits.float() + alpha * (plus - minus)
            return (
                mixed.masked_fill(_nucleus(z, config.top_p).isinf(), float("-inf"))
                if cut
                else mixed
            )

        return [PointEdit(Point("logits"), mix)]

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
    model: TransformerBridge,
    texts: Texts,
    training: FinetuneConfig,
    what: str,
    layers: Sequence[int] | None,
) -> WeightDelta:
    """A delta of the layers of the model, or of each, fine-tuned on texts; its losses are in its
    notes."""
    delta = WeightDelta.low_rank(
        model,
        layers=range(model_facts(model).n_layers) if layers is None else layers,
        modules=training.modules,
        rank=training.rank,
        seed=training.seed,
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
