"""A denoiser's session as the sampling loop calls it: latents [n, C, H, W] to predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..graph import Graph
from ..session.base import F32, Session
from . import pieces
from .denoiser import At, Denoiser
from .policies import FORA, FirstBlock
from .schedules import Array

Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[Mapping[str, Any], Graph], dict[str, Any]]  # `Session.run`, or `run_held`


class Network:
    """One denoiser for one size of picture.

    graph: of that size, over the session's weights. conditions: inputs of each branch besides
    latents and timestep, by branch. check: called before every piece; it may raise. policy: the
    cache policy that will ask, which may want other pieces (`first-block`, `fora`). cut: what
    `cuts_for` gave for it before; nothing runs it in one piece. Raises DeviceError where the
    session has not been given a graph that is needed.
    """

    def __init__(
        self, session: Session, graph: Graph, grid: tuple[int, int],
        conditions: Mapping[str, Arrays], check: Callable[[], None] = lambda: None, *,
        policy: str = "", cut: dict[str, Graph] | None = None,
    ) -> None:  # fmt: skip
        self.session, self.grid, self.conditions, self.check = session, grid, conditions, check
        self.whole = graph
        self.cuts = cuts_for(graph, policy) if cut is None else cut
        self.first_block = bool(self.cuts) and policy == FirstBlock.name
        self.start = pieces.FIRST if self.first_block else pieces.EMBEDDED
        for piece in self.cuts.values() or [graph]:
            session.require(piece)

    def denoiser(self) -> Denoiser:
        """The callables of the loop: the pieces, or the whole where the graph has none (UNets)."""
        if not self.cuts:
            return Denoiser(full=self.full, branches=tuple(self.conditions))
        feature = self.modulated if "feature" in self.cuts else None
        blocks = "keep" in self.cuts
        return Denoiser(
            embed=self.embed, body=self.body, head=self.head,
            feature=self.residual if self.first_block else feature,
            keep=self.keep if blocks else None, reuse=self.reuse if blocks else None,
            branches=tuple(self.conditions),
        )  # fmt: skip

    def full(self, x: Array, at: At) -> Array:
        """x [n, C, H, W] -> predictions [n, C', H, W]."""
        given = self._given(at)
        run = self.session.run
        rows = [self._run(self.whole, {pieces.X: to_rows(one), **given}, run) for one in x]
        return np.stack([to_grid(one[pieces.OUT], self.grid) for one in rows])

    def embed(self, x: Array, at: At) -> tuple[Any, list[dict[str, Any]]]:
        """x [n, C, H, W] -> token rows [n, N, D], and what each picture's body and head read."""
        found, given = [], self._given(at)
        for latent in x:
            arrays = {pieces.X: to_rows(latent), **given}
            made = self._run(self.cuts["embed"], arrays, self.session.run_held)
            found.append({**given, **made})
        return batched([one.pop(self.start) for one in found]), found

    def body(self, h: Any, aux: list[dict[str, Any]]) -> Any:
        """Rows [n, N, D] through all blocks."""
        cut, run = self.cuts["body"], self.session.run_held
        return batched(self._each(cut, self.start, pieces.BODY, h, aux, run))

    def head(self, h: Any, aux: list[dict[str, Any]]) -> Array:
        """Rows [n, N, D] behind the blocks -> predictions [n, C', H, W]."""
        cut, run = self.cuts["head"], self.session.run
        rows = self._each(cut, pieces.BODY, pieces.OUT, h, aux, run)
        return np.stack([to_grid(one, self.grid) for one in rows])

    def modulated(self, h: Any, aux: list[dict[str, Any]]) -> Array:
        """What the first block's attention reads, as grids [n, H', W', D]."""
        cut, run = self.cuts["feature"], self.session.run
        return self._tokens(np.stack(self._each(cut, pieces.EMBEDDED, pieces.FEATURE, h, aux, run)))

    def residual(self, h: Any, aux: list[dict[str, Any]]) -> Array:
        """What the first block added, as grids [n, H', W', D]."""
        return self._tokens(h - np.stack([np.asarray(one[pieces.EMBEDDED]) for one in aux]))

    def keep(self, h: Any, aux: list[dict[str, Any]]) -> tuple[Array, list[dict[str, Any]]]:
        """The body, with what its blocks compute, a dictionary a picture."""
        found, run = [], self.session.run
        for rows, more in zip(h, aux, strict=True):
            found.append(self._run(self.cuts["keep"], {**more, pieces.EMBEDDED: rows}, run))
        return np.stack([one.pop(pieces.BODY) for one in found]), found

    def reuse(self, h: Any, aux: list[dict[str, Any]], kept: list[dict[str, Any]]) -> Array:
        """The body with what its blocks computed before: norms, gates and sums are new."""
        made, run = [], self.session.run
        for rows, more, held in zip(h, aux, kept, strict=True):
            given = {**more, **held, pieces.EMBEDDED: rows}
            made.append(self._run(self.cuts["reuse"], given, run)[pieces.BODY])
        return np.stack(made)

    def _tokens(self, rows: Array) -> Array:
        """Token rows [n, N, D] as grids."""
        patch = round((self.grid[0] * self.grid[1] / rows.shape[1]) ** 0.5)
        height, width = self.grid[0] // patch, self.grid[1] // patch
        return rows.reshape(len(rows), height, width, -1)

    def _given(self, at: At) -> dict[str, NDArray[Any]]:
        """What the network reads besides latents."""
        return {pieces.TIMESTEP: np.full((1, 1), at.t, np.float32), **self.conditions[at.branch]}

    def _each(
        self, graph: Graph, name: str, out: str, h: Any, aux: list[dict[str, Any]], run: Run
    ) -> list[Any]:
        wanted = {value.name for value in graph.inputs} - {name}
        made = []
        for rows, more in zip(h, aux, strict=True):
            given = {key: more[key] for key in wanted}
            made.append(self._run(graph, {name: rows, **given}, run)[out])
        return made

    def _run(self, graph: Graph, arrays: Arrays, run: Run) -> dict[str, Any]:
        self.check()
        names = {value.name for value in graph.inputs}
        return run({n: a for n, a in arrays.items() if n in names}, graph)


class HeldRows:
    """Rows [n, N, D] of n pictures, between two pieces, where the device computed them. Sums and
    differences, which caches keep of them, are computed on the host."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = list(parts)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.parts)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.stack([np.asarray(part, dtype) for part in self.parts])

    def __sub__(self, other: Any) -> Array:
        found: Array = np.asarray(self) - np.asarray(other)
        return found

    def __add__(self, other: Any) -> Array:
        found: Array = np.asarray(self) + np.asarray(other)
        return found


def batched(parts: Sequence[Any]) -> Any:
    """Rows of pictures as [n, N, D]: an array, or `HeldRows` of what is on a device."""
    on_host = all(isinstance(part, np.ndarray) for part in parts)
    return np.stack(parts) if on_host else HeldRows(parts)


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


def cuts_for(graph: Graph, policy: str) -> dict[str, Graph]:
    """The same with what a cache policy wants besides, or instead."""
    found = cuts(graph)
    if found and policy == FirstBlock.name:
        later = pieces.pieces(graph, start=pieces.FIRST)
        return {"embed": later.embed, "body": later.body, "head": later.head}
    if found and policy == FORA.name:
        inside = pieces.blocks(graph)
        return {**found, "keep": inside.keep, "reuse": inside.reuse}
    return found


def to_rows(latent: Array) -> F32:
    """[C, H, W] -> rows float32 [H * W, C]."""
    rows = np.moveaxis(latent, 0, -1).reshape(-1, latent.shape[0])
    return np.ascontiguousarray(rows, np.float32)


def to_grid(rows: Array, grid: tuple[int, int]) -> F32:
    """Rows [H * W, C] -> float32 [C, H, W]."""
    return np.ascontiguousarray(np.moveaxis(rows.reshape(*grid, -1), -1, 0), np.float32)
