"""The one list of methods: a line each. What can be fitted, saved and loaded by name is read here.

A method's configuration may stand in a file of its own that needs no torch; then the command line
answers ``--help`` and refuses what cannot be in a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any, NamedTuple

from tracelab.errors import TracelabError, meant, quoted


class Listed(NamedTuple):
    """A method: its ``kind``, where its class and its configuration stand, what it does."""

    kind: str
    method: str
    config: str
    purpose: str

    def config_class(self) -> Any:
        """The class of its configuration."""
        return _found(self.config)

    def method_class(self) -> Any:
        """The class of the method."""
        return _found(self.method)


# fmt: off
LISTED = (
    Listed("fairmed", "fairmed.fairmed:FairMed", "fairmed.config:FairMedConfig",
           "neutralise MLP activations against probers of groups"),
    Listed("experts", "experts.experts:Experts", "experts.config:ExpertsConfig",
           "shift logits by an expert and an anti-expert"),
    Listed("biasedit", "biasedit.biasedit:BiasEdit", "biasedit.config:BiasEditConfig",
           "weight shifts made by an editor network from triples"),
    Listed("klaad", "klaad.klaad:KLAAD", "klaad.config:KLAADConfig",
           "align the attention of stereotype and anti-stereotype"),
    Listed("erasure", "erasure.erasure:Erasure", "erasure.config:ErasureConfig",
           "erase the group that a text names, in closed form"),
)
# fmt: on
"""What can be fitted; places are relative to this package."""

Kinds = type[Any] | Iterable[type[Any]]
"""A class of one's own, or several."""
NOT_FITTED = ("weight_delta:WeightDelta", "stack:Stack")
"""What a bundle can hold besides."""


def listed(kind: str) -> Listed:
    """The line of a method.

    Raises:
        TracelabError: there is none of that kind.
    """
    found = [method for method in LISTED if method.kind == kind]
    if not found:
        known = ", ".join(method.kind for method in LISTED)
        near = meant(kind, known.split(", "))
        raise TracelabError(f"unknown method {quoted(kind)}: choose one of {known}{near}")
    return found[0]


def with_own(kinds: Any) -> tuple[Any, ...]:
    """The classes known here and classes of one's own: one, or several.

    Raises:
        TracelabError: two have one ``kind``, by which a bundle names its class.
    """
    own = (kinds,) if isinstance(kinds, type) else tuple(kinds)
    found: dict[str, Any] = {cls.kind: cls for cls in known()}
    for cls in own:
        if found.setdefault(cls.kind, cls) is not cls:
            raise TracelabError(
                f"{cls.__name__} and {found[cls.kind].__name__} both have the kind {cls.kind!r}, "
                "by which a bundle names its class: give yours another"
            )
    return tuple(found.values())


def known() -> tuple[Any, ...]:
    """Every class that is known here."""
    return (*(method.method_class() for method in LISTED), *map(_found, NOT_FITTED))


def _found(place: str) -> Any:
    module, name = place.split(":")
    return getattr(import_module(f"{__package__}.{module}"), name)
