"""From timed steps to the rates of a roofline: least squares over everything that costs time.

Each timed step is one equation, step + launches + bytes / rates + operations / rates = seconds, in
the same terms as `forecast.latency` adds them up; the unknowns are the costs. Equations are divided
by their seconds, so that a microsecond step counts as much as a long one, and costs are not
negative (`forecast.nnls`). Steps of one row read weights at a rate that depends on the size of all
of them: each shape that was timed for its size has an unknown of its own; so do keys and values.
What an output costs besides its operations is one unknown for all kernels that finish outputs by
the same code. Costs that threads share are near those of one thread over the speedup: equations of
their own say so, for a few steps that were disturbed can exchange one cost for another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..devices.profile import Product, Rates
from ..errors import DeviceError
from ..forecast.latency import by_row, rows_of, run_parts, step_seconds, sum_seen
from ..forecast.nnls import nnls
from ..forecast.rates import GRIDS, kin_of
from ..forecast.shapes import Block, graph_of
from ..forecast.work import Work, lowered, weight_bytes, works
from .probe_runs import Timed

Equation = dict[str, float]
F64 = NDArray[np.float64]
SHARED = ("ops:", "outs:", "row", "look")  # costs that threads share among them
BELIEF = 1.0  # of what one thread found out, in steps like those that tell most of a cost
FASTEST = 1e-18  # seconds a byte or operation where a fit says that it costs nothing
NEAR = 1.6  # sizes closer than this factor share an unknown


class Known(NamedTuple):
    """What steps of one thread found out: their times, and what things cost."""

    steps: Sequence[Timed]
    costs: Mapping[str, float]


def fit_each(
    found: Mapping[int, Sequence[Timed]], read: Mapping[int, Sequence[tuple[float, float]]]
) -> list[Rates]:
    """Rates of each number of threads, rising. One thread, where it was timed, tells something of
    the others."""
    rates, known = [], None
    for threads in sorted(found):
        fitted, mine = fit(found[threads], read[threads], known)
        rates.append(fitted)
        known = known or (mine if threads == 1 else None)
    return rates


def fit(
    found: Sequence[Timed], read: Sequence[tuple[float, float]], known: Known | None = None
) -> tuple[Rates, Known]:
    """Rates of one number of threads. read: streaming rates by size. known: of one thread. Raises
    DeviceError where the steps do not determine them."""
    kept = [timed for timed in found if timed.run.kept]
    grid, attended = _sizes(kept), _attended(kept)
    equations = [_equation(timed, grid, attended) for timed in kept]
    names = sorted({name for equation in equations for name in equation})
    matrix = np.array([[equation.get(name, 0.0) for name in names] for equation in equations])
    seconds = np.array([timed.seconds for timed in kept])
    if len(kept) < 4 or not np.isfinite(seconds).all() or (seconds <= 0).any():
        raise DeviceError(
            f"{len(kept)} timed steps, expected some of each kind with positive times",
            code="probe-fit", hint="run the probe again on a quiet machine",
        )  # fmt: skip
    shares, wanted = matrix / seconds[:, None], np.ones(len(kept))
    if known is not None:
        more, much = _beliefs(names, shares, known, _speedup(known.steps, kept))
        shares, wanted = np.vstack([shares, more]), np.concatenate([wanted, much])
    costs = dict(zip(names, nnls(shares, wanted).tolist(), strict=True))
    return _rates(found[0].threads, costs, grid, attended, read), Known(kept, costs)


def _speedup(before: Sequence[Timed], kept: Sequence[Timed]) -> float:
    """How many times as fast steps of many rows are."""
    times = {(t.run.name, t.rows, t.depth): t.seconds for t in before if t.rows > 1}
    pairs = [(times.get((t.run.name, t.rows, t.depth), 0.0), t.seconds) for t in kept]
    return float(np.median([a / b for a, b in pairs if a] or [1.0]))


def _beliefs(names: Sequence[str], shares: F64, known: Known, speedup: float) -> tuple[F64, F64]:
    """Further equations: that shared costs are those of one thread over the speedup. Each weighs as
    much as BELIEF steps in which the cost has the largest share."""
    shared = [i for i, n in enumerate(names) if n.startswith(SHARED) and n in known.costs]
    weights = BELIEF * shares[:, shared].max(axis=0, initial=0.0)
    costs = np.array([known.costs[names[i]] for i in shared]) / speedup
    more = np.zeros((len(shared), len(names)))
    more[np.arange(len(shared)), shared] = weights
    return more, weights * costs


def _work(timed: Timed) -> list[Work]:
    return works(lowered(graph_of(timed.run.shape), threads=timed.threads))


def _kernel(timed: Timed) -> str:
    """The kernel of the run's matrices."""
    return next(work.kernel for work in _work(timed) if work.nbytes)


def _sizes(found: Sequence[Timed]) -> dict[str, list[float]]:
    """Kernel -> sizes of working sets at which its reading has an unknown, rising."""
    grid: dict[str, list[float]] = {}
    for timed in found:
        if isinstance(timed.run.shape, Block):
            continue
        sizes = grid.setdefault(_kernel(timed), [])
        size = weight_bytes(_work(timed))
        if timed.rows == 1 and size > 4e6 and all(not _near(size, s) for s in sizes):
            sizes.append(size)
    return {kernel: sorted(sizes) for kernel, sizes in grid.items() if sizes}


def _attended(found: Sequence[Timed]) -> list[float]:
    """Sizes of all that steps of one row behind some depth read, rising, at which reading keys and
    values has an unknown."""
    steps = [t for t in found if not isinstance(t.run.shape, Block) and t.rows == 1 and t.depth]
    sizes: list[float] = []
    for size in sorted(_read_bytes(_work(timed), timed) for timed in steps):
        if not sizes or not _near(size, sizes[-1]):
            sizes.append(size)
    return sizes


def _read_bytes(found: Sequence[Work], timed: Timed) -> float:
    """Weights, keys and values that a step of one row reads."""
    return weight_bytes(list(found)) + (timed.depth + 1) * sum(work.cache for work in found)


def _outs(kernel: str) -> str:
    """The unknown of an output of a kernel."""
    return f"outs:{kernel if kernel in GRIDS else kin_of(kernel)}"


def _near(a: float, b: float) -> bool:
    return max(a, b) / min(a, b) < NEAR


def _nearest(sizes: Sequence[float], size: float) -> int:
    """The index of the size nearest to one; 0 where there are none."""
    return int(np.argmin([abs(np.log(size / s)) for s in sizes])) if sizes else 0


def _equation(timed: Timed, grid: dict[str, list[float]], attended: list[float]) -> Equation:
    """What a step costs, by the names of the unknowns."""
    found = _work(timed)
    size = _read_bytes(found, timed) if timed.rows == 1 else weight_bytes(found)
    out: Equation = {"step": 1.0}

    def add(name: str, amount: float) -> None:
        out[name] = out.get(name, 0.0) + amount

    counts = {"T": timed.rows, "R": 1}
    for work in found:
        count = rows_of(work.rows, counts)
        one = count == 1
        if work.waits[0 if one else 1] or work.rows == "R":
            add("launch", 1.0)
        add("values" if one else "rows", count * work.values)
        if not one and by_row(work):
            add("row", count)
        if work.nbytes and one:
            index = _nearest(grid.get(work.kernel, []), size)
            add(f"read:{work.kernel}:{index}", work.nbytes)
        elif work.nbytes:
            add(f"ops:{work.kernel}", count * work.ops)
            add(_outs(work.kernel), count * work.outs)
        if work.against:
            add(f"ops:{work.kernel}", count * rows_of(work.against, counts) * work.look_ops)
        elif work.look_ops and one:
            add(f"cache:{_nearest(attended, size)}", (timed.depth + 1) * work.cache)
            add("look", (timed.depth + 1) * work.look_ops)
        elif work.look_ops:
            add("looks", sum_seen(count, timed.depth) * work.look_ops)
    return out


def _rates(
    threads: int, costs: dict[str, float], grid: dict[str, list[float]],
    attended: Sequence[float], read: Sequence[tuple[float, float]],
) -> Rates:  # fmt: skip
    def rate(name: str) -> float:
        return float(1 / max(costs.get(name, 0.0), FASTEST))

    products = []
    for kernel, sizes in sorted(grid.items()):
        decode = tuple((s, rate(f"read:{kernel}:{i}")) for i, s in enumerate(sizes))
        products.append(
            Product(kernel, decode, rate(f"ops:{kernel}"), costs.get(_outs(kernel), 0.0))
        )
    drawn = sorted(name.removeprefix("ops:") for name in costs if name.startswith("ops:"))
    products += [
        Product(kernel, tuple(read), rate(f"ops:{kernel}"), costs.get(_outs(kernel), 0.0))
        for kernel in drawn
        if kernel in GRIDS
    ]
    return Rates(
        threads=threads, step_s=float(max(costs["step"], 1e-9)),
        launch_s=float(max(costs["launch"], 1e-9)), row_s=float(max(costs.get("row", 0), 1e-15)),
        values_s=rate("values"), rows_s=rate("rows"), attend_bytes_s=rate("cache:0"),
        attend_row_ops_s=rate("look"), attend_ops_s=rate("looks"), read=tuple(read),
        products=tuple(products),
        attend_read=tuple((size, rate(f"cache:{i}")) for i, size in enumerate(attended)),
    )  # fmt: skip


def errors(found: Sequence[Timed], rates: Rates) -> list[float]:
    """ln(measured / predicted) of each step."""
    return [float(np.log(timed.seconds / predicted(timed, rates))) for timed in found]


def predicted(timed: Timed, rates: Rates) -> float:
    """Seconds that the rates give a step."""
    if isinstance(timed.run.shape, Block):
        return sum(run_parts(_work(timed), rates, {}).values())
    return step_seconds(_work(timed), rates, rows=timed.rows, depth=timed.depth)
