"""A denoiser whose session computes batches: pictures and branches of guidance in one call.

What a call gives stays on the device, `Parts` of as many pictures as fit at once. Captions of
different lengths are padded; the session is told how many rows are there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DeviceError
from ..graph import Graph
from ..session.base import F32, Fixed, Session
from . import pieces
from .denoiser import At, Denoiser
from .network import Network
from .schedules import Array

PADDED = 8  # rows of captions are padded to multiples of it: few shapes, and aligned ones


class Parts:
    """Values of n pictures in order, in parts [n_i, ...] as they were computed. Sums, differences
    and arrays of them are made on the host."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = list(parts)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __iter__(self) -> Iterator[Any]:
        return iter(self.parts)

    def __getitem__(self, pictures: slice) -> Parts:
        begin, end, _ = pictures.indices(len(self))
        found, at = [], 0
        for part in self.parts:
            low, high = max(begin - at, 0), min(end - at, len(part))
            if low < high:
                found.append(part if (low, high) == (0, len(part)) else part[low:high])
            at += len(part)
        return Parts(found)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.concatenate([np.asarray(part, dtype) for part in self.parts])

    def __sub__(self, other: Any) -> Array:
        found: Array = np.asarray(self) - np.asarray(other)
        return found

    def __add__(self, other: Any) -> Array:
        found: Array = np.asarray(self) + np.asarray(other)
        return found


@dataclass(frozen=True)
class Given:
    """What pieces read of some pictures besides rows: values by name, [n, ...] each, and rows that
    are there of each picture, by symbol."""

    count: int
    values: dict[str, Any]
    lengths: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, pictures: slice) -> Given:
        begin, end, _ = pictures.indices(self.count)
        values = {name: _cut(value, begin, end) for name, value in self.values.items()}
        lengths = {symbol: found[begin:end] for symbol, found in self.lengths.items()}
        return Given(end - begin, values, lengths)


def _cut(value: Any, begin: int, end: int) -> Any:
    return Fixed(value.array[begin:end]) if isinstance(value, Fixed) else value[begin:end]


class JointNetwork(Network):
    """`Network` for a session that computes batches (`Session.run_batch`)."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._made: dict[tuple[str, ...], Given] = {}
        self._fitting: dict[tuple[str, ...], int] = {}

    def denoiser(self) -> Denoiser:
        if not self.cuts:
            return Denoiser(full=self.full, branches=tuple(self.conditions), joint=True)
        feature = self.modulated if "feature" in self.cuts else None
        return Denoiser(
            embed=self.embed, body=self.body, head=self.head,
            feature=self.residual if self.first_block else feature,
            branches=tuple(self.conditions), joint=True,
        )  # fmt: skip

    def full(self, x: Array, at: At) -> Array:
        found = list[Any]()
        for given in self._split(x, at):
            found += [made[pieces.OUT] for _, made in self._run_all(self.whole, given)]
        return self._grids(found)

    def embed(self, x: Array, at: At) -> tuple[Any, Any]:
        """x [n, C, H, W] -> token rows [n, N, D], and what body and head read besides."""
        rows, others = list[Any](), list[Any]()
        for given in self._split(x, at):
            for part, made in self._run_all(self.cuts["embed"], given, keep=True):
                values = {**part.values, **made}
                del values[pieces.X]
                rows.append(values.pop(self.start))
                others.append(replace(part, values=values))
        return Parts(rows), Parts(others)

    def body(self, h: Any, aux: Any) -> Any:
        made = self._piece(self.cuts["body"], self.start, h, aux, keep=True)
        return Parts([one[pieces.BODY] for one in made])

    def head(self, h: Any, aux: Any) -> Array:
        made = self._piece(self.cuts["head"], pieces.BODY, h, aux)
        return self._grids([one[pieces.OUT] for one in made])

    def modulated(self, h: Any, aux: Any) -> Array:
        made = self._piece(self.cuts["feature"], pieces.EMBEDDED, h, aux)
        return self._tokens(np.concatenate([one[pieces.FEATURE] for one in made]))

    def residual(self, h: Any, aux: Any) -> Array:
        return self._tokens(h - Parts([given.values[pieces.EMBEDDED] for given in aux]))

    def _split(self, x: Array, at: At) -> Iterator[Given]:
        """What a call reads of latents [n, C, H, W], for as many as fit at once."""
        branches = at.branches or (at.branch,) * len(x)
        rows = np.moveaxis(x, 1, -1).reshape(len(x), -1, x.shape[1]).astype(np.float32)
        for span in spans(len(x), self._most(branches)):
            given = self._conditions(branches[span])
            time = np.full((len(given), 1, 1), at.t, np.float32)
            yield replace(
                given, values={**given.values, pieces.X: rows[span], pieces.TIMESTEP: time}
            )

    def _most(self, branches: tuple[str, ...]) -> int:
        """How many latents fit in one call, found once."""
        if branches not in self._fitting:
            lengths = self._conditions(branches).lengths
            sizes = {name: max(found) for name, found in lengths.items()}
            graphs = list(self.cuts.values()) or [self.whole]
            self._fitting[branches] = min(self.session.most(graph, sizes) for graph in graphs)
        return self._fitting[branches]

    def _conditions(self, branches: tuple[str, ...]) -> Given:
        """Conditions of latents of these branches, made once."""
        if branches in self._made:
            return self._made[branches]
        values, lengths = dict[str, Any](), dict[str, tuple[int, ...]]()
        for value in self.whole.inputs:
            if value.name not in self.conditions[branches[0]]:
                continue
            arrays = [np.asarray(self.conditions[branch][value.name]) for branch in branches]
            if isinstance(symbol := value.shape[0], str):
                lengths[symbol] = tuple(map(len, arrays))
                arrays = _padded(arrays)
            values[value.name] = Fixed(np.stack(arrays))
        self._made[branches] = Given(len(branches), values, lengths)
        return self._made[branches]

    def _piece(
        self, graph: Graph, name: str, h: Any, aux: Parts, *, keep: bool = False
    ) -> list[dict[str, Any]]:
        """A piece for rows h, an array or `Parts`, and what belongs to them."""
        rows = h.parts if isinstance(h, Parts) else None
        counts = [len(part) for part in rows or aux]
        ends = np.cumsum(counts).tolist()
        made = []
        for index, (count, end) in enumerate(zip(counts, ends, strict=True)):
            (given,) = aux[end - count : end].parts
            some = rows[index] if rows else h[end - count : end]
            given = replace(given, values={**given.values, name: some})
            made += [found for _, found in self._run_all(graph, given, keep=keep)]
        return made

    def _run_all(
        self, graph: Graph, given: Given, *, keep: bool = False
    ) -> list[tuple[Given, dict[str, Any]]]:
        self.check()
        return in_calls(self.session, graph, given, keep=keep)

    def _grids(self, parts: list[Any]) -> Array:
        rows = np.concatenate([np.asarray(part) for part in parts])
        grids = rows.reshape(len(rows), *self.grid, -1)
        return np.ascontiguousarray(np.moveaxis(grids, -1, 1), np.float32)


def in_calls(
    session: Session, graph: Graph, given: Given, *, keep: bool = False
) -> list[tuple[Given, dict[str, Any]]]:
    """What a graph gives for some pictures, in one call, or in two of half as many where the
    device's memory does not do, and so on."""
    arrays = {value.name: given.values[value.name] for value in graph.inputs}
    try:
        made = session.run_batch(arrays, graph, lengths=given.lengths, keep=keep)
    except DeviceError as error:
        if error.code != "device-memory" or len(given) == 1:
            raise
    else:
        return [(given, made)]
    middle = len(given) // 2
    halves = given[:middle], given[middle:]
    return [found for half in halves for found in in_calls(session, graph, half, keep=keep)]


def spans(count: int, most: int) -> list[slice]:
    """Slices of `count` things, at most `most` each, about as many in each."""
    calls = -(-count // max(most, 1))
    size = -(-count // calls)
    return [slice(begin, min(begin + size, count)) for begin in range(0, count, size)]


def _padded(arrays: list[NDArray[Any]]) -> list[F32]:
    """Rows of several lengths as rows of one, zeros behind them."""
    rows = -(-max(map(len, arrays)) // PADDED) * PADDED
    found = []
    for array in arrays:
        full = np.zeros((rows, *array.shape[1:]), np.float32)
        full[: len(array)] = array
        found.append(full)
    return found
