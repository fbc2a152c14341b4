"""The state of DASH and its arithmetic: everything between a gradient and an update direction.

State lives in dense stacks: per tile shape Ĝ and V (and M with outer momentum) `[n, r, c]`, per
factor side L or R and its cached inverse root `[m, k, k]`. Nothing here loops over tiles. When
only some parameters have a gradient the same code runs on the index-selected sub-stacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .blocks import FactorKey, Place, Plan, StackKey, gather, scatter
from .roots import RootConfig, inverse_root, repair

Slots = slice | Tensor  # slots of a stack: all in one run, or an index


@dataclass(frozen=True)
class Hyper:
    """What every parameter group shares; the names are those of `Dash`."""

    beta_grad: float
    beta_factor: float
    beta_graft: float
    eps_graft: float
    freq: int
    start: int
    mu: float
    nesterov: bool
    root: RootConfig


@dataclass
class Selection:
    """The tiles that take part in one step, in stack order."""

    places: dict[StackKey, list[Place]] = field(default_factory=dict)
    slots: dict[StackKey, Slots] = field(default_factory=dict)
    left: dict[StackKey, tuple[FactorKey, Slots]] = field(default_factory=dict)
    right: dict[StackKey, tuple[FactorKey, Slots]] = field(default_factory=dict)
    factors: dict[FactorKey, Slots] = field(default_factory=dict)


def take(stack: Tensor, slots: Slots) -> Tensor:
    """A view for a slice, a copy for an index."""
    return stack[slots] if isinstance(slots, slice) else stack.index_select(0, slots)


def put_back(stack: Tensor, slots: Slots, part: Tensor) -> None:
    """Store what `take` copied; a view needs nothing."""
    if isinstance(slots, Tensor):
        stack.index_copy_(0, slots, part)


class Stacks:
    """All block state of one optimizer on one process.

    `where[i]` is the (device, dtype) that keys with `where == i` live on. `stats` counts solver
    calls ("solves"), refreshes of the cached roots and tiles recomputed in fp64 ("fallbacks").
    """

    def __init__(
        self,
        plan: Plan,
        hyper: Hyper,
        where: Sequence[tuple[torch.device, torch.dtype]],
        stats: dict[str, int],
    ) -> None:
        self.plan = plan
        self.hyper = hyper
        self.where = where
        self.stats = stats
        self.mean: dict[StackKey, Tensor] = {}
        self.square: dict[StackKey, Tensor] = {}
        self.momentum: dict[StackKey, Tensor] = {}
        self.factor: dict[FactorKey, Tensor] = {}
        self.root: dict[FactorKey, Tensor] = {}
        self._selections: dict[tuple[int, ...], Selection] = {}
        for key, count in plan.sizes.items():
            shape = (count, key.r, key.c)
            self.square[key] = self._zeros(key, shape)
            if hyper.beta_grad:
                self.mean[key] = self._zeros(key, shape)
            if hyper.mu:
                self.momentum[key] = self._zeros(key, shape)
        for factor, count in plan.factors.items():
            self.factor[factor] = self._zeros(factor, (count, factor.k, factor.k))
            self.root[factor] = self._zeros(factor, (count, factor.k, factor.k))

    def _zeros(self, key: StackKey | FactorKey, shape: tuple[int, ...]) -> Tensor:
        device, dtype = self.where[key.where]
        return torch.zeros(shape, device=device, dtype=dtype)

    def tensors(self) -> dict[str, Tensor]:
        """Every state tensor under a stable name, by reference."""
        named = {}
        for kind in ("mean", "square", "momentum", "factor", "root"):
            for key, tensor in getattr(self, kind).items():
                named[f"{kind}/{'/'.join(map(str, key))}"] = tensor
        return named

    def adopt(self, old: Stacks) -> None:
        """Copy the state of every parameter that `old` also held (after add_param_group)."""
        before = {(p.param, p.grid): p for p in old.plan.places}
        for new in self.plan.places:
            was = before.get((new.param, new.grid))
            if was is not None:
                self._adopt_place(old, was, new)

    def _adopt_place(self, old: Stacks, was: Place, new: Place) -> None:
        count = new.grid.tiles
        for kind in ("mean", "square", "momentum"):
            source, target = getattr(old, kind), getattr(self, kind)
            if new.key in target:
                target[new.key][new.offset :][:count] = source[was.key][was.offset :][:count]
        for side in ("left", "right"):
            if new.key in getattr(self.plan, side):
                a, a_base = getattr(old.plan, side)[was.key]
                b, b_base = getattr(self.plan, side)[new.key]
                for kind in ("factor", "root"):
                    source, target = getattr(old, kind)[a], getattr(self, kind)[b]
                    target[b_base + new.offset :][:count] = source[a_base + was.offset :][:count]

    def select(self, params: Sequence[int]) -> Selection:
        """The tiles of `params`; remembered, because the same set returns every step."""
        chosen = tuple(params)
        if chosen not in self._selections:
            if len(self._selections) >= 16:
                self._selections.clear()
            self._selections[chosen] = self._build_selection(frozenset(chosen))
        return self._selections[chosen]

    def _build_selection(self, params: frozenset[int]) -> Selection:
        out = Selection()
        for place in self.plan.places:
            if place.param in params:
                out.places.setdefault(place.key, []).append(place)
        wanted: dict[FactorKey, list[int]] = {}
        for key, places in out.places.items():
            slots = [p.offset + i for p in places for i in range(p.grid.tiles)]
            out.slots[key] = self._slots(key, slots, self.plan.sizes[key])
            for side, mine in ((self.plan.left, out.left), (self.plan.right, out.right)):
                if key in side:
                    factor, base = side[key]
                    shifted = [base + slot for slot in slots]
                    mine[key] = factor, self._slots(key, shifted, self.plan.sizes[key])
                    wanted.setdefault(factor, []).extend(shifted)
        for factor, slots in wanted.items():
            out.factors[factor] = self._slots(factor, sorted(slots), self.plan.factors[factor])
        return out

    def _slots(self, key: StackKey | FactorKey, slots: list[int], full: int) -> Slots:
        if len(slots) == full:
            return slice(slots[0], slots[0] + full)
        return torch.tensor(slots, device=self.where[key.where][0])

    def directions(self, t: int, matrices: dict[int, Tensor], updates: dict[int, Tensor]) -> None:
        """One step `t` for parameters that are all at step `t` (arXiv 2602.02016, algorithm 1).

        `matrices[i] [rows, cols]` are gradients as matrices, any float dtype, not modified;
        `updates[i] [rows, cols]` in state dtype receive the direction P (before lr and decay).
        """
        chosen = self.select(list(matrices))
        tiles = {key: self._gathered(key, chosen, matrices) for key in chosen.places}
        for key, g in tiles.items():
            self._accumulate(key, g, chosen)
        first = max(1, self.hyper.start)
        if t == first or (t > first and t % self.hyper.freq == 0):
            self._refresh(chosen)
        for key, g in tiles.items():
            p = self._direction(t, key, g, chosen)
            places = chosen.places[key]
            scatter(p, [updates[q.param] for q in places], [q.grid for q in places])

    def _gathered(self, key: StackKey, chosen: Selection, matrices: dict[int, Tensor]) -> Tensor:
        places = chosen.places[key]
        device, dtype = self.where[key.where]
        count = sum(place.grid.tiles for place in places)
        out = torch.empty((count, key.r, key.c), device=device, dtype=dtype)
        gather([matrices[p.param] for p in places], [p.grid for p in places], out)
        return out

    def _accumulate(self, key: StackKey, g: Tensor, chosen: Selection) -> None:
        """L, R and V from the raw gradient tiles `g [n, r, c]`."""
        beta = self.hyper.beta_factor
        fresh = 1.0 if beta == 1 else 1 - beta
        for side, a, b in ((chosen.left, g, g.mT), (chosen.right, g.mT, g)):
            if key in side:
                factor, slots = side[key]
                part = take(self.factor[factor], slots)
                part.baddbmm_(a, b, beta=beta, alpha=fresh)
                put_back(self.factor[factor], slots, part)
        beta = self.hyper.beta_graft
        square = take(self.square[key], chosen.slots[key])
        square.mul_(beta).addcmul_(g, g, value=1 - beta)
        put_back(self.square[key], chosen.slots[key], square)

    def _refresh(self, chosen: Selection) -> None:
        """Recompute the cached roots: one solver call per factor stack, then one look at flags."""
        config = self.hyper.root
        self.stats["refreshes"] += 1
        results = []
        for key, slots in chosen.factors.items():
            a = take(self.factor[key], slots)
            x, bad = inverse_root(a, key.power, config)
            self.stats["solves"] += 1
            results.append((key, slots, a, x, bad))
        device = results[0][4].device if results else torch.device("cpu")
        failed = [bad.any().to(device, non_blocking=True) for *_, bad in results]
        if failed and bool(torch.stack(failed).any()):  # the only host sync of a step
            for key, _, a, x, bad in results:
                self.stats["fallbacks"] += repair(a, x, bad, key.power, config.eps)
        for key, slots, _, x, _ in results:
            self.root[key][slots] = x

    def _direction(self, t: int, key: StackKey, g: Tensor, chosen: Selection) -> Tensor:
        """P `[n, r, c]`: the preconditioned step with the norm, per tile, of the Adam step."""
        h, slots = self.hyper, chosen.slots[key]
        mean = g
        if h.beta_grad:
            mean = take(self.mean[key], slots)
            mean.lerp_(g, 1 - h.beta_grad)
            put_back(self.mean[key], slots, mean)
        scale = take(self.square[key], slots) / (1 - h.beta_graft**t)
        p = (mean / (1 - h.beta_grad**t)).div_(scale.sqrt_().add_(h.eps_graft))
        if t >= h.start:
            u = self._root(key, chosen.left) @ mean
            if key in chosen.right:
                u = u @ self._root(key, chosen.right)
            wanted = torch.linalg.vector_norm(p, dim=(1, 2), keepdim=True)
            found = torch.linalg.vector_norm(u, dim=(1, 2), keepdim=True)
            p = u.mul_(wanted / (found + 1e-16))
        if h.mu:
            moment = take(self.momentum[key], slots)
            moment.mul_(h.mu).add_(p)
            put_back(self.momentum[key], slots, moment)
            p = p.add_(moment, alpha=h.mu) if h.nesterov else moment.clone()
        return p

    def _root(self, key: StackKey, side: dict[StackKey, tuple[FactorKey, Slots]]) -> Tensor:
        factor, slots = side[key]
        return take(self.root[factor], slots)
