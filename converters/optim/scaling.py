"""Damping and scaling of stacks of symmetric positive semi-definite matrices `[n, k, k]`.

Products converge on scaled matrices only, and a scale far above the top eigenvalue wastes
iterations; arXiv 2602.02016 estimates it by power iteration, which the guard here makes safe.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

SCALINGS = ("pim", "fro")


def damping(a: Tensor, eps: float | None) -> Tensor:
    """What is added to the diagonal of each matrix of `a [n, k, k]`: `[n, 1, 1]`."""
    if eps is not None:
        return a.new_full((a.shape[0], 1, 1), eps)
    mean = a.diagonal(dim1=-2, dim2=-1).mean(-1)
    return (1e-6 * mean).clamp_min(1e-10)[:, None, None]


def damped(a: Tensor, amount: Tensor) -> Tensor:
    """`a + amount * I` as a new tensor."""
    out = a.clone()
    out.diagonal(dim1=-2, dim2=-1).add_(amount[:, :, 0])
    return out


@lru_cache(maxsize=32)
def start_vectors(k: int, seed: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Sixteen unit Gaussian columns `[k, 16]` that depend on `k` and `seed` alone."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + k)
    columns = torch.randn(k, 16, generator=generator, dtype=torch.float64)
    columns /= torch.linalg.vector_norm(columns, dim=0)
    return columns.to(device=device, dtype=dtype)


def frobenius(a: Tensor) -> Tensor:
    """Frobenius norms `[n, 1, 1]`."""
    norms: Tensor = torch.linalg.vector_norm(a, dim=(1, 2), keepdim=True)
    return norms


def upper_bound(a: Tensor) -> Tensor:
    """`min(Frobenius norm, largest absolute row sum)`, never below the top eigenvalue."""
    rows = a.abs().sum(-1).amax(-1)[:, None, None]
    return torch.minimum(frobenius(a), rows)


def top_eigenvalue(a: Tensor, start: Tensor, iterations: int = 10) -> Tensor:
    """Largest Rayleigh quotient of block power iteration from `start [k, columns]`: `[n, 1, 1]`."""
    tiny = torch.finfo(a.dtype).tiny
    v = start
    for _ in range(iterations):
        v = a @ v  # [n, k, columns]
        v = v / torch.linalg.vector_norm(v, dim=-2, keepdim=True).clamp_min(tiny)
    return (v * (a @ v)).sum(-2).amax(-1)[:, None, None]


def guarded_scale(a: Tensor, start: Tensor) -> Tensor:
    """Scale that puts every eigenvalue of `a / s` into (0, 2]: `[n, 1, 1]`.

    Twice the power-iteration estimate `rho` if `4 rho >= u`, else the bound `u` itself: in the
    first case `2 rho >= u / 2 >= lambda_max / 2`. A zero matrix gets 1.
    """
    bound = upper_bound(a)
    rho = top_eigenvalue(a, start)
    scale = torch.where(4 * rho >= bound, 2 * rho, bound)
    return torch.where(bound == 0, torch.ones_like(bound), scale)


def nonzero(scale: Tensor) -> Tensor:
    """`scale` with 1 in place of 0: a zero matrix needs no scaling."""
    return torch.where(scale == 0, torch.ones_like(scale), scale)
