"""Several interventions at once: the concatenation of their hooks, in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from pydantic import BaseModel, ConfigDict
from torch import nn
from transformer_lens.model_bridge import TransformerBridge

from tracelab.errors import TracelabError
from tracelab.interventions.base import Intervention, Told
from tracelab.interventions.origin import Origin
from tracelab.interventions.places import DeviceOf
from tracelab.interventions.point_edit import PointEdit
from tracelab.ranges import require_number


class StackSpec(BaseModel):
    """Nothing: a bundle keeps each member beside the others."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Stack(Intervention):
    """Interventions applied together; at a shared point the first acts first. An empty stack
    changes nothing.

    >>> erasure = tracelab.Erasure.fit(model, tracelab.datasets.group_pairs("gender"))
    >>> experts = tracelab.Experts.fit(model, tracelab.datasets.expert_texts("gender"))
    >>> with Stack([erasure, experts]).applied(model):
    ...     tracelab.generate(model, "The nurse said that").frame
    """

    kind = "stack"
    Spec = StackSpec
    has_members = True

    def __init__(self, members: Sequence[Intervention]) -> None:
        super().__init__(None)
        self.members = nn.ModuleList(members)

    def __iter__(self) -> Iterator[Intervention]:
        # Every way through a stack begins here; one that holds itself has no end.
        if any(part is self for member in self.members for part in member.modules()):
            raise TracelabError("a stack holds itself: take it out of its members")
        return iter(self.members)  # type: ignore[arg-type]

    @property
    def own_name(self) -> str:
        """The members' names, joined."""
        return " + ".join(member.name for member in self) or "nothing"

    def edits(self, hf_model: nn.Module) -> list[PointEdit]:
        """The edits of all members."""
        return [edit for member in self for edit in member.edits(hf_model)]

    def scaled_edits(self, hf_model: nn.Module) -> list[PointEdit]:
        """The edits of all members, each at its own strength."""
        return [edit for member in self for edit in member.scaled_edits(hf_model)]

    def place(self, device_of: DeviceOf) -> None:
        """Each member by itself."""
        for member in self:
            member.place(device_of)

    @property
    def needs_rows(self) -> bool:
        """Whether a member does."""
        return any(member.needs_rows for member in self)

    def scaled(self, strength: float) -> Stack:
        """A stack of the members, each at ``strength`` times its own (see
        :meth:`~tracelab.interventions.base.Intervention.scaled`)."""
        require_number("the strength of an edit", strength)
        other = Stack([member.scaled(strength) for member in self])
        other.notes = {
            k: v for k, v in self.notes.items() if strength == 1 or k not in self.measured
        }
        other.allow_mismatch = self.allow_mismatch
        return other

    def require(self, model: TransformerBridge) -> None:
        """Refuse a model that a member was not made for."""
        for member in self:
            member.require(model)

    def require_plain(self, hf_model: Any) -> None:
        """Refuse a plain model that a member was not made for."""
        for member in self:
            member.require_plain(hf_model)

    def paths(self) -> dict[str, str]:
        """Those of all members."""
        return {point: path for member in self for point, path in member.paths().items()}

    @contextmanager
    def observed(self) -> Iterator[list[Told]]:
        """Observe every member; what they tell is in the order of their members."""
        log: list[Told] = []
        with ExitStack() as stack:
            logs = [stack.enter_context(member.observed()) for member in self]
            yield log
        log.extend(facts for part in logs for facts in part)

    def settings(self) -> dict[str, Any]:
        """Those of the members."""
        return {
            "kind": self.kind,
            "name": self.name,
            "members": [member.settings() for member in self],
        }

    def identity(self) -> dict[str, Any]:
        """Those of the members, in order."""
        return {"kind": self.kind, "members": [member.identity() for member in self]}

    def spec(self) -> StackSpec:
        """Nothing of its own."""
        return StackSpec()

    @classmethod
    def build(cls, spec: StackSpec, origin: Origin | None) -> Stack:
        """An empty stack, to which a bundle adds the members it keeps."""
        return cls([])
