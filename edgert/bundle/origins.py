"""Which checkpoint tensors a bundle's matrices are made of, for adapters that name these.

`<part>.tensors.json` lists them by weight, in the order of the rows:

    {"weights": {"layers.0.qkv": [{"tensor": "model.layers.0.self_attn.q_proj.weight", ...}, ...]}}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from .. import limits
from ..errors import BundleError
from ..storage import strict_json
from ..storage.typed import Reader

if TYPE_CHECKING:
    from .reader import Bundle

F32 = NDArray[np.float32]


class Origin(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Rows of a matrix that are those of one tensor.

    tensor: its name. shape: [N, K] as products read it. rows: the first of its rows that is meant,
    and the one after the last. alias: another name of the tensor (a tied head's). scale: what its
    values are multiplied by. pairs: (head size, rotary channels) of heads whose rotary pairs are
    neighbours in the tensor, and half a head apart here; [] for none.
    """

    tensor: str
    shape: tuple[int, ...]
    rows: tuple[int, ...]
    alias: str = ""
    scale: float = 1.0
    pairs: tuple[int, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether the numbers fit each other."""
        if (len(self.shape), len(self.rows)) != (2, 2) or len(self.pairs) not in (0, 2):
            return False
        (n, k), (start, stop) = self.shape, self.rows
        size, turning = self.pairs or (1, 0)
        fits = 0 <= start < stop <= n < limits.TENSOR_DIM and 0 < k < limits.TENSOR_DIM
        heads = 0 <= turning <= size and turning % 2 == 0 and size > 0 and n % size == 0
        return fits and heads and abs(self.scale) < 1e9

    def arranged(self, rows: F32) -> F32:
        """Those of a matrix with the tensor's rows, [N, r], that are meant, in the order here."""
        if self.pairs:
            size, turning = self.pairs
            order = [*range(0, turning, 2), *range(1, turning, 2), *range(turning, size)]
            rows = rows.reshape(-1, size, rows.shape[1])[:, order].reshape(rows.shape)
        return rows[self.rows[0] : self.rows[1]] * np.float32(self.scale)


class _File(msgspec.Struct, forbid_unknown_fields=True):
    weights: dict[str, tuple[Origin, ...]]


_READER = Reader(_File)
Origins = Mapping[str, tuple[Origin, ...]]


def origins_file(part: str) -> str:
    """The file's name, by the part's."""
    return f"{part}.tensors.json"


def to_json(origins: Origins) -> bytes:
    """The file's content; numbers of one list stay on a line."""
    data = msgspec.json.format(msgspec.json.encode(_File(dict(origins))), indent=1)
    return re.sub(rb"\[\s+(-?\d+),\s+(-?\d+)\s+\]", rb"[\1, \2]", data) + b"\n"


def read_origins(bundle: Bundle, part: str = "") -> Origins:
    """The origins of a part's matrices, the text part's by default. Raises BundleError for a
    bundle without them, and for damaged ones."""
    part = bundle.part(part)
    name, graph = origins_file(part), bundle.graph(part)
    entry = bundle.manifest.files.get(name)
    if entry is None:
        raise BundleError(
            f"{bundle.path} has no {name}, expected a bundle that tells which tensors its matrices "
            "are made of: adapters name these",
            code="adapter-origins",
            hint="convert the model again with this edgert, or merge the adapter: edgert convert "
            "CHECKPOINT --adapter DIR",
        )
    where = str(bundle.path_of(name))
    if entry.size > limits.GRAPH_BYTES:
        raise _damaged(where, f"it has {entry.size} bytes, at most {limits.GRAPH_BYTES} are read")
    data = bundle.read(name)
    strict_json.parse(data, where=where, code="adapter-origins")
    try:
        found = _READER.decode(data).weights
    except msgspec.DecodeError as error:
        raise _damaged(where, str(error)[:200]) from None
    for weight, parts in found.items():
        declared = graph.weights.get(weight)
        sound = declared is not None and all(part.sound for part in parts)
        rows = sum(part.rows[1] - part.rows[0] for part in parts) if sound else 0
        widths = {part.shape[1] for part in parts} if sound else set()
        if declared is None or declared.shape != (rows, *widths):
            raise _damaged(where, f"weight {weight[:80]!r} is not made of what it lists")
    return found


def _damaged(where: str, what: str) -> BundleError:
    return BundleError(
        f"{where}: {what}",
        code="adapter-origins",
        hint="the file is damaged; copy the bundle again or convert anew",
    )
