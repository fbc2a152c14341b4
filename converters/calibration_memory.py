"""Memory that calibrating takes: known before it starts, and less of it at a time where it fails.

What a machine must have: the model in eight bits, twice (stored and packed), and the Gram matrix
and the work space of its largest product. What is free beyond that is for the Gram matrices of
other products, which saves passes over the text; the results do not depend on it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from .. import system_memory
from ..errors import ResourceError
from ..graph import Graph, Weight
from ..kernels.encodings import EXACT
from ..notices import notice
from ..session.base import Session
from . import calibrate
from .compress.whiten import Gram
from .quantize.gptq import gptq_bytes
from .weights import stored_nbytes

SHARE = 0.5  # of what is free, for the Gram matrices of one pass
BASE = 64 << 20  # of buffers that do not grow with the model
HINT = "close other programs, convert on a machine with more memory, or without --method gptq"


def needed(graph: Graph, matrices: Iterable[str]) -> int:
    """Bytes that calibrating some of a graph's matrices takes at its peak, nearly."""
    shapes = [weight.shape for weight in graph.weights.values()]
    rounded = {
        name: Weight(weight.shape, calibrate.ROUNDED if len(weight.shape) == 2 else EXACT)
        for name, weight in graph.weights.items()
    }
    loading = 12 * max(map(math.prod, shapes), default=0)  # one in float32, in two pieces
    return BASE + 2 * stored_nbytes(rounded) + max(loading, _work(graph, matrices))


def _work(graph: Graph, matrices: Iterable[str]) -> int:
    """Bytes of the largest product's Gram matrix, and of GPTQ with it."""
    found = [graph.weights[name].shape for name in matrices]
    return max((28 * k * k + gptq_bytes(n, k) for n, k in found), default=0)


def require(graph: Graph, matrices: Mapping[str, str]) -> None:
    """Raise ResourceError, with both numbers, where less is free than calibrating takes."""
    wanted, free = needed(graph, matrices), system_memory.free()
    if wanted > free:
        name = max(matrices, key=lambda name: _work(graph, [name]))
        raise ResourceError(
            f"calibrating takes about {wanted / 1e9:.2f} GB of memory (the largest matrix is "
            f"{name}, {list(graph.weights[name].shape)}), {free / 1e9:.2f} GB are available",
            code="memory",
            hint=HINT,
            needed=wanted,
            free=free,
        )


def collected(
    session: Session, sequences: Sequence[Any], matrices: Mapping[str, str], *, progress: bool
) -> Iterator[dict[str, Gram]]:
    """The Gram matrices of all values that `matrices` read, as many at a time as there is room for;
    fewer where that was too much. Raises ResourceError where there is no room for one."""
    shapes = session.graph.shapes()
    left = {value: int(shapes[value][1]) for value in matrices.values()}
    most = 1 << 62
    while left:
        spare = system_memory.free() - _work(session.graph, matrices)
        names = next(calibrate.passes(left, min(most, int(SHARE * max(0, spare)))))
        try:
            grams = calibrate.collect(
                session, sequences, names, memory=1 << 62, progress=progress, nonfinite="refuse"
            )
        except MemoryError:
            if len(names) == 1:
                raise out_of_memory(names[0], left[names[0]]) from None
            most = sum(calibrate.gram_bytes(left[name]) for name in names) // 2
            notice(
                f"the inputs' matrices of {len(names)} products do not fit the memory together: "
                "fewer at a time, in more passes over the text"
            )
            continue
        yield grams
        left = {name: width for name, width in left.items() if name not in grams}
        del grams


def out_of_memory(name: str, width: int) -> ResourceError:
    """The error for a matrix that one at a time is too much, too."""
    return ResourceError(
        f"{name}: out of memory with its inputs' {width} by {width} matrix, of "
        f"{calibrate.gram_bytes(width) / 1e9:.2f} GB; {system_memory.free() / 1e9:.2f} GB are "
        "available",
        code="memory",
        hint=HINT,
    )
