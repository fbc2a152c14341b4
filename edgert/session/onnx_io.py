"""What an emitted ONNX model takes and gives, derived from its graph.

The emission driver declares these inputs and outputs, the session feeds them, and the load check
compares a file's declarations with them (a foreign or edited .onnx is refused at load). Inputs and
outputs of the graph keep their names: rows of tokens [T, C] are [B, S, C], of other symbols [N, C].
Graphs without states take and give float32 in half precision, too: one's outputs are another one's
inputs, and timesteps have more digits than float16.
What states and positions need besides is declared by the ops (`kernels/onnx_ports.py`).

Letters: B sequences, S new tokens of each, P rows of cache capacity, K = P + S.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError
from ..graph import Graph, Node
from ..kernels.attention import grown
from ..kernels.attention_onnx import rope_name
from ..kernels.onnx_ports import Dialect, Memory, NodePorts, Port, ports_of
from ..kernels.onnx_tools import Call, StoredWeight
from ..kernels.ops import CATALOGUE, Dim, Shape
from ..kernels.states import BorrowedState
from ..roles import row_input, token_input

__all__ = ["PLAIN", "Memory", "Port", "Rope", "Variant", "emitted_graph", "interface", "memories"]

_LETTERS = ("B", "S", "P", "K")
# The order in which what the session makes is declared.
_MADE = (
    "seqlens_k", "total_sequence_length", "positions", "valid", "cos", "cos_at", "mask",
    "mask_present",
)  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """How a graph was emitted.

    half: float16 activations, caches and tables. standard: ai.onnx ops only.
    rows, capacity: fixed S and P with B = 1 and R = S (0: symbolic), for providers that want
    static shapes. A fixed S means that steps are padded to it.
    embeddings: takes the rows that the graph's embed node makes instead of tokens.
    batch: of a graph without states, computes B inputs at once: every value has an axis in front,
    [N, C] is [B, N, C]. fused: norms take their modulation in (`kernels/norm.py`).
    """

    half: bool = False
    standard: bool = False
    rows: int = 0
    capacity: int = 0
    embeddings: bool = False
    batch: bool = False
    fused: bool = False

    @property
    def suffix(self) -> str:
        """File name part: `<part><suffix>.onnx`."""
        words = ["f16"] * self.half + ["std"] * self.standard
        words += [f"s{self.rows}-p{self.capacity}"] * bool(self.rows)
        words += ["emb"] * self.embeddings
        words += ["batch"] * self.batch + ["fused"] * self.fused
        return "".join(f".{word}" for word in words)

    @staticmethod
    def of_file(part: str, name: str) -> Variant | None:
        """The variant of a file name, None for files that are no .onnx of that part."""
        found = re.fullmatch(
            re.escape(part) + r"(\.f16)?(\.std)?(?:\.s(\d{1,7})-p(\d{1,7}))?(\.emb)?"
            r"(\.batch)?(\.fused)?\.onnx",
            name,
        )
        if not found:
            return None
        half, standard, rows, capacity, embeddings, batch, fused = found.groups()
        sizes = int(rows or 0), int(capacity or 0)
        return Variant(
            bool(half), bool(standard), *sizes, bool(embeddings), bool(batch), bool(fused)
        )

    @property
    def dialect(self) -> Dialect:
        """What the ops need to know."""
        return Dialect(self.half, self.standard, self.batch)

    def sizes(self) -> dict[Dim, Dim]:
        """Letters that have a fixed size, and the symbol of selected rows."""
        if not self.rows:
            return {}
        fixed: dict[Dim, Dim] = {"B": 1, "S": self.rows, "P": self.capacity, "R": self.rows}
        return {**fixed, "K": self.capacity + self.rows}

    def metadata(self) -> dict[str, str]:
        """What is written into the .onnx and compared when a session opens it."""
        values = {"half": self.half, "standard": self.standard, "rows": self.rows}
        texts = {f"edgert.{k}": str(int(v)) for k, v in values.items()}
        flags = {"embeddings": self.embeddings, "batch": self.batch, "fused": self.fused}
        texts |= {f"edgert.{name}": "1" for name, on in flags.items() if on}
        return {**texts, "edgert.capacity": str(self.capacity)}


PLAIN = Variant()  # float32, com.microsoft ops, symbolic shapes


@dataclass(frozen=True)
class Rope:
    """Rotary tables: weight names and scales, short and long ("" where there is no long one).
    axes: axis of position of each frequency, "" where all are 0. growth, length: as the op
    `attention` has them."""

    short: str
    scale: float
    long: str = ""
    long_scale: float = 1.0
    axes: str = ""
    growth: float = 0.0
    length: int = 0


def embedded(graph: Graph) -> Node | None:
    """The node that looks tokens up, None for a graph without tokens."""
    tokens = token_input(graph)
    return next((n for n in graph.nodes if n.op == "embed" and n.inputs[0] == tokens), None)


def emitted_graph(graph: Graph, variant: Variant, taps: Iterable[str] = ()) -> Graph:
    """The graph that a variant with further outputs `taps` computes.

    Raises BundleError for taps that it does not compute, and where embeddings cannot take the
    tokens' place.
    """
    whole = graph.with_outputs(taps)
    if not variant.embeddings:
        return whole
    node = embedded(graph)
    outputs = [value.name for value in whole.outputs]
    readers = [n.output for n in graph.nodes if node and node.inputs[0] in n.inputs]
    if node is None or len(readers) > 1 or node.output in outputs:
        raise BundleError(
            f"graph {graph.name!r} looks tokens up in {readers} and gives {outputs[:8]}, expected "
            "one embed node, which is no output",
            code="onnx-embeddings",
            hint="export it without --embeddings",
        )
    return whole.cut([node.output], outputs)


def calls(graph: Graph) -> list[Call]:
    """Every node as the ops' ONNX faces see it, in graph order. Raises BundleError for a node that
    reads the cache of another part."""
    shapes, owners, made = graph.shapes(), dict[str, Call](), list[Call]()
    for node in graph.nodes:
        call = Call(
            node.inputs,
            node.output,
            {slot: _stored(graph, name) for slot, name in node.weights.items()},
            CATALOGUE[node.op].check_attrs(node.attrs),
            tuple(shapes[name] for name in node.inputs),
            node.state,
        )
        state = graph.states.get(node.state)
        if isinstance(state, BorrowedState):
            if state.part:
                raise BundleError(
                    f"node {node.output!r} reads the cache of part {state.part!r}, expected one of "
                    "its own graph",
                    code="onnx-state",
                    hint="run this model with --device cpu",
                )
            call = replace(call, lender=owners[state.owner])
        elif state is not None:
            owners[node.state] = call
        made.append(call)
    return made


def _stored(graph: Graph, name: str) -> StoredWeight:
    return StoredWeight(name, graph.weights[name].shape, graph.weights[name].encoding)


def node_ports(graph: Graph, variant: Variant) -> list[NodePorts]:
    """What each node adds to the interface, in graph order."""
    pairs = zip(graph.nodes, calls(graph), strict=True)
    return [ports_of(node.op, call, variant.dialect) for node, call in pairs]


def memories(graph: Graph, variant: Variant) -> list[Memory]:
    """Buffers of every state, in graph order, sizes fixed where the variant fixes them."""
    found = [memory for ports in node_ports(graph, variant) for memory in ports.memory]
    return [replace(m, past=_fixed(m.past, variant), made=_fixed(m.made, variant)) for m in found]


def _fixed(port: Port, variant: Variant) -> Port:
    sizes = variant.sizes()
    return replace(port, shape=tuple(sizes.get(dim, dim) for dim in port.shape))


def ropes(graph: Graph) -> dict[str, Rope]:
    """Rotary tables by name."""
    found = {}
    for node in graph.nodes:
        if "inv_freq" in node.weights:
            attrs = CATALOGUE[node.op].check_attrs(node.attrs)
            found[rope_name(node.weights, attrs)] = Rope(
                node.weights["inv_freq"],
                attrs["rope_scale"],
                node.weights.get("inv_freq_long", ""),
                attrs["rope_long_scale"],
                attrs["rope_axes"],
                attrs["rope_growth"],
                attrs["rope_length"],
            )
    return found


def rope_tables(
    rope: Rope,
    weights: Mapping[str, Any],
    positions: NDArray[np.integer[Any]],
    *,
    long: bool,
    half: bool,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """cos and sin [n, R/2], scaled, in the activations' dtype, at positions [n] or, by axis,
    [3, n]."""
    name, scale = (rope.long, rope.long_scale) if long and rope.long else (rope.short, rope.scale)
    growth = {"rope_growth": rope.growth, "rope_length": rope.length}
    place = positions[0] if positions.ndim == 2 else positions
    inverse = grown(np.asarray(weights[name], np.float32), place, growth)
    turns = positions.astype(np.float32)
    turns = turns[[int(axis) for axis in rope.axes]].T if turns.ndim == 2 else turns[:, None]
    angle = turns * inverse
    kind = np.float16 if half else np.float32
    return (
        (np.cos(angle) * np.float32(scale)).astype(kind),
        (np.sin(angle) * np.float32(scale)).astype(kind),
    )


def dims(shape: Shape, variant: Variant) -> tuple[Dim, ...]:
    """A graph shape as ONNX has it: [T, ..] is [B, S, ..], and [N, ..] is [B, N, ..] in batches. A
    symbol that is one of our letters gets a mark that no symbol can have."""
    head: tuple[Dim, ...] = ("B", "S")
    if shape[0] != "T":
        head = (f"{shape[0]}'" if shape[0] in _LETTERS else shape[0],)
        head = ("B", *head) if variant.batch else head
    sizes = variant.sizes()
    return tuple(sizes.get(dim, dim) for dim in (*head, *shape[1:]))


def interface(graph: Graph, variant: Variant) -> tuple[list[Port], list[Port]]:
    """Inputs and outputs of the emitted model, in order. graph: what `emitted_graph` gives."""
    real = variant.dialect.real if graph.states else "float32"
    inputs = [
        Port(value.name, "int32" if value.dtype == "int32" else real, dims(value.shape, variant))
        for value in graph.inputs
    ]
    outputs = [Port(v.name, "float32", dims(v.shape, variant)) for v in graph.outputs]
    made = {p.name: p for ports in node_ports(graph, variant) for p in ports.inputs}
    inputs += [_fixed(port, variant) for port in sorted(made.values(), key=_rank)]
    for memory in memories(graph, variant):
        inputs.append(memory.past)
        outputs.append(memory.made)
    return inputs, outputs


def _rank(port: Port) -> tuple[int, int]:
    """Where an input that the session makes stands; tables as their nodes come, masks by window."""
    kind, _, rest = port.name.partition(".")
    kind = {"sin": "cos", "sin_at": "cos_at"}.get(kind, kind)
    place = _MADE.index(kind) if kind in _MADE else len(_MADE)
    return place, int(rest) if kind.startswith("mask") else 0


def row_symbols(graph: Graph) -> set[Dim]:
    """Symbols whose sizes a step knows: its tokens and the rows it selects."""
    rows = row_input(graph)
    return {"T"} | {value.shape[0] for value in graph.inputs if value.name == rows}
