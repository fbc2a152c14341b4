"""One matrix to factor and store, as work that can be done in another process.

The order of `factors.py`: COMPOT, refit, gauge, A by GPTQ with the inputs' Gram matrix, the codes
refitted on their supports against what A became, then rounded to nearest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from ...errors import ConvertError
from ...kernels import sparse
from ...kernels.encodings import ENCODINGS, dequantize, quantize
from ...kernels.quant import F32, Matrix
from ..quantize.gptq import gptq
from ..quantize.job import FEW_BITS, Measure, damping, ended
from ..report import relative
from . import checks
from .budget import Dims
from .checks import F64
from .compot import Options, compot
from .factors import gauge, refit_support
from .result import Factors
from .whiten import Inputs, whiten


@dataclass(frozen=True)
class FactorJob:
    """A weight float32 [N, K] and what becomes of it: `dims` (m = K, n = N), A in the encoding `a`,
    values of S in `bits` bits."""

    name: str
    weight: F32
    inputs: Inputs
    dims: Dims
    a: str
    bits: int
    options: Options


class Factored(NamedTuple):
    """A [k, m] and S [n, k] as they are stored. a_error, s_error: relative RMS of their rounding.
    output: relative error of the product's output, on the inputs held back where there are some.
    exact: the same before anything was rounded, on the inputs that it was fitted to."""

    a: Matrix
    s: Matrix
    a_error: float
    s_error: float
    output: float
    exact: float


def factor_matrix(job: FactorJob) -> Factored:
    """Factor one matrix and store the factors. Raises ConvertError or ResourceError naming it."""
    try:
        return _factor(job)
    except (ValueError, ConvertError, np.linalg.LinAlgError) as error:
        message = error.message if isinstance(error, ConvertError) else str(error)
        raise ConvertError(
            f"weight {job.name!r}: {message}",
            code=getattr(error, "code", "weight-range"),
            hint=getattr(error, "hint", "") or "leave it dense, or check the checkpoint",
        ) from None
    except MemoryError as error:
        raise ended(job.name, job.weight.shape, error) from None


def _factor(job: FactorJob) -> Factored:
    gram, size = job.inputs.gram, job.dims
    w = checks.matrix(job.weight.T, job.name)
    whitening = whiten(gram, name=job.name)
    found = compot(w, whitening, size.k, size.s, job.options, name=job.name)
    ready = gauge(found)
    a = _stored_a(job, ready)
    held = _wide(dequantize(a)).T
    fitted = refit_support(replace(ready, a=held), w, whitening)
    dense, mask = _dense(fitted)
    whole = size.s == size.k
    s = quantize(dense, job.a) if whole else sparse.quantize(dense, mask, job.bits)
    back = _wide(dequantize(s))
    difference = (back @ held.T).astype(np.float32) - job.weight
    return Factored(
        a, s,
        relative(_power(held - ready.a), _power(ready.a)),
        relative(_power(back - dense), _power(_wide(dense))),
        Measure(job.weight, job.inputs).output(difference), found.error,
    )  # fmt: skip


def _stored_a(job: FactorJob, ready: Factors) -> Matrix:
    """A, by GPTQ where its encoding has few codes."""
    w = np.ascontiguousarray(ready.a.T, np.float32)
    grid = ENCODINGS[job.a].grid
    if grid is None or grid.bits > FEW_BITS:
        return quantize(w, job.a)
    gram = job.inputs.gram
    return gptq(
        w, gram.matrix, bits=grid.bits, group=grid.group, symmetric=grid.symmetric, clip=True,
        damp=damping(gram, w.shape[1]),
    )  # fmt: skip


def _dense(factors: Factors) -> tuple[F32, Any]:
    """S^T float32 [n, k] and where it has values."""
    mask = np.zeros((factors.n, factors.k), np.bool_)
    np.put_along_axis(mask, factors.idx.astype(np.int64), True, axis=1)
    return np.ascontiguousarray(factors.code().T, np.float32), mask


def _wide(x: F32) -> F64:
    return x.astype(np.float64)


def _power(x: F64) -> float:
    return float(np.vdot(x, x))
