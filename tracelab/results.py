"""What every result of tracelab can do: show itself, become a table, be saved and come back.

A result is a frozen dataclass whose fields are pandas tables, plain JSON values and, rarely,
tensors. ``save`` writes each table as Parquet, the tensors as safetensors and the rest as one JSON
file, which names the others with their hashes; ``load`` reads them back and takes none that was
altered. Which model, data, seed and versions made it is in ``settings``.

    @dataclass(frozen=True)
    class Lengths(Result):
        table: pd.DataFrame                     # any number of tables
        @property
        def frame(self): return self.table      # the one to look at first
        def headline(self): return "…"          # its number, for the repr and a notebook
        def plot(self): return bars(self.table, self.settings)   # of tracelab.figures
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

import pandas as pd
import plotly.graph_objects as go
from safetensors.torch import load_file, save_file
from torch import Tensor

from tracelab.errors import TracelabError, brief, quoted, warn
from tracelab.escaping import for_html, lines, readable
from tracelab.storage.files import atomic_folder, recover
from tracelab.storage.ownership import (
    ChangedSinceWritten,
    made_by_tracelab,
    named_in,
    require_replaceable,
)

MARKER = "result.json"
ENDINGS = ("parquet", "safetensors")
DRAWN = ("application/vnd.plotly", "image/")
"""MIME types of figures."""


@dataclass(frozen=True)
class Result:
    """Base of all results; see the module's docstring."""

    settings: dict[str, Any]
    shown: ClassVar[tuple[str, ...]] = ()
    """Columns of the frame that a notebook shows, with their bounds; none: the first."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # Of its own accord a dataclass writes a repr of all its tables, unless one stands in it.
        cls.__repr__ = cls.__repr__  # type: ignore[method-assign]

    def headline(self) -> str:
        """What it was measured on, how many of it, and the number to quote, in a few words."""
        return f"{len(self.frame)} rows"

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
        """Write the result into ``folder``, which replaces a result saved there before; returns the
        folder.

        Raises:
            TracelabError: ``folder`` holds something else, or cannot be written.
        """
        folder = Path(folder)
        require_result_folder(folder)
        plain: dict[str, Any] = {}
        with atomic_folder(folder) as made:
            for name, value in self._values():
                if isinstance(value, pd.DataFrame):
                    value.to_parquet(made / f"{name}.parquet")
                elif isinstance(value, dict) and value and _all_tensors(value):
                    save_file(
                        {k: t.contiguous() for k, t in value.items()}, made / f"{name}.safetensors"
                    )
                else:
                    plain[name] = value
            files = {file.name: _hash(file) for file in sorted(made.iterdir())}
            content = {"result": type(self).__name__, "files": files, **plain}
            text = json.dumps({"sha256": _content_hash(content), **content}, indent=1)
            (made / MARKER).write_text(text, encoding="utf-8")
        return folder

    def tables(self) -> dict[str, pd.DataFrame]:
        """All tables of the result, by field name."""
        return {name: value for name, value in self._values() if isinstance(value, pd.DataFrame)}

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Read a result that :meth:`save` wrote.

        Raises:
            TracelabError: ``folder`` holds no result, one of another kind, or one that is damaged.
        """
        folder = Path(folder)
        try:
            recover(folder)
            there = (folder / MARKER).is_file()
        except (OSError, ValueError):  # a name that is too long, or holds a null character
            there = False
        if not there:
            raise TracelabError(f"no saved result in {quoted(str(folder))}")
        try:
            values = json.loads((folder / MARKER).read_text(encoding="utf-8"))
            kind = values["result"]
            if kind == cls.__name__:
                return cls._read(folder, values)
        except TracelabError:
            raise
        except Exception as error:  # damage surfaces as whatever a reader happens to raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise TracelabError(
                f"the result in {str(folder)!r} is damaged ({type(error).__name__}: {reason}): "
                "make it again"
            ) from error
        raise TracelabError(f"{str(folder)!r} holds a {kind}, not a {cls.__name__}")

    @classmethod
    def _read(cls, folder: Path, values: dict[str, Any]) -> Self:
        """What the files hold, given what stands in the JSON file."""
        digest = values.pop("sha256", None)  # 0.1 wrote none
        if digest is not None and digest != _content_hash(values):
            said = (
                f"{folder / MARKER} was changed since tracelab wrote it: "
                "what it says is no longer tracelab's"
            )
            warn(said, ChangedSinceWritten)
        hashes = values.pop("files", None)
        del values["result"]
        for name, digest in (hashes or {}).items():
            if not _lies_in(
                folder, name
            ):  # a forged name may lead anywhere, to a device without an end too
                raise ValueError(f"{quoted(name)} is no file of the folder")
            if _hash(folder / name) != digest:
                raise ValueError(f"{name} is not the file that was written")
        for pattern, read in (("*.parquet", pd.read_parquet), ("*.safetensors", load_file)):
            files = [file for file in folder.glob(pattern) if hashes is None or file.name in hashes]
            values |= {file.stem: read(file) for file in files}
        known = {field.name for field in fields(cls)}
        if known != values.keys():
            odd = ", ".join(sorted(known ^ values.keys()))
            raise TracelabError(
                f"the result in {str(folder)!r} is of another version of tracelab or damaged: it "
                f"differs in {odd}; make it again"
            )
        result = cls(**values)
        for field in fields(cls):
            value, wanted = getattr(result, field.name), str(field.type)
            if wanted == "pd.DataFrame" and not isinstance(value, pd.DataFrame):
                raise TypeError(f"{field.name} is no table")
            if wanted.startswith("dict[") and not isinstance(value, dict):
                raise TypeError(f"{field.name} is no mapping")
        return result

    def _values(self) -> list[tuple[str, Any]]:
        return [(field.name, getattr(self, field.name)) for field in fields(self)]

    def _facts(self) -> list[str]:
        """The model and the headline, as far as they are there."""
        facts = []
        with suppress(Exception):  # a debugger shows half-made results too
            facts.append(str(self.settings["model"]["model_id"]))
        with suppress(Exception):
            facts.append(self.headline())
        return facts

    def __repr__(self) -> str:
        return brief(self, *self._facts())

    def _repr_html_(self) -> str:
        facts = "".join(f" · {for_html(fact)}" for fact in self._facts())
        table = readable(self.frame, self.shown).to_html(index=False, border=0, escape=True)
        more = f"<p>… {len(self.frame)} rows in all</p>" if len(self.frame) > 12 else ""
        return f"<p><b>{type(self).__name__}</b>{facts}</p>{table}{more}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """The line and the table as HTML, and the figure as plotly's JSON and PNG."""
        figure = self._figure()
        drawn = {} if figure is None else figure._repr_mimebundle_()
        return {name: drawn[name] for name in drawn if name.startswith(DRAWN)} | self._words()

    def _ipython_display_(self) -> None:
        # Of one bundle a front end shows one kind only: so the words first, then the figure.
        from IPython.display import display

        display(self._words(), raw=True)
        if (figure := self._figure()) is not None:
            figure.show()

    def _words(self) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": self._repr_html_()}

    def _figure(self) -> go.Figure | None:
        with suppress(TracelabError):  # it says why there is nothing to draw, when asked to plot
            # the first of figures() without drawing the others
            return None if type(self).plot is Result.plot else self.plot()
        return None


def bias_types(records: pd.DataFrame) -> str:
    """For a headline: the bias types by name or, if they are more than three, how many."""
    names = sorted(set(records["bias_type"]))
    return ", ".join(names) if len(names) <= 3 else f"{len(names)} bias types"


def require_result_folder(folder: Path | str) -> None:
    """Refuse, before any work, a folder that :meth:`Result.save` would refuse.

    Raises:
        TracelabError: it holds something else, or cannot be written.
    """
    folder = Path(folder)
    recover(folder)
    own = [MARKER]
    if not named_in(folder / MARKER) and made_by_tracelab(content := read_marker(folder)):
        # Of 0.1, whose file names no others: those that a result of this kind may have.
        kinds = [kind for kind in _kinds(Result) if kind.__name__ == content.get("result")]
        own += [
            f"{field.name}.{ending}"
            for kind in kinds
            for field in fields(kind)
            for ending in ENDINGS
        ]
    require_replaceable(folder, own, marker=MARKER)


def _kinds(kind: type[Result]) -> list[type[Result]]:
    return [kind, *(each for below in kind.__subclasses__() for each in _kinds(below))]


def read_marker(folder: Path) -> Any:
    """What stands in the JSON file of a saved result; None where that cannot be read."""
    try:
        return json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _lies_in(folder: Path, name: str) -> bool:
    """Whether a name is that of a regular file in the folder, and leads out of it by no link."""
    file = folder / name
    return Path(name).name == name and file.is_file() and file.resolve().parent == folder.resolve()


def _hash(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _content_hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _all_tensors(values: dict[str, Any]) -> bool:
    return all(isinstance(value, Tensor) for value in values.values())
