"""What the ONNX faces of the ops write into: nodes, functions and initializers of one model.

An ONNX face is `emit(ctx, call) -> None`: it appends the nodes that compute `call.output`. Nothing
here or in a face imports `onnx` before a model is really emitted.

Two dialects: `contrib` uses com.microsoft ops (MatMulNBits, GroupQueryAttention, ...) where they
exist, for CPU, CUDA, TensorRT, OpenVINO, DirectML and WebGPU; `standard` uses ai.onnx ops only, for
QNN and CoreML. Ops that ONNX does not have become model-local functions of the domain `edgert`,
made of standard ops, so that any provider can run them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .ops import Shape
from .quant import Matrix

Signature = tuple[Sequence[str], Sequence[str]]

OPSET = 21
IR_VERSION = 10
MICROSOFT = "com.microsoft"
EDGERT = "edgert"
FLOAT, UINT8, INT32, INT64, FLOAT16, UINT4 = 1, 2, 6, 7, 10, 21
CODES = {4: UINT4, 8: UINT8}  # dtype of quantized codes by their bits


@dataclass(frozen=True)
class StoredWeight:
    """A graph weight as the faces see it: its name, logical shape and encoding."""

    name: str
    shape: tuple[int, ...]
    encoding: str


@dataclass(frozen=True)
class Call:
    """One node to emit: ONNX value names in and out, weights by slot, complete attributes.

    state: the state it owns or borrows. lender: the node whose state it borrows.
    """

    inputs: tuple[str, ...]
    output: str
    weights: Mapping[str, StoredWeight]
    attrs: Mapping[str, Any]
    shapes: tuple[Shape, ...] = ()
    state: str = ""
    lender: Call | None = None


@dataclass(frozen=True)
class Grid:
    """A value [B, C, H, W] by its ONNX name."""

    name: str
    channels: int
    height: int
    width: int


class NodeList:
    """A list of ONNX nodes in the making, with unique names for the values between them."""

    def __init__(self, prefix: str = "") -> None:
        self.nodes: list[Any] = []
        self.prefix = prefix

    def op(
        self,
        kind: str,
        inputs: Sequence[str],
        out: str | None = None,
        *,
        domain: str = "",
        **attrs: Any,
    ) -> str:
        """Append a node of one output; returns the output's name."""
        return self.ops(kind, inputs, [out], domain=domain, **attrs)[0]

    def ops(
        self,
        kind: str,
        inputs: Sequence[str],
        outs: Sequence[str | None],
        *,
        domain: str = "",
        **attrs: Any,
    ) -> list[str]:
        """Append a node; None among `outs` asks for a fresh name, "" leaves the output away."""
        from onnx import helper

        index = len(self.nodes)
        names = [
            f"{self.prefix}{kind}.{index}.{i}" if out is None else out for i, out in enumerate(outs)
        ]
        label = f"{self.prefix}{kind}.{index}"
        node = helper.make_node(kind, list(inputs), names, name=label, domain=domain, **attrs)
        self.nodes.append(node)
        return names


class Body(NodeList):
    """The nodes of a model-local function, over activations of float16 (`half`) or float32."""

    def __init__(self, *, half: bool) -> None:
        super().__init__()
        self.half = half

    def activation(self, value: str) -> str:
        """A float32 value in the activations' dtype."""
        return self.op("Cast", [value], to=FLOAT16) if self.half else value

    def const(self, value: float | list[int]) -> str:
        """A float32 scalar or an int64 vector."""
        if isinstance(value, float):
            return self.op("Constant", [], value_float=value)
        return self.op("Constant", [], value_ints=value)

    def attribute(self, name: str) -> str:
        """The function's float attribute `name` as a float32 scalar."""
        from onnx import AttributeProto

        out = self.op("Constant", [])
        reference = AttributeProto(
            name="value_float", ref_attr_name=name, type=AttributeProto.FLOAT
        )
        self.nodes[-1].attribute.append(reference)
        return out


def opsets(nodes: Sequence[Any]) -> list[Any]:
    """Opset imports of the domains that `nodes` use, the standard one always."""
    from onnx import helper

    versions = {"": OPSET, **{node.domain: 1 for node in nodes if node.domain}}
    return [helper.make_opsetid(domain, version) for domain, version in versions.items()]


@dataclass(frozen=True)
class Placed:
    """Where a stored tensor lies: ONNX dtype, dims, and bytes [offset, offset + length)."""

    dtype: int
    dims: tuple[int, ...]
    offset: int
    length: int


@dataclass
class EmitContext(NodeList):
    """One ONNX graph in the making.

    place: stored tensor name (`w`, `w.q`, `w.scales`) -> where its bytes are in `location`.
    stored: graph weight -> its value, for weights whose stored bytes no op reads. inlined: tensors
    that take the place of such a weight's, by name; their bytes stand in the model itself.
    half: float16 activations (float32 otherwise). standard: the dialect without com.microsoft.
    batch: values are [B, N, C] instead of rows [N, C], those of tokens [B, S, C] in any case.
    fused: nodes are merged, and grids stay grids between nodes that can read them. scales: by
    modulation row and table, the chunks that nothing but scales reads. grids: values that are also
    grids; rowless: those that are nothing else.
    caches: what the nodes so far have written, keys and values by state. made: what several nodes
    share, by what it depends on.
    """

    place: Callable[[str], Placed]
    location: str
    half: bool = False
    standard: bool = False
    batch: bool = False
    fused: bool = False
    scales: Mapping[tuple[str, str], frozenset[int]] = field(default_factory=dict)
    grids: dict[str, Grid] = field(default_factory=dict)
    rowless: set[str] = field(default_factory=set)
    initializers: dict[str, Any] = field(default_factory=dict)
    functions: dict[str, Any] = field(default_factory=dict)
    stored: Callable[[str], Matrix] | None = None
    inlined: dict[str, NDArray[Any]] = field(default_factory=dict)
    casts: dict[tuple[str, int], str] = field(default_factory=dict)
    caches: dict[str, tuple[str, str]] = field(default_factory=dict)
    made: dict[tuple[Any, ...], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def placed(self, stored: str) -> Placed:
        """Type and shape of a stored or inlined tensor, and where it lies."""
        if stored not in self.inlined:
            return self.place(stored)
        array = self.inlined[stored]
        return Placed(FLOAT16 if array.dtype == np.float16 else UINT8, array.shape, 0, array.nbytes)

    def keep_grid(self, name: str, grid: Grid) -> None:
        """A value is a grid, whose rows are made when they are wanted."""
        self.grids[name] = grid
        self.rowless.add(name)

    def leads(self, shape: Shape) -> bool:
        """Whether a graph value of this shape has an axis of sequences or pictures in front."""
        return self.batch or shape[0] == "T"

    @property
    def float_type(self) -> int:
        """ONNX dtype of activations."""
        return FLOAT16 if self.half else FLOAT

    def const(self, array: NDArray[Any]) -> str:
        """A small inline initializer, shared by all that ask for the same."""
        from onnx import numpy_helper

        data = np.ascontiguousarray(array)
        name = f"const.{data.dtype.name}.{'x'.join(map(str, data.shape))}.{data.tobytes().hex()}"
        if len(name) > 200:
            raise ValueError(f"inline constant of {data.nbytes} bytes, expected a small one")
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(data, name)
        return name

    def table(self, array: NDArray[Any]) -> str:
        """An inline initializer of any size, shared by all that ask for the same. For what a graph
        bounds: waves of a grid's sides, not of its cells."""
        from onnx import numpy_helper

        data = np.ascontiguousarray(array)
        digest = hashlib.sha256(data.tobytes()).hexdigest()[:32]
        name = f"table.{data.dtype.name}.{'x'.join(map(str, data.shape))}.{digest}"
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(data, name)
        return name

    def reals(self, array: NDArray[np.float32]) -> str:
        """The same in the activations' dtype."""
        return self.table(array.astype(np.float16 if self.half else np.float32))

    def ones(self, count: int) -> str:
        """A vector of ones in the activations' dtype."""
        return self.reals(np.ones(count, np.float32))

    def ints(self, *values: int) -> str:
        """An int64 vector."""
        return self.const(np.array(values, np.int64))

    def scalar(self, value: float) -> str:
        """A float scalar of the activations' dtype."""
        return self.const(np.array(value, np.float16 if self.half else np.float32))

    def tensor(
        self,
        stored: str,
        *,
        dims: tuple[int, ...] | None = None,
        dtype: int | None = None,
        role: str = "",
    ) -> str:
        """An initializer over a stored tensor's bytes, seen as `dims` of `dtype` if given.

        role: a second initializer over the same bytes, mapped apart.
        """
        from onnx import TensorProto

        placed = self.placed(stored)
        dims, dtype = dims or placed.dims, dtype or placed.dtype
        name = stored if dims == placed.dims else f"{stored}@{'x'.join(map(str, dims))}"
        name += f"#{role}" * bool(role)
        if name not in self.initializers:
            proto = TensorProto(name=name, data_type=dtype, dims=dims)
            self.initializers[name] = proto
            if stored in self.inlined:
                proto.raw_data = self.inlined[stored].tobytes()
                return name
            proto.data_location = TensorProto.EXTERNAL
            for key, value in (
                ("location", self.location),
                ("offset", placed.offset),
                ("length", placed.length),
            ):
                proto.external_data.add(key=key, value=str(value))
        return name

    def zero_points(self, n: int, blocks: int, bits: int) -> str:
        """Constant zero points 2^(bits - 1), [N, KB], of a quantized matrix; one a shape."""
        from onnx import TensorProto

        name = f"zero.int{bits}.{n}x{blocks}"
        if name not in self.initializers:
            byte = sum(1 << at + bits - 1 for at in range(0, 8, bits))
            proto = TensorProto(name=name, data_type=CODES[bits])
            proto.dims.extend((n, blocks))
            proto.raw_data = bytes([byte]) * -(-n * blocks * bits // 8)
            self.initializers[name] = proto
        return name

    def cast(self, value: str, have: int, want: int) -> str:
        """`value` as dtype `want`; casts of initializers are folded when a session is made."""
        if have == want:
            return value
        if (value, want) not in self.casts:
            self.casts[value, want] = self.op("Cast", [value], to=want)
        return self.casts[value, want]

    def floats(self, stored: str) -> str:
        """A stored float tensor in the activations' dtype."""
        return self.cast(self.tensor(stored), self.placed(stored).dtype, self.float_type)

    def call(
        self,
        name: str,
        inputs: Sequence[str],
        out: str | None,
        define: Callable[[Body], None],
        signature: Signature,
        **attrs: float,
    ) -> str:
        """Call function `edgert.<name>`, defined on first use by `define` (inputs to output `y`).

        signature: names of the function's inputs and of its float attributes.
        """
        from onnx import helper

        if name not in self.functions:
            body = Body(half=self.half)
            define(body)
            self.functions[name] = helper.make_function(
                EDGERT, name, list(signature[0]), ["y"], body.nodes,
                opsets(body.nodes), list(signature[1]),
            )  # fmt: skip
        return self.op(name, inputs, out, domain=EDGERT, **attrs)
