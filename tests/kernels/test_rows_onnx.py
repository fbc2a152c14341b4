"""What the ONNX faces of pictures' ops on rows emit: ops that run where the rows are, float32 where
float16 does not do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto

from edgert.session.onnx_check import MICROSOFT_OPS, STANDARD_OPS
from edgert.session.onnx_io import Variant

from ..onnx_model import emit_model
from .test_catalogue import CASES, ROWS, Case, build

VARIANTS = {
    "plain": Variant(), "half": Variant(half=True), "standard": Variant(standard=True),
    "standard-half": Variant(half=True, standard=True),
}  # fmt: skip
OURS = [case for op in ROWS for case in CASES[op]]


def _emitted(case: Case, variant: Variant, folder: Path) -> onnx.ModelProto:
    graph, weights = build(case)
    path = emit_model(graph, weights, folder, variant)
    onnx.checker.check_model(str(path), full_check=True)
    return onnx.load(path, load_external_data=False)


def _case(op: str, label: str) -> Case:
    return next(case for case in CASES[op] if case.label == label)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=list(VARIANTS))
@pytest.mark.parametrize("case", OURS, ids=lambda case: case.name)
def test_only_listed_ops_and_none_that_computes_shapes(
    case: Case, variant: Variant, tmp_path: Path
) -> None:
    """Shapes are computed on the host, whatever the provider: no node may need one."""
    model = _emitted(case, variant, tmp_path)
    bodies = [model.graph.node, *(function.node for function in model.functions)]
    used = {(node.domain, node.op_type) for nodes in bodies for node in nodes}
    used -= {(function.domain, function.name) for function in model.functions}
    listed = {("", op) for op in STANDARD_OPS} | {("com.microsoft", op) for op in MICROSOFT_OPS}
    assert used <= listed
    assert not {"Shape", "Size", "Range", "ConstantOfShape"} & {kind for _, kind in used}
    if variant.standard:
        assert {domain for domain, _ in used} == {""}


def _inputs_of(model: onnx.ModelProto, kind: str) -> list[Any]:
    """Element types of what nodes of a kind read first."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return [types[node.input[0]] for node in inferred.node if node.op_type == kind]


@pytest.mark.parametrize("label", ["dit-s", "causal", "bias"])
def test_softmax_is_float32_in_half_precision(label: str, tmp_path: Path) -> None:
    case = _case("dot_attention", label)
    model = _emitted(case, VARIANTS["standard-half"], tmp_path)
    assert _inputs_of(model, "Softmax") == [TensorProto.FLOAT]
    fused = _emitted(case, VARIANTS["half"], tmp_path)
    assert [n.op_type for n in fused.graph.node].count("MultiHeadAttention") == 1


def test_angles_of_timesteps_are_float32_in_half_precision(tmp_path: Path) -> None:
    model = _emitted(_case("timestep", "256"), VARIANTS["half"], tmp_path)
    assert _inputs_of(model, "Cos") == _inputs_of(model, "Sin") == [TensorProto.FLOAT]


def test_a_norm_is_one_node_with_float32_statistics(tmp_path: Path) -> None:
    model = _emitted(_case("layer_norm", "plain"), VARIANTS["half"], tmp_path)
    (node,) = [n for n in model.graph.node if n.op_type == "LayerNormalization"]
    assert {a.name: a.i for a in node.attribute if a.name == "stash_type"} == {"stash_type": 1}


def test_a_relative_bias_is_made_once_for_all_layers(tmp_path: Path) -> None:
    graph, weights = build(_case("dot_attention", "bias"))
    (first,) = graph.nodes
    second = type(first)(first.op, ("y", "k", "v"), "z", first.weights, first.attrs)
    graph = graph.replace(
        nodes=(first, second), outputs=(graph.outputs[0], type(graph.outputs[0])("z", ("T", 192)))
    )
    model = onnx.load(emit_model(graph, weights, tmp_path), load_external_data=False)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("MultiHeadAttention") == 2
    assert kinds.count("Gather") == 1
