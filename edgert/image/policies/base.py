"""What a cache policy is: it decides, once a step, whether the network is computed.

A policy sees one stream of decisions: a batch of latents whose decisions are shared, or one latent
or branch where they are not. Its fields are settings; its state is made by `reset` and belongs to
one generation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..schedules import Array

# What is kept of a computed step, and how the next ones reuse it:
#   residual    h_out - h_in of the body: the next step's h_in + residual goes to the head
#   output      the network's output, as it is or extrapolated
#   difference  output - input: the next step's input + difference
#   blocks      whatever the model keeps of each block (outputs of attention and MLP)
Kind = Literal["residual", "output", "difference", "blocks"]
P = TypeVar("P", bound="Policy")


@dataclass(frozen=True)
class Plan:
    """A generation before it begins.

    timesteps: float64 [T] of the executed steps. offset: how many steps of the schedule's `steps`
    come before them (image to image). samples: latents in the stream. amplification: of errors, by
    guidance.
    """

    timesteps: NDArray[np.floating[Any]]
    offset: int = 0
    steps: int = 0
    samples: int = 1
    amplification: float = 1.0

    def __len__(self) -> int:
        return len(self.timesteps)


class Context:
    """One step as a policy sees it.

    k: executed step from 0. t: what the network is given. sigma: noise level. x: the network's
    input, float32 (or wider) [n, ...]. mixture: (a, b) of x = a·x0 + b·ε. feature: the modulated
    input of block 0 as a token grid [n, H', W', C], computed when it is first asked for.
    """

    __slots__ = ("_feature", "_made", "k", "mixture", "sigma", "t", "x")

    def __init__(
        self, k: int, t: float, sigma: float, x: Array, *,
        mixture: tuple[float, float] = (1.0, 0.0), feature: Callable[[], Array] | None = None,
    ) -> None:  # fmt: skip
        self.k, self.t, self.sigma, self.x, self.mixture = k, t, sigma, x, mixture
        self._feature = feature
        self._made: Array | None = None

    @property
    def feature(self) -> Array:
        if self._made is None:
            self._made = self._feature() if self._feature else grid_of(self.x)
        return self._made


class Store:
    """What is kept of one branch: the value of the last computed step."""

    def __init__(self) -> None:
        self.value: Any = None

    @property
    def empty(self) -> bool:
        return self.value is None

    def put(self, k: int, value: Any) -> None:
        self.value = value

    def get(self, k: int) -> Any:
        """The value to use at step k."""
        return self.value


@dataclass(kw_only=True)
class Policy:
    """Base of all policies. first, last: steps at either end that are always computed."""

    name: ClassVar[str] = "none"
    wants: ClassVar[tuple[Kind, ...]] = ("residual", "output")  # by preference
    tuned: ClassVar[str] = ""  # the field that trades evaluations for fidelity
    first: int = 1
    last: int = 1

    @property
    def idle(self) -> bool:
        """Whether every step would be computed."""
        return False

    def reset(self, plan: Plan) -> None:
        """Begin a generation."""
        self.plan = plan

    def forced(self, k: int) -> bool:
        """Whether step k is computed whatever it looks like."""
        return k < self.first or k >= len(self.plan) - self.last

    def decide(self, ctx: Context) -> bool:
        """Whether to compute this step; asked exactly once a step, before the network runs."""
        raise NotImplementedError

    def observe(self, ctx: Context, computed: bool, output: Array) -> None:
        """What was done in the step. output: of the branch that decided, [n, ...]."""

    def store(self) -> Store:
        """An empty store for one branch."""
        return Store()

    def with_threshold(self: P, value: float) -> P:
        """The same policy with another value of its tuned field."""
        changed: dict[str, Any] = {self.tuned: value}
        return replace(self, **changed)


@dataclass(kw_only=True)
class NoCache(Policy):
    """Computes every step and keeps nothing."""

    @property
    def idle(self) -> bool:
        return True

    def decide(self, ctx: Context) -> bool:
        return True


def grid_of(x: Array) -> Array:
    """A latent [n, C, H, W] as a grid [n, H, W, C]; anything else as [n, D, 1, 1]."""
    if x.ndim == 4:
        return np.moveaxis(x, 1, -1)
    return x.reshape(len(x), -1, 1, 1)


def wide(x: Array) -> Array:
    """float16 as float32; the rest as it is."""
    return x.astype(np.float32) if x.dtype.itemsize < 4 else x


def rms(z: Array) -> NDArray[np.float64]:
    """‖z‖₂/√D of each sample of z [n, ...], float64 [n]."""
    rows = z.reshape(len(z), -1)
    return np.sqrt([float(np.dot(row, row)) / max(row.size, 1) for row in rows])


def mean_abs(z: Array) -> NDArray[np.float64]:
    """Mean absolute value of each sample of z [n, ...], float64 [n]."""
    rows = np.abs(z.reshape(len(z), -1))
    return np.asarray(rows.mean(axis=1), np.float64)


def relative_l1(z: Array, before: Array) -> NDArray[np.float64]:
    """mean|z - before| / mean|before| of each sample, float64 [n]; 0 for equal ones."""
    return mean_abs(z - before) / (mean_abs(before) + 1e-16)
