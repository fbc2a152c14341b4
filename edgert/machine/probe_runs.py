"""What a probe times: decoders of random weights, by the session that runs real models.

A run is one shape with one number of threads: steps of one row and of many, at some depths. Shapes
differ in one thing at a time (layers, encoding, size of all weights, heads, depth), so that a fit
can tell what costs what.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from ..errors import RequestError
from ..forecast.shapes import Block, Shape, graph_of
from ..graph import Graph
from ..kernels.cpu.layout import PAGE
from ..kernels.encodings import ENCODINGS, encoding_of
from ..kernels.quant import Matrix
from ..session.base import Feed
from ..session.cpu import CpuSession
from ..session.sequence import CpuState

Clock = Callable[[], float]
LAYER = Shape(1, 1024, 16, 4, 64, 2816)  # of the runs that find out about products
CODES = ("int4-g32", "int8-g32", "f16")  # encodings that are timed
# layers of about 10, 40, 90, 200 and 500 MB: the last is past the caches of servers
SIZES = {"int4-g32": (1, 6, 14, 30, 80), "int8-g32": (1, 4, 8, 18, 40), "f16": (1, 2, 4, 9, 20)}
LAYER_VALUES = 11.3e6
SURELY = 100e6  # bytes of weights that are timed however little memory is free
SHARE = 0.25  # of the free memory that weights may take, twice for a while
FEW, ROWS = 32, 256
DEPTHS = (512, 2048)  # of shapes that tell what an output costs from what its operations do
WHOLE = ((0, 0),)  # the steps of a block
BLOCKS = {
    "attention of a picture": Block(16, 384, 6, heads=6),
    "attention of a larger one": Block(32, 384, 2, heads=6),
    "norms of a picture": Block(16, 384, 12, kernel=0),
    "narrow norms": Block(16, 64, 32, kernel=0),
    "convolutions": Block(16, 64, 8),
    "narrow convolutions": Block(96, 16, 4),
    "convolutions by tiles": Block(64, 64, 3),
    "wide convolutions by tiles": Block(32, 192, 2),
}
SECOND = 6  # layers of shapes of which many rows are timed as well
LEAST, LONG = 5, 4  # steps that are timed at least; times `seconds` from which on half as many
SLOW = 1.0  # seconds of a step: kernels with longer ones get fewer rows, and each step twice


class Run(NamedTuple):
    """A shape, and the steps of it that are timed: (rows, depth), of a block all its rows. kept:
    whether the fit sees it; others tell how far off predictions are."""

    name: str
    shape: Shape | Block
    steps: tuple[tuple[int, int], ...]
    kept: bool = True


class Timed(NamedTuple):
    """One timed step."""

    run: Run
    rows: int
    depth: int
    threads: int
    seconds: float


def runs(
    encodings: tuple[str, ...] = CODES, *, quick: bool = False, free: float = 1e12
) -> list[Run]:
    """All runs of a probe, the quickest first. quick: fewer sizes, for tests. free: bytes of memory
    that are."""
    both, some = ((1, 0), (ROWS, 0)), ((1, 0), (FEW, 0), (ROWS, 0))
    found = [
        Run("small, few layers", Shape(4, 64, 4, 4, 16, 96), ((1, 0),)),
        Run("small, many layers", Shape(32, 64, 4, 4, 16, 96), some),
        Run("narrow", Shape(12, 256, 4, 4, 64, 512), some),
        Run("as wide as pictures", Shape(8, 384, 6, 6, 64, 1536), some[1:]),
    ]
    depth = 512 if quick else 3072
    found += [
        Run("all heads", Shape(6, 256, 8, 8, 64, 256), ((1, 0), (1, depth), (ROWS, depth))),
        Run("shared heads", Shape(6, 256, 8, 1, 64, 256), ((1, 0), (1, depth), (ROWS, depth))),
    ]
    for name, kv_heads in () if quick else (("all heads", 8), ("shared heads", 1)):
        shape = Shape(24, 256, 8, kv_heads, 64, 256)
        found.append(Run(f"{name}, many layers", shape, ((1, 0), (1, depth))))
    for encoding in encodings:
        for layers in _layers(encoding, free)[: 1 if quick else None]:
            shape = LAYER._replace(layers=layers, encoding=encoding, ends=encoding)
            found.append(
                Run(f"{encoding}, {layers} layers", shape, both if layers <= SECOND else both[:1])
            )
        for depth_ in () if quick else DEPTHS:
            shape = Shape(1, depth_, depth_ // 64, 4, 64, depth_, 64, encoding, encoding)
            found.append(Run(f"{encoding}, depth {depth_}", shape, both[1:]))
    found += [Run(name, shape, WHOLE) for name, shape in BLOCKS.items()]
    held = Shape(10, 576, 9, 3, 64, 1536, 16384, encodings[0], encodings[-1])
    wide = Shape(4, 1536, 12, 2, 128, 6144, 8192, encodings[0], encodings[0])
    steps = ((1, 0), (1, depth), (ROWS, 0))
    found.append(Run("held out", held, steps, kept=False))
    drawn = Run("held out, drawing", Block(32, 96, 3), WHOLE, kept=False)
    return found if quick else [*found, Run("held out, wide", wide, steps, kept=False), drawn]


def _layers(encoding: str, free: float) -> list[int]:
    """Layers of the shapes that differ in their size, as far as there is memory."""
    each, most = LAYER_VALUES * ENCODINGS[encoding].bits / 8, max(SURELY, SHARE * free)
    return [n for n in SIZES.get(encoding, SIZES[CODES[0]]) if n * each <= most]


def timed(
    run: Run, threads: int, *, seconds: float = 0.25, clock: Clock = time.perf_counter
) -> Iterator[Timed]:
    """Each step of a run on so many threads: the median of its repetitions in about `seconds`.
    Steps of many rows that would take more than SLOW have FEW. clock: `time.thread_time` tells what
    one thread takes on a machine that is busy."""
    graph = graph_of(run.shape)
    context = 4096 if graph.states else 0
    session = CpuSession(graph, random_weights(graph), threads=threads, context=context)
    try:
        if isinstance(run.shape, Block):
            yield Timed(run, 0, 0, threads, _typical(_drawing(session), seconds, clock))
            return
        state = session.new_state(4096)
        try:
            for wanted, depth in run.steps:
                _go_to(session, state, depth)
                rows = _affordable(session, state, wanted)
                step = partial(_step, session, state, rows)
                yield Timed(run, rows, depth, threads, _typical(step, seconds, clock))
        finally:
            state.close()
    finally:
        session.close()


def _affordable(session: CpuSession, state: CpuState, rows: int) -> int:
    """The rows of a step, FEW where more of them would take too long."""
    if rows <= FEW:
        return rows
    begin = time.perf_counter()
    _step(session, state, FEW)
    return rows if (time.perf_counter() - begin) * rows / FEW < SLOW else FEW


def _drawing(session: CpuSession) -> Callable[[], object]:
    """A run of a block on one array."""
    (value,) = session.graph.inputs
    rng = np.random.default_rng(0)
    arrays = {value.name: rng.standard_normal([int(n) for n in value.shape], np.float32)}
    return lambda: session.run(arrays)


def _go_to(session: CpuSession, state: CpuState, depth: int) -> None:
    """Have `depth` tokens in the state: those of one page again and again, which takes no time."""
    if state.length >= depth:
        state.rewind(depth)
        return
    state.rewind(0)
    _step(session, state, PAGE, keep=True)
    page = state.snapshot()
    count = -(-depth // PAGE)
    more = {
        part: {name: np.repeat(pool, count, axis=0) for name, pool in page[part].items()}
        for part in state.pool.parts
    }
    state.restore({**page, **more, "length": depth})


def _step(session: CpuSession, state: CpuState, rows: int, *, keep: bool = False) -> None:
    tokens = np.arange(rows, dtype=np.int32) % session.vocab_size
    session.step([Feed(state, tokens, "last")])
    if keep:
        state.commit(rows)
    else:
        state.discard()


def _typical(step: Callable[[], object], seconds: float, clock: Clock) -> float:
    """Seconds of a step that leaves nothing behind, so that each one is the same; of one that takes
    several times `seconds` few are made, of one past SLOW two, of which the quicker counts."""
    begin, start = time.perf_counter(), clock()
    step()
    first, took = clock() - start, time.perf_counter() - begin
    long = took > LONG * seconds > 0
    if took > SLOW and long:
        start = clock()
        step()
        return min(first, clock() - start)
    for _ in range(0 if long else 2):
        step()
    least = LEAST // 2 if long else LEAST
    times: list[float] = []
    collecting = gc.isenabled()
    gc.disable()
    try:
        until = time.perf_counter() + seconds
        while len(times) < least or (time.perf_counter() < until and len(times) < 400):
            start = clock()
            step()
            times.append(clock() - start)
    finally:
        if collecting:
            gc.enable()
    return float(np.median(times))


def random_weights(graph: Graph) -> dict[str, Matrix]:
    """Weights of random codes, such that activations keep their size; equal ones are one array."""
    made: dict[tuple[tuple[int, ...], str], Matrix] = {}
    rng = np.random.default_rng(0)
    out: dict[str, Matrix] = {}
    for name, weight in graph.weights.items():
        key = weight.shape, weight.encoding
        if len(weight.shape) == 1:
            half = np.arange(weight.shape[0], dtype=np.float32) / weight.shape[0]
            values = 10000.0**-half if name == "inv_freq" else np.ones(weight.shape)
            out[name] = values.astype(np.float32)
            continue
        if key not in made:
            made[key] = _random(weight.shape, weight.encoding, rng)
        out[name] = made[key]
    return out


def _random(shape: tuple[int, ...], encoding: str, rng: np.random.Generator) -> Matrix:
    row = ENCODINGS[encoding]
    if row.plain:
        values = rng.standard_normal((min(64, shape[0]), shape[1]), np.float32)
        rows = np.resize(values * np.float32(shape[1] ** -0.5), shape)
        return rows.astype(row.plain)
    spread = np.float16((2.0**row.bits) ** -1 * 3.5 * shape[1] ** -0.5)
    tensors = {}
    for tensor in row.tensors:
        dims = tensor.shape(shape)
        if tensor.key == "scales":
            tensors[tensor.key] = np.full(dims, spread, np.float16)
        else:
            tensors[tensor.key] = rng.integers(0, 256, dims, np.uint8)
    made = row.load(tensors, shape)
    if encoding_of(made).name != encoding:
        raise TypeError(f"{encoding} became {encoding_of(made).name}")
    return made


def check_encodings(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names themselves, where a probe can time all of them; RequestError otherwise."""
    known = [row.name for row in ENCODINGS.values() if row.cpu and not row.zeros]
    if odd := [name for name in names if name not in known]:
        raise RequestError(
            f"encoding {odd[0][:60]!r} cannot be probed, expected some of {known}",
            code="probe-encoding",
            hint="leave it out for int4-g32, int8-g32 and f16",
        )
    return names
