"""conv2d: a square convolution over a grid of rows [H·W, Cin].

    y[oy, ox] = sum_{ky, kx} x[oy * stride + ky - pad_before, ox * stride + kx - pad_before] . w
                (+ bias)

The weight is a matrix [Cout, kernel * kernel * Cin], inputs in the order (ky, kx, c), so that it
may be in any encoding and one output is one row product with the patch under it. Cells outside the
grid are zeros: pad_before of them above and to the left, pad_after below and to the right.

With weights in blocks of codes the patches are quantized, as the rows of `linear` are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .conv_lower import LOWER
from .conv_onnx import ONNX
from .linear import linear
from .quant import F32

__all__ = ["LOWER", "ONNX", "REFERENCE", "conv2d", "patches"]


def patches(x: F32, attrs: Mapping[str, Any]) -> F32:
    """The cells under each output: float32 [H' * W', kernel * kernel * Cin]."""
    kernel, stride = attrs["kernel"], attrs["stride"]
    edge = (attrs["pad_before"], attrs["pad_after"])
    grid = np.pad(x.reshape(attrs["height"], attrs["width"], -1), (edge, edge, (0, 0)))
    seen = np.lib.stride_tricks.sliding_window_view(grid, (kernel, kernel), axis=(0, 1))
    seen = seen[::stride, ::stride].transpose(0, 1, 3, 4, 2)  # [H', W', ky, kx, c]
    return seen.reshape(seen.shape[0] * seen.shape[1], -1)


def conv2d(inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any]) -> F32:
    """x float32 [H * W, Cin] -> float32 [H' * W', Cout]."""
    return linear([patches(inputs[0], attrs)], weights, attrs)


REFERENCE = {"conv2d": conv2d}
