"""The graph: the only description of a model that the runtime knows.

A graph is a frozen list of nodes over the op catalogue (`edgert.kernels.ops`), in execution order
and single assignment, with declared weights and states. A model family is a function from a
checkpoint's config to a graph plus a map from checkpoint names to graph weights; nothing downstream
asks which family it came from.

Serialised as JSON (`<part>.graph.json`): deterministic, unknown fields refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from . import limits
from .errors import BundleError
from .kernels import encodings
from .kernels.ops import CATALOGUE, OpError, Shape

Scalar = str | int | float | bool
RANKS = 4  # axes that a weight may have


class Value(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A graph input or output: a name, a shape of ints and symbols ("T", "R"), a dtype."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str = "f32"


class Weight(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A declared weight: logical shape ([N, K] for a matrix) and how it is stored.

    encoding: a row of `edgert.kernels.encodings`, which says what tensors that takes.
    """

    shape: tuple[int, ...]
    encoding: str = encodings.EXACT


class Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One operation: values in, one value out, weights by slot, and the state it owns."""

    op: str
    inputs: tuple[str, ...]
    output: str
    weights: dict[str, str] = {}
    attrs: dict[str, Scalar] = {}
    state: str = ""


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Per-sequence memory that a node owns. kind "kv": keys and values of G heads of size D."""

    kind: str
    kv_heads: int
    head_dim: int
    window: int = 0


class Graph(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A whole model part. `context` is the longest sequence (tokens) it was made for."""

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    weights: dict[str, Weight]
    states: dict[str, State] = {}
    context: int = 0

    @property
    def vocab_size(self) -> int:
        """Width of the first output's rows."""
        return int(self.outputs[0].shape[-1])

    def shapes(self) -> dict[str, Shape]:
        """Shape of every value, by walking the nodes; raises BundleError where they do not fit."""
        return _Checker(self).run()

    def replace(self, **changes: Any) -> Graph:
        """A copy with fields exchanged."""
        return msgspec.structs.replace(self, **changes)

    def to_json(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self, order="sorted"), indent=1)

    @staticmethod
    def from_json(data: bytes, *, where: str = "graph") -> Graph:
        """Parse and check a graph; anything unknown, missing or misshapen raises BundleError."""
        if len(data) > limits.GRAPH_BYTES:
            raise BundleError(
                f"{where}: {len(data)} bytes, the limit is {limits.GRAPH_BYTES}",
                code="graph-size",
                hint="no model needs so many; get the bundle again from where it came from",
            )
        try:
            graph = msgspec.json.decode(data, type=Graph)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BundleError(
                f"{where}: not a graph that this edgert reads: {error}",
                code="graph",
                hint="convert the model again with this edgert version",
            ) from None
        if len(graph.nodes) > limits.GRAPH_NODES:
            raise BundleError(
                f"{where}: {len(graph.nodes)} nodes, the limit is {limits.GRAPH_NODES}",
                code="graph-size",
                hint="no model has so many; get the bundle again from where it came from",
            )
        graph.shapes()
        return graph


class _Checker:
    """Walks a graph once; every complaint names the node."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.values: dict[str, Shape] = {}
        self.used: set[str] = set()
        self.owned: set[str] = set()

    def fail(self, message: str) -> BundleError:
        return BundleError(
            f"graph {self.graph.name!r}: {message}",
            code="graph",
            hint="the bundle is damaged or was made by another edgert; convert the model again",
        )

    def run(self) -> dict[str, Shape]:
        for name, weight in self.graph.weights.items():
            self.weight(name, weight)
        for value in self.graph.inputs:
            self.define(value.name, tuple(value.shape))
        for index, node in enumerate(self.graph.nodes):
            try:
                self.node(node)
            except OpError as error:
                raise self.fail(f"node {index} ({node.output}): {error}") from None
        for value in self.graph.outputs:
            if self.values.get(value.name) != tuple(value.shape):
                raise self.fail(
                    f"output {value.name!r} has shape {self.values.get(value.name)}, "
                    f"declared {tuple(value.shape)}"
                )
        self.leftovers()
        return self.values

    def weight(self, name: str, weight: Weight) -> None:
        dims = weight.shape
        if not 0 < len(dims) <= RANKS or any(not 0 < n < limits.TENSOR_DIM for n in dims):
            raise self.fail(
                f"weight {name!r} has shape {dims}, expected 1 to {RANKS} positive sizes"
            )
        if fault := encodings.fault(weight.encoding, dims):
            raise self.fail(f"weight {name!r} {fault}")

    def define(self, name: str, shape: Shape) -> None:
        if name in self.values:
            raise self.fail(f"value {name!r} is defined twice")
        self.values[name] = shape

    def node(self, node: Node) -> None:
        op = CATALOGUE.get(node.op)
        if op is None:
            raise OpError(f"unknown op {node.op!r}, this edgert knows {sorted(CATALOGUE)}")
        if len(node.inputs) != len(op.inputs):
            raise OpError(f"{node.op} takes {len(op.inputs)} inputs, found {len(node.inputs)}")
        missing = [name for name in node.inputs if name not in self.values]
        if missing:
            raise OpError(f"{node.op} reads {missing}, which nothing has produced yet")
        attrs = op.check_attrs(node.attrs)
        shapes = self.weight_shapes(node)
        if op.state:
            self.state(node, attrs)
        elif node.state:
            raise OpError(f"{node.op} owns no state, found {node.state!r}")
        self.define(node.output, op.infer([self.values[n] for n in node.inputs], shapes, attrs))

    def weight_shapes(self, node: Node) -> dict[str, tuple[int, ...]]:
        op = CATALOGUE[node.op]
        slots = set(node.weights)
        required = {slot for slot, needed in op.weights.items() if needed}
        if not required <= slots <= set(op.weights):
            raise OpError(f"{node.op} has weights {sorted(slots)}, expected {dict(op.weights)}")
        shapes = {}
        for slot, name in node.weights.items():
            if name not in self.graph.weights:
                raise OpError(f"{node.op} uses undeclared weight {name!r}")
            weight = self.graph.weights[name]
            if weight.encoding != encodings.EXACT and slot not in op.matrix:
                raise OpError(
                    f"{node.op}.{slot} must be {encodings.EXACT}, {name!r} is {weight.encoding}"
                )
            shapes[slot] = weight.shape
            self.used.add(name)
        return shapes

    def state(self, node: Node, attrs: Mapping[str, Any]) -> None:
        state = self.graph.states.get(node.state)
        if state is None:
            raise OpError(f"{node.op} needs a declared state, found {node.state!r}")
        if node.state in self.owned:
            raise OpError(f"state {node.state!r} has two owners")
        expected = State("kv", attrs["kv_heads"], attrs["head_dim"], attrs["window"])
        if state != expected:
            raise OpError(f"state {node.state!r} is {state}, the node expects {expected}")
        self.owned.add(node.state)

    def leftovers(self) -> None:
        unused = sorted(set(self.graph.weights) - self.used)
        orphans = sorted(set(self.graph.states) - self.owned)
        if unused or orphans:
            raise self.fail(f"unused weights {unused}, states without a node {orphans}")
