"""What a family makes of a config: a graph, and for each weight where its values come from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...graph import Graph

F32 = NDArray[np.float32]
Rows = Callable[[int, int], F32]


class Part(NamedTuple):
    """One checkpoint tensor: its name, the shape it must have, another name it may go by, the rows
    [start, stop) that are meant where not all of them are, and what their values are multiplied
    by (a config's multipliers that stand beside a product).

    pairs: (head size, rotary channels) of heads whose rotary pairs are neighbours: the rows of each
    head are taken in another order, the first of all pairs before the second ones, which is the one
    that the op `attention` turns. transposed: the tensor is [K, N] and means [N, K]; inputs: of
    its rows those [start, stop) alone, where not all of K are meant. A tensor of shape () means a
    vector of one value.
    """

    name: str
    shape: tuple[int, ...]
    alias: str = ""
    rows: tuple[int, int] | None = None
    scale: float = 1.0
    pairs: tuple[int, int] | None = None
    transposed: bool = False
    inputs: tuple[int, int] | None = None

    @property
    def meant(self) -> tuple[int, ...]:
        """The shape of all rows, as the graph has them."""
        if self.inputs is not None:
            return self.shape[1], self.inputs[1] - self.inputs[0]
        return self.shape[::-1] if self.transposed else self.shape or (1,)

    @property
    def span(self) -> tuple[int, int]:
        """First row and the one after the last."""
        return self.rows or (0, self.meant[0])

    @property
    def plain(self) -> bool:
        """Whether rows of the tensor are rows of the weight, as they are, in this order or in that
        of `pairs`."""
        return self.scale == 1.0 and not self.transposed

    def placed(self, start: int, stop: int) -> tuple[int, int, NDArray[np.int64]]:
        """The span of the tensor's rows that holds rows [start, stop) in the order of `pairs`, and
        where in it they are."""
        size, turning = self.pairs or (1, 1)
        low, high = start // size * size, -(-stop // size) * size
        order = [*range(0, turning, 2), *range(1, turning, 2), *range(turning, size)]
        at = np.arange(high - low).reshape(-1, size)[:, order].reshape(-1)
        return low, high, at[start - low : stop - low]

    def read(self, rows: Rows, start: int, stop: int) -> F32:
        """Rows [start, stop) as the graph has them, of a reader of the tensor's rows."""
        if not self.shape:
            return rows(start, stop).reshape(1)
        if self.transposed:
            step = max(1, (1 << 19) // max(1, self.shape[1]))
            first, last = self.inputs or (0, self.shape[0])
            pieces = [
                rows(at, min(at + step, last))[:, start:stop] for at in range(first, last, step)
            ]
            return np.ascontiguousarray(np.concatenate(pieces).T)
        if self.pairs is None:
            return rows(start, stop)
        low, high, at = self.placed(start, stop)
        return rows(low, high)[at]


@dataclass(frozen=True)
class Recipe:
    """A graph weight: checkpoint tensors stacked by rows, `offset` added to every value, times the
    part's scale; or, for weights that no checkpoint holds (rotary frequencies), the values
    themselves.

    flat: a row of more axes than one becomes a vector; that of a convolution [C, kh, kw] with its
    channels last, as the op `conv2d` reads it.
    """

    parts: tuple[Part, ...] = ()
    offset: float = 0.0
    values: F32 | None = None
    flat: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape of the graph weight."""
        if self.values is not None:
            return tuple(self.values.shape)
        rows = sum(stop - start for start, stop in (part.span for part in self.parts))
        inner = self.parts[0].meant[1:]
        return (rows, math.prod(inner)) if self.flat and inner else (rows, *inner)

    def arranged(self, rows: F32) -> F32:
        """Rows of a tensor [n, ...] as rows of the weight."""
        if not self.flat or rows.ndim < 3:
            return rows
        return np.moveaxis(rows, 1, -1).reshape(len(rows), -1)


@dataclass(frozen=True)
class FamilyModel:
    """A graph with all weights f32, and the recipe of each.

    tied: checkpoint tensors that may be present, and whose values must then equal those of
    another tensor (a tied head stored twice), by name.
    """

    graph: Graph
    tensors: Mapping[str, Recipe]
    tied: Mapping[str, str]

    def without_biases(self, chosen: Callable[[str], bool]) -> FamilyModel:
        """The same without the biases of linear nodes whose tensors are all `chosen` by name."""
        linear = [node.weights.get("bias", "") for node in self.graph.nodes if node.op == "linear"]
        gone = {
            name for name in linear
            if name
            and (parts := self.tensors[name].parts)
            and all(chosen(part.name) for part in parts)
        }  # fmt: skip
        if not gone:
            return self
        nodes = tuple(
            msgspec.structs.replace(
                node,
                weights={slot: name for slot, name in node.weights.items() if name not in gone},
            )
            for node in self.graph.nodes
        )
        weights = {name: w for name, w in self.graph.weights.items() if name not in gone}
        graph = msgspec.structs.replace(self.graph, nodes=nodes, weights=weights)
        return replace(self, graph=graph, tensors={n: self.tensors[n] for n in weights})
