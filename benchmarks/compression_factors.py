"""Factorisations of whole models, for `benchmarks.compression`: SVD, SVD-LLM, CoSpaDi and COMPOT.

Every projection is factored on its own, as the papers do, unless a recipe says `shared`: then
q, k and v have one dictionary, and gate and up another. Ratios are of fp16 bits of the block
matrices, mask bits counted. Factors are rounded to what is stored. Their product is judged in
int8-g32, at a third of the time of float32: what that adds is the loss of the row `rtn int8-g32`,
and activations are rounded to 8 bits as in the quantized rows. `exact` judges it in float32.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from edgert.converters.compress import baselines
from edgert.converters.compress.allocate import allocate, spectrum
from edgert.converters.compress.baselines import cospadi, svd_llm, truncated_svd
from edgert.converters.compress.budget import Dims, choose, storage_bits
from edgert.converters.compress.compot import Options, compot
from edgert.converters.compress.factors import gauge, quantize_factors
from edgert.converters.compress.result import Factors, from_whitened
from edgert.converters.compress.whiten import Gram, Whitening, whiten
from edgert.converters.quantize.rtn import round_to_nearest
from edgert.kernels.encodings import dequantize, quantize
from edgert.kernels.quant import F32, Matrix
from numpy.typing import NDArray

from benchmarks.compression_model import Model, stored_bits
from benchmarks.compression_quantizers import ENDS, Cost, Outcome, by_gptq, grid_of, measured

try:
    from benchmarks.compression_pursuit import pursuit
except ImportError:  # no Numba, or one that does not know this NumPy
    pursuit = baselines.pursuit

F64 = NDArray[np.float64]
LOW_RANK = ("svd", "svd-llm")
BASES = (*LOW_RANK, "cospadi", "compot")
Job = tuple["Plan", F64, Whitening, Dims, float]  # of `factor`
VALUE_GROUP = 64  # atoms whose values share a scale in a stored code


@dataclass(frozen=True)
class Plan:
    """What is factored, and how: a recipe without what happens to its factors after that."""

    base: str
    ratio: float
    allocated: bool = False
    shared: bool = False
    iterations: int = 20

    @property
    def name(self) -> str:
        words = [self.base + (f"-{self.iterations}" if self.base not in LOW_RANK else "")]
        words += ["shared"] * self.shared + ["allocated"] * self.allocated
        return f"{' '.join(words)} {self.ratio:g}"


@dataclass(frozen=True)
class Recipe:
    """A plan, and its factors with a least-squares dictionary or not, in fp16 or in `a` and
    `values` bits (0: fp16)."""

    plan: Plan
    refit: bool = False
    a: int = 0
    values: int = 0

    @property
    def name(self) -> str:
        low = f" a{self.a}s{self.values}" if self.a else ""
        return f"{self.plan.name}{' refit' if self.refit else ''}{low}"


@dataclass(frozen=True)
class Piece:
    """A matrix that is factored: rows of a stored weight. w: [inputs, outputs], float64."""

    name: str
    rows: slice
    w: F64
    value: str


class Factored:
    """A plan carried out on a model; `recipes` are derived from it. processes: in which matrices
    are factored, largest first; their seconds are added up. wall: seconds that it took."""

    def __init__(
        self, model: Model, grams: Mapping[str, Gram], plan: Plan, *, exact: bool = False,
        processes: int = 1,
    ) -> None:  # fmt: skip
        self.model, self.grams, self.plan, self.exact = model, grams, plan, exact
        self.pieces = list(_pieces(model, plan.shared))
        self.processes = processes
        start = time.perf_counter()
        with measured() as self.cost:
            self.dims, ratios = _sizes(self.pieces, plan)
            self.white = {value: whiten(gram, name=value) for value, gram in grams.items()}
            jobs = {
                at: (plan, piece.w, self.white[piece.value], d, ratio)
                for at, (piece, d, ratio) in enumerate(
                    zip(self.pieces, self.dims, ratios, strict=True)
                )
                if d.form != "dense"
            }
            others = Cost()
            if processes == 1:
                made = {at: factor(*job) for at, job in jobs.items()}
            else:
                made = _in_processes(jobs, processes, others)
            self.factors = [made.get(at) for at in range(len(self.pieces))]
        self.cost.seconds += others.seconds
        self.cost.peak = max(self.cost.peak, others.peak)
        self.wall = time.perf_counter() - start

    def outcome(self, recipe: Recipe) -> Outcome:
        """One recipe's weights and bits."""
        weights = {name: np.empty_like(self.model.weights[name]) for name in self.model.inputs}
        bits, errors = 0, []
        with measured() as cost:
            for piece, factors in zip(self.pieces, self.factors, strict=True):
                product, part = self._stored(piece, factors, recipe)
                weights[piece.name][piece.rows], bits = product.T, bits + part
                errors.append(self._error(piece, product))
        total = Cost(self.cost.seconds + cost.seconds, max(self.cost.peak, cost.peak))
        kept = sum(d.form == "dense" for d in self.dims)
        note = f"{kept} of {len(self.dims)} matrices stay dense" if kept else ""
        if self.plan.base == "cospadi" and pursuit is not baselines.pursuit:
            note = "; ".join(filter(None, (note, "pursuit compiled by Numba")))
        facts = {"output_error": float(np.sqrt(np.mean(errors)))}
        if self.processes > 1:
            facts |= {"processes": self.processes, "wall_seconds": self.wall}
        found: dict[str, Matrix] = {
            name: w if self.exact else quantize(w, ENDS) for name, w in weights.items()
        }
        return Outcome(found, bits, ENDS if recipe.a else "f16", total, note, facts)

    def _error(self, piece: Piece, product: F64) -> float:
        white = self.white[piece.value]
        lost, given = white.apply(product - piece.w), white.apply(piece.w)
        return float(np.vdot(lost, lost) / max(float(np.vdot(given, given)), 1e-300))

    def _stored(self, piece: Piece, factors: Factors | None, recipe: Recipe) -> tuple[F64, int]:
        """The product of what is stored, `[inputs, outputs]`, and its bits."""
        gram, white = self.grams[piece.value], self.white[piece.value]
        if factors is None:
            if not recipe.a:
                return piece.w.astype(np.float16).astype(np.float64), 16 * piece.w.size
            own = by_gptq(piece.w.T.astype(np.float32), gram, _group_format(recipe.a))
            return dequantize(own).T.astype(np.float64), stored_bits(own)
        if recipe.refit:
            factors = refitted(factors, piece.w, white)
        if not recipe.a:
            ready = gauge(factors, 0.5)
            halves = replace(ready, a=_half(ready.a), values=_half(ready.values))
            form = "mask" if factors.s < factors.k else "lowrank"
            size = storage_bits(factors.m, factors.n, factors.k, factors.s, form)
            return halves.product(), size
        return quantized_factors(factors, piece.w, white, gram, recipe)


def factor(plan: Plan, w: F64, white: Whitening, d: Dims, ratio: float) -> Factors:
    """One matrix `[inputs, outputs]`."""
    rank = int((1 - ratio) * d.m * d.n / (d.m + d.n))
    if plan.base == "svd":
        return truncated_svd(w, white, rank)
    if plan.base == "svd-llm":
        return svd_llm(w, white, rank)
    if plan.base == "cospadi":
        return cospadi(w, white, d.k, d.s, iterations=plan.iterations, pursue=pursuit)
    return compot(w, white, d.k, d.s, Options(iterations=plan.iterations))


def _in_processes(jobs: Mapping[int, Job], processes: int, cost: Cost) -> dict[int, Factors]:
    """`factor` of each job; what the processes took together is added to `cost`."""
    largest_first = sorted(jobs, key=lambda at: -_work(jobs[at][3]))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, spawn, initializer=_compile) as pool:
        futures = {at: pool.submit(_counted, jobs[at]) for at in largest_first}
        done = {at: future.result() for at, future in futures.items()}
    for _, took in done.values():
        cost.seconds, cost.peak = cost.seconds + took.seconds, max(cost.peak, took.peak)
    return {at: factors for at, (factors, _) in done.items()}


def _work(d: Dims) -> int:
    """Multiplications of matching pursuit, which take most of the time."""
    return d.n * d.k * d.s**2


def _compile() -> None:
    """What is compiled on its first call is compiled before seconds count."""
    one = np.eye(4)
    cospadi(one, Whitening(one, 0.0), 2, 1, iterations=1, pursue=pursuit)


def _counted(job: Job) -> tuple[Factors, Cost]:
    with measured() as cost:
        found = factor(*job)
    return found, cost


def _group_format(bits: int) -> str:
    return f"int{bits}-g32"


def _half(x: F64) -> F64:
    out: F64 = x.astype(np.float16).astype(np.float64)
    if not np.isfinite(out).all():
        raise SystemExit(f"factors up to {np.abs(x).max():g} do not fit float16")
    return out


def quantized_factors(
    factors: Factors, w: F64, white: Whitening, gram: Gram, recipe: Recipe
) -> tuple[F64, int]:
    """The product of quantized factors, and the bits that store them.

    A by GPTQ in groups of 32 inputs. S: a bit for each atom and output, values of the kept ones,
    and an fp16 scale for every 64 atoms. Where a stored encoding of S is at hand, this is the place
    for it.
    """
    stored_a: list[int] = []

    def quantize_a(a: F64) -> F64:
        own = by_gptq(np.ascontiguousarray(a.T, np.float32), gram, _group_format(recipe.a))
        stored_a.append(stored_bits(own))
        return dequantize(own).T.astype(np.float64)

    atoms = factors.idx.astype(np.int64)
    grid = grid_of(f"int{recipe.values}-g{VALUE_GROUP}")

    def quantize_values(values: F64) -> F64:
        dense: F32 = np.zeros((factors.n, factors.k), np.float32)
        np.put_along_axis(dense, atoms, values.astype(np.float32), axis=1)
        own = round_to_nearest(dense, bits=grid.bits, group=grid.group, clip=grid.bits <= 4)
        return np.take_along_axis(dequantize(own), atoms, axis=1).astype(np.float64)

    found = quantize_factors(factors, w, white, quantize_a, quantize_values)
    mask = factors.n * factors.k if factors.s < factors.k else 0
    scales = 16 * factors.n * -(-factors.k // VALUE_GROUP)
    values = factors.n * factors.s * recipe.values
    return found.product(), stored_a[0] + values + scales + mask


def refitted(factors: Factors, w: F64, white: Whitening) -> Factors:
    """With the least-squares dictionary for the codes as they are, as `compot`'s option has it."""
    y, code = white.apply(w), factors.code().T
    square = code.T @ code
    ridge = 1e-10 * float(np.trace(square)) / len(square)
    d = np.linalg.solve(square + ridge * np.eye(len(square)), (y @ code).T).T
    mask = np.zeros(code.shape, np.bool_)
    np.put_along_axis(mask, factors.idx.astype(np.int64), True, axis=1)
    new = from_whitened(y, d, code, mask, white)
    return new if new.residual.sum() <= factors.residual.sum() else factors


def _pieces(model: Model, shared: bool) -> Iterator[Piece]:
    for name, value in model.inputs.items():
        w = model.weights[name].T.astype(np.float64)
        for rows in (slice(0, w.shape[1]),) if shared else model.parts[name]:
            yield Piece(name, rows, np.ascontiguousarray(w[:, rows]), value)


def _sizes(pieces: list[Piece], plan: Plan) -> tuple[list[Dims], list[float]]:
    """What becomes of each piece, and the ratio that it was meant to have."""
    if plan.allocated:
        found = allocate([spectrum(piece.w) for piece in pieces], plan.ratio)
        return list(found.dims), list(found.ratios)
    return [choose(*piece.w.shape, plan.ratio) for piece in pieces], [plan.ratio] * len(pieces)
