"""The onnxruntime session: equal to the reference for every family, and the session contract."""

from __future__ import annotations

from collections import Counter
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from edgert.kernels.quant import Matrix
from numpy.typing import NDArray
from onnx import inliner

from edgert.errors import DeviceError, RequestError
from edgert.graph import Graph
from edgert.session.base import Feed, Session
from edgert.session.feeds import lay_out
from edgert.session.onnx_check import MICROSOFT_OPS, STANDARD_OPS
from edgert.session.onnx_io import PLAIN, Variant, interface
from edgert.session.ort_feed import mask, pieces
from edgert.session.ort_state import OrtState
from edgert.session.providers import parse_device, placement
from edgert.session.reference import ReferenceSession

from ..closeness import assert_close
from ..onnx_model import emit_model, ort_session
from ..tiny import tiny_graph, tiny_weights
from .families import CONFIGS, RECURRENT, family_graph

STANDARD, HALF = Variant(standard=True), Variant(half=True)
STATIC = Variant(standard=True, rows=16, capacity=640)
VARIANTS = {"f32": PLAIN, "f16": HALF, "std": STANDARD, "f16.std": Variant(True, True)}
TOKENS = np.random.default_rng(0).integers(0, 120, 500).astype(np.int32)


def logits(session: Session, *lengths: int, expected: int = 0) -> NDArray[np.float32]:
    """All rows of the first sum(lengths) tokens, fed in pieces of those lengths."""
    state, out, start = session.new_state(expected), [], 0
    for length in lengths:
        out.append(session.step([Feed(state, TOKENS[start : start + length], "all")])[0].logits)
        state.commit(length)
        start += length
    state.close()
    return np.concatenate(out)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_equals_the_reference(name: str, tmp_path: Path) -> None:
    graph, weights = family_graph(name)
    reference = ReferenceSession(graph, weights)
    ort = ort_session(graph, weights, tmp_path)
    for lengths in ((1,), (63,), (500,), (100, 37, 1, 1, 361)):
        total = sum(lengths)
        expected = logits(reference, total, expected=total)
        got = logits(ort, *lengths, expected=total)
        assert_close(f"{name} {lengths}", expected, got, rms=1e-4)


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "phi3", "smollm3", *RECURRENT])
@pytest.mark.parametrize(("variant", "limit"), [(STANDARD, 1e-5), (STATIC, 1e-5), (HALF, 1e-2)])
def test_other_variants(name: str, variant: Variant, limit: float, tmp_path: Path) -> None:
    graph, weights = family_graph(name)
    expected = logits(ReferenceSession(graph, weights), 150, expected=150)
    session = ort_session(graph, weights, tmp_path, variant)
    got = logits(session, 100, 1, 49, expected=150)
    assert_close(f"{name} {variant.suffix}", expected, got, rms=limit)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("variant", [*VARIANTS.values(), STATIC], ids=[*VARIANTS, "static"])
def test_emission_passes_the_checker_and_shape_inference(
    name: str, variant: Variant, tmp_path: Path
) -> None:
    graph, weights = family_graph(name)
    path = emit_model(graph, weights, tmp_path, variant)
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path, load_external_data=False)
    inferred = onnx.shape_inference.infer_shapes(
        model, strict_mode=True, check_type=True, data_prop=True
    )
    known = {v.name for v in inferred.graph.value_info} | {v.name for v in inferred.graph.output}
    missing = {node.output for node in graph.nodes if node.op != "add"} - known - {"logits"}
    assert not missing, f"no shape for {missing}"
    used = {(n.domain, n.op_type) for n in _all_nodes(model)}
    listed = {("", op) for op in STANDARD_OPS} | {("com.microsoft", op) for op in MICROSOFT_OPS}
    assert used <= listed | {("edgert", f.name) for f in model.functions}
    if variant.standard:
        assert not [op for domain, op in used if domain == "com.microsoft"]
    inputs, outputs = interface(graph, variant)
    assert [i.name for i in model.graph.input] == [port.name for port in inputs]
    assert [o.name for o in model.graph.output] == [port.name for port in outputs]


def _all_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [*model.graph.node, *(node for f in model.functions for node in f.node)]


# https://onnxruntime.ai/docs/execution-providers/QNN-ExecutionProvider.html, "Supported ONNX
# operators"; Reshape is not in that table but has a builder there. Identity, constants and what is
# made of them alone vanish.
QNN_OPS = {
    "Add", "Cast", "Clip", "Concat", "Div", "Equal", "Exp", "Gather", "Gelu", "Greater",
    "LayerNormalization", "MatMul", "Min", "Mul", "Pow", "ReduceMean", "ReduceSum", "Relu",
    "Reshape", "Sigmoid", "Slice", "Softmax", "Split", "Sqrt", "Sub", "Tanh", "TopK", "Transpose",
    "Unsqueeze", "Where",
}  # fmt: skip


def _computed(model: onnx.ModelProto) -> set[tuple[str, str]]:
    """Ops of a model, without those whose inputs are all constants."""
    known, found = {tensor.name for tensor in model.graph.initializer}, set()
    for node in model.graph.node:
        if known.issuperset(filter(None, node.input)):
            known.update(node.output)
        elif node.op_type != "Identity":
            found.add((node.domain, node.op_type))
    return found


@pytest.mark.parametrize("name", [*(name for name in CONFIGS if name not in RECURRENT), "f16"])
def test_static_variant_meets_the_documented_constraints_of_qnn(name: str, tmp_path: Path) -> None:
    """Static shapes everywhere, listed ops only, rank 5 at most, no control flow. Weights are
    floats there: QNN has no DequantizeLinear by blocks."""
    graph, weights = _halves() if name == "f16" else family_graph(name)
    path = emit_model(graph, weights, tmp_path, STATIC)
    model = inliner.inline_local_functions(onnx.load(path, load_external_data=False))
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    assert _computed(model) <= {("", op) for op in QNN_OPS}
    values = [*model.graph.value_info, *model.graph.input, *model.graph.output]
    shapes = {v.name: v.type.tensor_type.shape.dim for v in values}
    outputs = {out for node in model.graph.node for out in node.output}
    assert outputs <= set(shapes), f"shapes unknown: {sorted(outputs - set(shapes))[:5]}"
    for value, dims in shapes.items():
        assert all(dim.HasField("dim_value") and dim.dim_value > 0 for dim in dims), value
        assert len(dims) <= 5, value


def _halves() -> tuple[Graph, dict[str, Matrix]]:
    graph = tiny_graph(quant="f16", context=640)
    return graph, tiny_weights(graph)


@pytest.mark.skipif(find_spec("onnxruntime_qnn") is None, reason="needs onnxruntime-qnn")
@pytest.mark.parametrize("quant", ["f32", "f16"])
def test_qnn_on_its_simulator(quant: str, tmp_path: Path) -> None:
    """The package brings a simulator of the NPU for desktops: every node runs there, in float16."""
    path = import_module("onnxruntime_qnn").get_qnn_htp_path()
    chip = "htp_arch=73,soc_model=57,enable_htp_fp16_precision=1,vtcm_mb=8"  # Snapdragon 8 Gen 3
    provider = parse_device(f"qnn:backend_path={path},{chip}").provider
    graph = tiny_graph(quant=quant, context=64)
    weights, variant = tiny_weights(graph), Variant(standard=True, rows=8, capacity=32)
    session = ort_session(graph, weights, tmp_path, variant, provider=provider)
    assert {place.provider for place in placement(session.model.runtime)} == {provider.name}
    expected = logits(ReferenceSession(graph, weights), 20)
    assert_close(quant, expected, logits(session, 13, 1, 6), rms=1e-2)


@pytest.mark.parametrize("quant", ["int4", "int8", "mixed", "f16"])
def test_quantized_models_equal_the_reference(quant: str, tmp_path: Path) -> None:
    """The same formula: MatMulNBits at accuracy level 4 quantizes activations as we do. A value
    on the edge between two codes may fall to either side, hence not 1e-5."""
    graph = tiny_graph(quant=quant, context=640)
    weights = tiny_weights(graph)
    expected = logits(ReferenceSession(graph, weights), 200)
    got = logits(ort_session(graph, weights, tmp_path), 150, 1, 49)
    assert_close(quant, expected, got, rms=1e-2)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    graph = tiny_graph(quant="f32", context=640, window=30)
    weights = tiny_weights(graph)
    return ort_session(graph, weights, tmp_path_factory.mktemp("ort"))


def test_rows_asked_for(session: Session) -> None:
    states = [session.new_state() for _ in range(3)]
    kinds = ("all", "none", "last")
    found = session.step([Feed(s, TOKENS[:9], k) for s, k in zip(states, kinds, strict=True)])
    got = [part.logits for part in found]
    assert [len(part) for part in got] == [9, 0, 1]
    assert_close("last row", got[0][-1:], got[2], rms=1e-6)


def test_two_sequences_in_a_step_equal_each_alone(session: Session) -> None:
    a, b = session.new_state(), session.new_state()
    first = [r.logits for r in session.step([Feed(a, TOKENS[:20]), Feed(b, TOKENS[40:47])])]
    a.commit(20)
    b.commit(7)
    found = session.step([Feed(a, TOKENS[20:21]), Feed(b, TOKENS[47:52], "all")])
    second = [result.logits for result in found]
    for tokens, rows in (
        (TOKENS[:21], (first[0], second[0])),
        (TOKENS[40:52], (first[1], second[1])),
    ):
        alone = session.step([Feed(session.new_state(), tokens, "all")])[0].logits
        picked = np.concatenate(
            [alone[: len(tokens)][[len(tokens) - len(rows[1]) - 1]], alone[-len(rows[1]) :]]
        )
        assert_close("alone", picked, np.concatenate(rows), rms=1e-5)


def test_commit_forgets_what_was_not_kept(session: Session) -> None:
    straight = logits(session, 30)
    state = session.new_state()
    session.step([Feed(state, TOKENS[:20])])
    state.commit(20)
    session.step([Feed(state, TOKENS[300:310])])
    state.discard()
    assert_close("after discard", straight[20:], _rest(session, state), rms=1e-5)


def _rest(session: Session, state: Any) -> NDArray[np.float32]:
    return session.step([Feed(state, TOKENS[20:30], "all")])[0].logits


def test_rewind_and_snapshot(session: Session) -> None:
    straight = logits(session, 30)
    state = session.new_state()
    session.step([Feed(state, TOKENS[:25])])
    state.commit(25)
    assert state.rewind(20) == 20
    kept = state.snapshot()
    assert_close("after rewind", straight[20:], _rest(session, state), rms=1e-5)
    other = session.new_state()
    other.restore(kept)
    assert other.length == 20
    assert_close("restored", straight[20:], _rest(session, other), rms=1e-5)
    kept["kv"]["kv0"] = tuple(part[:, :1] for part in kept["kv"]["kv0"])
    with pytest.raises(RequestError, match="belongs to another model"):
        other.restore(kept)


def test_buffers_grow_and_stay_poison_free(session: Session) -> None:
    """Whatever lies in the cache past the committed rows, NaN included, has no effect."""
    state = session.new_state()
    assert isinstance(state, OrtState)
    for buffer in state.buffers.values():
        buffer.numpy().fill(np.nan)
    small, out = state.capacity, []
    for start, stop in ((0, 200), (200, 201), (201, 500)):
        out.append(session.step([Feed(state, TOKENS[start:stop], "all")])[0].logits)
        state.commit(stop - start)
    assert state.capacity > small
    assert state.nbytes == 2 * 2 * state.capacity * 2 * 16 * 4  # k, v; layers; P; G; D; bytes
    assert_close("poisoned", logits(session, 500), np.concatenate(out), rms=1e-5)


def test_a_step_with_the_whole_buffer_as_total(session: Session) -> None:
    """What a captured CUDA graph replays: total_sequence_length stays the capacity."""
    straight = logits(session, 30)
    state = session.new_state()
    session.step([Feed(state, TOKENS[:20])])
    state.commit(20)
    session.step([Feed(state, TOKENS[20:21])])
    state.commit(1)
    assert isinstance(state, OrtState)
    state.bindings[1, 1].graph_id = 1
    for index in range(21, 30):
        got = session.step([Feed(state, TOKENS[index : index + 1])])[0].logits
        state.commit(1)
        assert_close(f"row {index}", straight[index : index + 1], got, rms=1e-5)


def test_captured_steps_serve_later_states(tmp_path: Path) -> None:
    """onnxruntime never frees a captured graph: a closed state's buffers go to the next one."""
    graph = tiny_graph(quant="f32", context=640)
    session = ort_session(graph, tiny_weights(graph), tmp_path)
    straight = logits(session, 20, 1, 1, 300, 1)
    session.model.captures = True  # this provider captures nothing; the bookkeeping is the same
    for _ in range(3):
        assert_close("again", straight, logits(session, 20, 1, 1, 300, 1), rms=1e-5)
    assert session.model.capture_id() == 3, "one capture for 256 rows, one for 512"
    small, other = session.new_state(), session.new_state(300)
    assert [small.capacity, other.capacity] == [256, 512]
    assert session.new_state(600).capacity == 640
    held = small.buffers
    small.close()
    assert session.new_state().buffers is held
    with pytest.raises(RequestError, match="the state is closed"):
        session.step([Feed(small, TOKENS[:2])])
    session.close()
    other.close()
    assert session.model.buffer_pool.take(512, long_rope=False) is None


def test_misuse_is_refused(session: Session, tmp_path: Path) -> None:
    state = session.new_state()
    with pytest.raises(RequestError, match="expected 1 to"):
        session.step([Feed(state, np.zeros(513, np.int32))])
    with pytest.raises(RequestError, match="token ids"):
        session.step([Feed(state, np.array([260], np.int32))])
    graph = tiny_graph(quant="f32", context=64)
    other = ort_session(graph, tiny_weights(graph), tmp_path)
    with pytest.raises(RequestError, match="another session"):
        other.step([Feed(state, TOKENS[:2])])
    other.close()
    other.close()
    with pytest.raises(RequestError, match="closed"):
        other.step([Feed(state, TOKENS[:2])])


def test_static_variant_refuses_more_than_its_capacity(tmp_path: Path) -> None:
    graph = tiny_graph(quant="f32", context=640)
    variant = Variant(standard=True, rows=8, capacity=32)
    session = ort_session(graph, tiny_weights(graph), tmp_path, variant)
    assert session.context == 32
    expected = logits(ReferenceSession(graph, tiny_weights(graph)), 32)
    assert_close("full", expected, logits(session, 29, 3), rms=1e-5)
    with pytest.raises(RequestError, match="context"):
        logits(session, 33)


def test_a_failing_run_is_a_device_error(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider that fails at its first run: an error, no second try on another provider."""

    class Broken:
        def __getattr__(self, name: str) -> Any:
            if name == "run_with_iobinding":
                raise RuntimeError("CUDA failure 999")
            return getattr(real, name)

    model = session.model  # type: ignore[attr-defined]
    real = model.runtime
    monkeypatch.setattr(model, "runtime", Broken())
    with pytest.raises(DeviceError, match="CUDA failure 999") as caught:
        session.step([Feed(session.new_state(), TOKENS[:3])])
    assert caught.value.code == "device-run"


@pytest.mark.parametrize("window", [0, 1, 5])
def test_mask(session: Session, window: int) -> None:
    state = session.new_state()
    state.length = 7
    (piece,) = pieces(lay_out([Feed(state, TOKENS[:3])]), 7, 0)
    seen = mask(piece, 10, window, "float32", present=False)[0, 0] == 0
    present = mask(piece, 12, window, "float32", present=True)[0, 0] == 0
    for row, position in enumerate(range(7, 10)):
        where = [*range(10), 7, 8, 9]
        valid = [j < 7 for j in range(10)] + [True] * 3
        expected = [
            ok and j <= position and (not window or j > position - window)
            for j, ok in zip(where, valid, strict=True)
        ]
        assert seen[row].tolist() == expected
        known = [j <= position and (not window or j > position - window) for j in range(12)]
        assert present[row].tolist() == known


def test_mask_of_a_tree_in_padded_pieces(session: Session) -> None:
    """Rows see their ancestors in earlier pieces and in their own."""
    state = session.new_state()
    state.length = 2
    parents = np.array([-1, 0, 0, 2, 1], np.int32)
    first, second = pieces(lay_out([Feed(state, TOKENS[:5], parents=parents)]), 2, 3)
    seen = mask(first, 8, 0, "float32", present=False)[0, 0] == 0
    assert [np.flatnonzero(row).tolist() for row in seen] == [
        [0, 1, 8], [0, 1, 8, 9], [0, 1, 8, 10],
    ]  # fmt: skip
    seen = mask(second, 8, 0, "float32", present=False)[0, 0] == 0
    assert [np.flatnonzero(row).tolist() for row in seen[:2]] == [[0, 1, 2, 4, 8], [0, 1, 2, 3, 9]]
    near = mask(second, 8, 2, "float32", present=False)[0, 0] == 0
    assert [np.flatnonzero(row).tolist() for row in near[:2]] == [[4, 8], [3, 9]]


def test_a_tree_in_fixed_shapes(tmp_path: Path) -> None:
    graph = tiny_graph(quant="f32", context=640, window=5)
    weights = tiny_weights(graph)
    parents = np.array([-1, 0, 1, 0, 3, -1, 5, 2, 7, 4, 4], np.int32)
    found = []
    fixed = ort_session(graph, weights, tmp_path, Variant(standard=True, rows=4, capacity=64))
    for one in (ReferenceSession(graph, weights), fixed):
        state = one.new_state()
        one.step([Feed(state, TOKENS[:9])])
        state.commit(9)
        tree = one.step([Feed(state, TOKENS[20:31], "all", parents=parents)])[0].logits
        state.commit([0, 1, 2, 7])
        found.append(np.r_[tree, one.step([Feed(state, TOKENS[40:46], "all")])[0].logits])
    assert_close("fixed", *found, rms=1e-5)


def test_fork_and_growth_keep_what_is_committed(session: Session) -> None:
    straight = logits(session, 300)
    state = session.new_state()
    session.step([Feed(state, TOKENS[:20])])
    state.commit(20)
    twin = state.fork()
    assert twin.length == 20
    for other in (state, twin):
        got = session.step([Feed(other, TOKENS[20:300], "all")])[0].logits
        assert_close("fork", straight[20:], got, rms=1e-5)
    state.close()
    with pytest.raises(RequestError, match="the state is closed"):
        state.fork()


def test_few_nodes_a_layer(tmp_path: Path) -> None:
    """Launches are what decoding costs on a GPU: 8 nodes a Llama layer, of which the gate is 3."""
    graph = tiny_graph(quant="int4", layers=6)
    model = onnx.load(
        emit_model(graph, tiny_weights(graph), tmp_path, HALF), load_external_data=False
    )
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds["MatMulNBits"] == 6 * 4 + 1
    assert kinds["GroupQueryAttention"] == 6
    assert kinds["SkipSimplifiedLayerNormalization"] == 6 * 2 - 1
    assert kinds["Glu_silu"] == 6
    # casts of norm weights are folded when a session is made
    assert sum(n for kind, n in kinds.items() if kind != "Cast") <= 6 * 8 + 12
