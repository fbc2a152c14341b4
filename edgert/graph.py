"""The graph: the only description of a model that the runtime knows.

A graph is a frozen list of nodes over the op catalogue (`edgert.kernels.ops`), in execution order
and single assignment, with declared inputs, outputs, weights and states. A model family is a
function from a checkpoint's config to a graph plus a map from checkpoint names to graph weights;
nothing downstream asks which family it came from.

Values are rows: [T, C]. The first dimension of an input is a symbol, whose size is known when the
graph runs, or a number. "T" is the tokens of a step; nodes with a state have T rows.

Serialised as JSON (`<part>.graph.json`): deterministic, unknown fields refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from . import limits
from .errors import BundleError
from .kernels import encodings, states
from .kernels.ops import CATALOGUE, OpError, Shape
from .kernels.states import BorrowedState, KVState, StateSpec
from .storage.typed import Reader

Scalar = str | int | float | bool
DTYPES = ("f32", "int32")
RANKS = 4  # axes that a weight may have
RESERVED = frozenset("#@$")  # sessions name their own memory with these


class Value(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A graph input or output: a name, a shape of ints and symbols ("T", "R"), a dtype: f32 or
    int32 (inputs only)."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str = "f32"


class Weight(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A declared weight: logical shape ([N, K] for a matrix) and how it is stored.

    encoding: a row of `kernels/encodings.py`: f32, f16, int8-g32, int4-g32 and others, which also
    says which tensors store it.
    """

    shape: tuple[int, ...]
    encoding: str = "f32"


class Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One operation: values in, one value out, weights by slot, and the state it owns or
    borrows."""

    op: str
    inputs: tuple[str, ...]
    output: str
    weights: dict[str, str] = {}
    attrs: dict[str, Scalar] = {}
    state: str = ""


class Graph(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A whole model part. `context` is the longest sequence (tokens) it was made for, 0 where no
    node remembers anything."""

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    weights: dict[str, Weight]
    states: dict[str, StateSpec] = {}
    context: int = 0

    def shapes(self) -> dict[str, Shape]:
        """Shape of every value, by walking the nodes; raises BundleError where they do not fit."""
        return _Checker(self).run()

    def replace(self, **changes: Any) -> Graph:
        """A copy with fields exchanged."""
        return msgspec.structs.replace(self, **changes)

    def with_outputs(self, names: Iterable[str]) -> Graph:
        """A copy that gives the values `names` (any node's output) besides its own outputs."""
        given = {value.name for value in self.outputs}
        wanted = [name for name in dict.fromkeys(names) if name not in given]
        made = {node.output for node in self.nodes}
        if unknown := sorted(set(wanted) - made):
            raise BundleError(
                f"graph {self.name!r} computes no {unknown}, expected names of its values",
                code="graph-value",
                hint="the graph file names them; rows behind layer N are layers.N.add2.y",
            )
        shapes = self.shapes()
        return self.replace(outputs=self.outputs + tuple(Value(n, shapes[n]) for n in wanted))

    def cut(self, inputs: Iterable[str], outputs: Iterable[str], *, name: str = "") -> Graph:
        """The sub-graph that computes the values `outputs` from the values `inputs`.

        inputs, outputs: graph inputs or values of nodes. Graph inputs that the kept nodes read
        besides are kept as inputs. Weights and states come along with their nodes, so that cuts at
        one value compose to the whole. Raises BundleError where an output is not among the values
        or a kept node borrows a state whose owner is cut off.
        """
        return _cut(self, list(inputs), list(outputs), name or self.name)

    def index_bounds(self) -> dict[str, set[int | str]]:
        """int32 inputs -> what their values must stay below: rows of the tables they index, and
        symbols of the rows they select."""
        bounds: dict[str, set[int | str]] = {v.name: set() for v in self.inputs if v.dtype != "f32"}
        shapes: dict[str, Shape] = {}  # asked for in every run, so they are looked at if they must
        for node in self.nodes if bounds else ():
            for slot, value in zip(CATALOGUE[node.op].inputs, node.inputs, strict=True):
                if slot in CATALOGUE[node.op].integer:
                    table = node.weights.get("weight")
                    shapes = shapes if table or shapes else self.shapes()
                    rows = self.weights[table].shape[0] if table else shapes[node.inputs[0]][0]
                    bounds[value].add(rows)
        return bounds

    def reach(self) -> int:
        """How many positions its nodes know, 0 where any will do."""
        found = []
        for node in self.nodes:
            if (of := CATALOGUE[node.op].reach) is not None:
                shapes = {slot: self.weights[name].shape for slot, name in node.weights.items()}
                found.append(of(shapes, CATALOGUE[node.op].check_attrs(node.attrs)))
        return min(found, default=0)

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
            graph = _READER.decode(data)
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
        if not graph.outputs:
            raise BundleError(
                f"{where}: a graph without outputs, expected one or more",
                code="graph",
                hint="the bundle is damaged or was made by another edgert; convert the model again",
            )
        return graph


_READER = Reader(Graph)


def _cut(graph: Graph, inputs: list[str], outputs: list[str], name: str) -> Graph:
    shapes = graph.shapes()
    declared = {value.name: value for value in graph.inputs}
    if unknown := sorted(set(inputs + outputs) - set(shapes)):
        raise BundleError(
            f"graph {graph.name!r} has no values {unknown}, expected names of its inputs and nodes",
            code="graph-value",
        )
    needed, kept = set(outputs), list[Node]()
    for node in reversed(graph.nodes):
        if node.output in needed and node.output not in inputs:
            kept.append(node)
            needed.update(node.inputs)
    kept.reverse()
    made = {node.output for node in kept}
    reads = {value for node in kept for value in node.inputs} | set(outputs)
    entries = [*inputs, *(n for n in declared if n in reads and n not in inputs)]
    held = {node.state for node in kept if node.state}
    borrowed = [spec for n in held if isinstance(spec := graph.states[n], BorrowedState)]
    if lost := sorted({s.owner for s in borrowed if not s.part} - held):
        raise BundleError(
            f"graph {graph.name!r}: the cut borrows states {lost} whose owners it leaves out",
            code="graph-cut",
            hint="cut so that the nodes that write these states are kept",
        )
    used = {weight for node in kept for weight in node.weights.values()}
    return Graph(
        name,
        tuple(declared.get(n, Value(n, shapes[n])) for n in entries if n not in made),
        tuple(Value(n, shapes[n]) for n in outputs),
        tuple(kept),
        {n: w for n, w in graph.weights.items() if n in used},
        {n: s for n, s in graph.states.items() if n in held},
        graph.context if held else 0,
    )


class _Checker:
    """Walks a graph once; every complaint names the node."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.values: dict[str, Shape] = {}
        self.integers: set[str] = set()
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
        for name, state in self.graph.states.items():
            self.spec(name, state)
        for value in self.graph.inputs:
            self.input(value)
        for index, node in enumerate(self.graph.nodes):
            try:
                self.node(node)
            except OpError as error:
                raise self.fail(f"node {index} ({node.output}): {error}") from None
        self.outputs()
        self.leftovers()
        return self.values

    def input(self, value: Value) -> None:
        dims = value.shape
        if value.dtype not in DTYPES:
            raise self.fail(
                f"input {value.name!r} has dtype {value.dtype!r}, expected one of {DTYPES}"
            )
        rows = bool(dims) and (isinstance(dims[0], int) or dims[0].isidentifier())
        sizes = all(isinstance(n, int) for n in dims[1:])
        whole = rows and sizes and all(0 < n < limits.TENSOR_DIM for n in dims if type(n) is int)
        if not whole or len(dims) != (1 if value.dtype == "int32" else 2):
            raise self.fail(
                f"input {value.name!r} has shape {dims}, expected rows [N] of int32 or [N, width] "
                "of f32, N a symbol or a number"
            )
        self.define(value.name, tuple(dims))
        if value.dtype == "int32":
            self.integers.add(value.name)

    def outputs(self) -> None:
        if len({value.name for value in self.graph.outputs}) != len(self.graph.outputs):
            raise self.fail("an output is declared twice")
        for value in self.graph.outputs:
            if self.values.get(value.name) != tuple(value.shape):
                raise self.fail(
                    f"output {value.name!r} has shape {self.values.get(value.name)}, "
                    f"declared {tuple(value.shape)}"
                )
            if value.dtype != "f32" or value.name in self.integers:
                found = "int32" if value.name in self.integers else value.dtype
                raise self.fail(f"output {value.name!r} is {found}, expected f32")

    def spec(self, name: str, state: StateSpec) -> None:
        wrong = states.faults(state) if name else ["a name is empty"]
        if isinstance(state, BorrowedState) and not state.part:
            owner = self.graph.states.get(state.owner)
            if not isinstance(owner, KVState):
                wrong.append(f"owner {state.owner!r} is no kv state of this graph")
        if wrong:
            raise self.fail(f"state {name!r}: {'; '.join(wrong)}")

    def weight(self, name: str, weight: Weight) -> None:
        dims = weight.shape
        if not name:
            raise self.fail("a weight has an empty name")
        if not 0 < len(dims) <= RANKS or any(not 0 < n < limits.TENSOR_DIM for n in dims):
            raise self.fail(
                f"weight {name!r} has shape {dims}, expected 1 to {RANKS} positive sizes"
            )
        if fault := encodings.fault(weight.encoding, dims):
            raise self.fail(f"weight {name!r} {fault}")

    def define(self, name: str, shape: Shape) -> None:
        if name in self.values:
            raise self.fail(f"value {name!r} is defined twice")
        if not name or set(name) & RESERVED:
            raise self.fail(f"value {name!r} is empty or holds one of {sorted(RESERVED)}")
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
        for slot, name in zip(op.inputs, node.inputs, strict=True):
            if (name in self.integers) != (slot in op.integer):
                kind = "an int32 input" if slot in op.integer else "float rows"
                raise OpError(f"{node.op}.{slot} is {name!r}, expected {kind}")
        if op.state_of is not None:
            self.state(node, op.state_of(attrs), borrows=op.borrows)
        elif node.state:
            raise OpError(f"{node.op} has no state, found {node.state!r}")
        made = op.infer([self.values[n] for n in node.inputs], shapes, attrs)
        if op.reach is not None and op.reach(shapes, attrs) < self.graph.context:
            raise OpError(
                f"{node.op} knows {op.reach(shapes, attrs)} positions, expected as many as the "
                f"context of {self.graph.context} tokens has"
            )
        if any(isinstance(n, int) and not 0 < n < limits.TENSOR_DIM for n in made):
            raise OpError(
                f"{node.op} makes rows of shape {made}, expected sizes of 1 to {limits.TENSOR_DIM}"
            )
        self.define(node.output, made)

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
            if weight.encoding != "f32" and slot not in op.matrix:
                raise OpError(f"{node.op}.{slot} must be f32, {name!r} is {weight.encoding}")
            shapes[slot] = weight.shape
            self.used.add(name)
        return shapes

    def state(self, node: Node, expected: StateSpec, *, borrows: bool) -> None:
        state = self.graph.states.get(node.state)
        if state is None:
            raise OpError(f"{node.op} needs a declared state, found {node.state!r}")
        if borrows:
            self.borrowed(node, state, expected)
            return
        if node.state in self.owned:
            raise OpError(f"state {node.state!r} has two owners")
        if state != expected:
            raise OpError(f"state {node.state!r} is {state}, the node expects {expected}")
        self.owned.add(node.state)

    def borrowed(self, node: Node, state: StateSpec, expected: StateSpec) -> None:
        """A reader's owner must have written before, in heads of the same number and size."""
        if not isinstance(state, BorrowedState):
            raise OpError(f"{node.op} borrows, but state {node.state!r} is {state}")
        self.owned.add(node.state)
        if state.part:
            return
        owner = self.graph.states[state.owner]
        if state.owner not in self.owned:
            raise OpError(f"state {node.state!r} is read before {state.owner!r} is written")
        found, wanted = (
            (s.kv_heads, s.head_dim) if isinstance(s, KVState) else s for s in (owner, expected)
        )
        if found != wanted:
            raise OpError(
                f"state {node.state!r} reads {state.owner!r} of heads {found}, the node expects "
                f"{wanted}"
            )

    def leftovers(self) -> None:
        unused = sorted(set(self.graph.weights) - self.used)
        orphans = sorted(set(self.graph.states) - self.owned)
        if unused or orphans:
            raise self.fail(f"unused weights {unused}, states without a node {orphans}")
