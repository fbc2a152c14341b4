"""MSign: stable-rank restoration around any optimizer (arXiv 2602.01734)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .monitor import RankWatch, stable_rank
from .polar import POLARS, impact, polar
from .roots import full_precision
from .targets import Target, matrix_parts, select_targets

TOO_SMALL = 1e-12
MONITOR_EVERY = 100


class MSign(Optimizer):
    """Every `period` steps replace target weights `W = U S V^T` by `U V^T ||W||_F / ||U V^T||_F`.

    Wraps `base`: `param_groups`, `state` and `defaults` are the very objects of the base, so
    learning-rate schedulers and gradient scalers work on either. `Dash` may be the base. Only
    weights change, optimizer moments do not.

    Args:
        base: any torch optimizer.
        named_params: (name, tensor) pairs, as from `model.named_parameters()`.
        targets: "attn" (attention projections), "attn_out" (output projections), "all2d", or
            `callable(name, p) -> bool`. Embeddings, heads and norms match none of the named
            rules; tensors tagged `p._edgert_no_msign = True` never match. A fused QKV weight is
            treated as three matrices, see `targets.matrix_parts`.
        period: steps between applications; None: monitor only, bit-identical to the base.
        polar: "svd", "newton_schulz" (falls back to the SVD) or "auto".
        start, stop: first and last step at which it may apply.
        mix: exponent of the flattening; below 1 it writes `U S^(1 - mix) V^T`, rescaled (our
            extension, SVD only).
        guard_cos: skip a matrix whose cosine to its sign is below this; counted in `stats`.
        monitor_every: steps between records of stable rank; None: 100 if `period` is None, else
            never. Records are in `watch.history`.
        warmup: step whose stable rank is the baseline of the monitor's warning.
        alignment_probe: called at every record, its result goes to `watch.alignments`; usually
            `lambda: jacobian_alignment(blocks, hidden)` with dropout switched off.

    `t` counts the steps the base really took. Records of the monitor are no part of the saved
    state: after a resume the next one at or after `warmup` is the baseline. `stats` counts
    "applied", "guarded" and "skipped" (norm below 1e-12) matrices. Meant for training from scratch:
    on trained weights the flattening destroys what was learnt, so healing runs leave it off. Raises
    ValueError for arguments out of range or targets that match nothing.
    """

    def __init__(
        self,
        base: Optimizer,
        *,
        named_params: Iterable[tuple[str, Tensor]],
        targets: Target = "attn",
        period: int | None = 100,
        polar: str = "svd",
        start: int = 0,
        stop: int | None = None,
        mix: float = 1.0,
        guard_cos: float = 0.0,
        monitor_every: int | None = None,
        warmup: int = 0,
        alignment_probe: Callable[[], Sequence[float]] | None = None,
    ) -> None:
        if not isinstance(base, Optimizer):
            raise TypeError(f"base is {type(base).__name__}, expected a torch optimizer")
        _check(period, polar, mix, guard_cos, monitor_every)
        self.base = base
        self.period, self.polar, self.start, self.stop = period, polar, start, stop
        self.mix, self.guard_cos = mix, guard_cos
        if monitor_every is None and period is None:
            monitor_every = MONITOR_EVERY
        self.monitor_every = monitor_every
        self.watch = RankWatch(warmup)
        self.alignment_probe = alignment_probe
        self.t = 0
        self.stats = {"applied": 0, "guarded": 0, "skipped": 0}
        self._advanced = False
        self._share_hooks()
        trained = {id(p) for group in base.param_groups for p in group["params"]}
        self.targets = select_targets(named_params, targets, trained)
        for name, p in self.targets:
            matrix_parts(name, p)  # a fused weight that cannot be split must fail now

    def _share_hooks(self) -> None:
        """Hooks registered on either object are the base's, and run inside its step."""
        for name, value in self.base.__dict__.items():
            if name.startswith("_optimizer_"):
                self.__dict__[name] = value

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The base's parameter groups."""
        return self.base.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The base's state."""
        return self.base.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The base's defaults."""
        return self.base.defaults

    def __repr__(self) -> str:
        return f"MSign(period={self.period}, targets={len(self.targets)}, base={self.base!r})"

    def zero_grad(self, set_to_none: bool = True) -> None:
        """The base's zero_grad."""
        self.base.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base. The targets stay those found at construction."""
        self.base.add_param_group(param_group)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """A step of the base, then, if due, one application; returns the base's loss."""
        self._advanced = False
        loss = self.base.step(closure) if closure is not None else self.base.step()
        if not self._advanced:  # else it is also registered as a hook, which ran already
            self._advance()
        return loss

    def after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """For `base.register_step_post_hook(msign.after_step)`: then call `base.step` as usual."""
        self._advance()
        self._advanced = True

    def _advance(self) -> None:
        self.t += 1
        due = self.period is not None and self.t % self.period == 0 and self.t >= self.start
        if due and (self.stop is None or self.t <= self.stop):
            self.apply()
        if self.monitor_every is not None and self.t % self.monitor_every == 0:
            self.watch.record(self.t, self.stable_ranks())
            if self.alignment_probe is not None:
                self.watch.alignments.append((self.t, list(self.alignment_probe())))

    @torch.no_grad()
    def apply(self) -> None:
        """Restore all targets now, equal shapes in one batch."""
        batches: dict[Any, list[Tensor]] = {}
        for name, p in self.targets:
            for part in matrix_parts(name, p):
                batches.setdefault((part.shape, part.dtype, part.device), []).append(part)
        with full_precision():
            for parts in batches.values():
                self._apply_batch(parts)

    def _apply_batch(self, parts: list[Tensor]) -> None:
        stored = parts[0].dtype
        dtype = torch.float64 if stored == torch.float64 else torch.float32
        w = torch.stack(parts).to(dtype)  # [n, rows, cols]
        norm = torch.linalg.vector_norm(w, dim=(1, 2))
        live = norm >= TOO_SMALL
        self.stats["skipped"] += int((~live).sum())
        rows = live.nonzero().flatten()
        if not len(rows):
            return
        w, norm = w[rows], norm[rows, None, None]
        out, sign = polar(w, self.polar, torch.finfo(dtype).eps, self.mix)
        out = out * (norm / torch.linalg.vector_norm(out, dim=(1, 2), keepdim=True))
        kept = impact(w, sign) >= self.guard_cos if self.guard_cos > 0 else live[rows]
        for index, keep, new in zip(rows.tolist(), kept.tolist(), out, strict=True):
            if keep:
                parts[index].copy_(new)
            self.stats["applied" if keep else "guarded"] += 1

    @torch.no_grad()
    def stable_ranks(self) -> dict[str, float]:
        """Stable rank of every target by name; parts of a fused weight are name[0], [1], [2]."""
        ranks = {}
        for name, p in self.targets:
            parts = matrix_parts(name, p)
            for index, part in enumerate(parts):
                label = name if len(parts) == 1 else f"{name}[{index}]"
                ranks[label] = float(stable_rank(part[None])[0])
        return ranks

    def state_dict(self) -> dict[str, Any]:
        """`{"base": the base's state, "t": steps taken}`."""
        return {"base": self.base.state_dict(), "t": self.t}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict()`; ValueError if an entry is missing."""
        missing = sorted({"base", "t"} - set(state_dict))
        if missing:
            raise ValueError(f"the state lacks {missing}, expected the state_dict of an MSign")
        self.base.load_state_dict(state_dict["base"])
        self._share_hooks()
        self.t = int(state_dict["t"])


def _check(
    period: int | None, polar: str, mix: float, guard_cos: float, monitor_every: int | None
) -> None:
    for name, value in (("period", period), ("monitor_every", monitor_every)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}, expected a positive integer or None")
    if polar not in POLARS:
        raise ValueError(f"polar is {polar!r}, expected one of {', '.join(POLARS)}")
    if not 0 < mix <= 1:
        raise ValueError(f"mix is {mix}, expected 0 < mix <= 1")
    if mix < 1 and polar == "newton_schulz":
        raise ValueError("mix below 1 needs singular values: use polar='svd' or 'auto'")
    if not 0 <= guard_cos <= 1:
        raise ValueError(f"guard_cos is {guard_cos}, expected 0 <= guard_cos <= 1")
