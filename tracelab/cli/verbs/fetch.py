"""``tracelab fetch``: the embedded model and data."""

from __future__ import annotations

import argparse

from tracelab.model import assets


def run(options: argparse.Namespace) -> None:
    """``tracelab fetch``."""
    for name, folder in assets.fetch(options.what, check=options.check).items():
        print(f"{name}\t{folder}")
