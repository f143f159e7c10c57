"""The command line: ``tracelab VERB``, the same words as the Python functions.

Exit status: 0 done, 1 done but for cells of a table that failed (it tells why), 2 the request was
wrong (one line on stderr says what, and what to do instead), 130 interrupted, 143 the same by
SIGTERM, 141 nobody reads the output. ``--json FILE`` writes ``{"command": …, "settings": {…},
"results": [row, …]}``, a row for each row of the result's table. What can be asked is in
:mod:`.parser`, what is done in :mod:`.verbs`, what is written in :mod:`.output`, how it ends in
:mod:`.ending`. Words that are not understood, ``--help`` and ``--version`` need no torch.
"""

from __future__ import annotations

import shlex
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from safetensors import SafetensorError

from tracelab.cli.arguments import method_first, require_text
from tracelab.cli.config_file import with_config
from tracelab.cli.ending import ends_quietly
from tracelab.cli.parser import make_parser
from tracelab.errors import TracelabError, as_message
from tracelab.interventions.registry import LISTED
from tracelab.ranges import is_out_of_memory
from tracelab.threads import settle


@ends_quietly
def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    warnings.showwarning = _one_line_warning  # type: ignore[assignment]
    try:
        require_text(arguments)
        words = method_first(arguments, [method.kind for method in LISTED])
        parser = make_parser()
        options = parser.parse_args(with_config(words, parser))
        options.command = shlex.join(["tracelab", *arguments])
        settle(getattr(options, "threads", None))  # before torch is there
        # torch and all that is on it: once the words are understood
        from tracelab.cli.run import run

        return run(options)
    except BrokenPipeError:
        raise
    except (TracelabError, OSError, SafetensorError) as error:
        return _refused(str(error) or type(error).__name__)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _refused(
            f"out of memory: ask for less (a smaller --limit, --rank or model). {error}"
        )
    except KeyboardInterrupt:
        verbs = (
            "report, fit (of minutes), and with --out trace, compare and what has an --engine "
            "resume from here"
        )
        print(f"tracelab: interrupted; {verbs}", file=sys.stderr)
        return 130


def _refused(reason: str) -> int:
    print(f"tracelab: {as_message(reason)}", file=sys.stderr)
    return 2


def _one_line_warning(message: Warning | str, category: type[Warning], *args: Any) -> None:
    """Stands in for ``warnings.showwarning``: the message alone."""
    if issubclass(category, UserWarning):
        print(f"tracelab: warning: {as_message(str(message))}", file=sys.stderr)
