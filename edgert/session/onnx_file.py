"""Reading an .onnx file's facts as protobuf wire format, without `onnx`.

Only the fields that edgert's emission writes are known; any other is refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from .. import limits
from ..errors import BundleError
from ..kernels.onnx_ports import Port
from ..storage.folder import open_regular
from .protobuf import Field, WireError, fields, message, text, varints

DTYPES = {1: ("float32", 32), 2: ("uint8", 8), 6: ("int32", 32), 7: ("int64", 64),
          10: ("float16", 16), 21: ("uint4", 4)}  # fmt: skip


class Op(NamedTuple):
    """A node's facts."""

    name: str
    domain: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass
class Function:
    """A model-local function of the domain `edgert`."""

    name: str = ""
    inputs: list[str] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)


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
    ops: list[Op] = field(default_factory=list)
    functions: list[Function] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)


def read_model(path: Path, further: int = 0) -> Model:
    """Parse a file of at most `limits.ONNX_BYTES` and `further` ones; BundleError for anything
    strange in it."""
    fd = open_regular(path)
    with os.fdopen(fd, "rb") as file:
        size, limit = os.fstat(fd).st_size, limits.ONNX_BYTES + further
        if not 0 < size <= limit:
            raise refusal(path, f"{size} bytes, expected 1 to {limit}", "onnx-size")
        data = file.read(size)
    try:
        return _Reader().read(memoryview(data))
    except WireError as error:
        raise refusal(
            path, f"is not an ONNX model that edgert emits: {error}", "onnx-format"
        ) from None


def refusal(path: Path, message: str, code: str) -> BundleError:
    """The error for a file that is not what edgert emits."""
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
        found, domain = Function(), ""
        for entry in self.fields(data):
            if entry.number == 1:
                found.name = text(entry.value)
            elif entry.number == 4:
                found.inputs.append(text(entry.value))
            elif entry.number == 7:
                found.ops.append(self.node(message(entry.value)))
            elif entry.number == 10:
                domain = text(entry.value)
            elif entry.number not in (5, 6, 9):  # outputs, attributes, opset imports
                raise _unknown("a function", entry)
        if domain != "edgert" or len(found.ops) > limits.ONNX_FUNCTION_NODES:
            raise WireError(
                f"function {domain}:{found.name} of {len(found.ops)} nodes, expected the domain "
                f"edgert and up to {limits.ONNX_FUNCTION_NODES} nodes"
            )
        self.model.functions.append(found)

    def node(self, data: memoryview) -> Op:
        words = {3: "", 4: "", 7: ""}  # name, op, domain
        ends: dict[int, list[str]] = {1: [], 2: []}  # inputs, outputs
        for entry in self.fields(data):
            if entry.number in words:
                words[entry.number] = text(entry.value)
            elif entry.number in ends:
                ends[entry.number].append(text(entry.value))
            elif entry.number == 5:
                self.attribute(message(entry.value))
            else:
                raise _unknown("a node", entry)
        return Op(words[3], words[7], words[4], tuple(ends[1]), tuple(ends[2]))

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
