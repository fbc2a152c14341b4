"""Encodings of weights that can be emitted as ONNX, by what reads them."""

from __future__ import annotations

from ..errors import ConvertError
from ..graph import Graph
from ..kernels import onnx_tools as tools
from ..kernels.encodings import ENCODINGS
from ..session.onnx_io import Variant

_DEQUANTIZED = {"conv2d": "weight", "experts": "down", "head_linear": "weight"}  # slots by op


def check_encodings(graph: Graph, variant: Variant) -> None:
    """ConvertError for weights whose stored bytes are nothing that ONNX can read."""
    rows = {name: ENCODINGS[weight.encoding] for name, weight in graph.weights.items()}
    bad = {
        name: row.name
        for name, row in rows.items()
        if not (row.plain or row.onnx_bits or row.dense)
    }
    if bad:
        known = sorted(row.name for row in ENCODINGS.values() if row.plain or row.onnx_bits)
        name, found = next(iter(bad.items()))
        raise ConvertError(
            f"{len(bad)} weights are in encodings without ONNX emission, the first {name!r} in "
            f"{found}, expected some of {known}",
            code="onnx-weights",
            hint="convert the model with another --quant",
        )
    for name in graph.weights:
        if why := _unfit(graph, name, variant):
            raise ConvertError(
                f"weight {name!r} in {rows[name].name}: {why}",
                code="onnx-weights",
                hint="convert the model with another --quant for this weight",
            )


def _unfit(graph: Graph, name: str, variant: Variant) -> str:
    """Why the stored bytes of this weight are nothing that its nodes can read in ONNX, or ""."""
    weight = graph.weights[name]
    row = ENCODINGS[weight.encoding]
    if row.plain or not (row.zeros or row.onnx_bits == 2 or row.dense):
        return ""
    if any(node.op == "embed" and name in node.weights.values() for node in graph.nodes):
        if row.dense:
            return "an embedding in ONNX is not sparse"
        return "an embedding in ONNX has codes of 4 or 8 bits without zero points"
    values = any(name == node.weights.get(_DEQUANTIZED.get(node.op, "")) for node in graph.nodes)
    if not (variant.standard or values) or row.dense:
        return ""
    if row.onnx_bits == 2:
        return f"DequantizeLinear of opset {tools.OPSET} has no codes of 2 bits, expected 4 or 8"
    blocks = -(-weight.shape[-1] // row.group)
    if blocks * row.onnx_bits % 8:
        return (
            f"its rows have {blocks} zero points of 4 bits, expected an even number for "
            "DequantizeLinear, whose rows are not padded to a byte"
        )
    return ""
