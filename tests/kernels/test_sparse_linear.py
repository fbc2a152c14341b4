"""Products with sparse codes: y = (x A) S on every executor, packed densely and with indices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from edgert.converters.torch_graph import TorchGraph
from edgert.kernels import encodings, sparse
from edgert.kernels.cpu.pack import pack
from edgert.kernels.embed import embed
from edgert.kernels.encodings import ENCODINGS, dequantize, on_cpu, packed_bytes
from edgert.kernels.quant import F32, Matrix, Quantized
from edgert.kernels.sparse import BITS, densified, linear_compot

from edgert.errors import ConvertError
from edgert.graph import Graph, Node, Value, Weight
from edgert.session.base import Session
from edgert.session.cpu import CpuSession
from edgert.session.onnx_io import Variant
from edgert.session.reference import ReferenceSession

from ..closeness import assert_close
from ..onnx_model import emit_model, ort_session
from .products import ROWS, ProductSession, exact_table, expected, product_graph
from .test_sparse import spoiled, stored

SUMS = 1e-6  # float32 sums in another order
CODES = 2e-2  # activations of 8 bits, in one product or two
HALF = 4e-3
# n, k, s: dense forms and very sparse ones, rows and values that fill no group
SHAPES = ((33, 95, 40), (17, 130, 1), (49, 300, 21), (16, 64, 64), (40, 200, 4))


# --- the CPU session's kernels ----------------------------------------------------------------


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_product_is_the_references_whatever_shares_its_step(
    shape: tuple[int, int, int], bits: int, kernel_folder: Path
) -> None:
    n, k, s = shape
    weight, table = stored(k, s, bits, n), exact_table(k)
    bias = np.random.default_rng(n).standard_normal(n).astype(np.float32) if n % 2 else None
    graph, weights = product_graph(table, weight, bias=bias)
    reference, alone = expected(table, weight, bias=bias), None
    for threads in (1, 2, 3):
        session = ProductSession(graph, weights, threads=threads, cache=kernel_folder)
        if alone is None:
            alone = np.concatenate([session.rows([row]) for row in range(ROWS)])
            assert_close(f"{weight.encoding} {shape}", reference, alone, rms=SUMS)
        for count in (2, 9, 16, 17, 33, 65):
            got = session.rows(range(count))
            assert np.array_equal(got.view(np.uint32), alone[:count].view(np.uint32)), count
        session.close()


def test_indices_are_taken_where_they_are_less_than_half_the_bytes() -> None:
    for bits in BITS:
        each = 4 if bits == 16 else 3
        for s in (1, 20, 70, 100, 140, 200, 230, 448, 896):
            name = f"sparse{bits}-s{s}"
            face, dense = on_cpu(name, 896), on_cpu(ENCODINGS[name].dense, 896)
            indexed = 16 * (each * s + (0 if bits == 16 else 2 * 14))
            few = 2 * indexed < dense.group_bytes(896)
            assert packed_bytes(name, 16, 896) == (indexed if few else dense.group_bytes(896))
            assert face.kept == (s if few else 0)
            assert face.kernel == ("indexed16" if bits == 16 else "indexed8") or face == dense
    assert on_cpu("sparse8-s9", 65536).kept == 9
    assert on_cpu("sparse8-s9", 65537).kept == 0  # an index has 16 bits


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_a_dense_packing_is_that_of_the_dense_form(
    bits: int, paired: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = stored(200, 100, bits, 66)
    whole = pack(densified(weight), paired=paired)
    assert np.array_equal(pack(weight, paired=paired), whole)
    monkeypatch.setattr(sparse, "PIECE", 16 * 200)  # row by row of groups
    assert np.array_equal(pack(weight, paired=paired), whole)


@pytest.mark.parametrize("bits", BITS)
def test_a_packing_with_indices_keeps_every_value(
    bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read by the layout's description (`linear_indexed.py`)."""
    n, k, s = 37, 300, 5
    weight = stored(k, s, bits, n)
    monkeypatch.setattr(sparse, "PIECE", 16 * k)
    packed = pack(weight)
    held = 0 if bits == 16 else 5
    groups = packed.reshape(3, -1)
    scales = groups[:, : 32 * held].copy().view("<f2").reshape(48, held)
    at = groups[:, 32 * held : 32 * held + 32 * s].copy().view("<u2").reshape(-1, s).astype(int)
    values = groups[:, 32 * held + 32 * s :].copy()
    values = values.view("<f2" if bits == 16 else np.int8).reshape(-1, s).astype(np.float32)
    if held:
        values *= np.take_along_axis(scales, at // 64, axis=1).astype(np.float32)
    found = np.zeros((n, k), np.float32)
    np.put_along_axis(found, at[:n], values[:n], axis=1)
    assert np.array_equal(found, dequantize(weight))
    assert not values[n:].any()


@pytest.mark.parametrize("s", [3, 90])
@pytest.mark.parametrize("bits", BITS)
def test_a_mask_that_breaks_the_format_is_not_packed(bits: int, s: int) -> None:
    weight = stored(130, s, bits)
    mask = weight.tensors["mask"].copy()
    mask[1, 16] |= 128  # atom 135
    with pytest.raises(ValueError, match="row 1 of the mask has bits past its 130 atoms"):
        pack(spoiled(weight, mask=mask))


@pytest.mark.parametrize("s", [3, 90])
@pytest.mark.parametrize("bits", BITS)
def test_embedding_rows_of_a_sparse_table(bits: int, s: int, kernel_folder: Path) -> None:
    table = stored(130, s, bits)
    graph = Graph(
        "op", (Value("tokens", ("T",), "int32"),), (Value("y", ("T", 130)),),
        (Node("embed", ("tokens",), "y", {"weight": "w"}, {"scale": 1.5}),),
        {"w": Weight(table.shape, table.encoding)}, {}, 0,
    )  # fmt: skip
    tokens = np.array([36, 0, 15, 16, 17, 36], np.int32)
    session = CpuSession(graph, {"w": table}, threads=1, cache=kernel_folder)
    got = session.run({"tokens": tokens})["y"]
    session.close()
    assert np.array_equal(got, embed([tokens], {"weight": table}, {"scale": 1.5}))


# --- y = (x A) S on every executor ------------------------------------------------------------

Made = tuple[Graph, dict[str, Matrix]]


def pair(bits: int, a_encoding: str, s: int, *, gated: bool = False) -> tuple[Made, F32, F32]:
    """A graph of both factors, and the factors [m, k] and [k, n] as they are stored."""
    m, k, n = 96, 70, 64
    a = np.random.default_rng(1).standard_normal((k, m)).astype(np.float32) / 10
    stored_a, stored_s = encodings.quantize(a, a_encoding), stored(k, s, bits, n)
    nodes = [
        Node("linear", ("x",), "t", {"weight": "a"}),
        Node("linear", ("t",), "y", {"weight": "s"}),
    ]
    if gated:
        nodes.append(Node("glu", ("y",), "g", {}, {"act": "silu"}))
    graph = Graph(
        "pair", (Value("x", ("T", m)),), (), tuple(nodes),
        {"a": Weight((k, m), a_encoding), "s": Weight((n, k), stored_s.encoding)}, {}, 0,
    )  # fmt: skip
    last = nodes[-1].output
    graph = graph.replace(outputs=(Value(last, graph.shapes()[last]),))
    return (graph, {"a": stored_a, "s": stored_s}), dequantize(stored_a).T, dequantize(stored_s).T


def _run(session: Session, x: F32) -> F32:
    (out,) = session.run({"x": x}).values()
    session.close()
    return out


def _torch(made: Made, x: F32, _: Path) -> F32:
    graph, weights = made
    with torch.no_grad():
        (out,) = TorchGraph(graph, weights).run({"x": torch.from_numpy(x)[None]}).values()
    return out[0].numpy()


def _onnx(variant: Variant) -> Callable[[Made, F32, Path], F32]:
    return lambda made, x, folder: _run(ort_session(*made, folder, variant), x)


EXECUTORS: dict[str, tuple[Callable[[Made, F32, Path], F32], float]] = {
    "reference": (lambda made, x, _: _run(ReferenceSession(*made), x), SUMS),
    "cpu": (lambda made, x, folder: _run(CpuSession(*made, threads=2, cache=None), x), SUMS),
    "torch": (_torch, SUMS),
    "onnx": (_onnx(Variant()), SUMS),
    "onnx-half": (_onnx(Variant(half=True)), HALF),
    "onnx-standard": (_onnx(Variant(standard=True)), SUMS),
}


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("bits", BITS)
def test_two_products_are_the_formula(bits: int, executor: str, tmp_path: Path) -> None:
    made, a, s = pair(bits, "f32" if bits == 16 else "int8-g32", 31)
    x = np.random.default_rng(2).standard_normal((7, 96)).astype(np.float32)
    execute, limit = EXECUTORS[executor]
    got = execute(made, x, tmp_path)
    floats = executor in ("torch", "onnx-standard") or bits == 16  # no rounded activations
    assert_close(executor, linear_compot(x, a, s), got, rms=limit if floats else CODES)


@pytest.mark.parametrize("bits", BITS)
def test_the_cpu_session_is_the_reference_in_a_gated_pair(bits: int, kernel_folder: Path) -> None:
    for s in (5, 40):
        made, _, _ = pair(bits, "int8-g32", s, gated=True)
        x = exact_table(96)
        reference = _run(ReferenceSession(*made), x)
        session = CpuSession(*made, threads=2, cache=kernel_folder)
        assert_close(f"s{s}", reference, _run(session, x), rms=2e-3)


@pytest.mark.parametrize("standard", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_onnx_reads_the_same_values(bits: int, standard: bool) -> None:
    w = stored(200, 77, bits)
    assert isinstance(w, Quantized)
    for_onnx = sparse.for_onnx(w, standard=standard)
    name = encodings.encoding_of(for_onnx).name
    assert name == sparse.onnx_form(w.encoding, standard=standard)
    assert ENCODINGS[name].plain or ENCODINGS[name].onnx_bits in ((4, 8) if standard else (2, 4, 8))
    assert np.array_equal(dequantize(for_onnx), dequantize(w))


def test_a_sparse_embedding_has_no_onnx(tmp_path: Path) -> None:
    table = stored(64, 20, 8)
    graph, weights = product_graph(np.zeros((37, 64), np.float32), stored(64, 20, 4, 16))
    graph = graph.replace(weights={**graph.weights, "table": Weight(table.shape, table.encoding)})
    with pytest.raises(ConvertError, match="'table' in sparse8-s20: an embedding in ONNX is not"):
        emit_model(graph, {**weights, "table": table}, tmp_path)
