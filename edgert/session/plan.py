"""How much memory the keys and values of a session may take: the size of its page pool."""

from __future__ import annotations

from typing import NamedTuple

from .. import system_memory
from ..errors import DeviceError
from ..graph import Graph
from ..kernels.kv_codes import CODED
from ..kernels.states import BlockStatsState, KVState, LatentState
from ..notices import notice
from .pages import FRESH_BITS, PAGE_TOKENS, page_bytes, pages_for

TOKENS = 1 << 16  # of all sequences together, unless that is fewer than 4 or more than 32 contexts
FRESH = 8  # pages of float16 that a prompt's step and a few sequences have beside coded ones
SHARE = 0.5  # of the memory that is free when the session opens


class Plan(NamedTuple):
    """Pages of the pool, the context that fits, and how many full contexts that is at least."""

    pages: int
    context: int
    sequences: int


def plan_pages(graph: Graph, bits: int, context: int, kv_memory: int | None) -> Plan:
    """The pool for sequences of up to `context` tokens.

    bits: of the cache, as `pages.page_bytes` has them. kv_memory: bytes that the pool may take;
    None means half of what is free. A context that does not fit is shortened, with a notice. Raises
    DeviceError where not even one page fits.
    """
    size = bytes_per_page(graph, bits)
    if size == 0:
        return Plan(4 * pages_for(context), context, 4)
    wanted = min(32, max(4, TOKENS // context)) * pages_for(context)
    budget = int(SHARE * system_memory.free()) if kv_memory is None else kv_memory
    fresh = bytes_per_page(graph, FRESH_BITS) if bits in CODED else 0
    affordable = (budget - min(FRESH * fresh, budget // 2)) // size
    if affordable < 1:
        raise DeviceError(
            f"{budget} bytes for keys and values, a page of {PAGE_TOKENS} tokens takes {size}",
            code="kv-memory",
            hint="give more with kv_memory (--kv-memory), or load with kv_bits 8 or 4",
        )
    fits = min(context, affordable * PAGE_TOKENS)
    if fits < context:
        notice(
            f"a context of {context} tokens needs {size * pages_for(context) / 1e6:.1f} MB of keys "
            f"and values, {budget / 1e6:.1f} MB may be used: the context is {fits} tokens "
            "(--kv-memory gives more, --kv-bits 8 takes half)"
        )
    if kv_memory is not None:
        wanted = affordable
    pages = min(wanted, affordable)
    return Plan(pages, fits, max(1, pages // pages_for(fits)))


def bytes_per_page(graph: Graph, bits: int) -> int:
    """Bytes of one page in every state of the graph."""
    total = 0
    for spec in graph.states.values():
        if isinstance(spec, KVState | LatentState):
            total += sum(page_bytes(spec, bits))
        elif isinstance(spec, BlockStatsState):
            total += PAGE_TOKENS // spec.block * spec.rows * spec.kv_heads * spec.head_dim * 4
    return total
