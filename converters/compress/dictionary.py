"""The dictionary step of COMPOT (arXiv 2602.15200): starts, and orthogonal Procrustes."""

from __future__ import annotations

import numpy as np

from .checks import F64

# Eigenvalues of M^T M below this share of the largest are noise: then the SVD of M itself is taken.
POLAR_GUARD = 1e-10
_CLEAN, _HOPELESS = 1e-14, 1e-7  # deviation from orthonormal: none to speak of, too much to mend


def leading_left(y: F64, k: int) -> F64:
    """The k left singular vectors of `y [m, n]` with the largest singular values, `[m, k]`.

    From the eigenvectors of the smaller of Y Y^T and Y^T Y; of the second, `Y v` is made
    orthonormal by QR instead of a division by sigma, which also serves sigma = 0. k <= min(m, n).
    """
    m, n = y.shape
    if m <= n:
        return np.ascontiguousarray(np.linalg.eigh(y @ y.T)[1][:, ::-1][:, :k])
    v = np.linalg.eigh(y.T @ y)[1][:, ::-1][:, :k]
    return np.linalg.qr(y @ v)[0]


def polar_svd(matrix: F64) -> F64:
    """`U V^T` of the thin SVD of `matrix [m, k]`, m >= k: the nearest orthonormal matrix."""
    u, _, vt = np.linalg.svd(matrix, full_matrices=False)
    product: F64 = u @ vt
    return product


def polar(matrix: F64) -> F64:
    """`polar_svd` through the eigenvectors of M^T M, several times faster; the SVD where unsafe.

    One Newton-Schulz step takes the rounding errors of small eigenvalues off, so that columns are
    orthonormal to about 1e-14 either way.
    """
    peak = float(np.abs(matrix).max())
    if peak == 0:
        return polar_svd(matrix)
    scaled = matrix / peak
    w, v = np.linalg.eigh(scaled.T @ scaled)
    if not w[0] > POLAR_GUARD * w[-1]:
        return polar_svd(matrix)
    d: F64 = scaled @ ((v / np.sqrt(w)) @ v.T)
    square = d.T @ d
    off = float(np.abs(square - np.eye(len(w))).max())
    if not off < _HOPELESS:
        return polar_svd(matrix)
    if off > _CLEAN:
        square *= -0.5
        square.flat[:: len(w) + 1] += 1.5
        d = d @ square
    return d


def start(y: F64, k: int, init: str, seed: int) -> F64:
    """The first dictionary `[m, k]`, orthonormal columns with their largest entry positive.

    init: "svd" (leading left singular vectors), "permuted" (these in random order) or "random"
    (orthonormal basis of a Gaussian matrix).
    """
    draw = np.random.default_rng(seed)
    if init == "random":
        d: F64 = np.linalg.qr(draw.standard_normal((len(y), k)))[0]
    else:
        d = leading_left(y, k)
        if init == "permuted":
            d = d[:, draw.permutation(k)]
    return np.ascontiguousarray(d * signs(d))


def signs(d: F64) -> F64:
    """+1 or -1 for each column of `d [m, k]`, that which makes its largest entry positive."""
    top = np.abs(d).argmax(axis=0)
    return np.where(d[top, np.arange(d.shape[1])] < 0, -1.0, 1.0)
