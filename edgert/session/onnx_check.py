"""Looking at an .onnx file before onnxruntime does.

A bundle's .onnx is refused unless it is what edgert emits: only the ops on the emitted list, no
subgraphs, weights only as whole tensors of the bundle's own weights file, small inline constants,
and exactly the inputs and outputs of the bundle's graph. The file is read as protobuf wire format;
a field that the emission never writes is refused too.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .. import limits
from ..errors import BundleError
from ..files import open_regular
from ..graph import Graph
from ..tensorfile import TensorInfo, read_header
from .onnx_io import Port, Variant, interface
from .protobuf import Field, WireError, fields, message, text, varints

STANDARD_OPS = frozenset(
    "Add Cast Concat Constant DequantizeLinear Div Floor Gather Gelu Identity MatMul Mul "
    "Pow ReduceMean Reshape Sigmoid Slice Softmax Split Sqrt Sub Tanh Transpose Unsqueeze".split()
)
MICROSOFT_OPS = frozenset(
    "FusedMatMul GroupQueryAttention MatMulNBits RotaryEmbedding "
    "SkipSimplifiedLayerNormalization".split()
)
DTYPES = {1: ("float32", 32), 2: ("uint8", 8), 6: ("int32", 32), 7: ("int64", 64),
          10: ("float16", 16), 21: ("uint4", 4)}  # fmt: skip
_EXTERNAL = 1


@dataclass
class Initializer:
    """A TensorProto's facts. location "" means that its bytes are inline."""

    name: str = ""
    dtype: int = 0
    dims: tuple[int, ...] = ()
    inline: int = 0
    external: dict[str, str] = field(default_factory=dict)
    place: int = 0

    @property
    def nbytes(self) -> int:
        bits = DTYPES[self.dtype][1]
        for dim in self.dims:
            bits *= dim
        return -(-bits // 8)


@dataclass
class Model:
    """What was found in a file."""

    inputs: list[Port] = field(default_factory=list)
    outputs: list[Port] = field(default_factory=list)
    initializers: list[Initializer] = field(default_factory=list)
    ops: list[tuple[str, str, str]] = field(default_factory=list)  # node name, domain, op
    functions: list[str] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)


def check_model(path: Path, graph: Graph, variant: Variant) -> None:
    """Raise BundleError unless `path` is an emission of `graph` as `variant`.

    Codes: onnx-size, onnx-format, onnx-op, onnx-external, onnx-foreign, onnx-interface.
    """
    model = read_model(path)
    _check_ops(path, model)
    _check_initializers(path, model)
    expected = {**variant.metadata(), "edgert.graph": hashlib.sha256(graph.to_json()).hexdigest()}
    if model.metadata != expected:
        raise _fail(path, f"was emitted for {model.metadata}, expected {expected}", "onnx-foreign")
    for what, found, ports in zip(
        ("input", "output"), (model.inputs, model.outputs), interface(graph, variant), strict=True
    ):
        _check_ports(path, what, found, ports)


def read_model(path: Path) -> Model:
    """Parse a file of at most `limits.ONNX_BYTES`; BundleError for anything strange in it."""
    fd = open_regular(path)
    with os.fdopen(fd, "rb") as file:
        size = os.fstat(fd).st_size
        if not 0 < size <= limits.ONNX_BYTES:
            raise _fail(path, f"{size} bytes, expected 1 to {limits.ONNX_BYTES}", "onnx-size")
        data = file.read(size)
    try:
        return _Reader().read(memoryview(data))
    except WireError as error:
        raise _fail(
            path, f"is not an ONNX model that edgert emits: {error}", "onnx-format"
        ) from None


def _fail(path: Path, message: str, code: str) -> BundleError:
    return BundleError(
        f"{path}: {message}",
        code=code,
        hint="emit it again with `edgert export BUNDLE`",
        path=path,
    )


def _unknown(kind: str, entry: Field) -> WireError:
    return WireError(f"{kind} holds field {entry.number}, which edgert never writes")


class _Reader:
    """Reads a ModelProto into a Model, at most `limits.ONNX_FIELDS` fields of it."""

    def __init__(self) -> None:
        self.model = Model()
        self.left = limits.ONNX_FIELDS

    def fields(self, data: memoryview) -> Iterator[Field]:
        for entry in fields(data):
            self.left -= 1
            if self.left < 0:
                raise WireError(f"more than {limits.ONNX_FIELDS} fields")
            yield entry

    def read(self, data: memoryview) -> Model:
        model = self.model
        graphs = 0
        for entry in self.fields(data):
            if entry.number == 7:
                graphs += 1
                self.graph(message(entry.value))
            elif entry.number == 14:
                key, value = self.pair(message(entry.value))
                model.metadata[key] = value
            elif entry.number == 25:
                self.function(message(entry.value))
            elif entry.number not in (1, 2, 3, 8):  # versions, producer, opset imports
                raise _unknown("the model", entry)
        if graphs != 1:
            raise WireError(f"{graphs} graphs, expected one")
        return model

    def graph(self, data: memoryview) -> None:
        model = self.model
        for entry in self.fields(data):
            if entry.number == 1:
                model.ops.append(self.node(message(entry.value)))
            elif entry.number == 5:
                model.initializers.append(self.tensor(message(entry.value)))
            elif entry.number == 11:
                model.inputs.append(self.port(message(entry.value)))
            elif entry.number == 12:
                model.outputs.append(self.port(message(entry.value)))
            elif entry.number == 13:
                self.port(message(entry.value))
            elif entry.number != 2:
                raise _unknown("the graph", entry)
            if max(len(model.ops), len(model.initializers)) > limits.ONNX_NODES:
                raise WireError(f"more than {limits.ONNX_NODES} nodes or initializers")

    def function(self, data: memoryview) -> None:
        model = self.model
        name = domain = ""
        for entry in self.fields(data):
            if entry.number == 1:
                name = text(entry.value)
            elif entry.number == 7:
                model.ops.append(self.node(message(entry.value)))
            elif entry.number == 10:
                domain = text(entry.value)
            elif entry.number not in (4, 5, 6, 9):  # inputs, outputs, attributes, opset imports
                raise _unknown("a function", entry)
        if domain != "edgert":
            raise WireError(f"function {domain}:{name}, expected the domain edgert")
        model.functions.append(name)

    def node(self, data: memoryview) -> tuple[str, str, str]:
        name = kind = domain = ""
        for entry in self.fields(data):
            if entry.number == 3:
                name = text(entry.value)
            elif entry.number == 4:
                kind = text(entry.value)
            elif entry.number == 5:
                self.attribute(message(entry.value))
            elif entry.number == 7:
                domain = text(entry.value)
            elif entry.number not in (1, 2):
                raise _unknown("a node", entry)
        return name, domain, kind

    def attribute(self, data: memoryview) -> None:
        for entry in self.fields(data):
            # name, float, int, string, floats, ints, type, reference; no tensors, graphs or types
            if entry.number not in (1, 2, 3, 4, 7, 8, 20, 21):
                raise _unknown("an attribute", entry)

    def pair(self, data: memoryview) -> tuple[str, str]:
        found = {entry.number: text(entry.value) for entry in self.fields(data)}
        if not set(found) <= {1, 2}:
            raise WireError(f"a pair has fields {sorted(found)}, expected 1 and 2")
        return found.get(1, ""), found.get(2, "")

    def tensor(self, data: memoryview) -> Initializer:
        tensor = Initializer()
        for entry in self.fields(data):
            if entry.number == 1:
                tensor.dims += tuple(varints(entry.value, limit=limits.TENSOR_RANK))
                if len(tensor.dims) > limits.TENSOR_RANK:
                    raise WireError(f"an initializer has more than {limits.TENSOR_RANK} sizes")
            elif entry.number == 2:
                tensor.dtype = varints(entry.value)[0]
            elif entry.number == 8:
                tensor.name = text(entry.value)
            elif entry.number == 9:
                tensor.inline = len(message(entry.value))
            elif entry.number == 13:
                key, value = self.pair(message(entry.value))
                tensor.external[key] = value
            elif entry.number == 14:
                tensor.place = varints(entry.value)[0]
            else:
                raise _unknown("an initializer", entry)
        if tensor.dtype not in DTYPES or any(not 0 <= n < limits.TENSOR_DIM for n in tensor.dims):
            raise WireError(
                f"initializer {tensor.name[:80]!r} of type {tensor.dtype} and shape {tensor.dims}, "
                f"expected one of types {sorted(DTYPES)} and sizes below {limits.TENSOR_DIM}"
            )
        return tensor

    def port(self, data: memoryview) -> Port:
        """ValueInfoProto: name, and the dtype and shape of its tensor type."""
        name, dtype = "", ""
        dims: list[int | str] = []
        for entry in self.fields(data):
            if entry.number == 1:
                name = text(entry.value)
            elif entry.number == 2:
                dtype, dims = self.tensor_type(message(entry.value))
            else:
                raise _unknown("an input or output", entry)
        return Port(name, dtype, tuple(dims))

    def tensor_type(self, data: memoryview) -> tuple[str, list[int | str]]:
        dtype = 0
        dims: list[int | str] = []
        for kind in self.fields(data):
            if kind.number != 1:
                raise _unknown("a type", kind)
            for entry in self.fields(message(kind.value)):
                if entry.number == 1:
                    dtype = varints(entry.value)[0]
                elif entry.number == 2:
                    dims = [
                        self.dim(message(dim.value)) for dim in self.fields(message(entry.value))
                    ]
                else:
                    raise _unknown("a tensor type", entry)
        return DTYPES[dtype][0] if dtype in DTYPES else f"type {dtype}", dims

    def dim(self, data: memoryview) -> int | str:
        for entry in self.fields(data):
            if entry.number == 1:
                return varints(entry.value)[0]
            if entry.number == 2:
                return text(entry.value)
        return "?"


def _check_ops(path: Path, model: Model) -> None:
    allowed = {"": STANDARD_OPS, "com.microsoft": MICROSOFT_OPS, "edgert": set(model.functions)}
    for name, domain, kind in model.ops:
        if kind not in allowed.get(domain, ()):
            raise _fail(
                path,
                f"node {name[:80]!r} is {kind[:80]!r} of domain {domain[:80] or 'ai.onnx'!r}, "
                "expected one of the ops that edgert emits",
                "onnx-op",
            )


def _check_initializers(path: Path, model: Model) -> None:
    """Inline ones are small; external ones are whole tensors of one file beside the model."""
    tensors: dict[str, dict[tuple[int, int], TensorInfo]] = {}
    inline = 0
    for tensor in model.initializers:
        inline += tensor.inline
        if tensor.place != _EXTERNAL:
            if tensor.external or tensor.inline != tensor.nbytes:
                raise _fail(
                    path,
                    f"initializer {tensor.name[:80]!r} holds {tensor.inline} bytes, expected "
                    f"{tensor.nbytes}",
                    "onnx-external",
                )
            continue
        _check_external(path, tensor, tensors)
    if inline > limits.ONNX_INLINE_BYTES:
        raise _fail(
            path, f"{inline} bytes of inline data, the limit is {limits.ONNX_INLINE_BYTES}",
            "onnx-size",
        )  # fmt: skip


def _check_external(
    path: Path, tensor: Initializer, tensors: dict[str, dict[tuple[int, int], TensorInfo]]
) -> None:
    where = tensor.external.get("location", "")
    plain = where and os.path.basename(where) == where and "\\" not in where and where[0] != "."
    if not plain or not where.endswith(".safetensors"):
        raise _fail(
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
        raise _fail(
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
    raise _fail(path, f"{what}s differ: " + ("; ".join(lines[:8]) or "order"), "onnx-interface")


def _show(port: Port | None) -> str:
    return f"{port.dtype} {list(port.shape)}" if port else "none"
