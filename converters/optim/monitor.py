"""The two warning signs of training collapse (arXiv 2602.01734): stable rank and alignment."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .targets import layer_of


def stable_rank(w: Tensor, iterations: int = 20) -> Tensor:
    """`||W||_F^2 / ||W||_2^2` per matrix of `w [n, rows, cols]`; 0 for zero matrices. `[n]`.

    The spectral norm comes from `iterations` power iterations on a fixed start vector, which can
    only underestimate it: the result is an upper estimate. Computed in at least float32.
    """
    w = w if w.dtype == torch.float64 else w.float()
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(w.shape[-1], 1, generator=generator, dtype=torch.float64)
    v = (start / start.norm()).to(device=w.device, dtype=w.dtype).expand(w.shape[0], -1, -1)
    tiny = torch.finfo(w.dtype).tiny
    for _ in range(iterations):
        v = w.mT @ (w @ v)
        v = v / torch.linalg.vector_norm(v, dim=-2, keepdim=True).clamp_min(tiny)
    top = (w @ v).square().sum((1, 2))
    total = w.square().sum((1, 2))
    return torch.where(top > 0, total / top.clamp_min(tiny), torch.zeros_like(top))


def jacobian_alignment(
    blocks: Sequence[Callable[[Tensor], Tensor]], hidden: Tensor, *, iterations: int = 10
) -> list[float]:
    """`|v1(J[l + 1]) . u1(J[l])|` for neighbouring blocks: 0 unrelated, 1 fully aligned.

    `J[l]` is the Jacobian of block `l` at its input; `hidden [1, T, d]`, `T <= 64`, enters the
    first block and every block keeps its shape. The top singular pair takes `iterations`
    alternations of one forward-mode and one reverse-mode product; no Jacobian is formed. Fused
    attention kernels have no forward mode, so torch's plain one is used meanwhile.
    Raises ValueError for a longer sequence.
    """
    if hidden.ndim != 3 or hidden.shape[0] != 1 or hidden.shape[1] > 64:
        raise ValueError(f"hidden has shape {tuple(hidden.shape)}, expected [1, T <= 64, d]")
    pairs = []
    with sdpa_kernel(SDPBackend.MATH):
        for block in blocks:
            pairs.append(_top_pair(block, hidden, iterations))
            with torch.no_grad():
                hidden = block(hidden)
    return [float((below[0] * above[1]).sum().abs()) for below, above in pairwise(pairs)]


def _top_pair(
    block: Callable[[Tensor], Tensor], hidden: Tensor, iterations: int
) -> tuple[Tensor, Tensor]:
    """Unit left and right singular vectors `(u1, v1)` of the block's Jacobian at `hidden`."""
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(hidden.shape, generator=generator).to(hidden)
    v = v / v.norm()
    pull = torch.func.vjp(block, hidden)[1]
    u = v
    for _ in range(iterations):
        u = torch.func.jvp(block, (hidden,), (v,))[1]
        u = u / u.norm().clamp_min(1e-30)
        v = pull(u)[0]
        v = v / v.norm().clamp_min(1e-30)
    return u.detach(), v.detach()


class RankWatch:
    """Keeps stable ranks over time and warns when the first third of the layers collapses."""

    def __init__(self, warmup: int) -> None:
        self.warmup = warmup
        self.history: list[tuple[int, dict[str, float]]] = []
        self.alignments: list[tuple[int, list[float]]] = []
        self.baseline: float | None = None
        self.warned = False

    def record(self, t: int, ranks: dict[str, float]) -> None:
        """Store `ranks` (parameter name to stable rank) of step `t`; warn once per collapse.

        The first record at or after `warmup` is the baseline; the warning is a UserWarning.
        """
        self.history.append((t, ranks))
        if t < self.warmup:
            return
        now = early_mean(ranks)
        if self.baseline is None:
            self.baseline = now
        low = now < 0.5 * self.baseline
        if low and not self.warned:
            warnings.warn(
                f"step {t}: geometric-mean stable rank of the first third of layers is "
                f"{now:.2f}, less than half of {self.baseline:.2f} at the end of warm-up; "
                "training may be about to collapse: lower lr or use MSign with a period",
                UserWarning,
                stacklevel=3,
            )
        self.warned = low


def early_mean(ranks: dict[str, float]) -> float:
    """Geometric mean over the first third of the layers, zero matrices left out."""
    layers = sorted({layer_of(name) for name in ranks})
    early = set(layers[: math.ceil(len(layers) / 3)])
    logs = [math.log(r) for name, r in ranks.items() if layer_of(name) in early and r > 0]
    return math.exp(sum(logs) / len(logs)) if logs else 0.0
