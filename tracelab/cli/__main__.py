"""``python -m tracelab.cli`` is ``tracelab``."""

import sys

from tracelab.cli import main

sys.exit(main())
