"""Configurations: frozen models whose fields have types, bounds, choices and a line each.

    class MineConfig(Config):
        rank: int = Field(1, ge=1, description="directions removed at each layer")

A first violation is one sentence. The same fields make a bundle's schema and the options of the
command line, where ``--seed`` is every field of that name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, ClassVar, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from tracelab.errors import TracelabError, quoted
from tracelab.ranges import INT_MOST, SEED_MOST, WIDTH_MOST, shown

Count = Annotated[int, Field(ge=1, le=INT_MOST)]
Width = Annotated[int, Field(ge=1, le=WIDTH_MOST)]
Seed = Annotated[int, Field(ge=0, le=SEED_MOST)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""Field types: a number of things, the width of a small network, a seed, and so on."""

_RANGES = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}
_KINDS = {
    "int_type": "a whole number",
    "int_parsing_size": f"at most {INT_MOST}",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "True or False",
    "string_type": "a text",
}


class Config(BaseModel):
    """Base of all configurations; see the module's docstring.

    Attributes:
        presets: names of class methods that make a configuration, for the command line.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    presets: ClassVar[tuple[str, ...]] = ()

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**{name: _plain(value) for name, value in values.items()})
        except ValidationError as error:
            raise TracelabError(_sentence(type(self), error.errors()[0])) from error

    @model_validator(mode="before")
    @classmethod
    def _tuples(cls, values: dict[str, Any]) -> dict[str, Any]:
        """A list is taken for a tuple, as which JSON has it, and one word for a tuple of words."""

        def as_tuple(name: str, value: Any) -> Any:
            field = cls.model_fields.get(name)
            kinds = list(kinds_in(field.annotation)) if field is not None else []
            if not any(get_origin(kind) is tuple for kind in kinds):
                return value
            if isinstance(value, str) and str not in kinds:
                return (value,)
            return tuple(value) if type(value) is list else value

        return {name: as_tuple(name, value) for name, value in values.items()}

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As :meth:`replace`: a copy is checked too."""
        return self.replace(**update or {})

    def replace(self, **changes: Any) -> Self:
        """The same with other values in some fields."""
        return type(self)(**{**dict(self), **changes})

    def settings(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return self.model_dump(mode="json")

    def seeded(self, seed: int) -> Self:
        """The same with this seed in every field called ``seed``, those of inner ones too."""
        changes: dict[str, Any] = {
            name: value.seeded(seed) for name, value in self if isinstance(value, Config)
        }
        if "seed" in type(self).model_fields:
            changes["seed"] = seed
        return self.replace(**changes) if changes else self

    @classmethod
    def choices(cls, field: str) -> tuple[str, ...]:
        """The words that a field can be."""
        return get_args(next(kinds_in(cls.model_fields[field].annotation)))

    @classmethod
    def preset(cls, name: str, bias: str, **changes: Any) -> Self:
        """One of :attr:`presets`, for data of a bias type."""
        if name not in cls.presets:
            known = ", ".join(cls.presets) or "none"
            raise TracelabError(f"{cls.__name__} has no preset {quoted(name)}: it has {known}")
        return getattr(cls, name)(**changes)


def configured(
    cls: type[Config], config: Config | None, changes: Mapping[str, Any], who: str
) -> Any:
    """A configuration of the class: the one that is given, or the default, with changes.

    Raises:
        TracelabError: one of another class, or changes that it cannot have.
    """
    if config is not None and not isinstance(config, cls):
        raise TracelabError(f"{who} takes a {cls.__name__}, not {shown(config)}")
    if config is None:
        return cls(**changes)
    return config.replace(**changes) if changes else config


def kinds_in(annotation: Any) -> Iterator[Any]:
    """The types that a union joins, without None and annotations."""
    if get_origin(annotation) is Annotated:
        yield from kinds_in(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for part in get_args(annotation):
            yield from kinds_in(part)
    elif annotation is not type(None):
        yield annotation


def _plain(value: Any) -> Any:
    """A numpy or torch number as Python's."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value


def _sentence(cls: type[Config], fault: ErrorDetails) -> str:
    """What is wrong with the first field that is, as one sentence."""
    kind, name = fault["type"], ".".join(map(str, fault["loc"][:1]))
    given, context = shown(fault["input"]), fault.get("ctx", {})
    if kind == "extra_forbidden":
        return f"{cls.__name__} has no field {name}: it has {', '.join(cls.model_fields)}"
    if kind == "literal_error":
        choices = context["expected"].replace("'", "").replace(" or ", ", ")
        return f"unknown {name} {given}: choose one of {choices}"
    if kind == "value_error":
        return str(context["error"])
    if kind in _RANGES:
        word, bound = _RANGES[kind]
        return f"{name} is {word} {context[bound]:.10g}, not {given}"
    what = _KINDS.get(kind)
    if what is None:
        return f"{name}: {fault['msg']}, not {given}"
    return f"{name} is {what}, not {given}"
