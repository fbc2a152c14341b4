"""Which models to evaluate so that a budget tells most about the frontier: balanced I-optimal
design (arXiv 2602.15327, section on evaluation budgets)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from ..errors import RequestError
from .bins import edges_of, index_of, midpoints
from .frontier import Theta, jacobian
from .loss import F64

RIDGE = 1e-9
BALANCE = 1e-3
EMPTY = 1e-6
SIDE = 1.543  # of z*, where a sigmoid bends most


class Design(msgspec.Struct, frozen=True):
    """Candidates to evaluate, in the order in which they were chosen; cost: their sum."""

    chosen: tuple[int, ...]
    cost: float
    budget: float


def nominal(z: F64) -> Theta:
    """A shape for a design without a pilot: its middle in the middle of the range."""
    low, high = float(z.min()), float(z.max())
    return 0.1, 0.7, (low + high) / 2, math.log(6 / max(high - low, 1e-9))


def design_evaluations(
    z: Any,
    cost: Any,
    share: float,
    *,
    theta: Theta | None = None,
    items: int = 0,
    balance: float = BALANCE,
    criterion: str = "I",
    seed: int = 42,
) -> Design:
    """Choose candidates at log10 compute z [n] with costs [n] (parameter counts) for a share of the
    cost of all.

    theta: from a pilot fit; None takes `nominal`. items: of the benchmark, for binomial noise; 0:
    equal noise. criterion: "I" (mean predictive variance over bins) or "D" (volume). Raises
    RequestError for costs that are not positive or a share outside of 0 to 1.
    """
    z, cost = np.asarray(z, np.float64).ravel(), np.asarray(cost, np.float64).ravel()
    if len(z) != len(cost) or not len(z) or (cost <= 0).any() or not 0 <= share <= 1:
        raise RequestError(
            f"{len(z)} candidates with {len(cost)} costs and a share of {share}, expected as many "
            "positive costs and a share of 0 to 1",
            code="design-data",
        )
    shape = theta or nominal(z)
    rows = jacobian(shape, z)
    p = np.clip(shape[0] + shape[1] * rows[:, 1] / 1.0, 1e-3, 1 - 1e-3)
    weights = items / (p * (1 - p)) if items else np.ones(len(z))
    greedy = _Greedy(z, rows, weights, cost, share * float(cost.sum()), balance, shape)
    return greedy.run(criterion, seed)


class _Greedy:
    """The state of a greedy choice: what is chosen, and the inverse of its information."""

    def __init__(
        self, z: F64, rows: F64, weights: F64, cost: F64, budget: float, balance: float,
        theta: Theta | F64,
    ) -> None:  # fmt: skip
        self.z, self.rows, self.weights, self.cost = z, rows, weights, cost
        self.budget, self.balance, self.theta = budget, balance, theta
        edges = edges_of(z)
        self.bin = index_of(z, edges)
        self.counts = np.zeros(len(edges) - 1)
        grid = jacobian(theta, midpoints(edges))
        self.wanted = grid.T @ grid / len(grid)
        self.inverse = np.eye(4) / RIDGE
        self.spent, self.chosen = 0.0, list[int]()
        self.left = np.ones(len(z), bool)

    def run(self, criterion: str, seed: int) -> Design:
        middle, b = self.theta[2], math.exp(self.theta[3])
        order = np.random.default_rng(seed).permutation(len(self.z))
        places = (self.z.min(), self.z.max(), middle - SIDE / b, middle + SIDE / b)
        for place in places:
            nearest = order[np.argmin(np.abs(self.z[order] - place))]
            if self.left[nearest] and self._fits()[nearest]:
                self.add(int(nearest))
        while True:
            able = self.left & self._fits()
            if not able.any():
                break
            gains = np.where(able, self.gains(criterion) / self.cost, -np.inf)
            best = int(np.argmax(gains))
            if gains[best] <= 0:
                break
            self.add(best)
        return Design(tuple(self.chosen), self.spent, self.budget)

    def _fits(self) -> np.ndarray:
        return self.cost <= self.budget * (1 + 1e-12) - self.spent

    def gains(self, criterion: str = "I") -> F64:
        """What each candidate adds to the objective, [n]."""
        through = self.rows @ self.inverse
        own = np.einsum("ij,ij->i", through, self.rows)
        if criterion == "D":
            found: F64 = np.log1p(self.weights * own)
            return found
        told = np.einsum("ij,jk,ik->i", through, self.wanted, through)
        now = self.counts[self.bin]
        even = np.log(now + 1 + EMPTY) - np.log(now + EMPTY)
        found = told * self.weights / (1 + self.weights * own) + self.balance * even
        return found

    def add(self, index: int) -> None:
        """Take a candidate: the inverse follows by Sherman and Morrison's formula."""
        row, weight = self.rows[index], self.weights[index]
        through = self.inverse @ row
        self.inverse -= weight * np.outer(through, through) / (1 + weight * float(row @ through))
        self.counts[self.bin[index]] += 1
        self.spent += float(self.cost[index])
        self.left[index] = False
        self.chosen.append(index)

    def value(self) -> float:
        """The objective: minus the mean predictive variance, plus the balance of bins."""
        even = float(np.log(self.counts + EMPTY).sum())
        return -float(np.trace(self.wanted @ self.inverse)) + self.balance * even


def chosen_of(design: Design, names: Sequence[str]) -> list[str]:
    """Names of the candidates that a design chose."""
    return [names[index] for index in design.chosen]
