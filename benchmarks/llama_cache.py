"""llama.cpp's keys and values of a text, repeated until they are as many as a longer one has.

`llama_state_seq_get_data` gives, little-endian: in newer versions two words (a mark, the number of
the sequence), the number of streams, of cells; for each cell its position, 1, the sequence; whether
values are transposed, the number of layers; for each layer a type, the bytes of a row, and the
cells' rows of keys; then the same of values, transposed ones as a type, the bytes of a value, the
number of columns, and the cells' values of each column (llama.cpp, `llama_kv_cache::state_write`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Content = NDArray[np.uint8]
CELL, HEAD = 12, 12  # bytes: position, how many sequences, which; type, bytes of a row


def repeated(content: Content, times: int) -> Content:
    """The content with its cells `times` times, at positions 0, 1, 2 and so on. Raises ValueError
    where it is laid out otherwise than the above, as several streams are."""
    start = 0 if _word(content, 0) == 1 else 8
    streams, cells = _word(content, start), _word(content, start + 4)
    at = start + 8
    if streams != 1:
        raise ValueError(f"llama.cpp keeps {streams} streams of cells, expected one")
    rows = content[at : at + CELL * cells].view("<i4").reshape(-1, 3)
    if not np.array_equal(rows[:, :2], [(i, 1) for i in range(cells)]):
        raise ValueError(
            f"cells of llama.cpp begin with {rows[:2].tolist()}, expected 0, 1 and 1, 1"
        )
    at += CELL * cells
    transposed, layers = _word(content, at), _word(content, at + 4)
    more = np.tile(rows, (times, 1))
    more[:, 0] = np.arange(cells * times)
    out = [content[:start], np.array([1, cells * times], "<u4"), more, content[at : at + 8]]
    at += 8
    for part in range(2 * layers):
        across = part >= layers and transposed
        size = _word(content, at + 4)  # of a row, or of a value
        columns = _word(content, at + 8) if across else 1
        out.append(content[at : at + HEAD])
        at += HEAD
        held = content[at : at + columns * cells * size].reshape(columns, -1)
        out.append(np.tile(held, (1, times)))
        at += held.size
    if at != len(content):
        raise ValueError(f"{len(content)} bytes of content, the parts make {at}")
    return np.concatenate([part.reshape(-1).view(np.uint8) for part in out])


def _word(content: Content, at: int) -> int:
    return int(content[at : at + 4].view("<u4")[0])
