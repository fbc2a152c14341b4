"""The sampling loop with a cache: from noise to a latent, computing only the steps that a policy
asks for.

One computed step runs all branches of guidance. A computed step's head reads what the body made
itself, not h + (h_out - h), which rounds: without reuse the latent is that of an uncached sampler,
bit for bit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError
from ..notices import notice
from .denoiser import At, Denoiser, Rows, check_finite
from .guidance import COND, Guidance
from .policies import Context, Kind, NoCache, Plan, Policy, Store
from .policies.base import grid_of, wide
from .schedules import Array, Run, Sampler

SHORTEST = 8  # executed steps; few-step models gain nothing from reuse
# (k, total, x, computed) after each executed step; True stops the loop.
OnStep = Callable[[int, int, Array, bool], "bool | None"]


@dataclass(frozen=True, kw_only=True)
class Caching:
    """How steps are reused.

    mode: what is kept; by default the policy's first choice that the model can serve. per_branch:
    let every branch of guidance decide for itself. per_sample: let every latent of a batch. forced:
    reuse also in short and in stochastic runs.
    """

    policy: Policy = field(default_factory=NoCache)
    mode: Kind | None = None
    per_branch: bool = False
    per_sample: bool = False
    forced: bool = False


@dataclass(frozen=True)
class Sampled:
    """A finished run. x: the last latent [n, ...]. computed: bool [T, branches, n], what was
    computed and not reused. cancelled: whether on_step stopped it."""

    x: Array
    computed: NDArray[np.bool_]
    cancelled: bool = False

    @property
    def evaluations(self) -> float:
        """Computed steps, the mean over branches and latents (NFE)."""
        return float(self.computed.mean(axis=(1, 2)).sum()) if self.computed.size else 0.0


def sample(
    model: Denoiser, sampler: Sampler, x: Array, *, guidance: Guidance | None = None,
    caching: Caching | None = None, run: Run | None = None, first: int = 0,
    on_step: OnStep | None = None,
) -> Sampled:  # fmt: skip
    """Bring the latent x [n, ...] from where step `first` begins to the end of the schedule.

    run: seeds of a stochastic sampler, the one that drew x, so that its noise is not drawn twice.
    first: later than 0 for image to image. The given policy is not changed. Raises RequestError for
    a policy or guidance that the model cannot serve, DeviceError for values that are not finite.
    """
    if not 0 <= first < len(sampler):
        raise RequestError(
            f"the first step is {first}, expected from 0 to {len(sampler) - 1}",
            code="parameter-range",
            hint="leave it out to run all of them",
            field="first",
        )
    guidance, run = guidance or Guidance(), run or Run()
    total = len(sampler) - first
    caching = usable(caching or Caching(), sampler, total)
    branches = model.run_order(guidance.branches)
    steps = _Steps(model, guidance, caching, branches, x.shape[0])
    steps.reset(sampler, first, guidance.amplification)
    computed = np.zeros((total, len(branches), x.shape[0]), bool)
    for k in range(total):
        t = float(sampler.timesteps[first + k])
        outputs = steps.outputs(sampler, sampler.scale_input(x, first + k), first + k, k)
        for branch, y in outputs.items():
            check_finite(y, f"the network's output for `{branch}`", k, total, t)
        x = sampler.step(guidance.combine(outputs), first + k, x, run)
        check_finite(x, "the latent", k, total, t)
        computed[k] = steps.computed
        if on_step and on_step(k, total, x, bool(steps.computed.any())):
            return Sampled(x, computed[: k + 1], cancelled=k + 1 < total)
    return Sampled(x, computed)


def usable(caching: Caching, sampler: Sampler, total: int) -> Caching:
    """The same, or no caching where it does harm (with a notice) or computes all steps anyway."""
    policy = caching.policy
    if policy.idle:
        return Caching()
    why = ""
    if total < SHORTEST:
        why = f"{total} steps are too few, it wants at least {SHORTEST}"
    elif sampler.stochastic:
        why = "the sampler adds noise in every step"
    if why and not caching.forced:
        notice(f"the cache policy {policy.name} is off: {why}")
        return Caching()
    return caching


@dataclass
class _Stream:
    """Branches and latents that share their decisions."""

    policy: Policy
    branches: tuple[str, ...]
    rows: Rows
    stores: dict[str, Store]
    compute: bool = True
    context: Context | None = None

    @property
    def leader(self) -> str:
        """The branch whose features and outputs are looked at."""
        return COND if COND in self.branches else self.branches[0]


class _Steps:
    """The steps of one run."""

    def __init__(
        self, model: Denoiser, guidance: Guidance, caching: Caching, branches: tuple[str, ...],
        samples: int,
    ) -> None:  # fmt: skip
        self.model, self.guidance, self.branches = model, guidance, branches
        self.kind = _kind_for(caching, model)
        if caching.per_sample and self.kind == "blocks":
            raise RequestError(
                f"{caching.policy.name} keeps blocks of the whole batch, expected one decision a "
                "batch",
                code="policy",
                hint="leave per_sample out",
                field="per_sample",
            )
        groups = [(branch,) for branch in branches] if caching.per_branch else [branches]
        every = np.arange(samples, dtype=np.int64)
        parts = [every[i : i + 1] for i in range(samples)] if caching.per_sample else [every]
        self.streams = [
            _Stream(copy.copy(caching.policy), group, rows, {})
            for group in groups
            for rows in parts
        ]
        self.samples = samples
        self.computed = np.ones((len(branches), samples), bool)

    def reset(self, sampler: Sampler, first: int, amplification: float) -> None:
        timesteps = sampler.timesteps[first:]
        for stream in self.streams:
            plan = Plan(timesteps, first, len(sampler), len(stream.rows), amplification)
            stream.policy.reset(plan)
            stream.stores = {branch: stream.policy.store() for branch in stream.branches}

    def outputs(self, sampler: Sampler, x: Array, index: int, k: int) -> dict[str, Array]:
        """Every branch's output at executed step k, which is `index` of the schedule. x: the
        network's input."""
        embedded = _Embedded(self.model, x, index, float(sampler.timesteps[index]))
        for stream in self.streams:
            rows, leader = stream.rows, stream.leader
            stream.context = Context(
                k, embedded.t, float(sampler.sigmas[index]), self._part(x, rows),
                mixture=sampler.mixture(index),
                feature=self._feature_of(embedded, leader, rows),
            )  # fmt: skip
            stream.compute = stream.policy.decide(stream.context)
            stream.compute |= any(store.empty for store in stream.stores.values())
        found = {branch: self._branch(branch, embedded, k) for branch in self.branches}
        for stream in self.streams:
            for row, branch in enumerate(self.branches):
                if branch in stream.branches:
                    self.computed[row, stream.rows] = stream.compute
            if stream.context:
                output = self._part(found[stream.leader], stream.rows)
                stream.policy.observe(stream.context, stream.compute, output)
        return found

    def _feature_of(self, embedded: _Embedded, branch: str, rows: Rows) -> Callable[[], Array]:
        return lambda: self._part(embedded.feature(branch), rows)

    def _branch(self, branch: str, embedded: _Embedded, k: int) -> Array:
        """One branch's output [n, ...]; those that compute and those that reuse are batches."""
        streams = [stream for stream in self.streams if branch in stream.branches]
        found: Array | None = None
        for compute in (True, False):
            batch = [stream for stream in streams if stream.compute is compute]
            if not batch:
                continue
            rows = np.concatenate([stream.rows for stream in batch])
            whole = len(rows) == self.samples
            part = embedded if whole else embedded.part(rows)
            stores = [stream.stores[branch] for stream in batch]
            y = self._compute(branch, part, stores, k) if compute else self._reuse(
                branch, part, stores, k)  # fmt: skip
            if whole:
                return y
            if found is None:
                found = np.empty((self.samples, *y.shape[1:]), y.dtype)
            found[rows] = y
        return found if found is not None else embedded.x

    def _compute(self, branch: str, part: _Embedded, stores: list[Store], k: int) -> Array:
        kept: Any
        if not self.model.cut:
            y = self._cut(self.model.run(part.x, part.at(branch)))
            kept = y if self.kind == "output" else y - part.x if self.kind else None
        else:
            h, aux = part.embed(branch)
            if self.kind == "blocks" and self.model.keep:
                out, kept = self.model.keep(h, aux)
            else:
                out = self.model.blocks(h, aux)
                kept = out - h if self.kind == "residual" else None
            y = self._cut(self.model.finish(out, aux))
            if self.kind in ("output", "difference"):
                kept = y if self.kind == "output" else y - part.x
        if self.kind:
            for store, value in zip(stores, self._shares(kept, stores), strict=True):
                store.put(k, value)
        return y

    def _reuse(self, branch: str, part: _Embedded, stores: list[Store], k: int) -> Array:
        values = [store.get(k) for store in stores]
        value = values[0] if len(values) == 1 else np.concatenate(values)
        if self.kind == "output":
            return np.asarray(value)
        if self.kind == "difference":
            return np.asarray(part.x + value)
        h, aux = part.embed(branch)
        if self.kind == "blocks" and self.model.reuse:
            return self._cut(self.model.finish(self.model.reuse(h, aux, value), aux))
        return self._cut(self.model.finish(h + value, aux))

    def _cut(self, y: Array) -> Array:
        return wide(self.guidance.cut(y))

    def _part(self, values: Array, rows: Rows) -> Array:
        return values if len(rows) == self.samples else values[rows]

    @staticmethod
    def _shares(kept: Any, stores: list[Store]) -> list[Any]:
        """What each stream keeps: all of it, or one latent's where each decides for itself."""
        if len(stores) == 1:
            return [kept]
        return [kept[i : i + 1].copy() for i in range(len(stores))]


class _Embedded:
    """One step's input, with what `embed` made of it for each branch, at most once."""

    def __init__(
        self, model: Denoiser, x: Array, index: int, t: float, rows: Rows | None = None
    ) -> None:
        self.model, self.x, self.index, self.t, self.rows = model, x, index, t, rows
        self._made: dict[str, tuple[Array, Any]] = {}

    def at(self, branch: str) -> At:
        return At(self.index, self.t, branch, self.rows)

    def embed(self, branch: str) -> tuple[Array, Any]:
        if branch not in self._made:
            self._made[branch] = self.model.begin(self.x, self.at(branch))
        return self._made[branch]

    def feature(self, branch: str) -> Array:
        if self.model.feature is None or not self.model.cut:
            return grid_of(self.x)
        return self.model.feature(*self.embed(branch))

    def part(self, rows: Rows) -> _Embedded:
        return _Embedded(self.model, self.x[rows], self.index, self.t, rows)


def _kind_for(caching: Caching, model: Denoiser) -> Kind | None:
    """What to keep of a computed step; nothing without a policy."""
    policy = caching.policy
    if policy.idle:
        return None
    wanted = policy.wants if caching.mode is None else (caching.mode,)
    served = [kind for kind in wanted if kind in model.kinds and kind in policy.wants]
    if not served:
        raise RequestError(
            f"the cache policy {policy.name} with mode {caching.mode or 'left open'} reuses "
            f"{' or '.join(policy.wants)}, the model serves {', '.join(model.kinds)}",
            code="policy-mode",
            hint="choose another policy, or convert the model with its body cut out",
            field="mode",
        )
    return served[0]
