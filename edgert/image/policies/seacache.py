"""SeaCache (arXiv 2602.18993): TeaCache's rule on a signal that was filtered to what the noise
level lets through."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ..schedules import Array
from .base import Context, wide
from .teacache import TeaCache

F64 = NDArray[np.floating[Any]]
Shape = Literal["separable", "radial", "unit"]
Norm = Literal["mean", "peak", "none"]
TINY = 1e-16


def wiener(f: F64, a: float, b: float, beta: float = 2.0) -> F64:
    """a S/(a² S + b²), S = 1/(|f|^β + 1e-16): of x = a·x0 + b·ε the best linear estimate of x0.
    f: cycles a sample."""
    power = 1.0 / (np.abs(f) ** beta + TINY)
    return a * power / (a * a * power + b * b + TINY)


def gain(
    height: int, width: int, a: float, b: float, *, beta: float = 2.0,
    shape: Shape = "separable", norm: Norm = "mean",
) -> F64:  # fmt: skip
    """The filter over a [height, width] grid in FFT order, float64 [height, width].

    separable: the product of one gain for each axis, as the released code has it. radial: the
    two-dimensional Wiener filter of the paper. unit: none. norm: divided by the mean over all bins,
    by the largest, or not at all.
    """
    fy, fx = np.fft.fftfreq(height), np.fft.fftfreq(width)
    if shape == "unit":
        return np.ones((height, width))
    if shape == "radial":
        found = wiener(np.hypot(fy[:, None], fx[None]), a, b, beta)
    else:
        found = np.outer(wiener(fy, a, b, beta), wiener(fx, a, b, beta))
    return _normalised(found, norm)


def _normalised(response: F64, norm: Norm) -> F64:
    if norm == "none":
        return response
    return response / float(response.mean() if norm == "mean" else response.max())


def sea_filter(z: Array, response: F64) -> Array:
    """z [n, H, W, C] with every frequency times response [H, W] (symmetric), in z's dtype.

    By rfft over W: a real signal's other half of the spectrum follows from symmetry.
    """
    height, width = z.shape[1:3]
    spectrum = np.fft.rfft2(z, axes=(1, 2))
    spectrum *= response[:, : width // 2 + 1, None].astype(z.dtype)
    return np.fft.irfft2(spectrum, s=(height, width), axes=(1, 2)).astype(z.dtype, copy=False)


@lru_cache(maxsize=512)
def circulant(size: int, a: float, b: float, beta: float, norm: Norm) -> F64:
    """The filter of one axis as a matrix, float64 [size, size]: for the few positions of a token
    grid a product is ten times as fast as an FFT over a thousand channels."""
    response = wiener(np.fft.fftfreq(size), a, b, beta)
    kernel = np.fft.ifft(_normalised(response, norm)).real
    at = np.arange(size)
    found: F64 = kernel[(at[:, None] - at[None]) % size]
    found.flags.writeable = False
    return found


@dataclass(kw_only=True)
class SeaCache(TeaCache):
    """TeaCache without a polynomial on P(z), z filtered at each step's own noise level. delta is
    the only knob.

    shape, norm, beta: of the filter (`gain`). channel_stride: compare every so many channels only.
    """

    name: ClassVar[str] = "seacache"
    delta: float = 0.3
    shape: Shape = "separable"
    norm: Norm = "mean"
    beta: float = 2.0
    channel_stride: int = 1

    def signal(self, ctx: Context) -> Array:
        z = wide(ctx.feature[..., :: self.channel_stride])
        if self.shape == "unit":
            return z
        # σ is kept off both ends, where one of the two would vanish
        a, b = (min(max(v, 1e-6), 1 - 1e-6) for v in ctx.mixture)
        n, height, width, channels = z.shape
        if self.shape == "radial" or max(height, width) > 256:
            response = gain(height, width, a, b, beta=self.beta, shape=self.shape, norm=self.norm)
            return sea_filter(z, response)
        rows = circulant(height, a, b, self.beta, self.norm).astype(z.dtype)
        columns = circulant(width, a, b, self.beta, self.norm).astype(z.dtype)
        mixed: Array = np.matmul(rows, z.reshape(n, height, width * channels))
        found: Array = np.matmul(columns, mixed.reshape(n, height, width, channels))
        return found
