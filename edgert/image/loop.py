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
        t = float(sampler.timesteps[index])
        embedded = _Embedded(self.model, self.branches, x, index, t)
        for stream in self.streams:
            rows, leader = stream.rows, stream.leader
            stream.context = Context(
                k, embedded.t, float(sampler.sigmas[index]), self._part(x, rows),
                mixture=sampler.mixture(index),
                feature=self._feature_of(embedded, leader, rows),
            )  # fmt: skip
            stream.compute = stream.policy.decide(stream.context)
            stream.compute |= any(store.empty for store in stream.stores.values())
        found: dict[str, Array] = {}
        joint = self.model.joint
        for branches in [self.branches] if joint else [(branch,) for branch in self.branches]:
            self._run(branches, embedded, k, found)
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

    def _run(
        self, branches: tuple[str, ...], embedded: _Embedded, k: int, found: dict[str, Array]
    ) -> None:
        """Some branches' outputs [n, ...]; those that compute and those that reuse are batches."""
        for compute in (True, False):
            lanes = [
                (branch, stream)
                for branch in branches
                for stream in self.streams
                if branch in stream.branches and stream.compute is compute
            ]
            if not lanes:
                continue
            batch = embedded.batch([(branch, stream.rows) for branch, stream in lanes])
            stores = [stream.stores[branch] for branch, stream in lanes]
            ends = np.cumsum([len(stream.rows) for _, stream in lanes]).tolist()
            spans = [slice(end - len(s.rows), end) for end, (_, s) in zip(ends, lanes, strict=True)]
            y = self._compute(batch, stores, spans, k) if compute else self._reuse(batch, stores, k)
            for (branch, stream), span in zip(lanes, spans, strict=True):
                if len(stream.rows) == self.samples:
                    found[branch] = y[span]
                    continue
                if branch not in found:
                    found[branch] = np.empty((self.samples, *y.shape[1:]), y.dtype)
                found[branch][stream.rows] = y[span]

    def _compute(self, batch: _Batch, stores: list[Store], spans: list[slice], k: int) -> Array:
        kept: Any
        if not self.model.cut:
            y = self._cut(self.model.run(batch.x, batch.at))
            kept = y if self.kind == "output" else y - batch.x if self.kind else None
        else:
            h, aux = batch.embed()
            if self.kind == "blocks" and self.model.keep:
                out, kept = self.model.keep(h, aux)
            else:
                out = self.model.blocks(h, aux)
                kept = out - h if self.kind == "residual" else None
            y = self._cut(self.model.finish(out, aux))
            if self.kind in ("output", "difference"):
                kept = y if self.kind == "output" else y - batch.x
        if self.kind and len(stores) == 1:
            stores[0].put(k, kept)
        elif self.kind:  # copies, so that nobody keeps the others'
            for store, span in zip(stores, spans, strict=True):
                store.put(k, kept[span].copy())
        return y

    def _reuse(self, batch: _Batch, stores: list[Store], k: int) -> Array:
        values = [store.get(k) for store in stores]
        value = values[0] if len(values) == 1 else np.concatenate(values)
        if self.kind == "output":
            return np.asarray(value)
        if self.kind == "difference":
            return np.asarray(batch.x + value)
        h, aux = batch.embed()
        if self.kind == "blocks" and self.model.reuse:
            return self._cut(self.model.finish(self.model.reuse(h, aux, value), aux))
        return self._cut(self.model.finish(h + value, aux))

    def _cut(self, y: Array) -> Array:
        return wide(self.guidance.cut(y))

    def _part(self, values: Array, rows: Rows) -> Array:
        return values if len(rows) == self.samples else values[rows]


class _Batch:
    """Latents of one call of the network. source: the batch that these are a part of, and which."""

    def __init__(self, model: Denoiser, x: Array, at: At) -> None:
        self.model, self.x, self.at = model, x, at
        self.source: tuple[_Batch, slice] | None = None
        self._made: tuple[Any, Any] | None = None

    def embed(self) -> tuple[Any, Any]:
        """What `embed` makes of them, computed when it is first asked for."""
        if self._made is None and self.source is not None:
            (h, aux), span = self.source[0].embed(), self.source[1]
            self._made = h[span], aux[span]
        elif self._made is None:
            self._made = self.model.begin(self.x, self.at)
        return self._made


class _Embedded:
    """One step's input x [n, ...], and the batches that the network is called with."""

    def __init__(
        self, model: Denoiser, branches: tuple[str, ...], x: Array, index: int, t: float
    ) -> None:
        self.model, self.branches, self.x, self.index, self.t = model, branches, x, index, t
        self._whole: dict[tuple[str, ...], _Batch] = {}

    def feature(self, branch: str) -> Array:
        if self.model.feature is None or not self.model.cut:
            return grid_of(self.x)
        return self.model.feature(*self.whole((branch,)).embed())

    def whole(self, branches: tuple[str, ...]) -> _Batch:
        """All latents, of one branch or of all."""
        if branches not in self._whole:
            source = None
            if self.model.joint and branches != self.branches:
                first = self.branches.index(branches[0]) * len(self.x)
                source = self.whole(self.branches), slice(first, first + len(self.x))
            every = np.arange(len(self.x))
            self._whole[branches] = self._batch([(b, every) for b in branches], None)
            self._whole[branches].source = source
        return self._whole[branches]

    def batch(self, lanes: list[tuple[str, Rows]]) -> _Batch:
        """Rows of branches, those of one branch behind one another."""
        branches = tuple(dict.fromkeys(branch for branch, _ in lanes))
        count = sum(len(rows) for _, rows in lanes)
        if count == len(branches) * len(self.x):
            return self.whole(branches)
        return self._batch(lanes, np.concatenate([rows for _, rows in lanes]))

    def _batch(self, lanes: list[tuple[str, Rows]], rows: Rows | None) -> _Batch:
        x = self.x if len(lanes) == 1 and rows is None else None
        if x is None:
            x = np.concatenate([self.x[some] for _, some in lanes])
        each = tuple(branch for branch, some in lanes for _ in some) if self.model.joint else ()
        return _Batch(self.model, x, At(self.index, self.t, lanes[0][0], rows, each))


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
