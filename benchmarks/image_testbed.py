"""Cache policies on a mixture of Gaussians, whose velocity is a formula: what each costs and keeps.

    python -m benchmarks.image_testbed            the table, seconds on one core
    python -m benchmarks.image_testbed --gate     five problems, and whether SenCache beats others

Eight Gaussians in 64 dimensions, rectified flow over 50 steps with shift 3, 64 seeds; the distance
(root mean square over the dimensions) is to where the uncached sampler ends. "Expected" is one run
of an independent implementation. It says how policies follow a trajectory, and nothing of pictures.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgert.image.calibrate import Case, calibrate
from edgert.image.denoiser import Denoiser
from edgert.image.loop import Caching, sample
from edgert.image.policies import EasyCache, Fixed, NoCache, Policy, SenCache, TaylorLite
from edgert.image.schedules import FlowEuler, Sampler
from edgert.image.tables import SensitivityTable, TableInfo

F64 = NDArray[np.float64]
STEPS, SEEDS, CENTRES, DIMENSIONS, VARIANCE = 50, 64, 8, 64, 0.05
LATEST = 0.001  # t in place of 0, where the velocity is singular


@dataclass(frozen=True)
class Problem:
    """Centres m [8, 64] and the velocity of their mixture under x = (1 - σ)·x0 + σ·ε."""

    centres: F64

    @classmethod
    def of(cls, seed: int) -> Problem:
        return cls(np.random.default_rng(seed).standard_normal((CENTRES, DIMENSIONS)))

    def velocity(self, x: F64, sigma: float) -> F64:
        """v = ε - x0 [n, 64] as far as it is known from x [n, 64]."""
        a = 1 - sigma
        spread = VARIANCE * a * a + sigma * sigma
        away = x[:, None] - a * self.centres  # [n, 8, 64]
        logits = -(away**2).sum(-1) / (2 * spread)
        weights = np.exp(logits - logits.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        x0 = np.einsum("nk,nkd->nd", weights, self.centres + (VARIANCE * a / spread) * away)
        return (x - a * x0) / sigma - x0

    def draw(self, count: int, seed: int) -> F64:
        """Data [count, 64]."""
        numbers = np.random.default_rng(seed)
        picked = self.centres[numbers.integers(CENTRES, size=count)]
        return picked + VARIANCE**0.5 * numbers.standard_normal(picked.shape)

    @property
    def model(self) -> Denoiser:
        return Denoiser(full=lambda x, at: self.velocity(x, at.t), branches=("cond",))


def schedule(steps: int) -> Sampler:
    """linspace(1, .001) with shift 3, then 0; t = σ."""
    even = np.linspace(1, 0.001, steps)
    sigmas = np.append(3 * even / (1 + 2 * even), 0.0)
    return FlowEuler(
        timesteps=sigmas[:-1], sigmas=sigmas, alphas=1 - sigmas, noises=sigmas,
        prediction="flow_prediction",
    )  # fmt: skip


def table_of(problem: Problem, samples: int = 8, seed: int = 100) -> SensitivityTable:
    info = TableInfo(
        model="testbed", quantisation="f64", prediction="flow_prediction",
        scheduler="flow-euler", steps=STEPS, shift=3.0, latent=(DIMENSIONS,), samples=samples,
        t_unit="sigma",
    )  # fmt: skip
    case = Case(problem.model, problem.draw(samples, seed), seed)
    return calibrate([case], schedule(STEPS), info, mode="forward", terminal_t=LATEST)


@dataclass(frozen=True)
class Measured:
    """evaluations: mean of 64 seeds. errors: RMS distance to the uncached end, float64 [64]."""

    evaluations: float
    errors: F64

    @property
    def rmse(self) -> float:
        return float(np.sqrt(np.mean(self.errors**2)))

    @property
    def median(self) -> float:
        return float(np.median(self.errors))


def noise(seed: int = 1000) -> F64:
    return np.random.default_rng(seed).standard_normal((SEEDS, DIMENSIONS))


def measure(problem: Problem, policy: Policy, steps: int = STEPS) -> Measured:
    """A policy over 50 steps, or the uncached sampler over fewer; each seed decides for itself."""
    x = noise()
    reference = sample(problem.model, schedule(STEPS), x).x
    caching = Caching(policy=policy, per_sample=True)
    got = sample(problem.model, schedule(steps), x, caching=caching)
    return Measured(got.evaluations, np.sqrt(np.mean((got.x - reference) ** 2, axis=1)))


def policies(table: SensitivityTable) -> dict[str, tuple[Policy, int, tuple[float, float, float]]]:
    """Name -> (policy, steps, expected evaluations, RMSE and median)."""
    sen = lambda epsilon, most: SenCache(table=table, epsilon=epsilon, most=most)
    nan = (np.nan, np.nan, np.nan)
    return {
        "SenCache .3, n = 2": (sen(0.3, 2), STEPS, (25.9, 0.0126, 0.0111)),
        "SenCache .3, n = 3": (sen(0.3, 3), STEPS, (23.9, 0.0224, 0.0129)),
        "SenCache .1, n = 3": (sen(0.1, 3), STEPS, (36.9, 0.0043, 0.0026)),
        "SenCache .5, n = 4": (sen(0.5, 4), STEPS, (np.nan, 0.153, 0.026)),
        "Fixed 2": (Fixed(interval=2), STEPS, (26, 0.0154, 0.0153)),
        "Fixed 3": (Fixed(interval=3), STEPS, (np.nan, 0.153, 0.029)),
        "Vanilla 26": (NoCache(), 26, (26, 0.0216, 0.0216)),
        "Vanilla 24": (NoCache(), 24, (24, 0.0253, 0.0253)),
        "EasyCache .2": (EasyCache(), STEPS, nan),
        "Taylor-Lite 2": (TaylorLite(interval=2), STEPS, nan),
    }


def gate(problems: int = 5) -> list[tuple[Measured, Measured, Measured]]:
    """(SenCache .3 n = 2, Fixed 2, Vanilla 26) for so many problems."""
    found = []
    for seed in range(problems):
        problem = Problem.of(seed)
        sen = SenCache(table=table_of(problem), epsilon=0.3, most=2)
        found.append(
            (
                measure(problem, sen),
                measure(problem, Fixed(interval=2)),
                measure(problem, NoCache(), 26),
            )
        )
    return found


def passes(runs: list[tuple[Measured, Measured, Measured]]) -> bool:
    """SenCache's median below both others' on all problems, its RMSE on all but one."""
    medians = [sen.median < min(a.median, b.median) for sen, a, b in runs]
    means = [sen.rmse < min(a.rmse, b.rmse) for sen, a, b in runs]
    return all(medians) and sum(means) >= len(runs) - 1


def change_ratios(problem: Problem, table: SensitivityTable) -> F64:
    """Actual over predicted change of the velocity from one step to the next, [(T - 1) · 64]."""
    sampler, x, found = schedule(STEPS), noise(), []
    for k in range(STEPS - 1):
        t, after = float(sampler.timesteps[k]), float(sampler.timesteps[k + 1])
        v = problem.velocity(x, t)
        new = sampler.step(v, k, x)
        size = lambda z: np.sqrt(np.mean(z * z, axis=1))
        bound = table.alpha_x[k] * size(new - x) + table.alpha_t_rms[k] * abs(after - t)
        found.append(size(problem.velocity(new, after) - v) / bound)
        x = new
    return np.concatenate(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--gate", action="store_true", help="five problems instead of the table")
    if parser.parse_args().gate:
        runs = gate()
        for number, run in enumerate(runs):
            print(number, *(f"{m.evaluations:.1f}: {m.rmse:.4f}/{m.median:.4f}" for m in run))
        print("the gate is", "passed" if passes(runs) else "NOT passed")
        return
    problem = Problem.of(0)
    table = table_of(problem)
    print(f"{'policy':20} {'evaluations':>18} {'RMSE':>17} {'median':>17}   (expected)")
    for name, (policy, steps, expected) in policies(table).items():
        got = measure(problem, policy, steps)
        pairs = zip((got.evaluations, got.rmse, got.median), expected, strict=True)
        texts = [f"{a:8.4g} ({b:.4g})" if b == b else f"{a:8.4g}" for a, b in pairs]
        print(f"{name:20}", *(f"{text:>17}" for text in texts))
    ratios = change_ratios(problem, table).reshape(-1, SEEDS).mean(axis=1)
    print(
        f"actual/predicted change of a step, mean of seeds: median {np.median(ratios):.2f} (.72), "
        f"max {ratios.max():.2f} (.84)"
    )


if __name__ == "__main__":
    main()
