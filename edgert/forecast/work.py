"""What a step of a graph does, one `Work` an instruction of its program.

The graph is lowered as the CPU session lowers it, so fused products, shared tables and skipped
nodes are what really runs. Nothing is allocated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ..graph import Graph, Node
from ..kernels.conv_lower import CONV
from ..kernels.cpu.layout import ROWS
from ..kernels.encodings import ENCODINGS, packed_bytes
from ..kernels.experts import EXPERTS
from ..kernels.linear import LINEAR
from ..kernels.states import BorrowedState, KVState, LatentState, RecurrentState
from ..session.lowering import Lowering, Step
from ..session.pages import PAGE_TOKENS, page_bytes

MAX_ROWS = 256  # of a step, as the CPU session takes them
DOT = "dot_attention"
WINOGRAD_OPS = 16 / 4  # multiply-adds of an output and an input channel, by tiles of 2 x 2


class Work(NamedTuple):
    """One instruction.

    kernel: of a product how its weights are read (`Cpu.kernel`), of a convolution and of
    attention without a cache its name, "" for what is none. rows: the symbol of the rows that
    it works on, "T" (all), "R" (those with logits), another of the graph, or a number. waits:
    whether a step of one row, and one of many, has a barrier after it. nbytes: weights read,
    whatever the rows. ops: operations a row; outs: outputs of a product a row. values: floats
    read and written a row, outside of products. cache: bytes of keys and values for each token
    that a row looks back at. look_ops: operations for the same. window: the most tokens that it
    looks back at, 0 for all. against: the symbol of the rows that each row looks at, of
    attention without a cache. state: bytes a row of a recurrent state. launches: how many
    instructions it stands for.
    """

    kernel: str
    rows: str
    waits: tuple[bool, bool]
    nbytes: float = 0.0
    ops: float = 0.0
    outs: float = 0.0
    values: float = 0.0
    cache: float = 0.0
    look_ops: float = 0.0
    window: int = 0
    against: str = ""
    state: float = 0.0
    launches: int = 1


def lowered(graph: Graph, *, threads: int = 1, kv_bits: int = 0, rows: int = MAX_ROWS) -> Lowering:
    """The program of a graph for up to `rows` rows of every symbol, as the session makes it."""
    values = (*graph.inputs, *graph.outputs)
    symbols = {n for value in values for n in value.shape if isinstance(n, str)}
    kv_bits = kv_bits or default_kv_bits(graph)
    limits = dict.fromkeys(symbols | {"T", "R"}, rows)
    return Lowering(graph, limits=limits, threads=threads, kv_bits=kv_bits)


def default_kv_bits(graph: Graph) -> int:
    """Bits of keys and values where nobody asks: the session's rule."""
    exact = all(ENCODINGS[w.encoding].bits == 32 for w in graph.weights.values())
    return 32 if exact else 16


def works(program: Lowering) -> list[Work]:
    """What the instructions of a program do, in their order."""
    nodes = {node.output: node for node in program.graph.nodes}
    return [_work(program, step, nodes) for step in program.steps]


def _work(program: Lowering, step: Step, nodes: Mapping[str, Node]) -> Work:
    waits = (step.barrier == 1, step.barrier > 0)
    if step.operands is LINEAR:
        return _product(program, step, waits)
    if step.operands is EXPERTS:
        return _experts(program, step, waits, nodes)
    if step.operands is CONV:
        return _convolution(program, step, waits)
    if step.kernel == DOT:
        attrs = program.attrs(nodes[step.writes])
        look = 4.0 * attrs["heads"] * attrs["head_dim"]
        keys = program.rows(nodes[step.writes].inputs[1])
        return Work(DOT, step.rows, waits, look_ops=look, against=keys)
    if step.kernel.startswith("attend_"):
        return _attention(program, step, waits, nodes)
    values = sum(_floats(program, name) for name in (*step.reads, step.writes))
    return Work("", step.rows, waits, values=values, state=_state_bytes(program, step))


def _product(program: Lowering, step: Step, waits: tuple[bool, bool]) -> Work:
    name = str(step.words["weights"]).removeprefix("$")
    stored = program.graph.weights[name]
    n, k = stored.shape
    size = packed_bytes(stored.encoding, n, k, paired=name in program.paired)
    kernel = step.kernel.partition("_")[2]
    values = sum(_floats(program, value) for value in step.reads[1:])  # a residual that is added
    return Work(kernel, step.rows, waits, nbytes=size, ops=2.0 * n * k, outs=n, values=values)


def _convolution(program: Lowering, step: Step, waits: tuple[bool, bool]) -> Work:
    """With float weights: direct, or by transformed weights, which are made anew in every run."""
    groups, depth, side = (int(step.words[name]) for name in ("groups", "depth", "kernel"))
    pairs = ROWS * groups * depth
    x, *others = step.reads
    if step.kernel == "conv_winograd":
        values = sum(_floats(program, value) for value in (x, *others[:-1], step.writes))
        size, ops = 64.0 * pairs, 2 * WINOGRAD_OPS * pairs
        return Work(
            step.kernel, step.rows, waits, nbytes=size, ops=ops, outs=ROWS * groups, values=values
        )
    values = sum(_floats(program, value) for value in (*others, step.writes))
    stored = program.graph.weights[str(step.words["weights"]).removeprefix("$")]
    size = packed_bytes(stored.encoding, *stored.shape)
    ops = 2.0 * pairs * side**2
    return Work(
        step.kernel, step.rows, waits, nbytes=size, ops=ops, outs=ROWS * groups, values=values
    )


def _experts(
    program: Lowering, step: Step, waits: tuple[bool, bool], nodes: Mapping[str, Node]
) -> Work:
    """Those that one row picks; several rows pick others, so steps of many read more bytes. Heads
    with a matrix each have no picks: all are read."""
    attrs = program.attrs(nodes[step.writes.partition("#")[0]])
    share = attrs["active"] / attrs["experts"] if "active" in attrs else 1.0
    found = _product(program, step, waits)
    kernel = str(step.words["product"]).partition("_")[2]  # as of `linear_` ones
    return found._replace(
        kernel=kernel, nbytes=share * found.nbytes, ops=share * found.ops, outs=share * found.outs
    )


def _attention(
    program: Lowering, step: Step, waits: tuple[bool, bool], nodes: Mapping[str, Node]
) -> Work:
    node = nodes[step.writes]
    attrs = program.attrs(node)
    state = program.graph.states[node.state]
    if isinstance(state, BorrowedState):
        state = program.graph.states[state.owner]
    cache = 0.0
    if isinstance(state, KVState | LatentState):
        cache = sum(page_bytes(state, program.kv_bits)) / PAGE_TOKENS
    look = 2.0 * attrs["heads"] * (attrs["head_dim"] + (attrs.get("values") or attrs["head_dim"]))
    return Work(
        "", step.rows, waits, cache=cache, look_ops=look, window=int(attrs.get("window", 0))
    )


def _state_bytes(program: Lowering, step: Step) -> float:
    """Bytes that a row reads and writes of a recurrent state, by the node whose value it makes."""
    node = program.producer(step.writes)
    spec = program.graph.states.get(node.state) if node is not None and node.state else None
    if not isinstance(spec, RecurrentState):
        return 0.0
    return 8.0 * spec.heads * spec.key_dim * spec.value_dim


def _floats(program: Lowering, name: str) -> float:
    return program.strides.get(name, 0) / 4


def weight_bytes(found: list[Work]) -> float:
    """Packed weights that a step reads, bytes."""
    return sum(work.nbytes for work in found)
