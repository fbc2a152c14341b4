"""What acts on whole parameters: AdamW directions for those without factors, and the write-back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Elementwise:
    """Adam moments per parameter, updated by a few fused list operations (no loop on the GPU)."""

    def __init__(self, beta1: float, beta2: float, eps: float) -> None:
        self.beta1, self.beta2, self.eps = beta1, beta2, eps
        self.mean: dict[int, Tensor] = {}
        self.square: dict[int, Tensor] = {}

    def extend(self, params: dict[int, Tensor]) -> None:
        """Allocate zero moments, float32 or float64, for parameters not yet known."""
        for i, p in params.items():
            if i not in self.mean:
                dtype = state_dtype(p.dtype)
                self.mean[i] = torch.zeros(p.shape, device=p.device, dtype=dtype)
                self.square[i] = torch.zeros(p.shape, device=p.device, dtype=dtype)

    def tensors(self) -> dict[str, Tensor]:
        """Every state tensor under a stable name, by reference."""
        return {
            f"{kind}/{i}": tensor
            for kind in ("mean", "square")
            for i, tensor in getattr(self, kind).items()
        }

    def directions(self, t: int, grads: dict[int, Tensor]) -> dict[int, Tensor]:
        """Bias-corrected Adam directions for parameters that are all at step `t`."""
        if not grads:
            return {}
        ids = list(grads)
        mean = [self.mean[i] for i in ids]
        square = [self.square[i] for i in ids]
        fresh = [grads[i].to(m.dtype) for i, m in zip(ids, mean, strict=True)]
        torch._foreach_lerp_(mean, fresh, 1 - self.beta1)
        torch._foreach_mul_(square, self.beta2)
        torch._foreach_addcmul_(square, fresh, fresh, value=1 - self.beta2)
        below = torch._foreach_div(square, 1 - self.beta2**t)
        torch._foreach_sqrt_(below)
        torch._foreach_add_(below, self.eps)
        out = torch._foreach_div(mean, 1 - self.beta1**t)
        torch._foreach_div_(out, below)
        return dict(zip(ids, out, strict=True))


def is_matrix(p: Tensor) -> bool:
    """True if `p` has at least two dimensions larger than one."""
    return sum(size != 1 for size in p.shape) >= 2 and p.numel() > 0


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def apply_updates(group: dict[str, Any], params: list[Tensor], updates: list[Tensor]) -> None:
    """`p <- p (1 - lr wd) - lr u`, in the dtype of `u`, rounded once to the dtype of `p`."""
    if not params:
        return
    lr, decay = float(group["lr"]), float(group["weight_decay"])
    updated = [
        p if p.dtype == u.dtype else p.to(u.dtype) for p, u in zip(params, updates, strict=True)
    ]
    matrices = [w for w in updated if is_matrix(w)]
    if decay and matrices:
        torch._foreach_mul_(matrices, 1 - lr * decay)
    shaped = [u.view(w.shape) for u, w in zip(updates, updated, strict=True)]
    torch._foreach_add_(updated, shaped, alpha=-lr)
    for p, w in zip(params, updated, strict=True):
        if p is not w:
            p.copy_(w)
