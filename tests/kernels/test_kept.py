"""Formats of GGUF that are kept byte for byte: values, products and packing on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from edgert.kernels import encodings, gguf_blocks
from edgert.kernels.cpu.pack import pack
from edgert.kernels.encodings import ENCODINGS, dequantize
from edgert.kernels.gguf_blocks import FORMS, KEY
from edgert.kernels.quant import Quantized

from edgert.graph import Graph, Node, Value, Weight

from ..closeness import assert_close
from .products import ProductSession, exact_table, expected, product_graph

SUMS = 2e-6  # sums of a row in another order
PLAIN = {"q4_0": (18, gguf_blocks.int4, "int4-g32"), "q5_0": (22, gguf_blocks.int5, "int5-g32"),
         "q8_0": (34, gguf_blocks.int8, "int8-g32")}  # fmt: skip


def random_rows(name: str, n: int, k: int, size: float = 1.0) -> Quantized:
    """All codes and scales there are, float16 scales and minima of both signs."""
    form, rng = FORMS[name], np.random.default_rng([n, k, len(name)])
    rows = rng.integers(0, 256, (n, k // form.values, form.nbytes)).astype(np.uint8)
    places = {
        "q4_1": (0, 2), "q5_1": (0, 2), "q2_k": (80, 82), "q3_k": (108,), "q4_k": (0, 2),
        "q5_k": (0, 2), "q6_k": (208,), "iq4_nl": (0,), "iq4_xs": (0,),
    }  # fmt: skip
    for at in places[name]:
        scale = size * (0.5 + rng.random(rows.shape[:2])) * rng.choice([-1, 1, 1], rows.shape[:2])
        scale /= (64.0 if form.scaled else 1.0) * 2.0**form.bits
        rows[..., at : at + 2] = scale.astype("<f2")[..., None].view(np.uint8)
    return Quantized(name, (n, k), {KEY: rows.reshape(n, -1)})


@pytest.mark.parametrize("name", [*FORMS, *PLAIN])
def test_values_are_those_of_the_gguf_package(name: str) -> None:
    """Bit for bit, for bytes of any value."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    kind = gguf.GGMLQuantizationType[name.upper()]
    if name in FORMS:
        weight = random_rows(name, 7, 768)
        rows, got = weight.tensors[KEY], dequantize(weight)
    else:
        size, kept, encoding = PLAIN[name]
        rng = np.random.default_rng(3)
        blocks = rng.integers(0, 256, (7, 24, size)).astype(np.uint8)
        scales = rng.standard_normal((7, 24)).astype("<f2")
        blocks[..., :2] = scales[..., None].view(np.uint8)
        rows = blocks.reshape(7, -1)
        got = dequantize(Quantized(encoding, (7, 768), kept(rows)))
    assert np.array_equal(gguf.dequantize(rows, kind), got)


@pytest.mark.parametrize("name", FORMS)
def test_rows_keep_their_word(name: str) -> None:
    row, weight = ENCODINGS[name], random_rows(name, 5, 512)
    assert name in ENCODINGS
    assert name not in list(ENCODINGS)
    assert row.specs("w", (5, 512)) == {"w.blocks": ("U8", weight.tensors[KEY].shape)}
    assert not encodings.fault(name, (5, 512))
    assert "expected a multiple of" in encodings.fault(name, (5, 500))
    wide = dequantize(weight)
    assert row.blocks is not None
    codes, scales = row.blocks(weight.tensors)
    values = codes * scales[..., None]
    if row.lows is not None:
        values = values - row.lows(weight.tensors)[..., None]
    assert_close(name, wide, values.reshape(5, 512), rms=1e-7)
    part = encodings.rows_of(weight, slice(1, 3))
    assert np.array_equal(dequantize(part), wide[1:3])
    assert not encodings.damage(weight)
    rows = weight.tensors[KEY].copy()
    rows[2] = 255
    assert "not finite" in encodings.damage(Quantized(name, (5, 512), {KEY: rows}))


@pytest.mark.parametrize("act", ["", "silu"])
@pytest.mark.parametrize("name", FORMS)
def test_a_product_is_the_references_whatever_shares_its_step(
    name: str, act: str, kernel_folder: Path
) -> None:
    n, k = (96 if act else 33), 512
    table, weight = exact_table(k), random_rows(name, n, k, 0.1 if act else 1.0)
    graph, stored = product_graph(table, weight, act=act)
    reference, alone = expected(table, weight, act=act), None
    for threads in (1, 2):
        session = ProductSession(graph, stored, threads=threads, cache=kernel_folder)
        if alone is None:
            alone = np.concatenate([session.rows([row]) for row in range(len(table))])
            assert_close(f"{name} {n}x{k} {act}", reference, alone, rms=SUMS)
        for count in (2, 9, 33, 65):
            assert np.array_equal(session.rows(range(count)), alone[:count])
        session.close()


@pytest.mark.parametrize("name", FORMS)
def test_table_rows_are_exact(name: str, kernel_folder: Path) -> None:
    """The embedding reads every element of the packed table."""
    weight = random_rows(name, 40, 512)
    session = ProductSession(_lookup(weight), {"w": weight}, cache=kernel_folder)
    got = session.rows(range(40))
    session.close()
    assert np.array_equal(got, dequantize(weight))


def _lookup(weight: Quantized) -> Graph:
    nodes = (
        Node("embed", ("tokens",), "x", {"weight": "w"}),
        Node("select", ("x", "rows"), "out"),
    )
    inputs = (Value("tokens", ("T",), "int32"), Value("rows", ("R",), "int32"))
    outputs = (Value("out", ("R", weight.shape[1])),)
    weights = {"w": Weight(weight.shape, weight.encoding)}
    return Graph("op", inputs, outputs, nodes, weights, {}, 256)


def test_a_superblock_takes_little_more_packed() -> None:
    """Q4_K 4.63 bits a weight instead of 4.5, Q6_K 6.56 instead of 6.56."""
    sizes = {
        name: pack(random_rows(name, 16, 2048)).size * 8 / (16 * 2048)
        for name in ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k")
    }
    assert sizes == {
        "q2_k": 3.125, "q3_k": 3.5625, "q4_k": 4.625, "q5_k": 5.625, "q6_k": 6.5625
    }  # fmt: skip
