"""`edgert bench`: speed, in the manner of llama-bench.

pp<P>   reading a prompt of P tokens, in one go; logits of its last token only
tg<N>   writing N tokens, one a step

Both start after `depth` tokens that are already in the state. Tokens are random; tokenizing and
sampling are not measured. Each row is repeated; a short unmeasured run comes first.

Not promised: numbers of a machine that is busy with something else. Compare medians.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import replace
from os import PathLike
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..bundle.describe import stored_bytes
from ..errors import RequestError
from ..graph import Graph
from ..kernels.cpu.layout import PAGE
from ..kernels.states import BorrowedState, KVState, LatentState, RecurrentState
from ..session.base import Feed, Session, State
from ..session.options import SessionOptions
from ..system_memory import peak_resident

Ids = NDArray[np.int32]


class Row(msgspec.Struct, frozen=True):
    """One measured test. tps: tokens per second over repetitions. p90_ms: 90th percentile of the
    milliseconds for one token (tg) or for the whole prompt (pp). read_bytes (tg only): weights and
    cache that a token must read; read_share: that, times speed, over the read bandwidth."""

    test: str
    depth: int
    threads: int
    tps_median: float
    tps_mean: float
    tps_std: float
    p90_ms: float
    read_bytes: int | None = None
    read_share: float | None = None


class Report(msgspec.Struct, frozen=True):
    """What `run` found. load_s: opening the bundle, this process's first time. peak_rss_mb: of
    this process (10^6 bytes). read_gbps: streaming-read bandwidth with the most threads asked for,
    10^9 bytes a second, or None where Numba kernels did not run on this machine's CPU."""

    schema: int
    bundle: str
    device: str
    rows: tuple[Row, ...]
    load_s: float
    peak_rss_mb: float
    read_gbps: float | None

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found


class Plan(msgspec.Struct, frozen=True):
    """What to measure: prompt and answer lengths (0 leaves a test out), depths, threads (None: the
    session's own choice), repetitions."""

    prompt: int = 512
    generate: int = 128
    depths: tuple[int, ...] = (0,)
    threads: tuple[int | None, ...] = (None,)
    repetitions: int = 5

    def checked(self, context: int) -> Plan:
        """Itself if every test fits `context` tokens; raises RequestError."""
        longest = max(self.depths) + max(self.prompt, self.generate)
        if not 1 <= longest <= context:
            raise RequestError(
                f"depth {max(self.depths)} with {max(self.prompt, self.generate)} tokens, expected "
                f"1 to {context} in all, the context of the model",
                code="context",
                hint="choose smaller -p, -n or -d",
            )
        return self


def run(
    bundle: str | PathLike[str],
    plan: Plan,
    options: SessionOptions | None = None,
    *,
    progress: Callable[[str], None] = lambda what: None,
) -> Report:
    """Measure a bundle. options: their number of threads is the plan's. progress: called with what
    comes next. Raises what loading raises."""
    from ..bundle.reader import Bundle
    from ..session import open_session

    options = options or SessionOptions()
    rows: list[Row] = []
    load_s = 0.0
    on_cpu = False
    for threads in plan.threads:
        progress("loading")
        start = time.perf_counter()
        with Bundle.open(bundle) as opened:
            session = open_session(opened, replace(options, threads=threads))
            load_s = load_s or time.perf_counter() - start
            on_cpu = session.device == "cpu"
            try:
                rows += _rows(session, plan.checked(session.context), progress)
            finally:
                session.close()
    peak = peak_resident()  # before the bandwidth test takes a large buffer
    speeds: dict[int, float] = {}
    if on_cpu:
        progress("measuring how fast this machine reads memory")
        speeds = {threads: read_bandwidth(threads) for threads in {row.threads for row in rows}}
        rows = [_with_share(row, speeds[row.threads]) for row in rows]
    fastest = max(speeds.values(), default=None)
    return Report(1, str(bundle), options.device, tuple(rows), load_s, peak / 1e6, fastest)


def _with_share(row: Row, gbps: float) -> Row:
    share = row.read_bytes * row.tps_median / (gbps * 1e9) if row.read_bytes else None
    return msgspec.structs.replace(row, read_share=share)


def _rows(session: Session, plan: Plan, progress: Callable[[str], None]) -> list[Row]:
    rows: list[Row] = []
    generator = np.random.default_rng(0)
    vocabulary, longest = session.vocab_size, max(plan.prompt, plan.generate)
    threads = int(getattr(session, "threads", 1))
    for depth in plan.depths:
        state = session.new_state(depth + longest)
        try:
            feed(session, state, random_tokens(generator, depth, vocabulary))
            read = bytes_per_token(session.graph, state)
            for test, count in (("pp", plan.prompt), ("tg", plan.generate)):
                if count:
                    progress(f"{test}{count} after {depth} tokens, {threads} threads")
                    tokens = random_tokens(generator, count, vocabulary)
                    piece = count if test == "pp" else 1
                    spent = _repeat(session, state, tokens, piece, plan.repetitions)
                    rows.append(_row(test, count, depth, threads, spent, read))
        finally:
            state.close()
    return rows


def random_tokens(generator: np.random.Generator, count: int, vocabulary: int) -> Ids:
    """int32 [count]."""
    return generator.integers(0, vocabulary, count, dtype=np.int32)


def feed(session: Session, state: State, tokens: Ids) -> None:
    """Put tokens into a state, no logits but the last row's."""
    for at in range(0, len(tokens), session.max_rows):
        piece = tokens[at : at + session.max_rows]
        last = at + len(piece) == len(tokens)
        session.step([Feed(state, piece, "last" if last else "none")])
        state.commit(len(piece))


def is_recurrent(session: Session) -> bool:
    """Whether a state of this session cannot go back to any length."""
    paged = KVState | LatentState | BorrowedState
    return any(not isinstance(spec, paged) for spec in session.graph.states.values())


def go_back(state: State, depth: int, kept: dict[str, Any] | None) -> None:
    """To `depth` tokens; by a snapshot of that length where there is one."""
    if kept is None:
        state.rewind(depth)
    else:
        state.restore(kept)


def _repeat(
    session: Session, state: State, tokens: Ids, piece: int, repetitions: int
) -> list[list[float]]:
    """Seconds of each piece of `tokens`, for each repetition, from the same depth each time."""
    depth, kept = state.length, state.snapshot() if is_recurrent(session) else None
    feed(session, state, tokens[: min(len(tokens), 4)])
    go_back(state, depth, kept)
    spent: list[list[float]] = []
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(repetitions):
            times: list[float] = []
            for at in range(0, len(tokens), piece):
                start = time.perf_counter()
                feed(session, state, tokens[at : at + piece])
                times.append(time.perf_counter() - start)
            go_back(state, depth, kept)
            spent.append(times)
    finally:
        if collecting:
            gc.enable()
    return spent


def _row(
    test: str, count: int, depth: int, threads: int, spent: list[list[float]], read: float
) -> Row:
    speeds = [count / sum(times) for times in spent]
    single = [seconds for times in spent for seconds in times]
    return Row(
        test=f"{test}{count}",
        depth=depth,
        threads=threads,
        tps_median=float(np.median(speeds)),
        tps_mean=float(np.mean(speeds)),
        tps_std=float(np.std(speeds, ddof=1)) if len(speeds) > 1 else 0.0,
        p90_ms=float(np.percentile(single, 90)) * 1e3,
        read_bytes=round(read) if test == "tg" else None,
    )


def bytes_per_token(graph: Graph, state: State) -> float:
    """Bytes that writing one token must read: every weight but the rows of the embedding table
    that it does not need, and what `state` remembers, sliding windows counted as such."""
    once = {name for node in graph.nodes if node.op != "embed" for name in node.weights.values()}
    weights = sum(stored_bytes(graph.weights[name]) for name in once)
    if not state.length or not graph.states:
        return weights
    states = graph.states.values()
    specs = [(s.kv_heads * s.head_dim, s.window) for s in states if isinstance(s, KVState)]
    specs += [(s.size, 0) for s in states if isinstance(s, LatentState)]
    whole = sum(4 * spec.heads * spec.key_dim * spec.value_dim
                for spec in graph.states.values() if isinstance(spec, RecurrentState))  # fmt: skip
    if not specs:
        return weights + whole
    pages = -(-state.length // PAGE) * PAGE
    each = (state.nbytes - whole) / pages / sum(size for size, _ in specs)
    seen = sum(size * min(state.length, window or state.length) for size, window in specs)
    return weights + whole + each * seen


def read_bandwidth(threads: int) -> float:
    """Measured streaming-read bandwidth of this machine, 10^9 bytes a second."""
    from ..kernels.bandwidth import read_gbps

    return float(read_gbps(threads))
