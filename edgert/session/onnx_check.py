"""Looking at an .onnx file before onnxruntime does.

A bundle's .onnx is refused unless it is what edgert emits: only the ops on the emitted list, no
subgraphs, no functions that call functions, nothing that grows out of constants alone (onnxruntime
computes that at load), weights only as whole tensors of the bundle's own weights file, small inline
constants, and exactly the inputs and outputs of the bundle's graph, with the further outputs that
its metadata lists. The file is read as protobuf
wire format; a field that the emission never writes is refused too.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from .. import limits
from ..errors import BundleError
from ..graph import Graph
from ..kernels import sparse
from ..kernels.encodings import ENCODINGS
from ..storage.safetensors import TensorInfo, nbytes_of, read_header
from .onnx_file import Initializer, Model, Op, read_model, refusal
from .onnx_io import Port, Variant, emitted_graph, interface

STANDARD_OPS = frozenset(
    "Abs Add Cast Clip Concat Constant Conv Cos CumSum DequantizeLinear Div Equal Exp Floor "
    "Gather GatherND Gelu Greater GreaterOrEqual Identity InstanceNormalization "
    "LayerNormalization Less MatMul Min Mul Neg Pow ReduceMax ReduceMean ReduceSum Relu Reshape "
    "Resize Shape Sigmoid Sin Slice "
    "Softmax Softplus Split Sqrt Sub Tanh TopK Transpose Unsqueeze Where".split()
)
MICROSOFT_OPS = frozenset(
    "FusedMatMul GroupQueryAttention MatMulNBits MultiHeadAttention RotaryEmbedding "
    "SkipSimplifiedLayerNormalization".split()
)
FOLDED = frozenset(
    "Cast Constant DequantizeLinear Exp Identity Reshape Slice Softplus Transpose".split()
)
_EXTERNAL = 1
_TAPS = "edgert.taps"


def check_model(path: Path, graph: Graph, variant: Variant) -> tuple[str, ...]:
    """Raise BundleError unless `path` is an emission of `graph` as `variant`; returns the values
    that it gives besides the graph's outputs.

    Codes: onnx-size, onnx-format, onnx-op, onnx-constant, onnx-external, onnx-foreign,
    onnx-interface.
    """
    further = min(inline_bytes(graph), limits.ONNX_SPARSE_BYTES)
    model = read_model(path, further)
    _check_ops(path, model)
    _check_constants(path, model)
    _check_initializers(path, model, further)
    taps = _taps(path, graph, model.metadata)
    if model.metadata != metadata(graph, variant, taps):
        raise refusal(
            path,
            f"was emitted for {model.metadata}, expected {metadata(graph, variant, taps)}",
            "onnx-foreign",
        )
    try:
        emitted = emitted_graph(graph, variant, taps)
    except BundleError as error:
        raise refusal(path, f"cannot be of this graph: {error.message}", "onnx-foreign") from None
    for what, found, ports in zip(
        ("input", "output"), (model.inputs, model.outputs), interface(emitted, variant), strict=True
    ):
        _check_ports(path, what, found, ports)
    return taps


def inline_bytes(graph: Graph) -> int:
    """The most that dense forms of the graph's sparse weights take in a model: no ONNX op reads
    them as they are stored."""
    total = 0
    for weight in graph.weights.values():
        if ENCODINGS[weight.encoding].dense:
            forms = {sparse.onnx_form(weight.encoding, standard=plain) for plain in (False, True)}
            specs = (ENCODINGS[form].specs("", weight.shape) for form in forms)
            total += max(sum(nbytes_of(*spec) for spec in found.values()) for found in specs)
    return total


def digest(graph: Graph) -> str:
    """SHA-256 of a graph as edgert writes it."""
    return hashlib.sha256(graph.to_json()).hexdigest()


def metadata(graph: Graph, variant: Variant, taps: tuple[str, ...]) -> dict[str, str]:
    """What an emission says of itself: how it was made, of which graph, and its further outputs."""
    listed = {_TAPS: json.dumps(taps)} if taps else {}
    return {**variant.metadata(), **listed, "edgert.graph": digest(graph)}


def _taps(path: Path, graph: Graph, found: dict[str, str]) -> tuple[str, ...]:
    """The further outputs that a file lists; whether the graph computes them is checked later."""
    text = found.get(_TAPS, "[]")
    try:
        taps = json.loads(text)
    except (ValueError, RecursionError):
        taps = None
    if isinstance(taps, list) and all(isinstance(name, str) for name in taps):
        if len({*taps, *(value.name for value in graph.outputs)}) == len(taps) + len(graph.outputs):
            return tuple(taps)
    raise refusal(
        path,
        f"lists the further outputs {text[:80]!r}, expected names of values, none twice",
        "onnx-foreign",
    )


def _check_ops(path: Path, model: Model) -> None:
    """Emitted ops only; functions do not call functions, so nothing multiplies when inlined."""
    allowed = {"": STANDARD_OPS, "com.microsoft": MICROSOFT_OPS}
    names = {function.name for function in model.functions}
    for function in model.functions:
        for op in function.ops:
            _check_op(path, op, allowed)
    for op in model.ops:
        _check_op(path, op, {**allowed, "edgert": frozenset(names)})


def _check_op(path: Path, op: Op, allowed: dict[str, frozenset[str]]) -> None:
    if op.kind not in allowed.get(op.domain, ()):
        raise refusal(
            path,
            f"node {op.name[:80]!r} is {op.kind[:80]!r} of domain {op.domain[:80] or 'ai.onnx'!r}, "
            "expected one of the ops that edgert emits",
            "onnx-op",
        )


def _check_constants(path: Path, model: Model) -> None:
    """What depends on constants alone is computed at load: only ops that cannot make it grow."""
    bodies = {function.name: function for function in model.functions}
    known = {tensor.name for tensor in model.initializers}
    for op in model.ops:
        if op.domain == "edgert":
            body = bodies[op.kind]
            given = {
                inner
                for inner, outer in zip(body.inputs, op.inputs, strict=False)
                if outer in known
            }
            for inner in body.ops:
                _check_constant(path, inner, given)
        _check_constant(path, op, known)


def _check_constant(path: Path, op: Op, known: set[str]) -> None:
    """Adds the op's outputs to the known constants, if it is one."""
    if not known.issuperset(filter(None, op.inputs)):
        return
    if op.domain or op.kind not in FOLDED:
        raise refusal(
            path,
            f"node {op.name[:80]!r}, {op.kind[:80]!r}, depends on constants alone, expected only "
            f"{sorted(FOLDED)} to do so",
            "onnx-constant",
        )
    known.update(op.outputs)


def _check_initializers(path: Path, model: Model, further: int) -> None:
    """Inline ones are small, but for `further` bytes; external ones are whole tensors of one file
    beside the model."""
    tensors: dict[str, dict[tuple[int, int], TensorInfo]] = {}
    inline = 0
    for tensor in model.initializers:
        inline += tensor.inline
        if tensor.place != _EXTERNAL:
            if tensor.external or tensor.inline != tensor.nbytes:
                raise refusal(
                    path,
                    f"initializer {tensor.name[:80]!r} holds {tensor.inline} bytes, expected "
                    f"{tensor.nbytes}",
                    "onnx-external",
                )
            continue
        _check_external(path, tensor, tensors)
    if inline > (limit := limits.ONNX_INLINE_BYTES + further):
        raise refusal(path, f"{inline} bytes of inline data, the limit is {limit}", "onnx-size")


def _check_external(
    path: Path, tensor: Initializer, tensors: dict[str, dict[tuple[int, int], TensorInfo]]
) -> None:
    where = tensor.external.get("location", "")
    plain = where and os.path.basename(where) == where and "\\" not in where and where[0] != "."
    if not plain or not where.endswith(".safetensors"):
        raise refusal(
            path,
            f"initializer {tensor.name[:80]!r} lies in {where[:80]!r}, expected a .safetensors "
            "file beside the model",
            "onnx-external",
        )
    if where not in tensors:
        header = read_header(path.with_name(where))
        tensors[where] = {(info.begin, info.end - info.begin): info for info in header.values()}
    begin, length = (tensor.external.get(key, "") for key in ("offset", "length"))
    exact = begin.isdecimal() and length.isdecimal() and set(tensor.external) == {
        "location", "offset", "length",
    }  # fmt: skip
    known = exact and (int(begin), int(length)) in tensors[where]
    if not known or int(length) != tensor.nbytes or tensor.inline:
        raise refusal(
            path,
            f"initializer {tensor.name[:80]!r} is bytes {begin} to {begin} + {length} of {where}, "
            f"expected a whole tensor of that file with {tensor.nbytes} bytes",
            "onnx-external",
        )


def _check_ports(path: Path, what: str, found: list[Port], expected: list[Port]) -> None:
    if found == expected:
        return
    have, want = ({port.name: port for port in ports} for ports in (found, expected))
    differing = [name for name in want if have.get(name) != want[name]] + sorted(
        set(have) - set(want)
    )
    lines = [f"{n}: found {_show(have.get(n))}, expected {_show(want.get(n))}" for n in differing]
    raise refusal(path, f"{what}s differ: " + ("; ".join(lines[:8]) or "order"), "onnx-interface")


def _show(port: Port | None) -> str:
    return f"{port.dtype} {list(port.shape)}" if port else "none"
