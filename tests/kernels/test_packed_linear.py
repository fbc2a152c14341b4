"""Packed int4 and int8 products: against NumPy for every row count, bit for bit among themselves,
and without a read past their weights."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from edgert.kernels import encodings
from edgert.kernels.cpu import pack
from edgert.kernels.encodings import dequantize
from edgert.kernels.quant import Matrix, Quantized
from numpy.typing import NDArray

from ..closeness import assert_close
from ..fresh import python
from .products import (
    ENCODINGS,
    F32,
    ROWS,
    SCALES,
    ProductSession,
    exact_table,
    expected,
    product_graph,
    random_weight,
)

# Those of 2 to 6 bits in planes have tests of their own (test_planes.py).
ON_CPU = [
    row.name
    for row in encodings.ENCODINGS.values()
    if row.cpu and not row.cpu.kernel.startswith(("planes", "zeroed"))
]
COUNTS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 31, 32, 33, 64, 65)
SHAPES = ((1, 1), (15, 31), (16, 32), (17, 33), (33, 95), (49, 129), (130, 257))
SUMS = 1e-6  # float32 sums in another order; the integers below are exact
CODES = 2e-3  # a value on the edge of two activation codes may take the other one


@contextmanager
def opened(
    table: F32,
    weight: Matrix,
    threads: int,
    folder: Path,
    *,
    act: str = "",
    bias: F32 | None = None,
) -> Iterator[ProductSession]:
    graph, stored = product_graph(table, weight, act=act, bias=bias)
    session = ProductSession(graph, stored, threads=threads, cache=folder)
    try:
        yield session
    finally:
        session.close()


def agree(
    name: str, table: F32, weight: Matrix, folder: Path, *, limit: float = SUMS, act: str = "",
    bias: F32 | None = None,
) -> None:  # fmt: skip
    """Every row count on 1, 2 and 3 threads: near NumPy, and the same bits as each row alone."""
    reference = expected(table, weight, act=act, bias=bias)
    alone: F32 | None = None
    for threads in (1, 2, 3):
        with opened(table, weight, threads, folder, act=act, bias=bias) as session:
            if alone is None:
                alone = np.concatenate([session.rows([row]) for row in range(ROWS)])
                assert_close(name, reference, alone, rms=limit)
            for count in COUNTS:
                first = (7 * count + threads) % (ROWS - count + 1)
                got = session.rows(range(first, first + count))
                same = got.view(np.uint32) == alone[first : first + count].view(np.uint32)
                assert same.all(), f"{name}: {count} rows on {threads} threads differ from one"


@pytest.mark.parametrize("kind", ENCODINGS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
def test_every_row_count(kind: int | str, shape: tuple[int, int], kernel_folder: Path) -> None:
    n, k = shape
    bias = np.random.default_rng(n).standard_normal(n).astype(np.float32) if n % 2 else None
    agree(
        f"int{kind} {n}x{k}",
        exact_table(k, kind=kind),
        random_weight(kind, n, k),
        kernel_folder,
        bias=bias,
    )


@pytest.mark.parametrize("kind", ENCODINGS)
@pytest.mark.parametrize("scales", [kind for kind in SCALES if kind != "mixed"])
def test_unusual_scales(kind: int | str, scales: str, kernel_folder: Path) -> None:
    weight = random_weight(kind, 35, 97, scales)
    assert (weight.scales == 0).all() == (scales == "zero")
    agree(f"int{kind} {scales} scales", exact_table(97, kind=kind), weight, kernel_folder)


@pytest.mark.parametrize("kind", ENCODINGS)
def test_activations_that_have_to_be_rounded(kind: int | str, kernel_folder: Path) -> None:
    table = np.random.default_rng(3).standard_normal((ROWS, 161)).astype(np.float32)
    table[::5] *= 1e-20
    weight = random_weight(kind, 63, 161)
    agree(f"int{kind} rounded", table, weight, kernel_folder, limit=CODES)


@pytest.mark.parametrize("kind", ENCODINGS)
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_row_that_is_no_number_gives_none(
    kind: int | str, value: float, kernel_folder: Path
) -> None:
    """Codes hide nothing: no output of the row is finite, and no other row is touched."""
    weight, table = random_weight(kind, 40, 70), exact_table(70, kind=kind)
    with opened(table, weight, 1, kernel_folder) as session:
        clean = session.rows(range(ROWS))
    for place in (33, 69):
        spoilt = table.copy()
        spoilt[0, place] = value
        with opened(spoilt, weight, 1, kernel_folder) as session:
            for rows in (1, 5, 9, ROWS):
                got = session.rows(range(rows))
                assert not np.isfinite(got[0]).any()
                assert np.array_equal(got[1:], clean[1:rows])


@pytest.mark.parametrize("kind", ENCODINGS)
@pytest.mark.parametrize(("act", "half"), [("silu", 16), ("silu", 48), ("gelu_tanh", 32)])
def test_gated_pairs(kind: int | str, act: str, half: int, kernel_folder: Path) -> None:
    weight = random_weight(kind, 2 * half, 95)
    scales = (weight.scales / 8).astype(weight.scales.dtype)
    weight = Quantized(weight.encoding, weight.shape, {"q": weight.q, "scales": scales})
    with opened(exact_table(95, kind=kind), weight, 1, kernel_folder, act=act) as session:
        assert session.paired == {"w"}
    agree(f"gated int{kind} {act}", exact_table(95, kind=kind), weight, kernel_folder, act=act)


@pytest.mark.parametrize("kind", ENCODINGS)
def test_halves_that_cannot_be_paired(kind: int | str, kernel_folder: Path) -> None:
    weight = random_weight(kind, 34, 63)
    with opened(exact_table(63, kind=kind), weight, 1, kernel_folder, act="silu") as session:
        assert not session.paired
    agree(f"unpaired int{kind}", exact_table(63, kind=kind), weight, kernel_folder, act="silu")


# --- packing ----------------------------------------------------------------------------------


def unpack(data: NDArray[np.uint8], encoding: str, n: int, k: int, *, paired: bool) -> F32:
    """float32 [n, k] back from packed bytes: the layout of kernels/cpu/linear.py, read in NumPy."""
    groups = data.reshape(-1, encodings.on_cpu(encoding, k).group_bytes(k))
    if encodings.ENCODINGS[encoding].plain:
        values = groups.view(np.float32 if encoding == "f32" else np.float16)
        rows = values.astype(np.float32).reshape(-1, k, 16).transpose(0, 2, 1)  # [G, 16, K]
    else:
        bits = encodings.ENCODINGS[encoding].bits
        if encodings.ENCODINGS[encoding].channels:
            scales = groups[:, None, :64].copy().view(np.float32)  # [G, 1, 16]
            blocks = groups[:, 64:].reshape(len(groups), -(-k // 32), 64 * bits)
        else:
            blocks = groups.reshape(len(groups), -(-k // 32), 32 + 64 * bits)
            scales = blocks[..., :32].copy().view(np.float16).astype(np.float32)  # [G, KB, 16]
            blocks = blocks[..., 32:]
        codes = blocks.reshape(*blocks.shape[:2], bits, 16, 4)  # chunk, row, byte
        if bits == 4:
            codes = np.stack([codes & 15, codes >> 4], axis=3)  # chunk, row wait for 8j + 4h + t
            codes = codes.transpose(0, 1, 4, 2, 3, 5)  # [G, KB, row, chunk, half, byte]
        else:
            codes = codes.transpose(0, 1, 3, 2, 4)  # [G, KB, row, chunk, byte]
        codes = codes.reshape(*blocks.shape[:2], 16, 32).astype(np.float32) - 2.0 ** (bits - 1)
        rows = (codes * scales[..., None]).transpose(0, 2, 1, 3)  # [G, 16, KB, 32]
        rows = rows.reshape(len(groups), 16, -1)[..., :k]
    if not paired:
        return rows.reshape(-1, k)[:n]
    return np.concatenate([rows[half::2].reshape(-1, k)[: n // 2] for half in range(2)])


def stored_as(encoding: str, n: int, k: int) -> Matrix:
    dense = np.random.default_rng([n, k]).standard_normal((n, k)).astype(np.float32)
    return encodings.quantize(dense, encoding)


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("encoding", ON_CPU)
def test_packed_bytes_hold_the_same_matrix(encoding: str, paired: bool) -> None:
    for n, k in ((2, 1), (30, 33), (32, 64), (34, 95), (66, 20)):
        w = stored_as(encoding, n, k)
        data = pack.pack(w, paired=paired)
        assert data.size == encodings.packed_bytes(encoding, n, k, paired=paired)
        assert np.array_equal(unpack(data, encoding, n, k, paired=paired), dequantize(w))


@pytest.mark.parametrize("kind", ENCODINGS)
def test_packed_codes_of_any_value(kind: int | str) -> None:
    w = random_weight(kind, 21, 70)
    back = unpack(pack.pack(w), ENCODINGS[kind], 21, 70, paired=False)
    assert np.array_equal(back, dequantize(w))


def test_rows_that_pad_a_group_are_zero() -> None:
    for encoding in ON_CPU:
        for paired in (False, True):
            data = pack.pack(stored_as(encoding, 18, 40), paired=paired)
            rows = 2 * 16 if paired else 32
            whole = unpack(data, encoding, rows, 40, paired=paired)
            pads = [whole[9:16], whole[25:]] if paired else [whole[18:]]
            assert not np.concatenate(pads).any(), encoding


# --- reads past the end -----------------------------------------------------------------------

GUARDED = """
import ctypes, mmap, sys
import numpy as np
from pathlib import Path
from edgert.session import packed
from tests.kernels.products import *

inside, folder = int(sys.argv[1]), Path(sys.argv[2])

def at_the_fence(graph, weights, paired):
    slots, size = packed.plan(graph, paired)
    end = max(slot.offset + slot.size for slot in slots.values())
    span = -(-end // mmap.PAGESIZE) * mmap.PAGESIZE
    block = mmap.mmap(-1, span + mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(block))
    data = np.frombuffer(block, np.uint8)[span - end : span]
    packed.fill(graph, weights, slots, data)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(start + span), ctypes.c_size_t(mmap.PAGESIZE), 0):
        raise OSError(ctypes.get_errno(), "mprotect")
    weights_at_the_end = packed.PackedWeights(data[inside:], slots)
    weights_at_the_end.block = block
    return weights_at_the_end

packed.in_memory = at_the_fence
for kind in ENCODINGS:
    for act, n in (("", 33), ("silu", 64)):
        weight = random_weight(kind, n, 95)
        table = exact_table(95, kind=kind)
        graph, stored = product_graph(table, weight, act=act)
        session = ProductSession(graph, stored, threads=2, cache=folder)
        for count in (1, 2, 33, 65):
            session.rows(range(count))
        session.close()
    # A tied table whose last row is read by `embed`, with the table last in the file.
    table = random_weight(kind, 49, 95)
    graph, stored = product_graph(np.zeros((49, 95), np.float32), random_weight(kind, 17, 95))
    weights = {"w": graph.weights["w"], "table": Weight((49, 95), ENCODINGS[kind])}
    graph = graph.replace(weights=weights)
    session = ProductSession(graph, {"w": stored["w"], "table": table}, cache=folder)
    session.rows([48]), session.rows([48, 0, 48])
    session.close()
print("done")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs mprotect")
def test_no_read_past_the_last_weight(kernel_folder: Path) -> None:
    """The last weight ends where an unreadable page begins, without the spare bytes of a file."""
    done = python(GUARDED, "0", str(kernel_folder))
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    done = python(GUARDED, "1", str(kernel_folder))  # one byte over the fence is noticed
    assert done.returncode < 0, "the fence does not work"
