"""Memory that calibrating takes, known before it starts.

A model is calibrated in segments (`layers.py`). What a machine must have: the widest segment in
eight bits, twice (stored and packed), what is passed on between segments, and the Gram matrices of
the segment's values with the work space of its largest products, as many as are worked on at a
time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from .. import system_memory
from ..errors import ResourceError
from ..graph import Graph, Weight
from ..kernels.encodings import EXACT
from .quantize.gptq import gptq_bytes
from .weights import stored_nbytes

BASE = 64 << 20  # of buffers that do not grow with the model
ROUNDED = "int8-g32"  # what a calibrating model's matrices are stored in
HINT = "close other programs, convert on a machine with more memory, or with --method rtn"


@dataclass(frozen=True)
class Work:
    """What is done with a segment's matrices. jobs: at a time. nbytes: that one takes, by matrix;
    where none is given, what GPTQ does."""

    jobs: int = 1
    nbytes: Mapping[str, int] = field(default_factory=dict)

    def peak(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Bytes, with the largest matrices at once."""
        sizes = [self.nbytes.get(name) or gptq_bytes(*shape) for name, shape in shapes.items()]
        return sum(sorted(sizes)[-self.jobs :])


def needed(
    segments: Sequence[Graph], matrices: Mapping[str, str], rows: int, work: Work = Work()
) -> int:
    """Bytes that calibrating takes at its peak, nearly. matrices: names and the values that their
    products read. rows: tokens of all sequences."""
    return BASE + max((_segment(graph, matrices, rows, work) for graph in segments), default=0)


def _segment(graph: Graph, matrices: Mapping[str, str], rows: int, work: Work) -> int:
    shapes = {name: weight.shape for name, weight in graph.weights.items()}
    rounded = {
        name: Weight(shape, ROUNDED if len(shape) == 2 else EXACT) for name, shape in shapes.items()
    }
    loading = 12 * max(map(math.prod, shapes.values()), default=0)  # float32, in two pieces
    passed = 2 * 4 * rows * int(graph.outputs[0].shape[-1])
    here = {name: value for name, value in matrices.items() if name in shapes}
    widths = {value: shapes[name][1] for name, value in here.items()}
    grams = sum(2 * 12 * k * k for k in widths.values())
    peak = work.peak({name: shapes[name] for name in here})
    return 2 * stored_nbytes(rounded) + passed + max(loading, grams + peak)


def require(
    segments: Sequence[Graph], matrices: Mapping[str, str], rows: int, work: Work = Work()
) -> None:
    """Raise ResourceError, with both numbers, where less is free than calibrating takes."""
    wanted, free = needed(segments, matrices, rows, work), system_memory.free()
    if wanted > free:
        worst = max(segments, key=lambda graph: _segment(graph, matrices, rows, work))
        largest = largest_of(worst, matrices)
        raise ResourceError(
            f"calibrating takes about {wanted / 1e9:.2f} GB of memory (the largest matrix is "
            f"{largest}, {list(worst.weights[largest].shape)}), {free / 1e9:.2f} GB are available",
            code="memory",
            hint=HINT,
            needed=wanted,
            free=free,
        )


def largest_of(graph: Graph, names: Iterable[str]) -> str:
    """The matrix of a graph with the most inputs, of some."""
    found = [name for name in names if name in graph.weights] or list(graph.weights)
    return max(found, key=lambda name: graph.weights[name].shape[::-1])


def out_of_memory(name: str, width: int, error: MemoryError) -> ResourceError:
    """The error for a matrix that one at a time is too much, too."""
    return ResourceError(
        f"{name}: out of memory with its inputs' {width} by {width} matrix, of "
        f"{12 * width * width / 1e9:.2f} GB; {system_memory.free() / 1e9:.2f} GB are available"
        + (f": {error}" if str(error) else ""),
        code="memory",
        hint=HINT,
    )
