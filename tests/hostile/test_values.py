"""Row H06: floats that are no numbers, and scales that are too small."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from edgert.kernels.encodings import dequantize, quantize
from edgert.kernels.quant import Quantized

from edgert.bundle import Bundle
from edgert.evaluation.verify import ValueCounts, count_values, verify_bundle
from edgert.session import Feed, SessionOptions, open_session
from edgert.storage.safetensors import TensorFile
from edgert.storage.safetensors_writer import TensorWriter
from tests.tiny import tensors, tiny_bundle, tiny_graph, tiny_weights

SUBNORMAL = np.float16(3e-6)
Change = Callable[[dict[str, np.ndarray]], None]


def spoiled(path: Path, change: Change) -> Path:
    """A bundle, sound in every other way, whose stored tensors were changed."""
    graph = tiny_graph()
    weights = tiny_weights(graph)
    change(tensors(weights))  # the arrays themselves, in place
    return tiny_bundle(path, graph=graph, weights=weights)


def put(tensor: str, where: object, value: float) -> Change:
    def change(stored: dict[str, np.ndarray]) -> None:
        stored[tensor][where] = value  # type: ignore[index]

    return change


BAD: dict[str, tuple[Change, str, ValueCounts]] = {
    "nan": (
        put("l1.norm2", slice(3), np.nan),
        "l1.norm2: 3 NaN, 0 infinite, 0 denormal of 64",
        ValueCounts("l1.norm2", 64, 3, 0, 0, 0),
    ),
    "infinite": (
        put("l0.o", (5, 7), -np.inf),
        "l0.o: 0 NaN, 1 infinite, 0 denormal of 4096",
        ValueCounts("l0.o", 4096, 0, 1, 0, 0),
    ),
    "nan scale": (
        put("embed.scales", (259, 1), np.nan),
        "embed.scales: 1 NaN, 0 infinite, 0 denormal of 520",
        ValueCounts("embed.scales", 520, 1, 0, 0, 0),
    ),
    "denormal only": (
        put("l0.qkv.scales", ..., SUBNORMAL),
        "l0.qkv.scales: 0 NaN, 0 infinite, 256 denormal of 256",
        ValueCounts("l0.qkv.scales", 256, 0, 0, 256, 0),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_h06_reported_with_tensor_and_count(name: str, tmp_path: Path) -> None:
    change, text, counts = BAD[name]
    path = spoiled(tmp_path / "a.edge", change)
    assert verify_bundle(path).ok, "values are looked at only when asked"
    report = verify_bundle(path, values=True)
    assert not report.ok
    (problem,) = report.problems()
    assert problem.code == "values"
    assert text in problem.message
    assert "expected finite values" in problem.message
    assert problem.hint
    assert counts in report.values


def test_h06_some_denormal_scales_and_zero_groups_are_told_not_refused(tmp_path: Path) -> None:
    def change(stored: dict[str, np.ndarray]) -> None:
        stored["l0.qkv.scales"][0] = SUBNORMAL, 0
        stored["embed.scales"][:2] = 0

    report = verify_bundle(spoiled(tmp_path / "a.edge", change), values=True)
    assert report.ok
    assert set(report.values) == {
        ValueCounts("l0.qkv.scales", 256, 0, 0, 1, 1),
        ValueCounts("embed.scales", 520, 0, 0, 0, 4),
    }


def test_h06_a_zero_group_gives_zeros(tmp_path: Path) -> None:
    """No division fault, no NaN: an all-zero table embeds to zero and the model still answers."""

    def change(stored: dict[str, np.ndarray]) -> None:
        stored["embed.scales"][...] = 0

    path = spoiled(tmp_path / "a.edge", change)
    with Bundle.open(path) as bundle, warnings.catch_warnings():
        warnings.simplefilter("error")
        table = bundle.weights()["embed"]
        assert isinstance(table, Quantized)
        assert not dequantize(table).any()
        session = open_session(bundle, SessionOptions(device="reference"))
        feed = Feed(session.new_state(), np.array([0, 1], np.int32))
        logits = session.step([feed])[0].logits
    assert logits.tolist() == [[0.0] * 260]


@pytest.mark.parametrize("encoding", ["int4-g32", "int8-g32"])
def test_h06_zero_groups_quantize_to_zeros(encoding: str) -> None:
    dense = np.zeros((3, 70), np.float32)
    dense[1, :32] = 1e-9  # a scale that no float16 holds
    dense[2, 69] = 1.0
    stored = quantize(dense, encoding)
    assert isinstance(stored, Quantized)
    back = dequantize(stored)
    assert np.isfinite(stored.scales).all()
    assert not back[:2].any()
    assert back[2, 69] == pytest.approx(1.0, rel=1e-2)


def test_h06_every_float_type_is_looked_at(tmp_path: Path) -> None:
    nan, inf = np.nan, np.inf
    stored = {
        "f64": ("F64", np.array([nan, inf, 1.0])),
        "f32": ("F32", np.array([nan, nan], np.float32)),
        "f16": ("F16", np.array([inf], np.float16)),
        "bf16": ("BF16", np.array([0x7FC0, 0x7F80, 0x3F80], np.uint16)),
        "u8": ("U8", np.array([255], np.uint8)),
    }
    specs = {name: (dtype, array.shape) for name, (dtype, array) in stored.items()}
    with TensorWriter(tmp_path / "a", specs) as writer:
        for name, (_, array) in stored.items():
            writer.write(name, array)
    with TensorFile(tmp_path / "a") as file:
        check, counts = count_values(file)
    assert not check.ok
    assert {(c.tensor, c.nan, c.infinite) for c in counts} == {
        ("f64", 1, 1),
        ("f32", 2, 0),
        ("f16", 0, 1),
        ("bf16", 1, 1),
    }
