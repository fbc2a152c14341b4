"""Factorisations of whole models, for `benchmarks.compression`: SVD, SVD-LLM, CoSpaDi and COMPOT.

Every projection is factored on its own, as the papers do, unless a recipe says `shared`: then
q, k and v have one dictionary, and gate and up another. Ratios are of fp16 bits of the block
matrices, mask bits counted. Factors are rounded to what is stored. Their product is judged in
int8-g32, at a third of the time of float32: what that adds is the loss of the row `rtn int8-g32`,
and activations are rounded to 8 bits as in the quantized rows. `exact` judges it in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
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

F64 = NDArray[np.float64]
LOW_RANK = ("svd", "svd-llm")
BASES = (*LOW_RANK, "cospadi", "compot")
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
    """A plan carried out on a model; `recipes` are derived from it."""

    def __init__(
        self, model: Model, grams: Mapping[str, Gram], plan: Plan, *, exact: bool = False
    ) -> None:
        self.model, self.grams, self.plan, self.exact = model, grams, plan, exact
        self.pieces = list(_pieces(model, plan.shared))
        with measured() as self.cost:
            self.dims, ratios = _sizes(self.pieces, plan)
            self.white = {value: whiten(gram, name=value) for value, gram in grams.items()}
            self.factors = [
                None if d.form == "dense" else self._factor(piece, d, ratio)
                for piece, d, ratio in zip(self.pieces, self.dims, ratios, strict=True)
            ]

    def _factor(self, piece: Piece, d: Dims, ratio: float) -> Factors:
        plan, white = self.plan, self.white[piece.value]
        rank = int((1 - ratio) * d.m * d.n / (d.m + d.n))
        if plan.base == "svd":
            return truncated_svd(piece.w, white, rank)
        if plan.base == "svd-llm":
            return svd_llm(piece.w, white, rank)
        if plan.base == "cospadi":
            return cospadi(piece.w, white, d.k, d.s, iterations=plan.iterations)
        return compot(piece.w, white, d.k, d.s, Options(iterations=plan.iterations))

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
        facts = {"output_error": float(np.sqrt(np.mean(errors)))}
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
