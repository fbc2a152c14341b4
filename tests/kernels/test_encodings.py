"""The table of encodings: its rows keep their word, and a row more is all that a format needs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from edgert.converters.convert import convert
from edgert.converters.onnx_emit import export
from edgert.converters.quantize.rtn import encode
from edgert.kernels import encodings
from edgert.kernels.encodings import ENCODINGS, Encoding, Tensor, dequantize, quantize
from edgert.kernels.quant import F32, Quantized, Tensors
from numpy.typing import NDArray

from benchmarks.make_checkpoint import make_checkpoint
from edgert.bundle import Bundle
from edgert.bundle.check import check_weights
from edgert.bundle.describe import inspect, stored_bytes
from edgert.errors import BundleError, ConvertError, DeviceError
from edgert.graph import Graph, Weight
from edgert.session import SessionOptions, open_session
from edgert.session.base import Feed, Session
from edgert.session.reference import ReferenceSession
from edgert.storage.safetensors import DTYPES, TensorFile
from tests.closeness import distance
from tests.tiny import tiny_bundle, tiny_graph, tiny_weights, write_weights

TOKENS = np.array([0, 9, 100, 7, 30, 259], np.int32)
GROUP = 16
# By bits, of normal values in groups of 32 to 128.
LOST = {32: 0.0, 16: 3e-4, 8: 0.01, 6: 0.04, 5: 0.08, 4: 0.15, 3: 0.35, 2: 0.9}


def _quantize(w: F32) -> Tensors:
    """Asymmetric: the lowest value of a group gets code 0, the highest 15."""
    groups = w.reshape(len(w), -1, GROUP)
    low, high = np.minimum(groups.min(-1), 0), np.maximum(groups.max(-1), 0)
    scales = ((high - low) / 15).astype(np.float16)
    wide = np.where(scales == 0, 1, scales.astype(np.float32))
    zeros = np.clip(np.rint(-low / wide), 0, 15).astype(np.uint8)
    codes = np.clip(np.rint(groups / wide[..., None]) + zeros[..., None], 0, 15).astype(np.uint8)
    return {"q": codes[..., 0::2] | codes[..., 1::2] << 4, "scales": scales, "zeros": zeros}


def _dequantize(tensors: Tensors, shape: tuple[int, ...]) -> F32:
    q = tensors["q"]
    codes = np.stack([q & 15, q >> 4], axis=-1).reshape(*q.shape[:2], GROUP).astype(np.float32)
    scales = tensors["scales"].astype(np.float32)
    values: F32 = (codes - tensors["zeros"][..., None]) * scales[..., None]
    return values.reshape(shape)


ASYMMETRIC = Encoding(
    "toy4-g16", 4,
    (
        Tensor("q", "U8", lambda s: (s[0], s[1] // GROUP, GROUP // 2)),
        Tensor("scales", "F16", lambda s: (s[0], s[1] // GROUP)),
        Tensor("zeros", "U8", lambda s: (s[0], s[1] // GROUP)),
    ),
    _dequantize, quantize=_quantize, group=GROUP, whole=GROUP, alias="toy4",
)  # fmt: skip
# A dictionary [N, 8] and coefficients [8, K], which rows share.
FACTORS = Encoding(
    "toy-factors", 32,
    (
        Tensor("left", "F32", lambda s: (s[0], 8)),
        Tensor("right", "F32", lambda s: (8, s[1]), by_row=False),
    ),
    lambda t, _: t["left"] @ t["right"],
)  # fmt: skip
# Opaque bytes: super-blocks of 256 inputs in 144 bytes, as GGUF's Q4_K has them.
OPAQUE = Encoding(
    "toy-k", 4, (Tensor("", "U8", lambda s: (s[0], s[1] // 256 * 144)),),
    lambda t, shape: np.repeat(t[""][:, ::144].astype(np.float32), 256, axis=1), whole=256,
)  # fmt: skip


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    for row in (ASYMMETRIC, FACTORS, OPAQUE):
        monkeypatch.setitem(ENCODINGS, row.name, row)


def stored_as(graph: Graph, encoding: str) -> Graph:
    """The graph with its matrices in an encoding."""
    weights = {
        name: Weight(w.shape, encoding if len(w.shape) == 2 else w.encoding)
        for name, w in graph.weights.items()
    }
    return graph.replace(weights=weights)


def logits(session: Session) -> NDArray[np.float32]:
    state = session.new_state()
    out = session.step([Feed(state, TOKENS, "all")])[0].logits
    session.close()
    return out


# --- the rows that stand ----------------------------------------------------------------------


@pytest.mark.parametrize("name", list(ENCODINGS))
def test_rows_keep_their_word(name: str) -> None:
    row = ENCODINGS[name]
    dense = np.random.default_rng(0).standard_normal((21, 70)).astype(np.float32)
    stored = quantize(dense, name)
    assert encodings.encoding_of(stored) is row
    tensors = encodings.tensors_of(stored)
    for tensor in row.tensors:
        assert tensors[tensor.key].dtype == DTYPES[tensor.dtype]
        assert tensors[tensor.key].shape == tensor.shape(dense.shape)
    assert set(tensors) == {tensor.key for tensor in row.tensors}
    wide = dequantize(stored)
    assert (wide.dtype, wide.shape) == (np.float32, dense.shape)
    assert distance(dense, wide)[0] <= LOST[row.bits]
    for index in (slice(3, 9), np.array([5, 0, 5])):
        part = encodings.rows_of(stored, index)
        assert part.shape == (len(wide[index]), 70)
        assert np.array_equal(dequantize(part), wide[index])
    if row.blocks is not None:
        codes, scales = row.blocks(tensors)
        assert (codes.dtype, scales.dtype) == (np.int8, np.float32)
        whole = (codes * scales[..., None]).reshape(21, -1)
        assert np.array_equal(whole[:, :70], wide)
        assert not whole[:, 70:].any()
    if row.cpu is not None:
        assert (row.cpu.offset is None) == (row.blocks is None)


def test_codes_and_names_are_told_apart() -> None:
    faces = [row.cpu for row in ENCODINGS.values() if row.cpu is not None]
    ways = {(face.kernel, face.every) for face in faces}
    assert len({face.code for face in faces}) == len(ways) == len(faces)
    assert encodings.asked() == {
        "f32": "f32", "f16": "f16", "int8": "int8-g32", "int8-g32": "int8-g32",
        "int8-channel": "int8-channel",
        "int4": "int4-g32", "int4-g32": "int4-g32",
        "int2": "uint2-g64", "uint2-g64": "uint2-g64",
        "int3": "uint3-g64", "uint3-g64": "uint3-g64",
        "int5": "int5-g64", "int5-g64": "int5-g64", "int6": "int6-g64", "int6-g64": "int6-g64",
    }  # fmt: skip


def test_which_shapes_an_encoding_takes() -> None:
    assert all(not encodings.fault("f32", (3,) * rank) for rank in (1, 2, 3, 4))
    assert not encodings.fault("f16", (8, 3, 3, 3))
    assert encodings.fault("f16", (8,)) == (
        "has encoding 'f16' and is of rank 1, expected one of [2, 3, 4]"
    )
    assert "rank 3, expected one of [2]" in encodings.fault("int4-g32", (8, 3, 3))
    assert "'int3', expected one of ['f32'," in encodings.fault("int3", (8, 3))


def test_what_no_row_takes() -> None:
    with pytest.raises(ValueError, match="float64, expected float32, float16 or a Quantized"):
        encodings.encoding_of(np.zeros((2, 2)))  # type: ignore[arg-type]


# --- a row more -------------------------------------------------------------------------------


@pytest.mark.usefixtures("toys")
def test_a_new_row_is_all_that_a_format_needs(tmp_path: Path) -> None:
    """Graph check, writing, loading, inspecting and the reference session, with zero points."""
    graph = stored_as(tiny_graph(), ASYMMETRIC.name)
    weights = tiny_weights(graph, seed=5)
    assert isinstance(weights["embed"], Quantized)
    assert graph.from_json(graph.to_json()) == graph
    path = tiny_bundle(tmp_path / "toy.edge", graph=graph, weights=weights)
    with Bundle.open(path, verify="full") as bundle:
        found = bundle.weights()
        plain = stored_as(graph, "f32")
        dense = {name: dequantize(w) for name, w in found.items()}
        expected = logits(ReferenceSession(plain, dense))
        got = logits(open_session(bundle, SessionOptions(device="reference")))
    assert np.array_equal(got, expected)
    for name, weight in weights.items():
        assert np.array_equal(dense[name], dequantize(weight))
    told = inspect(path)
    assert stored_bytes(graph.weights["embed"]) == 260 * 4 * (8 + 2 + 1)
    matrices = [w for w in graph.weights.values() if len(w.shape) == 2]
    assert told.encodings[ASYMMETRIC.name] == sum(map(stored_bytes, matrices))


@pytest.mark.usefixtures("toys")
def test_a_checkpoint_is_converted_to_a_new_row(tmp_path: Path) -> None:
    report = convert(
        make_checkpoint("tiny", tmp_path / "tiny", dtype="f32"), tmp_path / "m.edge",
        quant="toy4", method="rtn", progress=False, golden=False,
    )  # fmt: skip
    assert (report.quant, report.embed_quant) == (ASYMMETRIC.name, ASYMMETRIC.name)
    errors = [w.error for w in report.weights if w.encoding == ASYMMETRIC.name]
    assert errors
    assert all(0 < error < 0.1 for error in errors)
    piece = encode(np.ones((2, 32), np.float32), ASYMMETRIC.name)
    assert set(piece.arrays) == {".q", ".scales", ".zeros"}


@pytest.mark.usefixtures("toys")
def test_tensors_of_a_new_row_are_checked(tmp_path: Path) -> None:
    graph = stored_as(tiny_graph(), ASYMMETRIC.name)
    path = tiny_bundle(tmp_path / "toy.edge", graph=graph)
    other = stored_as(tiny_graph(), "int4-g32")
    write_weights(tmp_path / "other", other, tiny_weights(other))
    with Bundle.open(path) as bundle, TensorFile(tmp_path / "other") as file:
        with pytest.raises(
            BundleError, match=r"missing \['embed.zeros', 'l0.down.zeros'"
        ) as caught:
            check_weights([bundle.graph()], file)
    assert caught.value.code == "weights-names"


@pytest.mark.usefixtures("toys")
def test_executors_without_kernels_for_a_row_say_so(tmp_path: Path) -> None:
    path = tiny_bundle(tmp_path / "toy.edge", graph=stored_as(tiny_graph(), ASYMMETRIC.name))
    with Bundle.open(path) as bundle, pytest.raises(DeviceError) as caught:
        open_session(bundle, SessionOptions(device="cpu"))
    assert "no kernels for ['toy4-g16'] weights, expected some of ['f16'," in str(caught.value)
    with pytest.raises(ConvertError, match="the first 'embed' in toy4-g16, expected some of"):
        export(path)
    with pytest.raises(ValueError, match="no kernels for toy4-g16"):
        encodings.packed_bytes(ASYMMETRIC.name, 16, 32)


@pytest.mark.usefixtures("toys")
def test_factors_and_opaque_bytes() -> None:
    """Tensors that rows share, and one tensor whose bytes only the row understands."""
    rng = np.random.default_rng(0)
    left, right = rng.random((6, 8), np.float32), rng.random((8, 40), np.float32)
    w = ENCODINGS["toy-factors"].load({"left": left, "right": right}, (6, 40))
    part = encodings.rows_of(w, np.array([4, 1]))
    assert part.shape == (2, 40)
    assert np.allclose(dequantize(part), (left @ right)[[4, 1]], rtol=1e-6)
    with pytest.raises(ValueError, match="toy-factors has no quantizer, expected one of"):
        quantize(left, "toy-factors")
    assert "toy-factors" not in encodings.asked()

    opaque = ENCODINGS["toy-k"]
    assert opaque.specs("w", (3, 512)) == {"w": ("U8", (3, 288))}
    w = opaque.load({"": rng.integers(0, 256, (3, 288)).astype(np.uint8)}, (3, 512))
    assert dequantize(encodings.rows_of(w, slice(1, 3))).shape == (2, 512)
    with pytest.raises(BundleError, match="has rows of 64, expected a multiple of 256"):
        stored_as(tiny_graph(), "toy-k").shapes()
