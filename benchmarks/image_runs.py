"""Drawings for `benchmarks.image_caching`, one at a time with one thread, in as many processes as
asked.

Every drawing is a batch of one, so that each decides for itself which steps it computes, as it
would for a user; its evaluations are counted by the sampling loop.
"""

from __future__ import annotations

import copy
import multiprocessing
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edgert
from edgert.image import calibration, resize  # noqa: F401  (resize: loaded before the clock runs)
from edgert.image.calibrate import Case, Traced, calibrate, fit, trace
from edgert.image.guidance import Guidance
from edgert.image.loop import Caching, sample
from edgert.image.model import ImageModel
from edgert.image.network import Network
from edgert.image.policies import Context, Kind, Plan, Policy
from edgert.image.policies.base import relative_l1
from edgert.image.request import Request, resolve
from edgert.image.schedules import Run, Sampler, flux_mu, sampler_of, start
from edgert.image.tables import SensitivityTable

F32, F64 = NDArray[np.float32], NDArray[np.float64]


@dataclass(frozen=True)
class Protocol:
    """What all drawings share. guidance: w. shift: of a flow's schedule; None is the model's."""

    bundle: str
    steps: int = 50
    guidance: float = 3.0
    shift: float | None = 3.0
    threads: int = 1


@dataclass(frozen=True)
class Drawn:
    """latent [C, H, W], picture uint8 [H, W, 3]. computed: bool [T]. seconds: CPU
    time of the loop, which other processes do not change much."""

    latent: F32
    picture: NDArray[np.uint8]
    computed: NDArray[np.bool_]
    seconds: float


@dataclass(frozen=True)
class Recorded:
    """An uncached run on which policies were replayed. xs: the network's inputs [T, C, H, W].
    evaluations: by name of a policy, for each of its thresholds."""

    drawn: Drawn
    xs: F32
    evaluations: dict[str, F64]


class Artist:
    """The model of a protocol, open."""

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol
        options: dict[str, Any] = {"threads": protocol.threads, "kind": "image"}
        self.model: ImageModel = edgert.load(protocol.bundle, **options)
        self.guidance = self.network(self.request("", 0))[1]

    def request(self, prompt: str, seed: int) -> Request:
        given = {
            "seed": seed, "steps": self.protocol.steps, "cfg_scale": self.protocol.guidance,
        }  # fmt: skip
        return resolve(self.model.spec, self.model.latents, prompt, given)

    def network(self, request: Request) -> tuple[Network, Guidance]:
        if not request.prompt and self.model.spec.conditioning == "labels":
            request = replace(request, prompt="0")
        return self.model.network(request)

    def sampler(self, steps: int | None = None) -> Sampler:
        """The protocol's, over other steps where given."""
        config = dict(self.model.spec.scheduler)
        if self.protocol.shift is not None and "shift" in config:
            config.update(shift=self.protocol.shift, use_dynamic_shifting=False)
        grid = self.model.made
        mu = flux_mu(config, grid[0] * grid[1]) if config.get("use_dynamic_shifting") else None
        return sampler_of(config, steps or self.protocol.steps, mu=mu)

    def noise(self, request: Request, sampler: Sampler) -> Any:
        shape = (1, self.model.latents.channels, *request.grid)
        return start(sampler, shape, Run(request.seeds))

    def finished(self, latent: Any, computed: NDArray[np.bool_], seconds: float) -> Drawn:
        picture = np.asarray(self.model.decode(latent).convert("RGB"))
        return Drawn(np.asarray(latent, np.float32), picture, computed, seconds)


class Job:
    """Something that an artist does in a process of its own."""

    def run(self, artist: Artist) -> Any:
        raise NotImplementedError


@dataclass(frozen=True)
class Draw(Job):
    """One drawing. caching: None computes every step. steps: fewer than the protocol's."""

    prompt: str
    seed: int
    policy: Policy | None = None
    mode: Kind | None = None
    steps: int | None = None

    def run(self, artist: Artist) -> Drawn:
        request, sampler = artist.request(self.prompt, self.seed), artist.sampler(self.steps)
        network, guidance = artist.network(request)
        x = artist.noise(request, sampler)
        plan = Caching(policy=self.policy, mode=self.mode) if self.policy else None
        begin = time.process_time()
        done = sample(network.denoiser(), sampler, x, guidance=guidance, caching=plan)
        seconds = time.process_time() - begin
        return artist.finished(done.x[0], done.computed.any(axis=(1, 2)), seconds)


@dataclass(frozen=True)
class Record(Job):
    """An uncached drawing, and the evaluations of policies on its latents. policies: by name a
    policy and thresholds."""

    prompt: str
    seed: int
    policies: Mapping[str, tuple[Policy, Sequence[float]]] = field(default_factory=dict)

    def run(self, artist: Artist) -> Recorded:
        request, sampler = artist.request(self.prompt, self.seed), artist.sampler()
        network, guidance = artist.network(request)
        x = artist.noise(request, sampler)
        begin = time.process_time()
        steps = list(trace(network.denoiser(), sampler, x, guidance, Run(request.seeds)))
        seconds = time.process_time() - begin
        found = {
            name: np.array([
                replayed(policy.with_threshold(value), steps, sampler, guidance).sum()
                for value in values
            ], np.float64)
            for name, (policy, values) in self.policies.items()
        }  # fmt: skip
        drawn = artist.finished(steps[-1].after[0], np.ones(len(steps), bool), seconds)
        return Recorded(drawn, np.concatenate([s.x for s in steps]).astype(np.float32), found)


@dataclass(frozen=True)
class Measure(Job):
    """Calibration on one run: its table, and what TeaCache's polynomial is fitted to (ρ of the
    feature and the output's relative change, [T - 1] each)."""

    prompt: str
    seed: int

    def run(self, artist: Artist) -> tuple[SensitivityTable, F64, F64]:
        request, sampler = artist.request(self.prompt, self.seed), artist.sampler()
        network, guidance = artist.network(request)
        model, x = network.denoiser(), artist.noise(request, sampler)
        info = calibration.info_of(artist.model, sampler)
        table = calibrate([Case(model, x, self.seed)], sampler, info, guidance=guidance)
        rho, change, before = list[F64](), list[F64](), None
        for step in trace(model, sampler, x, guidance, Run(request.seeds)):
            if before is not None and step.feature is not None and before.feature is not None:
                rho.append(relative_l1(step.feature, before.feature))
                change.append(relative_l1(step.y, before.y))
            before = step
        empty = [np.zeros(0)]
        return table, np.concatenate(rho or empty), np.concatenate(change or empty)


def joined(parts: Sequence[tuple[SensitivityTable, F64, F64]]) -> tuple[SensitivityTable, float]:
    """One table of several runs, and R² of its polynomial's fit."""
    tables = [part[0] for part in parts]
    rho, change = (np.concatenate([part[i] for part in parts]) for i in (1, 2))
    polynomial, quality = fit(rho, change) if len(rho) else (None, 0.0)
    alpha_x, alpha_t = (
        np.stack([getattr(t, name) for t in tables]) for name in ("alpha_x", "alpha_t_rms")
    )
    gammas = [t.gammas for t in tables if t.gammas is not None]
    first = tables[0]
    import msgspec

    return replace(
        first, alpha_x=alpha_x.mean(0), std_x=alpha_x.std(0), alpha_t_rms=alpha_t.mean(0),
        std_t=alpha_t.std(0), gammas=np.mean(gammas, axis=0) if gammas else None,
        polynomial=polynomial, info=msgspec.structs.replace(first.info, samples=len(tables)),
    ), quality  # fmt: skip


def replayed(
    policy: Policy, steps: Sequence[Traced], sampler: Sampler, guidance: Guidance
) -> NDArray[np.bool_]:
    """What a policy would compute of an uncached run's latents, bool [T]. The latents of a cached
    run are others, so this is near to the truth and no more."""
    policy, total = copy.copy(policy), len(steps)
    policy.reset(Plan(sampler.timesteps, 0, total, 1, guidance.amplification))
    found = np.zeros(total, bool)
    for step in steps:
        k, feature = step.k, step.feature
        context = Context(
            k, step.t, float(sampler.sigmas[k]), step.x, mixture=sampler.mixture(k),
            feature=None if feature is None else (lambda made=feature: made),
        )  # fmt: skip
        found[k] = policy.decide(context)
        policy.observe(context, bool(found[k]), step.y)
    return found


# --- processes ------------------------------------------------------------------------------------

_open: list[Artist] = []


def _begin(protocol: Protocol) -> None:
    _open.append(Artist(protocol))


def _do(job: Job) -> Any:
    return job.run(_open[0])


class Workers:
    """Artists in so many processes; one works in this process."""

    def __init__(self, protocol: Protocol, processes: int) -> None:
        self.processes = processes
        self.here = Artist(protocol)
        self.pool: ProcessPoolExecutor | None = None
        if processes > 1:
            for name in ("OPENBLAS", "OMP", "MKL"):  # read when a process imports NumPy
                os.environ[f"{name}_NUM_THREADS"] = "1"
            self.pool = ProcessPoolExecutor(
                processes, multiprocessing.get_context("spawn"), _begin, (protocol,)
            )

    def map(self, jobs: Sequence[Job]) -> list[Any]:
        """The results, in order."""
        if self.pool is None:
            return [job.run(self.here) for job in jobs]
        return list(self.pool.map(_do, jobs))

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)
        self.here.model.close()
