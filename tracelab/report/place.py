"""The folder of a report: what of it must be tracelab's own before a report is written there."""

from __future__ import annotations

import json
from pathlib import Path

from tracelab.storage.ownership import LIST, adopt, made_by_tracelab, require_folder, require_ours

NAMES = ("index.html", "parts", "bundles", "tables", "figures")


def require_report_folder(out_dir: Path) -> None:
    """Refuse, before any work, a folder in which a report would write over what is not tracelab's.

    Raises:
        TracelabError: naming what is not, or why nothing can be written there.
    """
    require_folder(out_dir)
    if not (out_dir / LIST).is_file() and _is_report_of_0_1(out_dir):
        places = [out_dir / name for name in NAMES]
        files = [file for folder in ("tables", "figures") for file in (out_dir / folder).glob("*")]
        adopt([path for path in (*places, *files) if path.exists()])
    for name in NAMES:
        require_ours(out_dir / name)


def _is_report_of_0_1(out_dir: Path) -> bool:
    """Whether the parts are there, with requests as tracelab writes them."""
    for file in (out_dir / "parts").glob("*.key"):
        try:
            if made_by_tracelab(json.loads(file.read_text(encoding="utf-8"))):
                return True
        except (OSError, ValueError):
            continue
    return False
