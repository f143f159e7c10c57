"""Where a benchmark's files are and what text they hold: the same questions, and the same answers,
at every reader.

A ``source`` is ``"wheel"`` (the embedded copy), for some benchmarks ``"hub"``, or a path, as a
string (``~`` is the home folder) or a ``Path``. Files are UTF-8, with or without a byte order mark;
what cannot be read is one sentence.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

from tracelab.errors import TracelabError, quoted
from tracelab.model import assets

_UTF16_OR_32 = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")
SEPARATORS = (",", "\t", ";")


def is_named(source: Any, name: str) -> bool:
    """Whether a source is one of the names, ``"wheel"`` or ``"hub"``; a table or an array is
    neither."""
    return isinstance(source, str) and source == name


def file_at(
    source: str | Path, what: str, *, wheel: str | None = None, inside: str = "", hub: bool = True
) -> Path:
    """The file that ``source`` names; in a folder the one called ``inside``.

    Args:
        wheel: its path in the embedded copy; None: it is not there.
        hub: whether the error names the hub as another possibility.

    Raises:
        TracelabError: there is no such file.
    """
    if is_named(source, "wheel") and wheel is not None:
        return assets.data_dir() / wheel
    path = _path(source, what)
    if inside and _is(Path.is_dir, path):
        path = path / inside
    if not _is(Path.is_file, path):
        others = [name for name, there in (('"wheel"', wheel is not None), ('"hub"', hub)) if there]
        ways = " or ".join([", ".join(["a path", *others[:-1]]), *others[-1:]])
        raise TracelabError(f"no {what} file at {str(path)!r}: give {ways}")
    return path


def folder_at(source: str | Path, what: str, *, wheel: str, holds: str) -> Path:
    """The folder that ``source`` names, which ``holds`` (in words) the official files.

    Raises:
        TracelabError: there is no such folder.
    """
    if is_named(source, "wheel"):
        return assets.data_dir() / wheel
    path = _path(source, what)
    if not _is(Path.is_dir, path):
        raise TracelabError(
            f'no {what} folder at {str(path)!r}: give the folder of {holds}, or "wheel"'
        )
    return path


def file_in(folder: Path, name: str, what: str, *, holds: str) -> Path:
    """The file ``name`` of a benchmark's folder.

    Raises:
        TracelabError: it is not there.
    """
    if not _is(Path.is_file, folder / name):
        raise TracelabError(
            f'no {what} file at {str(folder / name)!r}: give the folder of {holds}, or "wheel"'
        )
    return folder / name


def _path(source: str | Path, what: str) -> Path:
    if not isinstance(source, str | Path) or not str(source).strip():
        raise TracelabError(
            f"{quoted(source)} is no place to read {what} from: give a path as text or as a Path"
        )
    try:
        return Path(source).expanduser()
    except RuntimeError as error:  # ~nobody
        raise TracelabError(f"cannot tell where {str(source)!r} is: {error}") from error


def _is(kind: Callable[[Path], bool], path: Path) -> bool:
    try:
        return kind(path)
    except (OSError, ValueError):  # a name that is too long, or holds a null character
        return False


def changed_at(*paths: Path) -> tuple[int, ...]:
    """What changes when one of the files does: so that a changed file is read again.

    Raises:
        TracelabError: a file that cannot be read.
    """
    try:
        return tuple(
            number for path in paths for number in (path.stat().st_mtime_ns, path.stat().st_size)
        )
    except OSError as error:
        raise TracelabError(f"cannot read {str(error.filename)!r}: {error.strerror}") from error


def text_of(path: Path, *, otherwise: str | None = None) -> str:
    """The text of a file, without a byte order mark.

    Args:
        otherwise: the encoding of a file that is not UTF-8.

    Raises:
        TracelabError: it cannot be read, is in another encoding, or is no text.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TracelabError(f"cannot read {str(path)!r}: {error.strerror}") from error
    if content.startswith(_UTF16_OR_32):
        raise TracelabError(f"{str(path)!r} is UTF-16 or UTF-32 text: save it as UTF-8")
    if b"\0" in content:
        raise TracelabError(f"{str(path)!r} is not a text file: it holds null characters")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if otherwise is not None:
            return content.decode(otherwise)
        raise TracelabError(
            f"{str(path)!r} is not a text file in UTF-8 (byte {error.start + 1}): save it as UTF-8"
        ) from error


def json_of(path: Path) -> Any:
    """The JSON value that a file holds.

    Raises:
        TracelabError: as :func:`text_of`.
        ValueError: it holds no JSON.
    """
    return json.loads(text_of(path))


def json_objects_of(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each JSON object is ("line 7") and the object: one a line, or the items of one list.

    Raises:
        TracelabError: as :func:`text_of`.
        ValueError, TypeError: a line or an item, which it names, that is no JSON object; for
            :func:`~tracelab.datasets.records.parse`.
    """
    text = text_of(path)
    if text.lstrip().startswith("["):
        for number, item in enumerate(json.loads(text), start=1):
            yield f"item {number}", object_in(item, f"item {number}")
        return
    for number, line in enumerate(lines_of(text), start=1):
        if line.strip():
            try:
                yield f"line {number}", object_in(json.loads(line), f"line {number}")
            except json.JSONDecodeError as error:
                error.add_note(f"line {number}")
                raise


def object_in(value: Any, what: str) -> dict[str, Any]:
    """The value, if it is a JSON object.

    Raises:
        TypeError: it is something else; for :func:`~tracelab.datasets.records.parse`.
    """
    if not isinstance(value, dict):
        raise TypeError(f"{what} is {quoted(value)}, not a JSON object")
    return value


def lines_of(text: str) -> list[str]:
    """The lines of a text; each ends in ``\\n``, the last one if the text does.

    Not ``splitlines()``, which also splits at characters that may stand in a sentence (U+2028,
    U+0085).
    """
    return list(io.StringIO(text, newline=None))


def table_of(
    path: Path,
    columns: Sequence[str],
    what: str,
    *,
    optional: Sequence[str] = (),
    otherwise: str | None = None,
) -> list[dict[str, str]]:
    """The rows of a table with a header: comma, tab or semicolon between its cells, whichever the
    header has.

    Columns are known whatever the case and the spaces of their names. A row holds its ``columns``
    as text, ``"line"``, the number of its line in the file, and ``"number"``: that of the file if a
    column without a name (as pandas writes it) or called ``id`` numbers them all, else its own from
    0.

    Args:
        what: the benchmark, for messages.
        optional: columns that a row holds too, if the table has them.
        otherwise: as for :func:`text_of`.

    Raises:
        TracelabError: no such table, or a row with too few or too many cells.
    """
    text = text_of(path, otherwise=otherwise)
    if not text.strip():
        raise TracelabError(f"{path} holds no records")
    lines = list(io.StringIO(text, newline=""))  # with their ends, which may stand in a cell
    before = next(k for k, line in enumerate(lines) if line.strip())
    header, *body = lines[before:]
    found = {mark: _names(header, mark) for mark in SEPARATORS}
    mark = max(
        SEPARATORS, key=lambda m: (len({*columns, *optional} & set(found[m])), len(found[m]))
    )
    names = found[mark]
    lacking = [name for name in columns if name not in names]
    if lacking:
        raise TracelabError(
            f"{path} is not the benchmark it claims to be: no column {', '.join(lacking)} of "
            f"{what} among "
            f"{', '.join(map(repr, names))}"
        )
    places = {name: names.index(name) for name in (*columns, *optional) if name in names}
    rows = _rows(body, before + 2, mark, len(names), path)
    numbers = _numbers(names, [cells for _, cells in rows])
    return [
        {name: cells[place] for name, place in places.items()}
        | {"line": str(line), "number": number}
        for (line, cells), number in zip(rows, numbers, strict=True)
    ]


def _rows(
    lines: Sequence[str], first: int, mark: str, width: int, path: Path
) -> list[tuple[int, list[str]]]:
    """Line number and cells of each row that is not empty; ``first`` is the number of the first
    line.

    Quotation marks are read strictly: one that is never closed would make the rest of a file one
    cell. Tables with tabs often quote nothing, and their quotation marks are the texts' own.

    Raises:
        TracelabError: a row with too few or too many cells, or with a quotation mark out of place.
    """
    ways: tuple[Literal[0, 3], ...] = (
        (csv.QUOTE_MINIMAL, csv.QUOTE_NONE) if mark == "\t" else (csv.QUOTE_MINIMAL,)
    )
    fault = ""
    for quoting in ways:
        rows, line = [], first
        reader = csv.reader(
            lines, delimiter=mark, quoting=quoting, skipinitialspace=True, strict=True
        )
        try:
            for cells in reader:
                del cells[
                    width + sum(1 for _ in takewhile(lambda cell: cell.strip(), cells[width:])) :
                ]
                if len(cells) != width and any(cell.strip() for cell in cells):
                    raise csv.Error(f"it has {len(cells)} cells, the header {width}")
                if any(cell.strip() for cell in cells):
                    rows.append((line, cells))
                line = first + reader.line_num
            return rows
        except csv.Error as error:
            fault = fault or f"line {line} of {path} cannot be read ({error}): mend that row"
    raise TracelabError(fault)


def _numbers(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """What each row is called."""
    for k, name in enumerate(names):
        found = [cells[k].strip() for cells in rows]
        if name in ("", "unnamed: 0", "id", "index") and all(found):
            return found
    return [str(number) for number in range(len(rows))]


def _names(header: str, mark: str) -> list[str]:
    return [name.strip().lower() for name in next(csv.reader([header], delimiter=mark), [])]


def number_or_name(value: Any) -> int | str:
    """A cell as a number, if it is one."""
    try:
        return int(value)
    except (TypeError, ValueError):
        return str(value)
