"""What every result of tracelab can do: show itself, become a table, be saved and come back.

A result is a frozen dataclass whose fields are pandas tables, plain JSON values and, rarely, tensors.
``save`` writes each table as Parquet, the tensors as safetensors and the rest as one JSON file; ``load``
reads them back. Which model, data, seed and versions made it is in ``settings``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import pandas as pd
import plotly.graph_objects as go
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tracelab.datasets.records import data_hash
from tracelab.errors import TracelabError
from tracelab.escaping import for_html, lines
from tracelab.files import atomic_folder, require_replaceable
from tracelab.hooked import hook_names
from tracelab.model import model_info

_VERSIONED = ("tracelab", "torch", "transformers", "transformer-lens")


def run_settings(model: TransformerBridge, records: Iterable[Any] = (), **choices: Any) -> dict[str, Any]:
    """The settings of a result: the model, the hooks on it, the data's hash, the caller's choices, the versions."""
    return {
        "model": model_info(model).settings(),
        "hooks": hook_names(model),
        "data_hash": data_hash(records),
        **choices,
        "versions": {name: version(name) for name in _VERSIONED},
    }


@dataclass(frozen=True)
class Result:
    """Base of all results; see the module's docstring."""

    settings: dict[str, Any]

    @property
    def frame(self) -> pd.DataFrame:
        """The tidy table, one row a measurement."""
        raise AttributeError(f"{type(self).__name__} has no table")

    @property
    def failures(self) -> int:
        """How many measurements of this result failed; the others are there."""
        return 0

    def text(self) -> str:
        """What the command line prints."""
        return str(lines(self.frame).to_string(index=False, float_format="{:.4g}".format))

    def plot(self) -> go.Figure:
        """The figure of this result."""
        raise AttributeError(f"{type(self).__name__} has no figure")

    def figures(self) -> dict[str, go.Figure]:
        """All its figures by name ("" for the only one); none for a result that has none."""
        return {} if type(self).plot is Result.plot else {"": self.plot()}

    def save(self, folder: Path | str) -> Path:
        """Write the result into ``folder``, which replaces a result saved there before; returns the folder.

        Raises:
            TracelabError: ``folder`` holds something else.
        """
        folder = Path(folder)
        require_replaceable(folder, ["result.json", "*.parquet", "*.safetensors"], marker="result.json")
        plain: dict[str, Any] = {}
        with atomic_folder(folder) as made:
            for name, value in self._values():
                if isinstance(value, pd.DataFrame):
                    value.to_parquet(made / f"{name}.parquet")
                elif isinstance(value, dict) and value and _all_tensors(value):
                    save_file({k: t.contiguous() for k, t in value.items()}, made / f"{name}.safetensors")
                else:
                    plain[name] = value
            text = json.dumps({"result": type(self).__name__, **plain}, indent=1)
            (made / "result.json").write_text(text, encoding="utf-8")
        return folder

    def tables(self) -> dict[str, pd.DataFrame]:
        """All tables of the result, by field name."""
        return {name: value for name, value in self._values() if isinstance(value, pd.DataFrame)}

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Read a result that :meth:`save` wrote.

        Raises:
            TracelabError: ``folder`` holds no result, or one of another kind.
        """
        folder = Path(folder)
        try:
            values = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        except OSError as error:
            raise TracelabError(f"no saved result in {str(folder)!r}") from error
        kind = values.pop("result")
        if kind != cls.__name__:
            raise TracelabError(f"{str(folder)!r} holds a {kind}, not a {cls.__name__}")
        values |= {file.stem: pd.read_parquet(file) for file in folder.glob("*.parquet")}
        values |= {file.stem: load_file(file) for file in folder.glob("*.safetensors")}
        return cls(**values)

    def _values(self) -> list[tuple[str, Any]]:
        return [(field.name, getattr(self, field.name)) for field in fields(self)]

    def _repr_html_(self) -> str:
        model = self.settings.get("model")
        model_id = for_html(str(model.get("model_id", ""))) if isinstance(model, dict) else ""
        table = self.frame.head(12).to_html(index=False, float_format="{:.4g}".format, border=0, escape=True)
        more = f"<p>… {len(self.frame)} rows in all</p>" if len(self.frame) > 12 else ""
        return f"<p><b>{type(self).__name__}</b> · {model_id}</p>{table}{more}"


def _all_tensors(values: dict[str, Any]) -> bool:
    return all(isinstance(value, Tensor) for value in values.values())
