"""How ops become instructions: what an op family's lowering writes into.

Each family module has a table LOWER of functions (b, node) -> None. Such a function declares
buffers and appends instructions through the builder `b`; it names kernels and operands and knows
nothing of addresses. Nothing here needs Numba.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from .encodings import Cpu

# An operand: a whole number, a float (its float32 bits), or the name of what has an address: a
# value, a weight ($...), a buffer of lowering (#...), the session's memory (@...), a kernel that
# the instruction's own one calls (@kernel:...); "" is 0.
Word = int | float | str
CALLED = "@kernel:"


class NodeLike(Protocol):
    """A graph node, as lowering reads it."""

    @property
    def op(self) -> str: ...
    @property
    def inputs(self) -> tuple[str, ...]: ...
    @property
    def output(self) -> str: ...
    @property
    def weights(self) -> dict[str, str]: ...
    @property
    def attrs(self) -> dict[str, Any]: ...
    @property
    def state(self) -> str: ...


class Pages(NamedTuple):
    """Where a kv state's pages are: names of the pools' addresses, bytes of a K and of a V page,
    bits of the cache. fresh: where pages are coded, those of float16 that tokens are written to."""

    keys: str
    values: str
    key_bytes: int
    value_bytes: int
    bits: int
    fresh: Pages | None = None


class Lent(NamedTuple):
    """What adapters may add to a weight (`low_rank.py`). rank: of the largest, in whole groups of
    16; 0 where none does. kernels: how these are called, f16 or f32."""

    rank: int = 0
    kernels: str = "f32"


class Builder(Protocol):
    """A program in the making, for one graph."""

    threads: int

    def attrs(self, node: NodeLike) -> dict[str, Any]:
        """Attributes with their defaults."""

    def encoding(self, weight: str) -> Cpu:
        """What kernels need to know of how a weight is stored."""

    def low_rank(self, weight: str) -> Lent:
        """What adapters may add to products with a weight."""

    def weight_shape(self, weight: str) -> tuple[int, ...]:
        """Logical shape of a weight."""

    def rows(self, value: str) -> str:
        """Symbol (or number, as text) of a value's rows."""

    def width(self, value: str) -> int:
        """Elements in a row of a value."""

    def stride(self, buffer: str) -> int:
        """Bytes between rows of a buffer."""

    def exists(self, buffer: str) -> bool:
        """Whether a value has memory by now."""

    def producer(self, value: str) -> Any:
        """The node that makes a value, None for inputs."""

    def readers(self, value: str) -> Sequence[Any]:
        """Nodes that read a value."""

    def only_reader(self, value: str) -> Any:
        """The single node that reads a value, None where several do or it is an output."""

    def is_output(self, value: str) -> bool:
        """Whether the graph gives this value out."""

    def shared(self, weight: str) -> bool:
        """Whether several nodes use a weight."""

    def is_last_use(self, value: str, by: str) -> bool:
        """Whether nothing after the node that makes `by` reads `value`."""

    def skip(self, value: str) -> None:
        """The node that makes this value needs no lowering any more."""

    def pair(self, weight: str) -> None:
        """The packed halves of a matrix shall alternate (gate and up rows)."""

    def floats(self, value: str) -> str:
        """Declare a float32 buffer for a value's rows; returns its name."""

    def buffer(self, name: str, rows: str, row_bytes: int, *, least: int = 0, more: int = 0) -> str:
        """Declare a buffer of `row_bytes` for each of `rows` rows, `least` bytes at least, and
        `more` besides."""

    def view(self, name: str, buffer: str, offset: int) -> None:
        """Name the memory `offset` bytes into a value, for operands."""

    def like(self, name: str, buffer: str) -> str:
        """Declare a buffer of the size and stride of another one."""

    def constant(self, array: np.ndarray[Any, Any]) -> str:
        """Keep an array with the program; returns its name."""

    def scratch(self, nbytes: int) -> None:
        """Ask for this much scratch memory a thread at least."""

    def partials(self, nbytes: int) -> None:
        """Ask for this much memory for each segment of a row's attention."""

    def pages(self, state: str) -> Pages:
        """Pages of a kv state, or of the one that a borrowed state reads."""

    def made(self, kind: str, key: Any) -> str:
        """Name of a buffer made before under this key, "" for none."""

    def make(self, kind: str, key: Any, name: str) -> str:
        """Remember a buffer under a key; returns its name."""

    def step(
        self,
        kernel: str,
        operands: Any,
        writes: str,
        reads: Sequence[str],
        words: Mapping[str, Word],
        *,
        rows: str = "",
        barrier: int = 1,
        in_place: str = "",
    ) -> None:
        """Append an instruction. words: an operand each, complete. rows: what it works on, default
        the rows of the value it writes. barrier: 0 none, 1 always, 2 with several rows. in_place:
        a read buffer whose memory the written one takes over."""


Lower = Callable[[Builder, Any], None]


def weight(node: NodeLike, slot: str) -> str:
    """Name of the address of a node's weight, "" where the slot is empty."""
    name = node.weights.get(slot, "")
    return f"${name}" if name else ""


def kernel_at(name: str) -> str:
    """Name of the address of a kernel, for those that call it."""
    return f"{CALLED}{name}"


def rows_of(node: NodeLike, slot: str) -> str:
    """Name of the address of a small matrix that is read by rows, "" where the slot is empty."""
    name = node.weights.get(slot, "")
    return f"@rows:{name}" if name else ""


def only_quantized(b: Builder, value: str) -> bool:
    """Whether every reader of a value is a product that quantizes its rows first, and can do on
    the way what makes them (`before.py`); adapters read the rows themselves."""
    readers = b.readers(value)
    inside = all(
        r.op == "linear"
        and b.encoding(r.weights["weight"]).offset is not None
        and not b.low_rank(r.weights["weight"]).rank
        for r in readers
    )
    return bool(readers) and inside and not b.is_output(value)


def stride_of(width: int) -> int:
    """Row stride of a float32 buffer: 64-byte rows, padded to 16 columns."""
    return -(-width // 16) * 64
