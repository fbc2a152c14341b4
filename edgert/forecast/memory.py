"""Bytes of a process that runs a model on the CPU: what is counted from the graph, and the rest.

Counted: packed weights but a table of embeddings of which only rows are read, rotary and other
tables, keys and values of the tokens that are fed, the arena, scratch, inputs and outputs. The rest
is the interpreter, NumPy, kernels and the tokenizer: `BASE` and `TOKENIZER` were measured on x86-64
Linux over models of 24M to 1.1B parameters, a probe measures its own machine's base. The first
start of a model packs and hashes its weights, and takes more.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from ..graph import Graph
from ..kernels.kv_codes import CODED
from ..kernels.states import BlockStatsState, ConvState, KVState, LatentState, RecurrentState
from ..session.arena import place
from ..session.lowering import Lowering
from ..session.packed import in_slots, plan
from ..session.pages import FRESH_BITS, PAGE_TOKENS, page_bytes, pages_for
from .work import MAX_ROWS, lowered

BASE = 42e6  # interpreter, NumPy, kernels, tokenizers: without any model
TOKENIZER = 16.9  # bytes of memory for each byte of tokenizer.json, white space aside
FRESH = MAX_ROWS // PAGE_TOKENS + 1  # pages of float16 that a step of a prompt writes
MARGIN = 1.1  # of what is planned against what a device has


class Footprint(msgspec.Struct, frozen=True):
    """Bytes of a process by what takes them. total: all of them together."""

    weights: float
    cache: float
    arena: float
    rest: float

    @property
    def total(self) -> float:
        return self.weights + self.cache + self.arena + self.rest


def footprint(
    graph: Graph,
    *,
    tokens: int,
    threads: int = 1,
    kv_bits: int = 0,
    tokenizer: float = 0.0,
    base: float = BASE,
    head: Graph | None = None,
) -> Footprint:
    """What a graph takes with `tokens` in one sequence. tokenizer: its `tokenizer_bytes`. head: of
    a draft head, which has a session of its own, and the graph a program more that it reads."""
    program = lowered(graph, threads=threads, kv_bits=kv_bits)
    weights, arena = held_bytes(graph, program), arena_bytes(program, tokens)
    cache = cache_bytes(graph, tokens, program.kv_bits)
    if head is not None:
        own = footprint(head, tokens=tokens, threads=threads, kv_bits=kv_bits, base=0.0)
        weights, cache, arena = weights + own.weights, cache + own.cache, 2 * arena + own.arena
    return Footprint(weights, cache, arena, base + TOKENIZER * tokenizer)


def tokenizer_bytes(path: Path) -> float:
    """Bytes of a tokenizer.json without white space, which some are full of and none keeps."""
    return float(len(path.read_bytes().translate(None, b" \t\r\n")))


def held_bytes(graph: Graph, program: Lowering) -> float:
    """Bytes of a graph's weights in memory: packed matrices that a step reads, tables, vectors."""
    slots, _ = plan(graph, frozenset(program.paired))
    read = {w for n in graph.nodes if n.op != "embed" for w in n.weights.values()}
    packed = sum(slot.size for name, slot in slots.items() if name in read)
    tables = sum(4.0 * _padded(graph.weights[n].shape) for n in in_slots(graph, matrix=False))
    vectors = sum(4.0 * _padded(w.shape) for w in graph.weights.values() if len(w.shape) == 1)
    return packed + tables + vectors


def _padded(shape: tuple[int, ...]) -> int:
    *rows, width = shape
    count = 1
    for size in rows:
        count *= size
    return count * -(-width // 16) * 16


def cache_bytes(graph: Graph, tokens: int, kv_bits: int) -> float:
    """Bytes of what one sequence of `tokens` tokens remembers."""
    total, pages = 0.0, pages_for(tokens)
    for spec in graph.states.values():
        if isinstance(spec, KVState | LatentState):
            total += pages * sum(page_bytes(spec, kv_bits))
            if kv_bits in CODED and isinstance(spec, KVState):  # the pages that are not coded yet
                total += min(pages, FRESH) * sum(page_bytes(spec, FRESH_BITS))
        elif isinstance(spec, BlockStatsState):
            total += (
                pages * PAGE_TOKENS // spec.block * spec.rows * spec.kv_heads * spec.head_dim * 4
            )
        elif isinstance(spec, RecurrentState):
            total += 8.0 * spec.heads * spec.key_dim * spec.value_dim
            total += 4.0 * min(spec.tail, tokens) * spec.tail_width
        elif isinstance(spec, ConvState):
            total += 4.0 * (spec.width - 1 + spec.tail) * spec.channels
    return total


def arena_bytes(program: Lowering, tokens: int) -> float:
    """Bytes of a program's values in a step of as many rows as it takes, or of all `tokens` where
    those are fewer. Rows of logits count once: no more are asked for."""
    apart = {v.name for v in (*program.graph.inputs, *program.graph.outputs)}
    rows = min(MAX_ROWS, max(1, tokens))
    sizes = {
        name: size * (rows if program.shapes.get(name, ("T",))[0] != "R" else 1) / MAX_ROWS
        for name, size in program.sizes.items()
    }
    _, arena = place(program.steps, {k: int(v) for k, v in sizes.items()}, apart)
    outside = sum(size for name, size in sizes.items() if name in apart)
    constants = sum(array.nbytes for array in program.constants.values())
    return arena + outside + constants + program.threads * program.scratch_bytes
