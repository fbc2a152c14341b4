"""One-line notices to the person at the terminal: each is shown once a process, on stderr."""

from __future__ import annotations

import sys

_shown: set[str] = set()


def notice(message: str) -> None:
    """Print `edgert: message` once."""
    if message not in _shown:
        _shown.add(message)
        print(f"edgert: {message}", file=sys.stderr)
