"""The logger `edgert`, and notices: messages of level WARNING that come once a process.

As in other libraries, nothing is shown until the program configures logging; the command line does
(`edgert/cli/logs.py`).
"""

from __future__ import annotations

import logging

logger = logging.getLogger("edgert")
logger.addHandler(logging.NullHandler())

_shown: set[str] = set()


def notice(message: str) -> None:
    """Log a warning, once for each message."""
    if message not in _shown:
        _shown.add(message)
        logger.warning("%s", message)
