"""Products and packing of 2 to 6 bits in groups, on the CPU: every encoding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from edgert.kernels.cpu.pack import pack
from edgert.kernels.encodings import ENCODINGS, dequantize
from edgert.kernels.quant import Quantized

from ..closeness import assert_close
from .products import ProductSession, exact_table, expected, product_graph

IN_PLANES = [
    r.name for r in ENCODINGS.values() if r.cpu and r.cpu.kernel.startswith(("planes", "zeroed"))
]
SUMS = 1e-6  # sums of a row in another order


def random_codes(name: str, n: int, k: int) -> Quantized:
    """All codes and zero codes, scales of both signs, some of them zero."""
    row = ENCODINGS[name]
    rng = np.random.default_rng([n, k, row.bits])
    held = -(-k // row.group)
    scales = (0.5 + rng.random((n, held))) / np.sqrt(k) * rng.choice([-1, 0, 1, 1], (n, held))
    tensors = {
        "q": rng.integers(0, 256, (n, held, row.group * row.bits // 8)).astype(np.uint8),
        "scales": scales.astype(np.float16),
    }
    if row.zeros:
        size = (n, -(-held * row.bits // 8))
        tensors["zeros"] = rng.integers(0, 256, size).astype(np.uint8)
    return Quantized(name, (n, k), tensors)


def test_every_width_and_group_is_there() -> None:
    names = {
        f"{sign}int{b}-g{g}" for sign in ("", "u") for b in (2, 3, 4, 5, 6) for g in (32, 64, 128)
    }
    assert set(IN_PLANES) == names - {"int4-g32"}


@pytest.mark.parametrize("name", IN_PLANES)
def test_a_product_is_the_references_whatever_shares_its_step(
    name: str, kernel_folder: Path
) -> None:
    for n, k in ((33, 95), (16, 300)):
        table, weight = exact_table(k), random_codes(name, n, k)
        graph, stored = product_graph(table, weight)
        reference, alone = expected(table, weight), None
        for threads in (1, 2):
            session = ProductSession(graph, stored, threads=threads, cache=kernel_folder)
            if alone is None:
                alone = np.concatenate([session.rows([row]) for row in range(len(table))])
                assert_close(f"{name} {n}x{k}", reference, alone, rms=SUMS)
            for count in (2, 9, 33, 65):
                assert np.array_equal(session.rows(range(count)), alone[:count])
            session.close()


@pytest.mark.parametrize("name", IN_PLANES)
def test_a_gated_pair_is_the_references_whatever_shares_its_step(
    name: str, kernel_folder: Path
) -> None:
    table, weight = exact_table(95), random_codes(name, 96, 95)
    scales = (weight.scales / 8).astype(np.float16)
    weight = Quantized(name, weight.shape, {**weight.tensors, "scales": scales})
    graph, stored = product_graph(table, weight, act="silu")
    reference, alone = expected(table, weight, act="silu"), None
    for threads in (1, 2):
        session = ProductSession(graph, stored, threads=threads, cache=kernel_folder)
        assert session.paired == {"w"}
        if alone is None:
            alone = np.concatenate([session.rows([row]) for row in range(len(table))])
            assert_close(f"gated {name}", reference, alone, rms=SUMS)
        for count in (2, 9, 33, 65):
            assert np.array_equal(session.rows(range(count)), alone[:count])
        session.close()


@pytest.mark.parametrize("name", IN_PLANES)
def test_packing_keeps_every_bit(name: str) -> None:
    """Unpacked again by the layout's description (`linear_planes.py`, `simd_planes.py`)."""
    row, (n, k) = ENCODINGS[name], (18, 200)
    weight = random_codes(name, n, k)
    packed = pack(weight)
    blocks, together = -(-k // 32), row.group // 32
    at, got = 0, np.zeros((32, blocks * 32), np.float32)
    planes = [4] * (row.bits // 4) + [2] * (row.bits % 4 // 2) + [1] * (row.bits % 2)
    for first in (0, 16):
        for b in range(blocks):
            if b % together == 0:
                scales = packed[at : at + 32].view(np.float16).astype(np.float32)
                zeros = np.full(16, 1 << (row.bits - 1), np.int64)
                at += 32
                if row.zeros:
                    zeros, at = packed[at : at + 16].astype(np.int64), at + 16
            codes, below = np.zeros((8, 64), np.int64), 0
            for width in planes:
                held = 8 // width
                vectors = packed[at : at + 64 * width].reshape(width, 64).astype(np.int64)
                for chunk in range(8):
                    part = vectors[chunk // held] >> width * (chunk % held) & (1 << width) - 1
                    codes[chunk] |= part << below
                at, below = at + 64 * width, below + width
            values = codes.reshape(8, 16, 4).transpose(1, 0, 2).reshape(16, 32)
            block = (values - zeros[:, None]) * scales[:, None]
            got[first : first + 16, 32 * b : 32 * b + 32] = block
    assert at == len(packed)
    assert np.array_equal(got[:n, :k], dequantize(weight))
    assert not got[n:].any()
