"""A bundle whose weights are two factors, one of them sparse: written, inspected, exported, run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from edgert.converters.onnx_emit import export
from edgert.converters.torch_graph import TorchGraph
from edgert.kernels import encodings, sparse
from edgert.kernels.encodings import dequantize
from edgert.kernels.quant import F32, Matrix
from torch import from_numpy

from edgert import limits
from edgert.bundle import Bundle
from edgert.bundle.describe import inspect, stored_bytes
from edgert.cli import run
from edgert.errors import BundleError, ConvertError
from edgert.evaluation.verify import verify_bundle
from edgert.graph import Graph, Node, Weight
from edgert.session import SessionOptions, open_session
from edgert.session.base import Feed, Session
from edgert.session.onnx_check import inline_bytes

from ..closeness import assert_close
from ..tiny import tiny_bundle, tiny_graph, tiny_weights

TOKENS = np.random.default_rng(0).integers(0, 260, 40).astype(np.int32)
# Of every product but the head: atoms, kept values and bits of the second factor. Gate and up are
# gated by one kernel, down's sum is added by it; 3 of 48 values come with indices.
FACTORS = {"qkv": (48, 24, 8), "o": (48, 3, 4), "gate_up": (56, 28, 8), "down": (56, 40, 3)}
SUMS = 1e-5  # the same formula, summed in another order
CODES = 5e-2  # activations rounded otherwise, or not, in 8 products one after another


def factored() -> tuple[Graph, dict[str, Matrix]]:
    """The tiny model with `linear` nodes as pairs t = x A, y = t S."""
    graph = tiny_graph(quant="int8")
    weights, declared, nodes = tiny_weights(graph), dict(graph.weights), []
    draw = np.random.default_rng(1)
    for node in graph.nodes:
        name = node.weights.get("weight", "")
        kind = name.partition(".")[2]
        if node.op != "linear" or kind not in FACTORS:
            nodes.append(node)
            continue
        (n, m), (k, s, bits) = graph.weights[name].shape, FACTORS[kind]
        a = draw.standard_normal((k, m)).astype(np.float32) / np.sqrt(m)
        mask = draw.random((n, k)).argsort(axis=1) < s
        code = sparse.quantize(draw.standard_normal((n, k)).astype(np.float32) / 5, mask, bits)
        weights |= {f"{name}.a": encodings.quantize(a, "int8-g32"), f"{name}.s": code}
        declared |= {
            f"{name}.a": Weight((k, m), "int8-g32"),
            f"{name}.s": Weight((n, k), code.encoding),
        }
        del weights[name], declared[name]
        nodes.append(Node("linear", node.inputs, f"{name}.t", {"weight": f"{name}.a"}))
        nodes.append(Node("linear", (f"{name}.t",), node.output, {"weight": f"{name}.s"}))
    return graph.replace(nodes=tuple(nodes), weights=declared), weights


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    graph, weights = factored()
    return tiny_bundle(tmp_path / "factors.edge", graph=graph, weights=weights)


def logits(session: Session) -> F32:
    out = session.step([Feed(session.new_state(), TOKENS, "all")])[0].logits
    session.close()
    return out


def test_every_executor_agrees(bundle: Path) -> None:
    export(bundle)
    with Bundle.open(bundle, verify="full") as opened:
        graph, weights = opened.graph(), opened.weights()
        expected = logits(open_session(opened, SessionOptions(device="reference")))
        found = logits(open_session(opened, SessionOptions(device="cpu", threads=2, kv_bits=32)))
        assert_close("cpu", expected, found, rms=SUMS)
        found = logits(open_session(opened, SessionOptions(device="ort-cpu", threads=2)))
        assert_close("ort-cpu", expected, found, rms=CODES)
        dense = {name: dequantize(w) for name, w in weights.items()}
        found = TorchGraph(graph, weights)(from_numpy(TOKENS)[None])[0].numpy()
        assert np.array_equal(found, TorchGraph(graph, dense)(from_numpy(TOKENS)[None])[0].numpy())
        assert_close("torch", expected, found, rms=CODES)


def test_chunks_and_threads_change_no_bit(bundle: Path) -> None:
    found = []
    with Bundle.open(bundle) as opened:
        for threads, chunk in ((1, 40), (2, 1), (2, 7)):
            session = open_session(opened, SessionOptions(device="cpu", threads=threads))
            state, parts = session.new_state(), []
            for start in range(0, 40, chunk):
                step = session.step([Feed(state, TOKENS[start : start + chunk], "all")])
                parts.append(step[0].logits)
                state.commit(chunk if start + chunk <= 40 else 40 - start)
            found.append(np.concatenate(parts))
            session.close()
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_it_is_inspected(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = inspect(bundle)
    graph, _ = factored()
    for count, bits, name in ((24, 8, "qkv"), (3, 4, "o"), (40, 3, "down")):
        weights = [graph.weights[f"l{i}.{name}.s"] for i in range(2)]
        assert told.encodings[f"sparse{bits}-s{count}"] == sum(map(stored_bytes, weights))
    assert stored_bytes(graph.weights["l0.down.s"]) == 64 * (8 + 40 * 3 // 8 + 2)
    assert set(told.packed) == {"int8", "indexed8", "planes3"}
    assert told.packed["indexed8"] == 2 * 64 * (3 * (2 + 1) + 2)
    assert told.weights == sum(told.encodings.values())
    assert run(["inspect", str(bundle)]) == 0
    text = capsys.readouterr().out
    assert "sparse8-s24 to -s28 " in text
    assert "sparse4-s3 " in text
    assert "sparse      on the CPU read as indexed8 " in text
    assert run(["inspect", str(bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["packed"] == told.packed


def test_it_is_exported_and_verified(bundle: Path) -> None:
    for options in ([], ["--standard"], ["--precision", "f16"]):
        assert run(["export", str(bundle), *options]) == 0
    for device in ("reference", "cpu", "ort-cpu"):
        report = verify_bundle(bundle, SessionOptions(device=device), values=True)
        assert report.ok, report.problems()
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    inline = {t.name for t in model.graph.initializer if t.data_location == 0 and "#" in t.name}
    assert "l0.qkv.s#dense.q" in inline
    assert not [t.name for t in model.graph.initializer if ".s.mask" in t.name]


def test_dense_forms_may_take_the_room_that_they_need(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, _ = factored()
    monkeypatch.setattr(limits, "ONNX_INLINE_BYTES", 4096)
    export(bundle)
    with Bundle.open(bundle) as opened:
        logits(open_session(opened, SessionOptions(device="ort-cpu")))
        monkeypatch.setattr(limits, "ONNX_SPARSE_BYTES", 4096)
        with pytest.raises(BundleError, match="bytes of inline data, the limit is 8192"):
            open_session(opened, SessionOptions(device="ort-cpu"))
    with pytest.raises(ConvertError, match=f"take up to {inline_bytes(graph)} bytes .* is 4096"):
        export(bundle)
