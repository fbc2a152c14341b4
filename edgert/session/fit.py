"""Whether what a graph computes fits the memory that is free, before any of it is reserved.

Sizes in attributes come with the graph, so a small file can ask for any amount. Memory is taken as
it is touched (`memory.reserve`): without this check a graph that is too large would be killed by
the system in the middle of a run instead of refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from .. import system_memory
from ..errors import ResourceError
from ..graph import Graph
from ..kernels.lowering import stride_of

if TYPE_CHECKING:
    from .lowering import Lowering


def check_values(graph: Graph, sizes: Mapping[str, int]) -> None:
    """Raise ResourceError where a single value of the graph is larger than all free memory.

    sizes: rows of symbols, 1 for those that are not named.
    """
    bytes_of = {
        name: int(sizes.get(str(shape[0]), 1) if isinstance(shape[0], str) else shape[0])
        * stride_of(int(shape[-1]) if len(shape) > 1 else 1)
        for name, shape in graph.shapes().items()
    }
    largest = max(bytes_of, key=lambda name: bytes_of[name], default="")
    if largest:
        _check(graph, bytes_of[largest], f"its value {largest!r} alone takes")


def check_program(lowering: Lowering, arena: int, apart: Iterable[str]) -> None:
    """Raise ResourceError where a program does not fit: its arena, the inputs and outputs that
    stand `apart`, scratch memory of all threads, constants."""
    total = arena + lowering.threads * lowering.scratch_bytes
    total += sum(lowering.sizes.get(name, 0) for name in apart)
    total += sum(array.nbytes for array in lowering.constants.values())
    _check(lowering.graph, total, "its values take")


def _check(graph: Graph, needed: int, what: str) -> None:
    free = system_memory.free()
    if needed > free:
        raise ResourceError(
            f"graph {graph.name!r} does not fit: {what} {needed / 1e6:,.0f} MB, "
            f"{free / 1e6:,.0f} MB are free",
            code="graph-memory",
            hint="take a smaller picture or fewer rows, or close other programs",
            needed=needed,
            free=free,
        )
