"""Inverse p-th roots of stacks of symmetric positive semi-definite matrices (arXiv 2602.02016).

Shapes: `n` matrices of side `k`, so a stack is `[n, k, k]`; damping and scales are `[n, 1, 1]`.
Every solver returns the root of the matrix it was given, factor `s ** (-1 / p)` included, although
grafting would hide that scalar. All work is fp32 (fp64 for fp64 input) unless a name says fp16.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .scaling import (
    damped,
    damping,
    frobenius,
    guarded_scale,
    nonzero,
    start_vectors,
    upper_bound,
)

SOLVERS = ("evd", "ndb", "cn", "cn_fp16", "chebyshev")
# A root may exceed damping ** (-1/p): a Newton-DB pass of K <= 27 steps amplifies eigenvalues it
# has not resolved by up to 1.5 ** (K / 4). Beyond this slack the solver diverged.
DIVERGED = 16.0
# Before torch 2.8 a product of fp16 stacks could only return fp16 (it still accumulates in fp32).
BMM_HAS_OUT_DTYPE = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 8)


@dataclass(frozen=True)
class RootConfig:
    """Which solver, and its settings.

    `eps` is added to the diagonal; None means `max(1e-10, 1e-6 * trace / k)` per matrix.
    `steps` are Newton iterations, `scaling` applies to Newton-DB ("pim" or "fro"), `degree` and
    `cheb_eps` (relative damping) to Chebyshev. `storage` rounds Newton-DB iterates to a 16-bit
    type: an experiment, unstable in bfloat16, never used by `Dash`.
    """

    solver: str = "evd"
    eps: float | None = None
    steps: int = 15
    scaling: str = "pim"
    degree: int = 60
    cheb_eps: float = 1e-3
    seed: int = 0
    storage: torch.dtype | None = None


@contextmanager
def full_precision() -> Iterator[None]:
    """fp32 products in true fp32: TF32, common in training loops, breaks Newton-DB."""
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # the caller uses the newer per-backend switches, which exclude this one
        with _ieee_products():
            yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def _ieee_products() -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def evd_root(a: Tensor, power: int, amount: Tensor, *, floor: bool = False) -> Tensor:
    """`(a + 2 amount I - min(lambda_min, 0) I) ** (-1 / power)` by eigendecomposition.

    `a` is undamped; the damping counts twice, as in Distributed Shampoo. `floor` raises what is
    still not positive to the rounding level, so that the result is finite even without damping.
    """
    values, vectors = torch.linalg.eigh(damped(a, amount))
    values = values + amount[:, :, 0] - values[:, :1].clamp_max(0)
    if floor:
        top = values[:, -1:]
        least = top * (a.shape[-1] * torch.finfo(a.dtype).eps)
        values = torch.maximum(values, torch.where(top > 0, least, torch.ones_like(top)))
    root: Tensor = (vectors * values.pow(-1 / power)[:, None, :]) @ vectors.mT
    return root


def _symmetric(x: Tensor) -> Tensor:
    return (x + x.mT) * 0.5


def _denman_beavers(y: Tensor, steps: int, storage: torch.dtype | None) -> tuple[Tensor, Tensor]:
    """Square root and inverse square root of a scaled stack; the order of products matters."""

    def keep(t: Tensor) -> Tensor:
        return t if storage is None else t.to(storage).to(t.dtype)

    identity = 1.5 * torch.eye(y.shape[-1], device=y.device, dtype=y.dtype)
    y = keep(y)
    z = keep(identity - 0.5 * y)
    y = keep(y @ z)
    for _ in range(steps - 1):
        e = torch.baddbmm(identity, z, y, alpha=-0.5)
        y, z = keep(y @ e), keep(e @ z)
    return y, z


def ndb_root(
    a: Tensor, power: int, steps: int, scale: Tensor, *, storage: torch.dtype | None = None
) -> Tensor:
    """Newton-DB (Denman-Beavers) inverse root of `a`; `power` is 2 or 4, chained for 4.

    `steps` products-only iterations per pass. Scaled eigenvalues below `1.5 ** (-2 * steps)` are
    not resolved: the iteration is an implicit spectral filter there, not an exact root.
    """
    if power not in (2, 4):
        raise ValueError(f"Newton-DB gives roots 2 and 4, found power={power}")
    y, z = _denman_beavers(a / scale, steps, storage)
    if power == 2:
        return _symmetric(z / scale.sqrt())
    _, z = _denman_beavers(y, steps, storage)  # y is sqrt(a) / sqrt(scale)
    return _symmetric(z / scale.sqrt().sqrt())


def _product16(a: Tensor, b: Tensor) -> Tensor:
    """fp16 inputs, fp32 accumulation and result; emulated where there are no tensor cores."""
    a, b = a.half(), b.half()
    if a.is_cuda and BMM_HAS_OUT_DTYPE:
        product: Tensor = torch.bmm(a, b, out_dtype=torch.float32)
        return product
    return a.float() @ b.float()


def cn_root(a: Tensor, power: int, steps: int, *, half: bool = False) -> Tensor:
    """Coupled Newton inverse root with Frobenius scaling, at most `steps` iterations.

    `half`: powers of T and the M product take fp16 inputs, the X update stays fp32. On the CPU it
    stops once `max |M - I| < 1e-6` over the stack; on a GPU it never stops early, because reading
    that number would stall the queue.
    """
    if power not in (2, 4):
        raise ValueError(f"coupled Newton is implemented for roots 2 and 4, found power={power}")
    product = _product16 if half else torch.matmul
    eye = torch.eye(a.shape[-1], device=a.device, dtype=a.dtype)
    z = (power + 1) / (2 * nonzero(frobenius(a)))
    m = z * a
    x = z.pow(1 / power) * eye
    for _ in range(steps):
        t = torch.sub((1 + 1 / power) * eye, m, alpha=1 / power)
        x = x @ t
        square = product(t, t)
        m = product(product(square, square) if power == 4 else square, m)
        if not a.is_cuda and (m - eye).abs().max() < 1e-6:
            break
    return _symmetric(x)


@lru_cache(maxsize=64)
def chebyshev_coefficients(eps: float, degree: int, power: int) -> tuple[float, ...]:
    """Coefficients of `x ** (-1 / power)` on `[eps, 1 + eps]`, from 10,000 nodes in fp64."""
    theta = math.pi * (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    values = (0.5 * theta.cos() + 0.5 + eps).pow(-1 / power)
    orders = torch.arange(degree + 1, dtype=torch.float64)
    c = (2 / 10_000) * (orders[:, None] * theta).cos() @ values
    c[0] *= 0.5
    return tuple(c.tolist())


def clenshaw(s: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """`sum_k c_k T_k(s)` for a stack `s [n, k, k]` with spectrum in [-1, 1]; degree >= 2."""
    degree = len(coefficients) - 1
    if degree < 2:
        raise ValueError(f"Clenshaw summation needs degree >= 2, found {degree}")
    eye = torch.eye(s.shape[-1], device=s.device, dtype=s.dtype)
    b2 = (coefficients[degree] * eye).expand_as(s)
    b1 = 2 * coefficients[degree] * s + coefficients[degree - 1] * eye
    for order in range(degree - 2, 0, -1):
        b = torch.baddbmm(b2, s, b1, beta=-1, alpha=2)
        b.diagonal(dim1=-2, dim2=-1).add_(coefficients[order])
        b2, b1 = b1, b
    return torch.baddbmm(b2, s, b1, beta=-1) + coefficients[0] * eye


def chebyshev_root(a: Tensor, power: int, degree: int, eps: float, scale: Tensor) -> Tensor:
    """`(a + eps * scale * I) ** (-1 / power)` by a Chebyshev sum; `scale` must bound the spectrum.

    The damping is relative to `scale`; no other is applied.
    """
    eye = torch.eye(a.shape[-1], device=a.device, dtype=a.dtype)
    x = clenshaw(2 * a / scale - eye, chebyshev_coefficients(eps, degree, power))
    return _symmetric(x * scale.pow(-1 / power))


def inverse_root(a: Tensor, power: int, config: RootConfig) -> tuple[Tensor, Tensor]:
    """Damped inverse root of `a [n, k, k]`, and which matrices failed.

    Returns `x [n, k, k]` and `bad [n]` (bool, still on the device): not finite, or larger than
    the damping allows. Give both to `repair`. Raises ValueError for an unknown solver.
    """
    amount = damping(a, config.eps)
    if config.solver == "evd":
        x = _evd_or_nan(a, power, amount)
    elif config.solver == "ndb":
        matrix = damped(a, amount)
        if config.scaling == "pim":
            start = start_vectors(a.shape[-1], config.seed, a.device, a.dtype)
            scale = guarded_scale(matrix, start)
        else:
            scale = nonzero(frobenius(matrix))
        x = ndb_root(matrix, power, config.steps, scale, storage=config.storage)
    elif config.solver in ("cn", "cn_fp16"):
        x = cn_root(damped(a, amount), power, config.steps, half=config.solver == "cn_fp16")
    elif config.solver == "chebyshev":
        scale = nonzero(upper_bound(a))
        amount = config.cheb_eps * scale
        x = chebyshev_root(a, power, config.degree, config.cheb_eps, scale)
    else:
        raise ValueError(f"solver is {config.solver!r}, expected one of {', '.join(SOLVERS)}")
    limit = DIVERGED * amount.pow(-1 / power)  # infinite without damping: then only NaN is seen
    peak = x.abs().amax((-2, -1))
    return x, ~(torch.isfinite(peak) & (peak <= limit[:, 0, 0]))


def _evd_or_nan(a: Tensor, power: int, amount: Tensor) -> Tensor:
    try:
        return evd_root(a, power, amount)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # one matrix that does not converge fails the whole call
        return torch.full_like(a, math.nan)


def repair(a: Tensor, x: Tensor, bad: Tensor, power: int, eps: float | None) -> int:
    """Replace the failed roots in `x` by fp64 eigendecompositions, in place; return how many.

    Raises ValueError if a factor itself is not finite: a gradient was NaN or infinite.
    """
    rows = bad.nonzero().flatten()
    if not len(rows):
        return 0
    part = a[rows].double()
    if not torch.isfinite(part).all():
        raise ValueError(
            f"a factor of side {a.shape[-1]} holds NaN or infinity, expected finite values; "
            "skip steps whose gradients are not finite"
        )
    x[rows] = evd_root(part, power, damping(part, eps), floor=True).to(x.dtype)
    return len(rows)
