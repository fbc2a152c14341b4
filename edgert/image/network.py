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
    latents and timestep, by branch. check: called before every piece; it may raise. first_block:
    the body begins behind the first block, whose residual is the feature (first-block cache).
    """

    def __init__(
        self, session: Session, graph: Graph, grid: tuple[int, int],
        conditions: Mapping[str, Arrays], check: Callable[[], None] = lambda: None, *,
        first_block: bool = False,
    ) -> None:  # fmt: skip
        self.session, self.grid, self.conditions, self.check = session, grid, conditions, check
        self.whole, self.first_block = graph, first_block
        self.start = pieces.FIRST if first_block else pieces.EMBEDDED
        made = {node.output for node in graph.nodes}
        self.cut: pieces.Pieces | None = None
        self.feature: Graph | None = None
        self.inside: pieces.Blocks | None = None
        if pieces.EMBEDDED not in made:
            return
        self.cut = pieces.pieces(graph, start=self.start)
        if pieces.FEATURE in made and not first_block:
            given = [value.name for value in self.cut.embed.outputs]
            self.feature = pieces.reading(graph, given, pieces.FEATURE, "feature")
        inside = pieces.blocks(graph)
        self.inside = inside if inside.kept and not first_block else None

    def denoiser(self) -> Denoiser:
        """The callables of the loop: the pieces, or the whole where the graph has none (UNets)."""
        if self.cut is None:
            return Denoiser(full=self.full, branches=tuple(self.conditions))
        feature = self.modulated if self.feature is not None else None
        return Denoiser(
            embed=self.embed, body=self.body, head=self.head,
            feature=self.residual if self.first_block else feature,
            keep=self.keep if self.inside is not None else None,
            reuse=self.reuse if self.inside is not None else None,
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
            made = self._run(self._cut.embed, {pieces.X: to_rows(latent), **given})
            found.append({**given, **made})
        return np.stack([one.pop(self.start) for one in found]), found

    def body(self, h: Array, aux: list[dict[str, F32]]) -> Array:
        """Rows [n, N, D] through all blocks."""
        return self._each(self._cut.body, self.start, pieces.BODY, h, aux)

    def head(self, h: Array, aux: list[dict[str, F32]]) -> Array:
        """Rows [n, N, D] behind the blocks -> predictions [n, C', H, W]."""
        rows = self._each(self._cut.head, pieces.BODY, pieces.OUT, h, aux)
        return np.stack([to_grid(one, self.grid) for one in rows])

    def modulated(self, h: Array, aux: list[dict[str, F32]]) -> Array:
        """What the first block's attention reads, as grids [n, H', W', D]."""
        if self.feature is None:
            raise TypeError("a denoiser without a feature")
        return self._tokens(self._each(self.feature, pieces.EMBEDDED, pieces.FEATURE, h, aux))

    def residual(self, h: Array, aux: list[dict[str, F32]]) -> Array:
        """What the first block added, as grids [n, H', W', D]."""
        return self._tokens(h - np.stack([one[pieces.EMBEDDED] for one in aux]))

    def keep(self, h: Array, aux: list[dict[str, F32]]) -> tuple[Array, list[dict[str, F32]]]:
        """The body, with what its blocks compute, a dictionary a picture."""
        found = []
        for rows, more in zip(h, aux, strict=True):
            found.append(self._run(self._inside.keep, {**more, pieces.EMBEDDED: rows}))
        return np.stack([one.pop(pieces.BODY) for one in found]), found

    def reuse(self, h: Array, aux: list[dict[str, F32]], kept: list[dict[str, F32]]) -> Array:
        """The body with what its blocks computed before: norms, gates and sums are new."""
        made = []
        for rows, more, held in zip(h, aux, kept, strict=True):
            given = {**more, **held, pieces.EMBEDDED: rows}
            made.append(self._run(self._inside.reuse, given)[pieces.BODY])
        return np.stack(made)

    def _tokens(self, rows: Array) -> Array:
        """Token rows [n, N, D] as grids."""
        patch = round((self.grid[0] * self.grid[1] / rows.shape[1]) ** 0.5)
        height, width = self.grid[0] // patch, self.grid[1] // patch
        return rows.reshape(len(rows), height, width, -1)

    @property
    def _cut(self) -> pieces.Pieces:
        if self.cut is None:
            raise TypeError("a denoiser without pieces")
        return self.cut

    @property
    def _inside(self) -> pieces.Blocks:
        if self.inside is None:
            raise TypeError("a denoiser whose blocks cannot be kept")
        return self.inside

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


def to_rows(latent: Array) -> F32:
    """[C, H, W] -> rows float32 [H * W, C]."""
    rows = np.moveaxis(latent, 0, -1).reshape(-1, latent.shape[0])
    return np.ascontiguousarray(rows, np.float32)


def to_grid(rows: Array, grid: tuple[int, int]) -> F32:
    """Rows [H * W, C] -> float32 [C, H, W]."""
    return np.ascontiguousarray(np.moveaxis(rows.reshape(*grid, -1), -1, 0), np.float32)
