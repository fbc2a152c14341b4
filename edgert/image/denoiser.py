"""A network that removes noise, as the sampling loop sees it: callables over NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DeviceError, RequestError
from .guidance import COND, UNCOND
from .policies import Kind
from .schedules import Array

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class At:
    """Where the network is called. k: step of the schedule. t: what it is given. branch: whose
    conditioning. rows: which latents of the batch x holds, int64; None for all of them. branches:
    one a latent of x, for networks that are joint."""

    k: int
    t: float
    branch: str = COND
    rows: Rows | None = None
    branches: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Denoiser:
    """Either `full`, or `embed`, `body` and `head`; a cut network can be reused in every way.

    full: (x, at) -> y. embed: (x, at) -> (h, aux). body: (h, aux) -> h_out, all blocks. head:
    (h_out, aux) -> y. Here x [n, ...] float32, h and h_out [n, tokens, d], aux whatever the model
    wants, y [n, ...] with channels on axis 1. Arrays that are returned are kept for later steps:
    the model must not write into them again.

    feature: (h, aux) -> the modulated input of block 0 as a grid [n, H', W', C]; without it the
    policies that want one look at x. keep: (h, aux) -> (h_out, kept) and reuse: (h, aux, kept) ->
    h_out are the body computed with what its blocks keep, and run with that. branches: those the
    model has, in the order in which they are run. joint: x may hold latents of several branches,
    one after the other, which `At.branches` names; h and aux can then be cut by latents.
    """

    full: Callable[[Array, At], Array] | None = None
    embed: Callable[[Array, At], tuple[Array, Any]] | None = None
    body: Callable[[Array, Any], Array] | None = None
    head: Callable[[Array, Any], Array] | None = None
    feature: Callable[[Array, Any], Array] | None = None
    keep: Callable[[Array, Any], tuple[Array, Any]] | None = None
    reuse: Callable[[Array, Any, Any], Array] | None = None
    branches: tuple[str, ...] = (UNCOND, COND)
    joint: bool = False

    @property
    def cut(self) -> bool:
        """Whether embed, body and head are there."""
        return None not in (self.embed, self.body, self.head)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What can be kept of a step."""
        found: tuple[Kind, ...] = ("output", "difference")
        if self.cut:
            found = ("residual", *found)
            if self.keep and self.reuse:
                found += ("blocks",)
        return found

    def begin(self, x: Array, at: At) -> tuple[Array, Any]:
        """`embed`, for a network that is cut."""
        if self.embed is None:
            raise RequestError(
                "the network is one piece, expected embed, body and head",
                code="denoiser",
                hint="reuse outputs instead of residuals",
            )
        return self.embed(x, at)

    def blocks(self, h: Array, aux: Any) -> Array:
        if self.body is None:
            raise TypeError("a denoiser without a body")
        return self.body(h, aux)

    def finish(self, h: Array, aux: Any) -> Array:
        if self.head is None:
            raise TypeError("a denoiser without a head")
        return self.head(h, aux)

    def run(self, x: Array, at: At) -> Array:
        """The output [n, ...], computed."""
        if self.cut:
            h, aux = self.begin(x, at)
            return self.finish(self.blocks(h, aux), aux)
        if self.full is None:
            raise TypeError("a denoiser without callables")
        return self.full(x, at)

    def run_order(self, wanted: tuple[str, ...]) -> tuple[str, ...]:
        """The wanted branches in the model's order. Raises RequestError if it lacks one."""
        if missing := set(wanted) - set(self.branches):
            raise RequestError(
                f"the model has the branches {', '.join(self.branches)}, expected "
                f"{', '.join(sorted(missing))} too for this guidance",
                code="guidance",
                hint="use a guidance scale of 1",
                field="scale",
            )
        return tuple(branch for branch in self.branches if branch in wanted)


def check_finite(value: Array, what: str, k: int, total: int, t: float) -> None:
    """Raise DeviceError, naming the step, unless all values are numbers (hostile input H39)."""
    bad = value.size - int(np.count_nonzero(np.isfinite(value)))
    if bad:
        raise DeviceError(
            f"step {k + 1} of {total} (t = {t:g}): {bad} of {value.size} values of {what} are not "
            "finite, expected numbers",
            code="not-finite",
            hint="run in a wider format (fp32), or without the cache; else the weights are damaged",
            step=k,
        )
