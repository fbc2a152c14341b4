"""What all quantizers of one matrix share: what goes in, what comes out, and how good it is.

W is float32 [N, K], output rows, as a `linear` node has it. G is the Gram matrix float64 [K, K] of
its inputs, G = X^T X for X [T, K], at any positive scale. With E = W' - W,

    ||X E^T||^2 = tr(E G E^T)

is what a layer's output loses: the measure that GPTQ, AWQ and the clip search make small.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ConvertError
from ...kernels.encodings import ENCODINGS, dequantize
from ...kernels.grid import BITS, GROUPS, U8, Grid, Steps
from ...kernels.quant import F32, Matrix, Quantized

F64 = NDArray[np.float64]


def grid_of(bits: int, group: int, symmetric: bool) -> Grid:
    """The grid of an encoding; ConvertError where there is none."""
    if bits not in BITS or group not in GROUPS:
        raise ConvertError(
            f"{bits} bits in groups of {group}, expected bits of {list(BITS)} and groups of "
            f"{list(GROUPS)}",
            code="quant",
            hint="4 bits in groups of 32 are the default",
        )
    return Grid(bits, group, symmetric)


def checked_weight(w: NDArray[Any]) -> F32:
    """W as float32 [N, K]; ConvertError where it is no finite matrix."""
    if w.ndim != 2 or not w.size:
        raise ConvertError(
            f"a weight of shape {list(w.shape)}, expected a matrix [N, K]", code="quant"
        )
    if bad := int(np.count_nonzero(~np.isfinite(w))):
        raise ConvertError(
            f"{bad} of {w.size} weights are not finite, expected none",
            code="weight-range",
            hint="the checkpoint is damaged; use a sound one",
        )
    return np.ascontiguousarray(w, np.float32)


def checked_gram(gram: NDArray[Any], k: int) -> F64:
    """G as float64 [K, K], made symmetric; ConvertError where it is no Gram matrix."""
    if gram.shape != (k, k):
        raise ConvertError(
            f"a Gram matrix of shape {list(gram.shape)}, expected {[k, k]}", code="gram"
        )
    g = gram.astype(np.float64)
    g = (g + g.T) / 2
    if not np.isfinite(g).all() or (np.diagonal(g) < 0).any():
        raise ConvertError(
            "a Gram matrix with values that are not finite, or negative on its diagonal; expected "
            "X^T X of finite inputs",
            code="gram",
            hint="leave out calibration inputs with NaN or infinity",
        )
    return g


def fitted(grid: Grid, groups: F32) -> Steps:
    """`Grid.fit`, with scales beyond float16 as ConvertError."""
    try:
        return grid.fit(groups)
    except ValueError as error:
        raise ConvertError(
            f"{error}, expected values that {grid.name} can hold",
            code="weight-range",
            hint="store this weight as f32",
        ) from None


def stored(grid: Grid, shape: tuple[int, ...], codes: U8, steps: Steps) -> Quantized:
    """Codes [N, KB, group] as a stored matrix."""
    matrix = ENCODINGS[grid.name].load(grid.store(codes, steps), shape)
    if not isinstance(matrix, Quantized):
        raise TypeError(f"{grid.name} is stored as a plain array")
    return matrix


def output_error(w: F32, quantized: Matrix, gram: F64) -> float:
    """||X(W' - W)^T|| / ||X W^T|| by the Gram matrix; 0 where the layer gives nothing."""
    lost = energy(dequantize(quantized).astype(np.float64) - w, gram)
    given = energy(w.astype(np.float64), gram)
    return float(np.sqrt(lost / given)) if given > 0 else 0.0


def energy(e: F64, gram: F64) -> float:
    """tr(E G E^T), at least 0."""
    return max(0.0, float(np.vdot(e @ gram, e)))
