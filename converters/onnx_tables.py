"""What stands in an ONNX model itself, bounded before it is made: dense forms of sparse weights,
and constants that the ops' faces make of attributes and widths."""

from __future__ import annotations

from typing import Any

from .. import limits
from ..errors import ConvertError
from ..graph import Graph
from ..session.onnx_check import inline_bytes


def check_inline(graph: Graph) -> None:
    """Raise ConvertError where an ONNX model would not hold it."""
    if (inline := inline_bytes(graph)) > limits.ONNX_SPARSE_BYTES:
        raise ConvertError(
            f"dense forms of sparse weights take up to {inline} bytes of the ONNX model itself, "
            f"the limit is {limits.ONNX_SPARSE_BYTES}",
            code="onnx-weights",
            hint="store fewer weights sparse, or in fewer bits",
        )
    if (found := table_bytes(graph)) > limits.ONNX_INLINE_BYTES:
        raise ConvertError(
            f"tables of positions and timesteps take {found} bytes of the ONNX model itself, the "
            f"limit is {limits.ONNX_INLINE_BYTES}",
            code="onnx-size",
            hint="export a graph for a smaller picture",
        )


def table_bytes(graph: Graph) -> int:
    """The most that constants take which the ops' faces make of attributes and widths: waves of
    positions and timesteps, ones of norms without weights."""
    shapes, tables = graph.shapes(), dict[tuple[Any, ...], int]()
    for node in graph.nodes:
        width, attrs = int(shapes[node.output][-1]), node.attrs
        if node.op == "add_grid_positions":
            sides = int(attrs["height"]) + int(attrs["width"])
            tables[node.op, node.output] = 4 * width * sides
        elif node.op == "timestep":
            tables[node.op, width] = 2 * width
        elif node.op == "layer_norm" and not node.weights:
            tables[node.op, width] = 4 * width
    return sum(tables.values())
