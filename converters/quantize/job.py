"""One matrix to encode, as work that can be done in another process.

With the inputs' Gram matrices at hand GPTQ is tried, and kept where it loses less than rounding to
nearest on sequences that it was not fitted to. With few rows for many inputs it can lose more
(`gptq.py`); so a conversion with calibration is never worse there than one without.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import ConvertError, ResourceError
from ...kernels.encodings import ENCODINGS, dequantize, quantize, tensors_of
from ...kernels.quant import F32, Matrix
from ..compress.whiten import Gram, Inputs
from ..report import relative
from .gptq import gptq
from .hqq import hqq

METHODS = ("rtn", "hqq", "gptq")
FEW_BITS = 6  # up to which codes are chosen by GPTQ: of 8 bits, rounding loses next to nothing

# GPTQ's damping, of the mean of the Gram matrix's diagonal: with few rows for each input the larger
# one loses less on other text (benchmarks/NOTES.md).
ENOUGH, DAMP, DAMP_FEW_ROWS = 8, 0.01, 0.1


@dataclass(frozen=True)
class Job:
    """A weight float32 [N, K] and what to store it as. inputs: of its product, for gptq."""

    name: str
    weight: F32
    encoding: str
    method: str
    inputs: Inputs | None = None


class Encoded(NamedTuple):
    """Stored tensors by key. error: relative RMS of the weight. output: of the product's output, on
    the inputs held back for it where there are some, else on all; NaN without inputs. method: the
    one that was kept."""

    arrays: dict[str, NDArray[Any]]
    error: float
    output: float
    method: str


def encode_matrix(job: Job) -> Encoded:
    """Encode one matrix. Raises ConvertError for values that do not fit, ResourceError where the
    memory ends; both name it."""
    try:
        return _encode(job)
    except (ValueError, ConvertError) as error:
        message = error.message if isinstance(error, ConvertError) else str(error)
        raise ConvertError(
            f"weight {job.name!r}: {message}",
            code=getattr(error, "code", "weight-range"),
            hint=getattr(error, "hint", "") or "convert with --quant f32, or check the checkpoint",
        ) from None
    except MemoryError as error:
        raise ended(job.name, job.weight.shape, error) from None


def ended(name: str, shape: tuple[int, ...], error: MemoryError) -> ResourceError:
    """The error for a matrix that the memory does not hold the work on."""
    return ResourceError(
        f"weight {name!r}: out of memory with its matrix {list(shape)}"
        + (f": {error}" if str(error) else ""),
        code="memory",
        hint="close other programs, use fewer workers and threads, or convert on a machine with "
        "more memory",
    )


def _encode(job: Job) -> Encoded:
    row, measure = ENCODINGS[job.encoding], Measure(job.weight, job.inputs)
    if row.grid is None or job.method == "rtn":
        return measure.of(quantize(job.weight, job.encoding), "rtn")
    shape: dict[str, Any] = {
        "bits": row.grid.bits, "group": row.grid.group, "symmetric": row.grid.symmetric
    }  # fmt: skip
    if job.method == "hqq":
        return measure.of(hqq(job.weight, **shape), "hqq")
    if job.inputs is None:
        raise ValueError("gptq without inputs")
    plain = measure.of(quantize(job.weight, job.encoding), "rtn")
    damp = damping(job.inputs.gram, job.weight.shape[1])
    stored = gptq(job.weight, job.inputs.gram.matrix, clip=True, damp=damp, **shape)
    found = measure.of(stored, "gptq")
    return found if found.output <= plain.output else plain


def damping(gram: Gram, inputs: int) -> float:
    """GPTQ's damping for a Gram matrix of so many inputs."""
    return DAMP if gram.rows >= ENOUGH * inputs else DAMP_FEW_ROWS


class Measure:
    """What a stored form of a weight [N, K] loses: of its values, and of its product's output on
    the inputs held back (on all, where none are)."""

    def __init__(self, weight: F32, inputs: Inputs | None) -> None:
        self.weight, self.power = weight, _power(weight)
        self.gram: F32 | None = None
        if inputs is not None:
            gram = (inputs.held or inputs.gram).matrix
            largest = max(float(np.diagonal(gram).max()), 1e-300)
            self.gram = (gram / largest).astype(np.float32)
            self.given = _energy(weight, self.gram)

    def output(self, difference: F32) -> float:
        """Relative error of the output of a weight that is off by this; NaN without inputs."""
        if self.gram is None:
            return float("nan")
        return relative(_energy(difference, self.gram), self.given)

    def of(self, stored: Matrix, method: str) -> Encoded:
        difference = dequantize(stored) - self.weight
        error = relative(_power(difference), self.power)
        return Encoded(dict(tensors_of(stored)), error, self.output(difference), method)


def _energy(e: F32, gram: F32) -> float:
    """tr(E G E^T)."""
    return max(0.0, float(np.einsum("nk,nk->n", e @ gram, e).sum(dtype=np.float64)))


def _power(x: F32) -> float:
    return float(np.square(x, dtype=np.float64).sum())
