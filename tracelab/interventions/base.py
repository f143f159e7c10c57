"""An intervention: tensors of its own, and the hooks by which they change what a model computes.

    with edit.applied(model):          # hooks on, and off again whatever happens
        model.generate(tokens)

Weights are never changed. An intervention lists :class:`PointEdit` s, each a
:class:`~tracelab.model.hook_points.Point` and a function; here they become TransformerLens hooks
(:meth:`Intervention.hooks`) or forward hooks of a plain ``transformers`` model
(:meth:`Intervention.attach`). The same function runs on both, so both compute the same. What an
edit was made for is its :class:`Origin`; another model is refused.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float
from pydantic import BaseModel
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from tracelab.errors import TracelabError, quoted
from tracelab.interventions import display
from tracelab.interventions.bundle import require_loadable, save_bundle
from tracelab.interventions.hub import push
from tracelab.interventions.in_force import InForce, attached, require_off
from tracelab.interventions.origin import Origin, point_name
from tracelab.interventions.places import DeviceOf, on_bridge, on_plain
from tracelab.interventions.point_edit import (
    Hooks,
    PointEdit,
    activation_hook,
    at_strength,
    forward_hook,
    linear_hooks,
)
from tracelab.interventions.registry import Kinds
from tracelab.interventions.sizes import require_bridge_fits, require_plain_fits
from tracelab.model.forward_pass import unwatch, watch
from tracelab.model.hook_points import Point
from tracelab.model.hooked import mark
from tracelab.model.load import model_facts
from tracelab.ranges import require_number
from tracelab.storage.tensors_hash import tensors_hash


@dataclass(frozen=True)
class Told:
    """What an edit tells of one forward pass; see :meth:`Intervention.tell`."""

    quantity: str
    before: Tensor | None
    after: Tensor
    layer: int | None
    label: str
    teller: int


LOGITS = "logits"
"""The quantity whose values are ``[batch, pos, vocab]``."""


class Intervention(nn.Module, ABC):
    """Base of all interventions; see the module's docstring.

    Attributes:
        kind: name of the method in bundles.
        Spec: what :meth:`spec` returns.
        has_members: whether it holds other interventions, which a bundle keeps beside it, and no
            tensors of its own.
        scales_itself: whether :meth:`edits` are of the edit's :attr:`strength` already; if not,
            what they change is scaled, which is right for any of them.
        measured: names of notes on what the edit does, which are not true at another strength.
        strength: the share of the change that is made, see :meth:`scaled`.
        origin: the model it was made for; None if it fits any (an empty stack).
        notes: what made it (data hash, seed, training): kept in its bundle, with anything JSON can
            hold that you add; ``notes["metrics"]`` is shown on the bundle's card.
        allow_mismatch: whether a model with other weights but the same shapes is accepted.
    """

    kind: ClassVar[str]
    Spec: ClassVar[type[BaseModel]]
    has_members: ClassVar[bool] = False
    scales_itself: ClassVar[bool] = False
    measured: ClassVar[tuple[str, ...]] = ("metrics",)

    def __init__(self, origin: Origin | None, notes: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.origin = origin
        self.notes = notes or {}
        self.allow_mismatch = False
        self._strength = 1.0
        self._log: list[Told] | None = None

    @property
    def strength(self) -> float:
        """The share of the change that is made, see :meth:`scaled`."""
        return self._strength

    @strength.setter
    def strength(self, value: object) -> None:
        raise TracelabError(
            f"{type(self).__name__}.strength is the share of an edit that is applied, which "
            "edit.scaled(s) gives: call an attribute of your own by another name"
        )

    def set_strength(self, strength: float) -> None:
        """For what makes an edit again, from a bundle or with another configuration."""
        self._strength = strength

    @property
    def name(self) -> str:
        """What the edit is called in tables: ``klaad(gender)``, ``klaad(gender) × 0.5``."""
        return self.own_name + ("" if self.strength == 1 else f" × {self.strength:g}")

    @property
    def own_name(self) -> str:
        """The name at full strength, which a class may make its own."""
        return self.kind

    @abstractmethod
    def edits(self, hf_model: nn.Module) -> list[PointEdit]:
        """The changes, in order, for a model whose passes
        :func:`~tracelab.model.forward_pass.current_call` tells."""

    def place(self, device_of: DeviceOf) -> None:
        """Put the tensors where the model's first parts are. Of a model that is spread over
        devices a class puts each where its layer is, or has its functions take it there.

        Args:
            device_of: tells where the activation of a point is.
        """
        self.to(device_of(Point("embed")))

    def scaled_edits(self, hf_model: nn.Module) -> list[PointEdit]:
        """The changes at the edit's :attr:`strength`, which is what hooks are made of."""
        edits = self.edits(hf_model)
        by_us = self.strength == 0 or not self.scales_itself
        return [at_strength(edit, self.strength) for edit in edits] if by_us else edits

    def scaled(self, strength: float) -> Self:
        """A copy at ``strength`` times this edit's own; this one is left as it is.

            h' = h + strength · (edit(h) - h)

        at each point that is edited, ``h`` being what arrives there. 0 is the unedited model and 1
        the edit itself, both bit for bit; scaling twice multiplies. Above 1 more is changed than
        was learnt, below 0 the opposite is: directions and deltas have an opposite, the goals of
        others (FairMed's even groups) do not, so look at the cost. Notes on what the edit was
        measured to do (:attr:`measured`) are left out of a copy of another strength.

        >>> with edit.scaled(0.5).applied(model):
        ...     tracelab.generate(model, "The nurse said that").frame

        Args:
            strength: any finite number.

        Raises:
            TracelabError: it is none.
        """
        strength = require_number("the strength of an edit", strength)
        other = self._copied()
        other.set_strength(require_number("the strength of an edit", strength * self.strength))
        if strength != 1:
            other.notes = {k: v for k, v in other.notes.items() if k not in self.measured}
        return other

    def _copied(self) -> Self:
        return copy.deepcopy(self)

    @abstractmethod
    def spec(self) -> BaseModel:
        """Everything but tensors that :meth:`build` needs to make it again, as kept in a bundle."""

    @classmethod
    @abstractmethod
    def build(cls, spec: Any, origin: Origin | None) -> Self:
        """An instance with tensors of the right shapes and no values, to be filled from a
        bundle."""

    def require(self, model: TransformerBridge) -> None:
        """Refuse a model that this was not made for.

        Raises:
            TracelabError: naming both models.
        """
        if self.origin is not None:
            facts = model_facts(model)
            sizes = (facts.n_layers, model.cfg.d_model, model.cfg.d_vocab)
            self.origin.require(facts.model_id, model.original_model, sizes, self.allow_mismatch)

    def require_plain(self, hf_model: Any) -> None:
        """Refuse a plain ``transformers`` model that this was not made for.

        Raises:
            TracelabError: naming both models.
        """
        if self.origin is not None:
            config = hf_model.config.get_text_config()
            sizes = (config.num_hidden_layers, config.hidden_size, config.vocab_size)
            name = str(config.name_or_path or type(hf_model).__name__)
            self.origin.require(name, hf_model, sizes, self.allow_mismatch)

    def hooks(self, model: TransformerBridge) -> Hooks:
        """The TransformerLens hooks ``[(name, function), …]``, for ``model.hooks`` or
        ``run_with_hooks``.

        Raises:
            TracelabError: the model is not the one this was made for, lacks a hook point, or has
                other widths there.
        """
        self.require(model)
        model_facts(model)  # begins to watch a bridge that tracelab has not seen
        self.place(on_bridge(model))
        found: Hooks = []
        for edit in self.scaled_edits(model.original_model):
            name = point_name(model, edit.point)
            require_bridge_fits(model, edit)
            found += (
                linear_hooks(name, edit) if edit.point.linear else [(name, activation_hook(edit))]
            )
        return [(name, mark(function, self)) for name, function in found]

    def applied(self, model: TransformerBridge) -> InForce:
        """Within the ``with`` block the model is edited; afterwards it is bit for bit what it was.

        Raises:
            TracelabError: on entering: the model is not the one this was made for, or this edit is
                on it already.
        """

        def put_on() -> ExitStack:
            require_off(model, self)
            with ExitStack() as stack:
                stack.enter_context(model.hooks(fwd_hooks=self.hooks(model)))
                return stack.pop_all()

        return InForce(self, put_on, model)

    def attach(self, hf_model: nn.Module) -> InForce:
        """Edit a ``transformers`` model by forward hooks, without TransformerLens.

        Use the result in a ``with`` statement, or keep it and call ``close()``. Attached again to
        the same model, an edit replaces itself.

        Raises:
            TracelabError: another model, one that computes an edited map together with others, or
                has other widths.
        """
        self.require_plain(hf_model)
        return attached(hf_model, InForce(self, lambda: self.on_twin(hf_model)))

    def on_twin(self, hf_model: nn.Module) -> ExitStack:
        """The edit put on a plain model that is known to have the weights it was made for; closing
        what is returned, or leaving it as a block, takes it off.

        Raises:
            TracelabError: as :meth:`attach`, or this edit is on it already.
        """
        require_off(hf_model, self)
        self.place(on_plain(hf_model, self.module))
        edits = [(edit, self.module(hf_model, edit.point)) for edit in self.scaled_edits(hf_model)]
        for edit, module in edits:
            require_plain_fits(hf_model, edit, module, self.paths().get(str(edit.point), ""))
        with ExitStack() as stack:
            for edit, module in edits:
                hook = mark(forward_hook(edit, hf_model), self)
                stack.callback(module.register_forward_hook(hook).remove)
            watch(hf_model)  # after them: see there
            stack.callback(unwatch, hf_model)
            return stack.pop_all()

    def module(self, hf_model: nn.Module, point: Point) -> nn.Module:
        """The module of a plain ``transformers`` model whose output is the point.

        Raises:
            TracelabError: it has none.
        """
        if point.kind == "logits":
            return hf_model
        path = self.paths().get(str(point))
        try:
            if not path:
                raise AttributeError
            return hf_model.get_submodule(path)
        except AttributeError:
            lacks = f"module {quoted(path)}" if path else f"module whose output is {point}"
            raise TracelabError(
                f"{type(hf_model).__name__} has no {lacks} (it may be computed together with "
                f"others): an edit of {point} cannot be attached to it"
            ) from None

    def paths(self) -> dict[str, str]:
        """Module path in plain ``transformers`` of each point."""
        return {} if self.origin is None else self.origin.paths

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled and copied: not who observes the edit here."""
        return self.__dict__ | {"_log": None}

    @contextmanager
    def observed(self) -> Iterator[list[Told]]:
        """Within the block, what the edits see and do in each forward pass is collected (for
        ``inspect``)."""
        outer, self._log = self._log, []
        try:
            yield self._log
        finally:
            self._log = outer

    def tell(
        self,
        quantity: str,
        before: Tensor | None,
        after: Tensor,
        *,
        layer: int | None = None,
        label: str = "",
    ) -> None:
        """Hand what the edit saw and did to whoever observes; does nothing if nobody does.

        Args:
            quantity: what it is, in a word: ``"p"``, ``"kl"``.
            before, after: ``[batch, pos]``; None: there was none before.
            label: of what, where there are several.
        """
        if self._log is not None:
            self._log.append(Told(quantity, before, after, layer, label, id(self)))

    def tell_logits(self, **logits: Float[Tensor, "batch pos vocab"]) -> None:
        """Hand logits that the edit has mixed, by name."""
        for name, values in logits.items():
            self.tell(LOGITS, None, values, label=name)

    @property
    def needs_rows(self) -> bool:
        """Whether each row of a pass must hold one text: the edit ties positions of a text to each
        other, or somebody observes it."""
        return self.is_observed

    @property
    def is_observed(self) -> bool:
        """Whether :meth:`tell` has a listener."""
        return self._log is not None

    def settings(self) -> dict[str, Any]:
        """What identifies the edit in the settings of a result."""
        config = self.spec().model_dump(mode="json").get("config")
        made_for = None if self.origin is None else self.origin.fingerprint
        return {
            "kind": self.kind,
            "name": self.name,
            "strength": self.strength,
            "config": config,
            "made_for": made_for,
        }

    def identity(self) -> dict[str, Any]:
        """What the edit does depends on this, its tensors included: JSON values for the key of a
        cache."""
        made_for = None if self.origin is None else self.origin.fingerprint
        spec = self.spec().model_dump(mode="json")
        return {
            "kind": self.kind,
            "spec": spec,
            "strength": self.strength,
            "made_for": made_for,
            "tensors": tensors_hash(self.state_dict()),
        }

    def same_as(self, other: Intervention) -> bool:
        """Whether another edit is this one, at whatever strength: the method and every value of its
        tensors."""
        own, others = self.state_dict(), other.state_dict()
        if self.kind != other.kind or (not own and self.spec() != other.spec()):
            return False
        return own.keys() == others.keys() and all(
            torch.equal(t.cpu(), others[name].cpu()) for name, t in own.items()
        )

    def save(self, path: Path | str, *, kinds: Kinds = ()) -> Path:
        """Write a bundle (see :mod:`tracelab.interventions.bundle`); returns its folder.

        Args:
            kinds: class or classes of your own that :func:`~tracelab.load_intervention` will be
                given.

        Raises:
            TracelabError: nothing could load it: a class that is neither tracelab's nor in
                ``kinds``; or the folder holds something else.
        """
        require_loadable(self, kinds)
        return save_bundle(self, path)

    def push_to_hub(self, repo_id: str, *, kinds: Kinds = (), **options: Any) -> str:
        """Upload the bundle to a model repository of the hub, from which
        ``load_intervention(repo_id)`` has it again; returns the address of the commit.

        Args:
            kinds: as for :meth:`save`.
            options: ``private``, ``token``, ``revision``; see
                :func:`tracelab.interventions.hub.push`.

        Raises:
            TracelabError: as :meth:`save`, or the repository cannot be written to.
        """
        require_loadable(self, kinds)
        return push(partial(save_bundle, self, place=repo_id), repo_id, **options)

    def __repr__(self) -> str:
        return display.line(self)  # torch's listing of inner modules says nothing of an edit

    def _repr_html_(self) -> str:
        return display.html(self)
