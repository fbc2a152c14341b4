"""The compiled functions that Python calls, and how."""

from __future__ import annotations

# All arguments are int64: how many there are, and whether there is a result, int64 too.
ENTRIES = {
    "begin": (5, False),
    "lead": (4, True),
    "work": (3, True),
    "stream": (3, True),
    "fold_tail": (7, False),
    "race": (4, True),
    "race_largest": (4, True),
    "scatter_int4": (7, False),
    "scatter_int8": (7, False),
    "scatter_channel": (7, False),
    "scatter_planes": (11, False),
    "scatter_kept": (15, False),
}
