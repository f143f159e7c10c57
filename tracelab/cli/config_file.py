"""``--config FILE``: the options of a command from a file, TOML or JSON.

    bias = "gender"
    edit = ["fairmed-gender/", "erasure-gender/"]
    benchmark = ["stereoset", "bbq=400"]
    no-off-target = true

A key is an option without its dashes. What stands on the command line too is taken from there.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tracelab.cli.arguments import require_text
from tracelab.cli.words_meant import Parser, bare
from tracelab.errors import TracelabError, meant, quoted

VERBS = ("compare", "report")
FLAG = "--config"
TRUST = "--trust-remote-code"


def with_config(arguments: Sequence[str], parser: Parser) -> list[str]:
    """The arguments with those of the file that ``--config`` names put in after the verb.

    Raises:
        TracelabError: a file that cannot be read, an option that the verb does not have, or a value
            that an option cannot be written with.
    """
    found = list(arguments)
    if not found or found[0] not in VERBS:
        return found
    verb, path, rest = parser.verbs()[found[0]], None, []
    words = iter(found[1:])
    for word in words:
        if bare(word) != FLAG:
            rest.append(word)
            continue
        if path is not None:
            raise TracelabError("--config stands twice: put what both files hold into one")
        path = word.partition("=")[2] if "=" in word else next(words, "")
    if path is None:
        return found
    if not path.strip():
        raise TracelabError("--config is empty: give it a value, or leave the option out")
    given = {bare(word) for word in rest}
    put_in: list[str] = []
    for key, value in _read(path).items():
        flag = f"--{key.replace('_', '-')}"
        action = verb.option(flag)
        if action is None or flag in (FLAG, "--help"):
            known = [name[2:] for name in verb.flags() if name.startswith("--")]
            near = meant(key, [name for name in known if name not in ("config", "help")])
            raise TracelabError(f"{path}: {found[0]} has no option {quoted(key)}{near}")
        if flag == TRUST:
            raise TracelabError(
                f"{path}: {key} lets code of others run: say {TRUST} on the command line"
            )
        if flag not in given:
            put_in += _words(flag, value, action, path)
    require_text(put_in)
    return [found[0], *put_in, *rest]


def _words(flag: str, value: Any, action: Any, path: str) -> Iterator[str]:
    if isinstance(value, bool):
        if action.nargs != 0:
            raise TracelabError(f"{path}: {flag[2:]} takes a value, not {str(value).lower()}")
        yield from [flag] if value else []
        return
    if action.nargs == 0:
        raise TracelabError(f"{path}: {flag[2:]} is true or false, not {quoted(value)}")
    several = type(action).__name__ == "_AppendAction"
    if isinstance(value, list) and not several:
        raise TracelabError(f"{path}: {flag[2:]} takes one value, not a list")
    if (
        action.nargs == "+"
        and isinstance(value, list)
        and not any(isinstance(each, list) for each in value)
    ):
        value = [value]  # one stack, its members in a row as on the command line
    for each in value if isinstance(value, list) else [value]:
        if action.nargs == "+" and isinstance(each, list) and each:
            yield from [flag, *(_word(flag, word, path) for word in each)]
        else:
            yield f"{flag}={_word(flag, each, path)}"


def _word(flag: str, value: Any, path: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TracelabError(f"{path}: {flag[2:]} cannot be {quoted(value)}")
    return str(value)


def _read(path: str) -> dict[str, Any]:
    try:
        content = Path(path).expanduser().read_bytes()
        text = content.decode("utf-8-sig")
        read = json.loads if Path(path).suffix.lower() == ".json" else tomllib.loads
        found = read(text)
    except OSError as error:
        raise TracelabError(f"--config: cannot read {path!r}: {error.strerror}") from error
    except ValueError as error:
        raise TracelabError(f"--config: {path} is neither TOML nor JSON: {error}") from error
    if not isinstance(found, dict):
        raise TracelabError(f"--config: {path} holds no options by name")
    return found
