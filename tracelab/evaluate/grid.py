"""What is tried of a method: every combination of a grid, checked before anything is fitted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sklearn.model_selection import ParameterGrid
from transformer_lens.model_bridge import TransformerBridge

from tracelab.config import Config
from tracelab.errors import TracelabError
from tracelab.interventions.method import Method
from tracelab.model.load import model_facts
from tracelab.ranges import require_layers, shown

Grid = Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Sequence[Any]]]


def combinations(
    model: TransformerBridge, method: type[Method], base: Config, grid: Grid
) -> Iterable[tuple[dict[str, Any], Config, Any]]:
    """Every combination of the grid: its fields, the configuration and the layers.

    Raises:
        TracelabError: an empty grid, or a field or value that the method cannot have.
    """
    several = [grid] if isinstance(grid, Mapping) else list(grid)
    plain = [{name: _values(name, values) for name, values in each.items()} for each in several]
    found = list(ParameterGrid(plain)) if plain and all(plain) else []
    if not found:
        raise TracelabError(
            f"no values to try with {method.kind}: give a grid, as {{'layers': [range(8)], …}}"
        )
    facts = model_facts(model)
    for fields in found:
        layers = fields.get("layers")
        if isinstance(layers, str):
            method.require_layer_words(layers)
        elif layers is not None:
            require_layers(layers, facts.n_layers, facts.model_id)
        yield (
            fields,
            base.replace(**{k: v for k, v in fields.items() if k != "layers"}),
            layers,
        )


def _values(name: str, values: Any) -> list[Any]:
    """The values to try of a field, as JSON has them.

    Raises:
        TracelabError: they are no list; of layers, no list of lists or words.
    """
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        raise TracelabError(f"values to try of {name} are a list, not {shown(values)}")
    made = [each.tolist() if hasattr(each, "tolist") else each for each in values]
    made = [list(each) if isinstance(each, range | tuple) else each for each in made]
    if not made:
        raise TracelabError(f"no values to try of {name}: give some, or leave it out")
    if name == "layers" and any(isinstance(each, int) for each in made):
        raise TracelabError(
            f"layers to try are a list of lists, as [range(6), range(8)], not {shown(values)}"
        )
    return made


def in_words(value: Any) -> str:
    """A value in a name: layers in a row by their ends."""
    if not isinstance(value, list | tuple | range):
        return str(value)
    row = list(value)
    if len(row) > 1 and row == list(range(row[0], row[-1] + 1)):
        return f"{row[0]}-{row[-1]}"
    return " ".join(map(str, row))
