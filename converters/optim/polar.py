"""Polar factors: `U V^T` of a matrix from its thin SVD `U S V^T` (MSign, arXiv 2602.01734).

Over the `r` non-zero singular values `U V^T` is a partial isometry with Frobenius norm `sqrt(r)`.
All functions work on stacks `[n, rows, cols]` of float32 or float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

POLARS = ("svd", "newton_schulz", "auto")
QUINTIC = (3.4445, -4.7750, 2.0315)
QUINTIC_STEPS = 5
CUBIC_STEPS = 15
ORTHONORMAL = 1e-5


def polar_svd(w: Tensor, eps: float, mix: float = 1.0) -> tuple[Tensor, Tensor]:
    """`U diag(S ** (1 - mix)) V^T` and `U V^T` of `w [n, rows, cols]`, rank rule included.

    Singular values up to `max(rows, cols) * eps * S[0]` count as zero and stay zero; `eps` is that
    of `w`'s type before any widening here. Computed in float64 if the short side is at most 64.
    """
    small = min(w.shape[-2:]) <= 64
    u, s, vh = torch.linalg.svd(w.double() if small else w, full_matrices=False)
    kept = s > s[:, :1] * (max(w.shape[-2:]) * eps)
    sign = (u * kept[:, None, :]) @ vh
    if mix == 1.0:
        return sign.to(w.dtype), sign.to(w.dtype)
    powers = torch.where(kept, s.pow(1 - mix), torch.zeros_like(s))
    return ((u * powers[:, None, :]) @ vh).to(w.dtype), sign.to(w.dtype)


def polar_newton_schulz(w: Tensor) -> tuple[Tensor, Tensor]:
    """`U V^T` of `w [n, rows, cols]` by products only, and which of them converged `[n]`.

    Five quintic steps bring the singular values near one, cubic steps finish until
    `max |X X^T - I| < 1e-5`, at most 15 of them. Rank-deficient matrices do not converge.
    """
    oriented = w if w.shape[-2] <= w.shape[-1] else w.mT
    x = oriented / torch.linalg.vector_norm(oriented, dim=(1, 2), keepdim=True)
    a, b, c = QUINTIC
    for _ in range(QUINTIC_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    eye = torch.eye(x.shape[-2], device=x.device, dtype=x.dtype)
    for _ in range(CUBIC_STEPS):
        gram = x @ x.mT
        done = (gram - eye).abs().amax((1, 2)) < ORTHONORMAL
        x = torch.baddbmm(x, gram, x, beta=1.5, alpha=-0.5)
        if bool(done.all()):  # the step above took the last error to rounding level
            break
    else:
        done = (x @ x.mT - eye).abs().amax((1, 2)) < ORTHONORMAL
    return (x if oriented is w else x.mT), done


def polar(w: Tensor, method: str, eps: float, mix: float = 1.0) -> tuple[Tensor, Tensor]:
    """As `polar_svd`; with "newton_schulz" matrices that do not converge go to the SVD.

    "auto": Newton-Schulz on a GPU for short sides of at least 256 and mix 1, else SVD.
    """
    if method == "auto":
        fast = w.is_cuda and min(w.shape[-2:]) >= 256 and mix == 1.0
        method = "newton_schulz" if fast else "svd"
    if method == "svd":
        return polar_svd(w, eps, mix)
    sign, done = polar_newton_schulz(w)
    if not bool(done.all()):
        rows = (~done).nonzero().flatten()
        sign = sign.clone()
        sign[rows] = polar_svd(w[rows], eps)[1]
    return sign, sign


def impact(w: Tensor, sign: Tensor) -> Tensor:
    """`cos(w, U V^T) = ||w||_* / (sqrt(r) ||w||_F)` per matrix: 1 changes nothing. `[n]`."""
    norms = torch.linalg.vector_norm(w, dim=(1, 2)) * torch.linalg.vector_norm(sign, dim=(1, 2))
    cosine: Tensor = (w * sign).sum((1, 2)) / norms
    return cosine
