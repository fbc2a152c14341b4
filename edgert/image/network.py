"""A denoiser's session as the sampling loop calls it: latents [n, C, H, W] to predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..graph import Graph
from ..session.base import F32, Session
from . import pieces
from .denoiser import At, Denoiser
from .schedules import Array

Arrays = Mapping[str, NDArray[Any]]


class Network:
    """One denoiser for one size of picture.

    graph: of that size, over the session's weights. conditions: inputs of each branch besides
    latents and timestep, by branch. check: called before every piece; it may raise.
    """

    def __init__(
        self, session: Session, graph: Graph, grid: tuple[int, int],
        conditions: Mapping[str, Arrays], check: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self.session, self.grid, self.conditions, self.check = session, grid, conditions, check
        self.whole = graph
        self.cuts = cuts(graph)

    def denoiser(self) -> Denoiser:
        """The callables of the loop: the pieces, or the whole where the graph has none (UNets)."""
        if not self.cuts:
            return Denoiser(full=self.full, branches=tuple(self.conditions))
        return Denoiser(
            embed=self.embed, body=self.body, head=self.head,
            feature=self.modulated if "feature" in self.cuts else None,
            branches=tuple(self.conditions),
        )  # fmt: skip

    def full(self, x: Array, at: At) -> Array:
        """x [n, C, H, W] -> predictions [n, C', H, W]."""
        given = self._given(at)
        rows = [self._run(self.whole, {pieces.X: to_rows(one), **given})[pieces.OUT] for one in x]
        return np.stack([to_grid(one, self.grid) for one in rows])

    def embed(self, x: Array, at: At) -> tuple[Array, list[dict[str, F32]]]:
        """x [n, C, H, W] -> token rows [n, N, D], and what each picture's body and head read."""
        found, given = [], self._given(at)
        for latent in x:
            made = self._run(self.cuts["embed"], {pieces.X: to_rows(latent), **given})
            found.append({**given, **made})
        return np.stack([one.pop(pieces.EMBEDDED) for one in found]), found

    def body(self, h: Array, aux: list[dict[str, F32]]) -> Array:
        """Rows [n, N, D] through all blocks."""
        return self._each(self.cuts["body"], pieces.EMBEDDED, pieces.BODY, h, aux)

    def head(self, h: Array, aux: list[dict[str, F32]]) -> Array:
        """Rows [n, N, D] behind the blocks -> predictions [n, C', H, W]."""
        rows = self._each(self.cuts["head"], pieces.BODY, pieces.OUT, h, aux)
        return np.stack([to_grid(one, self.grid) for one in rows])

    def modulated(self, h: Array, aux: list[dict[str, F32]]) -> Array:
        """What the first block's attention reads, as grids [n, H', W', D]."""
        rows = self._each(self.cuts["feature"], pieces.EMBEDDED, pieces.FEATURE, h, aux)
        patch = round((self.grid[0] * self.grid[1] / rows.shape[1]) ** 0.5)
        height, width = self.grid[0] // patch, self.grid[1] // patch
        return rows.reshape(len(rows), height, width, -1)

    def _given(self, at: At) -> dict[str, NDArray[Any]]:
        """What the network reads besides latents."""
        return {pieces.TIMESTEP: np.full((1, 1), at.t, np.float32), **self.conditions[at.branch]}

    def _each(
        self, graph: Graph, name: str, out: str, h: Array, aux: list[dict[str, F32]]
    ) -> Array:
        wanted = {value.name for value in graph.inputs} - {name}
        made = []
        for rows, more in zip(h, aux, strict=True):
            given = {key: more[key] for key in wanted}
            made.append(self._run(graph, {name: rows, **given})[out])
        return np.stack(made)

    def _run(self, graph: Graph, arrays: Arrays) -> dict[str, F32]:
        self.check()
        names = {value.name for value in graph.inputs}
        return self.session.run({n: a for n, a in arrays.items() if n in names}, graph)


def cuts(graph: Graph) -> dict[str, Graph]:
    """The graphs by piece that a denoiser is run in: embed, body, head, and feature where the model
    has one. None for a graph without such values."""
    made = {node.output for node in graph.nodes}
    if pieces.EMBEDDED not in made:
        return {}
    cut = pieces.pieces(graph)
    found = {"embed": cut.embed, "body": cut.body, "head": cut.head}
    if pieces.FEATURE in made:
        given = [value.name for value in cut.embed.outputs]
        found["feature"] = pieces.reading(graph, given, pieces.FEATURE, "feature")
    return found


def to_rows(latent: Array) -> F32:
    """[C, H, W] -> rows float32 [H * W, C]."""
    rows = np.moveaxis(latent, 0, -1).reshape(-1, latent.shape[0])
    return np.ascontiguousarray(rows, np.float32)


def to_grid(rows: Array, grid: tuple[int, int]) -> F32:
    """Rows [H * W, C] -> float32 [C, H, W]."""
    return np.ascontiguousarray(np.moveaxis(rows.reshape(*grid, -1), -1, 0), np.float32)
