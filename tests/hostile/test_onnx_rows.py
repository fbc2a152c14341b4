"""Rows H11 and H12 for .onnx files: each spoiled model is refused before onnxruntime sees it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgert import limits
from edgert.errors import BundleError, EdgertError
from edgert.session.onnx_check import check_model
from edgert.session.onnx_io import PLAIN, Variant
from edgert.session.ort import OrtSession
from tests.onnx_model import emit_model
from tests.session import toy
from tests.tiny import tiny_graph, tiny_weights

GRAPH = tiny_graph(layers=1)
Spoil = Callable[[onnx.ModelProto], None]
CORPUS: list[tuple[str, str, tuple[str, ...], Spoil]] = []


def spoils(code: str, *says: str) -> Callable[[Spoil], Spoil]:
    """Register a mutation, the error code it must get, and what the message must name."""

    def register(spoil: Spoil) -> Spoil:
        CORPUS.append((spoil.__name__, code, says, spoil))
        return spoil

    return register


def _external(model: onnx.ModelProto) -> TensorProto:
    return next(t for t in model.graph.initializer if t.external_data)


def _place(model: onnx.ModelProto, key: str, value: str) -> None:
    for entry in _external(model).external_data:
        if entry.key == key:
            entry.value = value


@spoils("onnx-external", "../secret.safetensors", "beside the model")
def data_outside(model: onnx.ModelProto) -> None:
    _place(model, "location", "../secret.safetensors")


@spoils("onnx-external", "/etc/passwd")
def data_absolute(model: onnx.ModelProto) -> None:
    _place(model, "location", "/etc/passwd")


@spoils("onnx-external", "tokenizer.json")
def data_in_another_file(model: onnx.ModelProto) -> None:
    _place(model, "location", "tokenizer.json")


@spoils("file-missing", "other.safetensors")
def data_missing(model: onnx.ModelProto) -> None:
    _place(model, "location", "other.safetensors")


@spoils("onnx-external", "99999999999")
def data_past_the_end(model: onnx.ModelProto) -> None:
    _place(model, "offset", "99999999999")


@spoils("onnx-external", "whole tensor")
def data_in_the_header(model: onnx.ModelProto) -> None:
    _place(model, "offset", "8")


@spoils("onnx-external", "-64")
def data_before_the_start(model: onnx.ModelProto) -> None:
    _place(model, "offset", "-64")


@spoils("onnx-external", "expected a whole tensor")
def data_with_more_keys(model: onnx.ModelProto) -> None:
    _external(model).external_data.add(key="checksum", value="0")


@spoils("onnx-external", "expected a whole tensor")
def data_of_another_shape(model: onnx.ModelProto) -> None:
    _external(model).dims[0] += 1


@spoils("onnx-op", "'RandomNormal'", "'ai.onnx'")
def op_not_emitted(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("RandomNormal", [], ["r"], name="evil", shape=[1]))


@spoils("onnx-op", "'Backdoor'", "'my.custom'")
def domain_custom(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Backdoor", [], ["r"], domain="my.custom"))


@spoils("onnx-op", "'Nowhere'", "'edgert'")
def function_undefined(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Nowhere", [], ["r"], domain="edgert"))


@spoils("onnx-format", "expected the domain edgert")
def function_of_another_domain(model: onnx.ModelProto) -> None:
    model.functions[0].domain = ""


@spoils("onnx-op", "'Again'", "'edgert'")
def function_that_calls_itself(model: onnx.ModelProto) -> None:
    _function(model, "Again", helper.make_node("Again", ["x"], ["y"], "n", domain="edgert"))


@spoils("onnx-op", "'L0'", "'edgert'")
def functions_that_double_when_inlined(model: onnx.ModelProto) -> None:
    """Thirty lines that would be a thousand million nodes."""
    _function(model, "L0", helper.make_node("Add", ["x", "x"], ["y"]))
    for level in range(1, 31):
        below = f"L{level - 1}"
        first = helper.make_node(below, ["x"], ["t"], "n", domain="edgert")
        _function(
            model, f"L{level}", first, helper.make_node(below, ["t"], ["y"], "m", domain="edgert")
        )
    model.graph.node.append(helper.make_node("L30", ["tokens"], ["r"], domain="edgert"))


@spoils("onnx-format", "65 nodes")
def function_that_is_long(model: onnx.ModelProto) -> None:
    _function(model, "Long", *[helper.make_node("Add", ["x", "x"], [f"y{i}"]) for i in range(65)])


def _function(model: onnx.ModelProto, name: str, *nodes: onnx.NodeProto) -> None:
    domains = [helper.make_opsetid("", 21), helper.make_opsetid("edgert", 1)]
    model.functions.append(helper.make_function("edgert", name, ["x"], ["y"], nodes, domains))


def _column_and_row(model: onnx.ModelProto) -> tuple[str, str]:
    """Two small constants whose product has 10^10 elements."""
    column = np.ones((100_000, 1), np.float32)
    model.graph.initializer.append(numpy_helper.from_array(column, "column"))
    model.graph.initializer.append(numpy_helper.from_array(column.T, "row"))
    return "column", "row"


@spoils("onnx-constant", "'boom'", "'Mul'")
def constants_that_grow_when_folded(model: onnx.ModelProto) -> None:
    node = helper.make_node("Mul", _column_and_row(model), ["big"], name="boom")
    model.graph.node.insert(0, node)


@spoils("onnx-constant", "'boom'", "'Concat'")
def constants_that_grow_behind_a_cast(model: onnx.ModelProto) -> None:
    column, _ = _column_and_row(model)
    model.graph.node.insert(0, helper.make_node("Cast", [column], ["half"], to=TensorProto.FLOAT16))
    node = helper.make_node("Concat", ["half"] * 1000, ["big"], name="boom", axis=0)
    model.graph.node.insert(1, node)


@spoils("onnx-constant", "'boom'", "'Mul'")
def constants_that_grow_in_a_function(model: onnx.ModelProto) -> None:
    column, row = _column_and_row(model)
    boom = helper.make_node("Mul", ["b", "c"], ["y"], name="boom")
    made = helper.make_function(
        "edgert", "Sly", ["a", "b", "c"], ["y"], [boom], [helper.make_opsetid("", 21)]
    )
    model.functions.append(made)
    call = helper.make_node("Sly", ["tokens", column, row], ["big"], domain="edgert")
    model.graph.node.append(call)


@spoils("onnx-format", "an attribute holds field 6")
def loop_with_a_body(model: onnx.ModelProto) -> None:
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("Loop", ["n"], ["r"], body=body))


@spoils("onnx-format", "an attribute holds field 5")
def constant_with_a_tensor(model: onnx.ModelProto) -> None:
    value = numpy_helper.from_array(np.zeros(1 << 20, np.float32))
    model.graph.node.append(helper.make_node("Constant", [], ["r"], value=value))


@spoils("onnx-size", "inline data")
def constant_giant(model: onnx.ModelProto) -> None:
    big = np.zeros(limits.ONNX_INLINE_BYTES + 1, np.uint8)
    model.graph.initializer.append(numpy_helper.from_array(big, "big"))


@spoils("onnx-external", "'lie'", "0 bytes")
def constant_that_claims_more(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(TensorProto(name="lie", data_type=1, dims=[1 << 20]))


@spoils("onnx-format", "of type 8")
def constant_of_strings(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(TensorProto(name="s", data_type=8, dims=[1]))


@spoils("onnx-format", "the model holds field 20")
def training_info(model: onnx.ModelProto) -> None:
    model.training_info.add()


@spoils("onnx-foreign", "edgert.graph")
def another_graph(model: onnx.ModelProto) -> None:
    next(p for p in model.metadata_props if p.key == "edgert.graph").value = "0" * 64


@spoils("onnx-foreign", "edgert.half")
def another_variant(model: onnx.ModelProto) -> None:
    next(p for p in model.metadata_props if p.key == "edgert.half").value = "1"


def _list_taps(model: onnx.ModelProto, text: str) -> None:
    model.metadata_props.add(key="edgert.taps", value=text)


@spoils("onnx-foreign", "'l0.secret'")
def taps_of_no_value(model: onnx.ModelProto) -> None:
    _list_taps(model, '["l0.secret"]')


@spoils("onnx-interface", "x1: found none")
def taps_that_are_not_given(model: onnx.ModelProto) -> None:
    _list_taps(model, '["x1"]')


@spoils("onnx-interface", "x1", "expected none")
def taps_that_are_not_listed(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("x1", 1, ["B", "S", 64]))


@spoils("onnx-foreign", "none twice")
def taps_listed_twice(model: onnx.ModelProto) -> None:
    _list_taps(model, '["x1", "x1"]')


@spoils("onnx-foreign", "none twice")
def taps_of_what_is_given_anyway(model: onnx.ModelProto) -> None:
    _list_taps(model, '["logits"]')


@spoils("onnx-foreign", "names of values")
def taps_that_are_no_names(model: onnx.ModelProto) -> None:
    _list_taps(model, "[[" * 2000)


@spoils("onnx-foreign", "edgert.taps")
def taps_written_otherwise(model: onnx.ModelProto) -> None:
    _list_taps(model, '["x1" ]')


@spoils("onnx-foreign", "edgert.embeddings")
def embeddings_by_its_word_only(model: onnx.ModelProto) -> None:
    model.metadata_props.add(key="edgert.embeddings", value="1")


def _dim(model: onnx.ModelProto, name: str, index: int) -> Any:
    port = next(p for p in model.graph.input if p.name.startswith(name))
    return port.type.tensor_type.shape.dim[index]


@spoils("onnx-interface", "past_key.kv0", "'B', 3, 'P', 16", "'B', 2, 'P', 16")
def cache_with_other_heads(model: onnx.ModelProto) -> None:
    _dim(model, "past_key", 1).dim_value = 3


@spoils("onnx-interface", "past_key.kv0", "'B', 2, 'P', 32", "'B', 2, 'P', 16")
def cache_with_another_head_size(model: onnx.ModelProto) -> None:
    _dim(model, "past_key", 3).dim_value = 32


@spoils("onnx-interface", "past_key.kv1", "expected none")
def cache_of_a_further_layer(model: onnx.ModelProto) -> None:
    extra = model.graph.input.add()
    extra.CopyFrom(next(p for p in model.graph.input if p.name == "past_key.kv0"))
    extra.name = "past_key.kv1"


@spoils("onnx-interface", "logits", "[\\'R\\', 7]")
def logits_narrower(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7


@spoils("onnx-interface", "tokens", "float32")
def tokens_that_are_floats(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return emit_model(GRAPH, tiny_weights(GRAPH), tmp_path_factory.mktemp("onnx"))


def _spoiled(good: Path, spoil: Spoil) -> Path:
    model = onnx.load(good, load_external_data=False)
    spoil(model)
    bad = good.with_name(f"{spoil.__name__}.onnx")
    bad.write_bytes(model.SerializeToString())
    return bad


def test_h11_the_good_model_passes(good: Path) -> None:
    assert check_model(good, GRAPH, PLAIN) == ()


@pytest.mark.parametrize("variant", [PLAIN, Variant(half=True), Variant(standard=True)])
def test_h11_every_emission_passes(variant: Variant, tmp_path: Path) -> None:
    for index, (graph, weights) in enumerate(
        (toy.shared(), toy.turning("00011122"), toy.function("N", "M", 33, 17))
    ):
        folder = tmp_path / str(index)
        folder.mkdir()
        taps = tuple(node.output for node in graph.nodes if node.op in ("add", "linear"))[:-1]
        given = {value.name for value in graph.outputs}
        taps = tuple(name for name in taps if name not in given)
        path = emit_model(graph, weights, folder, variant, taps)
        assert check_model(path, graph, variant) == taps
        onnx.checker.check_model(str(path), full_check=True)
    embedded = Variant(variant.half, variant.standard, embeddings=True)
    path = emit_model(GRAPH, tiny_weights(GRAPH), tmp_path, embedded, ("x1",))
    assert check_model(path, GRAPH, embedded) == ("x1",)
    with pytest.raises(BundleError):
        check_model(path, GRAPH, variant)


@pytest.mark.parametrize(("name", "code", "says", "spoil"), CORPUS, ids=[row[0] for row in CORPUS])
def test_h11_refused_before_onnxruntime(
    name: str,
    code: str,
    says: tuple[str, ...],
    spoil: Spoil,
    good: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bad = _spoiled(good, spoil)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("onnxruntime saw the file")

    monkeypatch.setattr("edgert.session.ort_model.create_session", never)
    with pytest.raises(BundleError) as caught:
        OrtSession(GRAPH, tiny_weights(GRAPH), bad)
    assert caught.value.code == code, caught.value.message
    for text in says:
        assert text.replace("\\", "") in caught.value.message
    assert caught.value.hint
    assert all(c.isprintable() for c in caught.value.message)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "onnx-size"),
        (b"not a protobuf at all", "onnx-format"),
        (b"\xff" * 64, "onnx-format"),
        (b"\x3a\xff\xff\xff\xff\x0f", "onnx-format"),
        (b"\x3a\x00\x3a\x00", "onnx-format"),
        (b"\x0b\x0c", "onnx-format"),
    ],
)
def test_h11_bytes_that_are_no_model(data: bytes, code: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(BundleError) as caught:
        check_model(path, GRAPH, PLAIN)
    assert caught.value.code == code


def test_h11_a_file_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        file.truncate(limits.ONNX_BYTES + 1)
    with pytest.raises(BundleError, match="expected 1 to") as caught:
        check_model(path, GRAPH, PLAIN)
    assert caught.value.code == "onnx-size"


@pytest.mark.parametrize(
    "data",
    [
        b"\x3a" + bytes((0x80, 0x80, 0x80, 0x08)) + b"\x12\x00" * (1 << 23),  # names of a graph
        b"\x3a\x84\x80\x80\x04\x2a\x80\x80\x80\x04" + b"\x08\x01" * (1 << 22),  # sizes
        b"\x72\x00" * (1 << 22),  # metadata
    ],
)
def test_h11_millions_of_fields_are_refused_quickly(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    start = time.monotonic()
    with pytest.raises(BundleError) as caught:
        check_model(path, GRAPH, PLAIN)
    assert caught.value.code in ("onnx-format", "onnx-foreign")
    assert time.monotonic() - start < 30


def test_h11_a_link_is_refused(good: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.symlink_to(good)
    with pytest.raises(BundleError) as caught:
        check_model(path, GRAPH, PLAIN)
    assert caught.value.code == "file-kind"


def test_h12_a_model_of_another_graph_is_refused(good: Path) -> None:
    with pytest.raises(BundleError) as caught:
        check_model(good, tiny_graph(layers=1, ff=64), PLAIN)
    assert caught.value.code == "onnx-foreign"
    with pytest.raises(BundleError):
        check_model(good, GRAPH, Variant(half=True))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_h11_flipped_bytes_never_crash_the_check(good: Path, data: st.DataObject) -> None:
    raw = bytearray(good.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    bad = good.with_name("flipped.onnx")
    bad.write_bytes(raw if data.draw(st.booleans()) else raw[:cut])
    with contextlib.suppress(EdgertError):  # anything else is a crash
        check_model(bad, GRAPH, PLAIN)
