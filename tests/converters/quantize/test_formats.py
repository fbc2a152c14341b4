"""Encodings of b bits: bytes on disk, round trips of any size, onnxruntime, sessions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edgert.converters.torch_graph import TorchGraph
from edgert.kernels import encodings, quant
from edgert.kernels.encodings import ENCODINGS, Encoding, dequantize, quantize
from edgert.kernels.grid import BITS, GROUPS, Grid, pack_codes, unpack_codes
from edgert.kernels.quant import F32, Quantized

from edgert.bundle import Bundle
from edgert.bundle.describe import stored_bytes
from edgert.errors import BundleError, ConvertError, DeviceError
from edgert.graph import Graph, Node, Value, Weight
from edgert.session import SessionOptions, open_session
from edgert.session.base import Feed
from edgert.session.onnx_io import Variant
from edgert.session.reference import ReferenceSession
from tests.closeness import assert_close
from tests.onnx_model import ort_session
from tests.tiny import tiny_bundle, tiny_graph, tiny_weights

from .data import matrix

GRIDS = [row for row in ENCODINGS.values() if row.grid is not None]
NEW = [row for row in GRIDS if not row.offered]
ORT = [row for row in GRIDS if row.onnx_bits]
SIZES = ((1, 1), (3, 31), (2, 33), (5, 96), (4, 129), (3, 257))
EXACT = 2e-6
CODES = 2e-2  # activations of 8 bits
FLOATS = 2e-2


def grid_of(row: Encoding) -> Grid:
    assert row.grid is not None
    return row.grid


# --- bytes ------------------------------------------------------------------------------------


def test_every_grid_is_an_encoding() -> None:
    names = {f"{kind}{b}-g{g}" for kind in ("int", "uint") for b in BITS for g in GROUPS}
    assert {row.name for row in GRIDS} == names
    assert not {row.name for row in NEW} & set(encodings.asked().values())


def test_codes_are_a_stream_of_bits() -> None:
    """By the sentence of the specification, with Python's own integers."""
    rng = np.random.default_rng(0)
    for bits in BITS:
        for n in (1, 7, 8, 9, 32, 64, 129):
            codes = rng.integers(0, 1 << bits, (2, 3, n)).astype(np.uint8)
            stream = pack_codes(codes, bits)
            assert stream.shape == (2, 3, math.ceil(n * bits / 8))
            number = sum(int(c) << (i * bits) for i, c in enumerate(codes[1, 2]))
            assert int.from_bytes(stream[1, 2].tobytes(), "little") == number
            assert np.array_equal(unpack_codes(stream, bits, n), codes)


@pytest.mark.parametrize(
    ("name", "before"), [("int4-g32", quant.quantize_int4), ("int8-g32", quant.quantize_int8)]
)
def test_the_rule_gives_the_bytes_of_int4_and_int8(name: str, before: Any) -> None:
    for n, k in SIZES:
        w = matrix(n, k, seed=k)
        expected = before(w)
        got = grid_of(ENCODINGS[name]).quantize(w)
        assert set(got) == set(expected)
        for key, array in expected.items():
            assert array.tobytes() == got[key].tobytes(), key
        stored = ENCODINGS[name].load(expected, w.shape)
        assert np.array_equal(
            grid_of(ENCODINGS[name]).dequantize(expected, w.shape), dequantize(stored)
        )


@pytest.mark.parametrize("row", GRIDS, ids=lambda row: row.name)
def test_round_trips(row: Encoding) -> None:
    grid = grid_of(row)
    for n, k in SIZES:
        w = matrix(n, k, seed=n)
        stored = quantize(w, row.name)
        assert isinstance(stored, Quantized)
        assert encodings.damage(stored) == ""
        kb, bits = math.ceil(k / row.group), row.bits
        zeros = 0 if grid.symmetric else n * math.ceil(kb * bits / 8)
        size = n * kb * (row.group * bits // 8 + 2) + zeros
        assert stored_bytes(Weight((n, k), row.name)) == size
        assert sum(array.nbytes for array in stored.tensors.values()) == size
        wide = dequantize(stored)
        again = grid.store(*grid.restore(stored.tensors))
        assert all(np.array_equal(again[key], stored.tensors[key]) for key in again)
        # By the formula, one weight at a time.
        codes, steps = grid.restore(stored.tensors)
        i, j = n - 1, k - 1
        b = j // row.group
        value = (int(codes[i, b, j % row.group]) - int(steps.zeros[i, b])) * float(
            steps.scales[i, b]
        )
        assert wide[i, j] == np.float32(value)
        # To the nearest code: half a step, more only where the outermost code is the nearest.
        step = np.abs(steps.scales.astype(np.float32)).repeat(row.group, axis=1)[:, :k]
        rounded = np.maximum(step * 2.0**-11, 2.0**-25) * 2**bits  # of the scale, to float16
        assert (np.abs(wide - w) <= step * 1.01 + rounded).all()
        inside = (codes > grid.codes[0]) & (codes < grid.codes[1])
        inside = inside.reshape(n, -1)[:, :k]
        assert (np.abs(wide - w)[inside] <= 0.501 * step[inside]).all()


@pytest.mark.parametrize("row", NEW, ids=lambda row: row.name)
def test_damage_is_found(row: Encoding) -> None:
    w = quantize(matrix(3, 70), row.name)
    assert isinstance(w, Quantized)

    def changed(key: str, at: Any, value: Any) -> str:
        tensors = {name: array.copy() for name, array in w.tensors.items()}
        tensors[key][at] = value
        return encodings.damage(Quantized(row.name, w.shape, tensors))

    assert "1 of" in changed("scales", (1, 0), np.nan)
    assert "scales are not finite" in changed("scales", (2, -1), np.inf)
    assert not changed("scales", (2, -1), -1)
    assert "codes past the rows' ends" in changed("q", (0, -1, -1), w.q[0, -1, -1] ^ 0x80)
    if row.zeros and (-(-70 // row.group) * row.bits) % 8:
        last = w.tensors["zeros"][0, -1] | 0x80
        assert "bits past the last zero code" in changed("zeros", (0, -1), last)


# --- hostile rows -----------------------------------------------------------------------------


@pytest.mark.parametrize("row", GRIDS, ids=lambda row: row.name)
def test_hostile_rows(row: Encoding) -> None:
    w = np.zeros((6, 96), np.float32)
    w[1], w[2], w[3, 40], w[4] = 0.7, -0.7, 5e4, 1e-9
    w[5] = np.tile([-1.0, 1.0], 48)
    wide = dequantize(quantize(w, row.name))
    assert np.isfinite(wide).all()
    assert not wide[0].any()
    assert not wide[4].any(), "too small for float16 scales"
    for i in (1, 2):
        assert_close(f"constant row {i}", w[i], wide[i], rms=1e-3)
    assert abs(wide[3, 40] - 5e4) <= 5e4 * 1e-3
    for bad in (np.nan, np.inf, -np.inf, 3e38):
        w[2, 5] = bad
        with pytest.raises(ValueError, match="does not fit float16"):
            quantize(w, row.name)


# --- onnxruntime ------------------------------------------------------------------------------


def matmul_n_bits(x: F32, w: Quantized, level: int) -> F32:
    """x [T, K] by onnxruntime's MatMulNBits over the stored tensors."""
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    row = ENCODINGS[w.encoding]
    (n, k), tensors = w.shape, dict(w.tensors)
    tensors["scales"] = tensors["scales"].astype(np.float32)
    node = helper.make_node(
        "MatMulNBits", ["x", *tensors], ["y"], domain="com.microsoft",
        N=n, K=k, bits=row.bits, block_size=row.group, accuracy_level=level,
    )  # fmt: skip
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (len(x), n))],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    out: F32 = session.run(None, {"x": x})[0]
    return out


@pytest.mark.parametrize("row", ORT, ids=lambda row: row.name)
def test_onnxruntime_reads_the_stored_bytes(row: Encoding) -> None:
    for k in (96, 250, 256):
        w = quantize(matrix(24, k), row.name)
        assert isinstance(w, Quantized)
        x = np.random.default_rng(k).standard_normal((3, k)).astype(np.float32)
        exact = x @ dequantize(w).T
        for level, limit in ((0, EXACT), (4, CODES)):
            got = matmul_n_bits(x, w, level)
            assert_close(f"{row.name} K {k} level {level}", exact, got, rms=limit)


# --- executors --------------------------------------------------------------------------------


def product_graph(row: Encoding, n: int, k: int) -> tuple[Graph, dict[str, Any]]:
    graph = Graph(
        "op", (Value("x", ("T", k)),), (Value("y", ("T", n)),),
        (Node("linear", ("x",), "y", {"weight": "w"}),), {"w": Weight((n, k), row.name)}, {}, 0,
    )  # fmt: skip
    return graph, {"w": quantize(matrix(n, k), row.name)}


@pytest.mark.parametrize("row", NEW, ids=lambda row: row.name)
def test_reference_torch_and_onnx_agree(row: Encoding, tmp_path: Path) -> None:
    for n, k in ((24, 96), (17, 250)):
        graph, weights = product_graph(row, n, k)
        x = np.random.default_rng(k).standard_normal((5, k)).astype(np.float32)
        expected = ReferenceSession(graph, weights).run({"x": x})["y"]
        assert_close("floats", x @ dequantize(weights["w"]).T, expected, rms=FLOATS)
        with torch.no_grad():
            found = TorchGraph(graph, weights).run({"x": torch.from_numpy(x)[None]})["y"][0]
        assert_close("torch", expected, found.numpy(), rms=FLOATS)
        for standard in (False, True):
            folder = tmp_path / f"{k}{standard}"
            folder.mkdir()
            why = refusal(row, k, standard=standard)
            if why:
                with pytest.raises(ConvertError, match=why):
                    ort_session(graph, weights, folder, Variant(standard=standard))
                continue
            session = ort_session(graph, weights, folder, Variant(standard=standard))
            assert_close("onnx", expected, session.run({"x": x})["y"], rms=FLOATS)
            session.close()


def refusal(row: Encoding, k: int, *, standard: bool) -> str:
    """What an emission of such a product is refused with, or ""."""
    if not row.onnx_bits:
        return "without ONNX emission"
    if standard and row.bits == 2:
        return "no codes of 2 bits, expected 4 or 8"
    if standard and row.zeros and math.ceil(k / row.group) * row.bits % 8:
        return "zero points of 4 bits, expected an even number"
    return ""


@pytest.mark.parametrize("name", ["int3-g64", "uint2-g128", "uint8-g32", "int4-g64", "uint6-g32"])
def test_bundles_of_them_load_and_run_where_they_can(name: str, tmp_path: Path) -> None:
    graph = tiny_graph()
    graph = graph.replace(
        weights={
            n: Weight(w.shape, name if len(w.shape) == 2 else w.encoding)
            for n, w in graph.weights.items()
        }
    )
    path = tiny_bundle(tmp_path / "m.edge", graph=graph, weights=tiny_weights(graph, seed=5))
    tokens = np.array([0, 9, 100, 7, 30, 259], np.int32)
    with Bundle.open(path, verify="full") as bundle:
        session = open_session(bundle, SessionOptions(device="reference"))
        got = session.step([Feed(session.new_state(), tokens, "all")])[0].logits
        session.close()
        dense = {n: dequantize(w) for n, w in bundle.weights().items()}
        if ENCODINGS[name].cpu is None:
            with pytest.raises(DeviceError, match=f"no kernels for .'{name}'. weights"):
                open_session(bundle, SessionOptions(device="cpu"))
        else:
            cpu = open_session(bundle, SessionOptions(device="cpu", threads=1))
            found = cpu.step([Feed(cpu.new_state(), tokens, "all")])[0].logits
            cpu.close()
            assert_close(f"{name} on the CPU", got, found, rms=5e-2)  # 16 bits of keys and values
    plain = graph.replace(weights={n: Weight(w.shape) for n, w in graph.weights.items()})
    session = ReferenceSession(plain, dense)
    expected = session.step([Feed(session.new_state(), tokens, "all")])[0].logits
    assert_close("activations of 8 bits", expected, got, rms=5e-2)


def test_tables_with_zero_points_are_refused_in_onnx(tmp_path: Path) -> None:
    for name, fits in (
        ("int4-g64", True),
        ("int8-g128", True),
        ("uint4-g64", False),
        ("int2-g32", False),
    ):
        graph = Graph(
            "op", (Value("ids", ("T",), "int32"),), (Value("y", ("T", 100)),),
            (Node("embed", ("ids",), "y", {"weight": "w"}, {"scale": 1.0}),),
            {"w": Weight((9, 100), name)}, {}, 0,
        )  # fmt: skip
        weights = {"w": quantize(matrix(9, 100), name)}
        ids = np.array([8, 0, 3], np.int32)
        (tmp_path / name).mkdir()
        if not fits:
            with pytest.raises(ConvertError, match="an embedding in ONNX has codes of 4 or 8 bits"):
                ort_session(graph, weights, tmp_path / name)
            continue
        for standard in (False, True):
            session = ort_session(graph, weights, tmp_path / name, Variant(standard=standard))
            assert np.array_equal(session.run({"ids": ids})["y"], dequantize(weights["w"])[ids])
            session.close()


def test_shapes_and_types_are_checked_at_load(tmp_path: Path) -> None:
    from edgert.bundle.check import check_weights
    from edgert.storage.safetensors import TensorFile
    from tests.tiny import write_weights

    graph, _ = product_graph(ENCODINGS["uint3-g64"], 8, 100)
    other, others = product_graph(ENCODINGS["uint3-g32"], 8, 100)
    write_weights(tmp_path / "w", other, others)
    with TensorFile(tmp_path / "w") as file:
        with pytest.raises(
            BundleError, match=r"found w.q U8 \[8, 4, 12\].* expected w.q U8 \[8, 2, 24\]"
        ):
            check_weights([graph], file)
        check_weights([other], file)
