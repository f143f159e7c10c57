"""Where a benchmark's files are and what text they hold: the same questions, and the same answers, at every reader.

A ``source`` is ``"wheel"`` (the embedded copy), for some benchmarks ``"hub"``, or a path, as a string (``~`` is the
home folder) or a ``Path``. Files are UTF-8, with or without a byte order mark; what cannot be read is one sentence.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tracelab.errors import TracelabError
from tracelab.model import assets

_UTF16_OR_32 = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")
SEPARATORS = (",", "\t", ";")


def file_at(source: str | Path, what: str, *, wheel: str | None = None, inside: str = "", hub: bool = True) -> Path:
    """The file that ``source`` names; in a folder the one called ``inside``.

    Args:
        wheel: its path in the embedded copy; None: it is not there.
        hub: whether the error names the hub as another possibility.

    Raises:
        TracelabError: there is no such file.
    """
    if source == "wheel" and wheel is not None:
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
    if source == "wheel":
        return assets.data_dir() / wheel
    path = _path(source, what)
    if not _is(Path.is_dir, path):
        raise TracelabError(f'no {what} folder at {str(path)!r}: give the folder of {holds}, or "wheel"')
    return path


def file_in(folder: Path, name: str, what: str, *, holds: str) -> Path:
    """The file ``name`` of a benchmark's folder.

    Raises:
        TracelabError: it is not there.
    """
    if not _is(Path.is_file, folder / name):
        raise TracelabError(f'no {what} file at {str(folder / name)!r}: give the folder of {holds}, or "wheel"')
    return folder / name


def _path(source: str | Path, what: str) -> Path:
    if not isinstance(source, str | Path) or not str(source).strip():
        raise TracelabError(f"{source!r} is no place to read {what} from: give a path as text or as a Path")
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
        return tuple(number for path in paths for number in (path.stat().st_mtime_ns, path.stat().st_size))
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


def json_lines_of(path: Path) -> Iterator[tuple[int, Any]]:
    """Line number and JSON value of each line that is not empty.

    Raises:
        TracelabError: as :func:`text_of`.
        ValueError: a line, which it names, that holds no JSON.
    """
    # Not splitlines(): a text may hold one of the other characters at which that would split.
    for number, line in enumerate(text_of(path).split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                error.add_note(f"line {number}")
                raise


def table_of(path: Path, columns: Sequence[str], what: str, *, otherwise: str | None = None) -> list[dict[str, str]]:
    """The rows of a table with a header: comma, tab or semicolon between its cells, whichever the header has.

    Columns are known whatever the case and the spaces of their names. A row holds its ``columns`` as text, ``"line"``,
    the number of its line in the file, and ``"number"``: that of the file if it numbers its rows in a column
    without a name (as pandas does) or called ``id``, else its own from 0.

    Args:
        what: the benchmark, for messages.
        otherwise: as for :func:`text_of`.

    Raises:
        TracelabError: no such table, or a row with too few or too many cells.
    """
    text = text_of(path, otherwise=otherwise)
    if not text.strip():
        raise TracelabError(f"{path} holds no records")
    header = next(iter(text.splitlines()), "")
    found = {mark: _names(header, mark) for mark in SEPARATORS}
    mark = max(SEPARATORS, key=lambda m: (len(set(columns) & set(found[m])), len(found[m])))
    names = found[mark]
    lacking = [name for name in columns if name not in names]
    if lacking:
        raise TracelabError(
            f"{path} is not the benchmark it claims to be: no column {', '.join(lacking)} of {what} among "
            f"{', '.join(map(repr, names))}"
        )
    places = {name: names.index(name) for name in columns}
    numbers = next((k for k, name in enumerate(names) if name in ("", "unnamed: 0", "id", "index")), None)
    rows: list[dict[str, str]] = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark)
    next(reader)
    after = reader.line_num
    for cells in reader:
        line, after = after + 1, reader.line_num
        if not any(cell.strip() for cell in cells):
            continue  # an empty line
        if len(cells) != len(names):
            raise TracelabError(f"line {line} of {path} has {len(cells)} cells, its header {len(names)}: mend that row")
        row = {name: cells[place] for name, place in places.items()}
        number = str(len(rows)) if numbers is None else cells[numbers].strip()
        rows.append({**row, "line": str(line), "number": number})
    return rows


def _names(header: str, mark: str) -> list[str]:
    return [name.strip().lower() for name in next(csv.reader([header], delimiter=mark), [])]
