"""The logger `edgert`, and notices: messages that come once a process.

A program that embeds edgert decides what it sees by configuring logging; until it does, Python
shows warnings on stderr and nothing else. The command line shows notices, too
(`edgert/cli/logs.py`).
"""

from __future__ import annotations

import logging

NOTICE = 25  # a level between INFO and WARNING: for the person at the terminal

logger = logging.getLogger("edgert")
logging.addLevelName(NOTICE, "NOTICE")

_shown: set[str] = set()


def notice(message: str, level: int = logging.WARNING) -> None:
    """Log a message, once in this process."""
    if message not in _shown:
        _shown.add(message)
        logger.log(level, "%s", message)
