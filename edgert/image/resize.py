"""A graph for another size of picture: one set of weights serves several.

    graph = resized(graph, (32, 32), (48, 32))     # made for latents of 32 x 32, for 48 x 32

Grids scale as the latents do, and so do the row counts of inputs; `add_grid_positions` keeps its
base and interpolation, which is what its model computes for another grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..errors import BundleError, RequestError
from ..graph import Graph, Value
from ..kernels.ops import CATALOGUE


def resized(graph: Graph, made: tuple[int, int], wanted: tuple[int, int]) -> Graph:
    """The graph for another height and width.

    made: height and width of the grid that the graph was made for (its latents; of a part of it,
    those of the whole). wanted: those that it shall have. The graph itself where they are the same;
    RequestError where a grid inside would not be whole.
    """
    if min(*made, *wanted) < 1:
        raise RequestError(
            f"sizes {made} and {wanted}, expected a height and a width of 1 or more",
            code="image-size",
        )
    if made == wanted:
        return graph
    scale = _Scale(made, wanted)
    nodes = tuple(
        msgspec.structs.replace(node, attrs=scale.attrs(node.attrs))
        if {"height", "width"} <= set(CATALOGUE[node.op].attrs)
        else node
        for node in graph.nodes
    )
    inputs = tuple(scale.value(value) for value in graph.inputs)
    found = graph.replace(nodes=nodes, inputs=inputs, outputs=())
    try:
        shapes = found.shapes()
        found = found.replace(
            outputs=tuple(Value(v.name, shapes[v.name], v.dtype) for v in graph.outputs)
        )
        found.shapes()
    except BundleError as error:
        raise RequestError(
            f"a picture of {wanted[0]} x {wanted[1]} latents does not fit this model: "
            f"{error.message}",
            code="image-size",
            hint=f"take multiples of the model's own size, {made[0]} x {made[1]}, or its halves",
        ) from None
    return found


class _Scale:
    """Sizes of one grid as those of another."""

    def __init__(self, made: tuple[int, int], wanted: tuple[int, int]) -> None:
        self.made, self.wanted = made, wanted

    def side(self, n: int, axis: int) -> int:
        """A side of a grid inside, as much larger or smaller as the whole."""
        made, wanted = self.made[axis], self.wanted[axis]
        out, rest = divmod(n * wanted, made)
        if rest or out < 1:
            raise self.fault(f"a grid inside has {n} {('rows', 'columns')[axis]} for {made}")
        return out

    def attrs(self, attrs: Mapping[str, Any]) -> dict[str, Any]:
        sides = {"height": self.side(attrs["height"], 0), "width": self.side(attrs["width"], 1)}
        return {**attrs, **sides}

    def value(self, value: Value) -> Value:
        """Rows of an input: those of a grid scale, single rows and symbols stay."""
        rows = value.shape[0]
        if not isinstance(rows, int) or rows == 1 or value.dtype != "f32":
            return value
        area, wanted = self.made[0] * self.made[1], self.wanted[0] * self.wanted[1]
        out, rest = divmod(rows * wanted, area)
        if rest or out < 1:
            raise self.fault(f"input {value.name!r} has {rows} rows for {area}")
        return msgspec.structs.replace(value, shape=(out, *value.shape[1:]))

    def fault(self, what: str) -> RequestError:
        return RequestError(
            f"a picture of {self.wanted[0]} x {self.wanted[1]} latents does not fit this model, "
            f"made for {self.made[0]} x {self.made[1]}: {what}, which does not divide",
            code="image-size",
            hint="take a height and width of which the model's patches and levels have whole ones",
        )
