"""Networks that are formulas: a mixture of Gaussians, linear maps, and a small cut transformer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgert.image.denoiser import At, Denoiser
from edgert.image.schedules import Array, Sampler, sampler_of

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}


def flow_sampler(steps: int, shift: float = 3.0) -> Sampler:
    return sampler_of({**FLOW, "shift": shift}, steps)


def formula(f: Callable[[Array, float], Array]) -> Denoiser:
    """A network in one piece: y = f(x, t)."""
    return Denoiser(full=lambda x, at: f(x, at.t))


class Counted:
    """A network cut in three, with weights, over latents [n, C, H, W]; counts its calls.

    embed scales and adds time, the body mixes tokens and channels, the head projects with time.
    """

    def __init__(self, channels: int = 3, width: int = 8, *, scale: float = 1.0, seed: int = 0):
        numbers = np.random.default_rng(seed)
        draw = lambda *shape: numbers.standard_normal(shape).astype(np.float32) / shape[0] ** 0.5
        self.into, self.out = draw(channels, width), draw(width, channels)
        self.mix = scale * draw(width, width)
        self.shift = {"cond": draw(width), "uncond": draw(width)}
        self.bodies: list[tuple[str, int]] = []  # branch and step of each call
        self.samples = 0
        self.fail_at: int | None = None

    def embed(self, x: Array, at: At) -> tuple[Array, Any]:
        self.shape = x.shape
        tokens = np.moveaxis(x, 1, -1).reshape(len(x), -1, x.shape[1])
        time = np.float32(np.cos(at.t / 300))
        return tokens @ self.into + time, (at, time, x.shape)

    def body(self, h: Array, aux: Any) -> Array:
        at, time, _ = aux
        if self.fail_at is not None and at.k >= self.fail_at:
            raise RuntimeError("the device went away")
        self.bodies.append((at.branch, at.k))
        self.samples += len(h)
        return h + (1 + time / 8) * self.inner(h, aux)

    def inner(self, h: Array, aux: Any) -> Array:
        """Before its gate, which depends on time."""
        return np.tanh(h @ self.mix + self.shift[aux[0].branch] * aux[1])

    def head(self, h: Array, aux: Any) -> Array:
        _, time, (n, c, height, width) = aux
        tokens = (h * (1 + time)) @ self.out
        return np.moveaxis(tokens.reshape(n, height, width, c), -1, 1)

    def feature(self, h: Array, aux: Any) -> Array:
        n, _, height, width = aux[2]
        return (h * (1 + aux[1])).reshape(n, height, width, -1)

    def keep(self, h: Array, aux: Any) -> tuple[Array, Any]:
        return self.body(h, aux), self.inner(h, aux)

    def reuse(self, h: Array, aux: Any, kept: Any) -> Array:
        return h + (1 + aux[1] / 8) * kept

    @property
    def model(self) -> Denoiser:
        return Denoiser(
            embed=self.embed, body=self.body, head=self.head, feature=self.feature,
            keep=self.keep, reuse=self.reuse,
        )  # fmt: skip

    @property
    def whole(self) -> Denoiser:
        """The same in one piece."""
        return Denoiser(full=lambda x, at: self.model.run(x, at))


def latents(n: int = 1, seed: int = 0, shape: tuple[int, ...] = (3, 4, 6)) -> Array:
    return np.random.default_rng(seed).standard_normal((n, *shape), np.float32)
