"""What a graph and a weights file must agree on before anything runs.

Kernels index by token ids, row numbers and declared sizes without checking them, so everything
they rely on is checked here, at load.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

from numpy.typing import NDArray

from .. import limits
from ..errors import BundleError
from ..graph import Graph, Value, Weight
from ..kernels.ops import GROUP
from ..kernels.quant import Matrix, Quantized, blocks_of
from ..storage.safetensors import DTYPES, TensorFile
from .manifest import TextSpec

_AGAIN = "the bundle is damaged or was made by another edgert; convert the model again"
_PLAIN = {"f32": "F32", "f16": "F16"}
_CODE_BYTES = {"int8-g32": GROUP, "int4-g32": GROUP // 2}


def check_text_graph(graph: Graph, text: TextSpec, *, where: str) -> None:
    """The interface of a text part: tokens and rows in, logits of the manifest's width out."""
    width = text.vocab_size
    inputs = (Value("tokens", ("T",), "int32"), Value("rows", ("R",), "int32"))
    _same(where, "inputs", graph.inputs, inputs)
    _same(where, "outputs", graph.outputs, (Value("logits", ("R", width), "f32"),))
    if not 0 < graph.context <= limits.CONTEXT_TOKENS:
        _fail(where, f"context of {graph.context} tokens, expected 1 to {limits.CONTEXT_TOKENS}")
    shapes = graph.shapes()
    for node in graph.nodes:
        label = f"node {node.output!r} ({node.op})"
        if node.op == "embed":
            _same(where, f"{label} input", node.inputs, ("tokens",))
            rows = graph.weights[node.weights["weight"]].shape[0]
            if rows < width:
                _fail(where, f"{label} has {rows} rows, expected {width}, as many as logits")
        elif node.op == "select":
            _same(where, f"{label} row numbers", node.inputs[1], "rows")
            _same(where, f"{label} rows of", shapes[node.inputs[0]][0], "T")
        elif node.op == "attention":
            _same(where, f"{label} rows of", shapes[node.inputs[0]][0], "T")
        elif set(node.inputs) & {"tokens", "rows"}:
            _fail(where, f"{label} computes with {node.inputs}, expected float values")


def _same(where: str, what: str, found: Any, expected: Any) -> None:
    if found != expected:
        _fail(where, f"{what} {_show(found)}, expected {_show(expected)}")


def _show(value: Any) -> str:
    if isinstance(value, tuple) and value and isinstance(value[0], Value):
        return ", ".join(f"{v.name}: {v.dtype} {list(v.shape)}" for v in value)
    return str(value)[:200]


def _fail(where: str, message: str, code: str = "graph-interface") -> NoReturn:
    raise BundleError(f"{where}: {message}", code=code, hint=_AGAIN)


def tensors_of(name: str, weight: Weight) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The tensors {name: (dtype, shape)} that store a declared weight."""
    if weight.encoding in _PLAIN:
        return {name: (_PLAIN[weight.encoding], weight.shape)}
    n, k = weight.shape
    blocks = blocks_of(k)
    return {
        f"{name}.q": ("U8", (n, blocks, _CODE_BYTES[weight.encoding])),
        f"{name}.scales": ("F16", (n, blocks)),
    }


def check_weights(graphs: Iterable[Graph], file: TensorFile) -> None:
    """The file holds exactly what the graphs that use it declare, aligned, in type and shape."""
    where = str(file.path)
    expected: set[str] = set()
    for graph in graphs:
        for name, weight in graph.weights.items():
            tensors = tensors_of(name, weight)
            expected |= set(tensors)
            if all(tensor in file for tensor in tensors):
                _check_weight(where, name, weight, file)
    missing, extra = sorted(expected - set(file)), sorted(set(file) - expected)
    if missing or extra:
        _fail(
            where,
            f"found {len(file)} tensors, expected {len(expected)}: missing {_few(missing)}, "
            f"unexpected {_few(extra)}",
            "weights-names",
        )


def _few(names: list[str]) -> str:
    return str(names[:8])[:-1] + (f", … {len(names) - 8} more]" if len(names) > 8 else "]")


def _check_weight(where: str, name: str, weight: Weight, file: TensorFile) -> None:
    tensors = tensors_of(name, weight)
    found = {tensor: file.info(tensor) for tensor in tensors}
    if any((info.dtype, info.shape) != tensors[t] for t, info in found.items()):
        have = ", ".join(f"{t} {info.dtype} {list(info.shape)}" for t, info in found.items())
        want = ", ".join(f"{t} {dtype} {list(shape)}" for t, (dtype, shape) in tensors.items())
        _fail(
            where,
            f"weight {name!r} {list(weight.shape)} in {weight.encoding}: found {have}, "
            f"expected {want}",
            "weights-shape",
        )
    for tensor, info in found.items():
        size = DTYPES[info.dtype].itemsize
        if info.begin % size:
            _fail(
                where,
                f"tensor {tensor!r} begins at byte {info.begin}, expected a multiple of {size}",
                "weights-alignment",
            )


def load_weights(graph: Graph, file: TensorFile) -> dict[str, Matrix | NDArray[Any]]:
    """Graph-weight name -> view of the mapped file (ndarray or Quantized), after check_weights."""
    out: dict[str, Matrix | NDArray[Any]] = {}
    for name, weight in graph.weights.items():
        if weight.encoding in _PLAIN:
            out[name] = file[name]
        else:
            shape = (weight.shape[0], weight.shape[1])
            out[name] = Quantized(file[f"{name}.q"], file[f"{name}.scales"], shape)
    return out
