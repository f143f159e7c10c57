"""A configuration's fields as options: their names, defaults, bounds and choices, read from it.

A field ``filter_order`` is ``--filter-order``; one that is a configuration itself gives the options
of its own fields. ``seed`` is everywhere the common ``--seed``. What is given is put together again
by :func:`read_config`, which refuses what the configuration refuses.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from tracelab.cli.arguments import integer, number, text
from tracelab.config import Config, kinds_in
from tracelab.ranges import INT_MOST

METAVARS = {integer: "N", number: "X", text: "WORD"}
_BOUNDS = {"minimum": "≥ {:g}", "exclusiveMinimum": "> {:g}", "maximum": "≤ {:g}"}


def add_config_options(parser: argparse.ArgumentParser, config: type[Config]) -> None:
    """One option a field, in a group named after the configuration."""
    group = parser.add_argument_group(config.__name__, (config.__doc__ or "").split("\n\n")[0])
    if config.presets:
        group.add_argument(
            "--preset", choices=config.presets, help="fields as a preset has them, then as given"
        )
    for place, field, bounds in _fields(config):
        _add(group, place, field, bounds)


def read_config(options: argparse.Namespace, config: type[Config]) -> Config:
    """The configuration that the options give, with the common seed.

    Raises:
        TracelabError: a value, or values together, that it refuses.
    """
    given: dict[str, Any] = {}
    for place, _, _ in _fields(config):
        value = getattr(options, _dest(place))
        if value is not None:
            inner = given
            for name in place[:-1]:
                inner = inner.setdefault(name, {})
            inner[place[-1]] = value
    for name, value in given.items():
        if isinstance(value, dict):
            inner_class = _config_in(config.model_fields[name].annotation)
            assert inner_class is not None
            given[name] = inner_class(**value)
    if preset := getattr(options, "preset", None):
        made = config.preset(preset, options.bias, **given)
    else:
        made = config(**given)
    return made.seeded(options.seed)


Place = tuple[str, ...]


def _fields(
    config: type[Config], above: Place = ()
) -> Iterator[tuple[Place, FieldInfo, dict[str, Any]]]:
    """Each field with its place and its JSON schema; those of inner configurations in their
    place."""
    properties = config.model_json_schema()["properties"]
    for name, field in config.model_fields.items():
        inner = _config_in(field.annotation)
        if inner is not None:
            yield from _fields(inner, (*above, name))
        elif name != "seed":
            yield (*above, name), field, properties[name]


def _add(group: Any, place: Place, field: FieldInfo, schema: dict[str, Any]) -> None:
    kinds = list(kinds_in(field.annotation))
    schema = schema | next((part for part in schema.get("anyOf", ()) if "minimum" in part), {})
    told = [f"default {_shown(field.default)}" if field.default is not None else ""]
    bounds = {key: schema[key] for key in _BOUNDS if schema.get(key, INT_MOST) < INT_MOST}
    told += [_BOUNDS[key].format(bound) for key, bound in bounds.items()]
    more = f" ({', '.join(filter(None, told))})" if any(told) else ""
    # argparse formats its help with %.
    options: dict[str, Any] = {"help": f"{field.description}{more}".replace("%", "%%")}
    options["dest"] = _dest(place)
    flag = f"--{place[-1].replace('_', '-')}"
    if bool in kinds:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, **options)
        return
    choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    if choices:
        options["choices"] = choices
    elif any(get_origin(kind) is tuple for kind in kinds):
        items = {each for kind in kinds for each in get_args(kind)}
        read = integer if int in items else number if float in items else text
        options |= {"nargs": "+", "type": read, "metavar": METAVARS[read]}
        options["action"] = _Words if str in kinds else _Tuple
    else:
        read = integer if int in kinds else number if float in kinds else text
        options |= {"type": read, "metavar": METAVARS[read]}
    group.add_argument(flag, **options)


class _Tuple(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        setattr(namespace, self.dest, tuple(values))


class _Words(argparse.Action):
    """One word is a word, several are names."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        setattr(namespace, self.dest, values[0] if len(values) == 1 else tuple(values))


def _config_in(annotation: Any) -> type[Config] | None:
    found = [k for k in kinds_in(annotation) if isinstance(k, type) and issubclass(k, Config)]
    return found[0] if found else None


def _dest(place: Place) -> str:
    return f"config.{'.'.join(place)}"


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
