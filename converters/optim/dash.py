"""DASH: Shampoo on equal blocks, batched over the whole model (arXiv 2602.02016)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from .blocks import Blocked, assign_ranks, build_plan
from .elementwise import Elementwise, apply_updates, is_matrix, state_dtype
from .options import check_options, check_saved, resolve
from .roots import full_precision
from .stacks import Stacks

FORMAT = 1
MAX_VECTOR = 2048  # a longer vector would need a factor of its own length squared
GROUP_LOCAL = ("lr", "weight_decay")
SHARED = (
    "betas", "eps_root", "eps_graft", "block", "freq", "start", "mu", "nesterov", "solver",
    "newton_steps", "scaling", "cheb_degree", "one_dim", "stack", "exclude", "seed",
)  # fmt: skip
OWN_FIELDS = (
    "stats", "_options", "_group", "_stacks", "_single", "_stale", "_params", "_steps", "_matrix",
    "_owner", "_rank",
)  # fmt: skip


class Dash(Optimizer):
    """Batched block Shampoo with Adam grafting and decoupled weight decay (arXiv 2602.02016).

    Parameters are cut into tiles of side <= `block`; tiles of one shape are stacked, so a step is
    a few batched kernels. Each tile moves in the Shampoo direction `L^(-1/4) G R^(-1/4)` by the
    length of its Adam step.

    Args:
        params: tensors, (name, tensor) pairs or groups. A group may set `lr` and `weight_decay`.
            float32 master weights are the intended use; float64 keeps float64 state; bfloat16 and
            float16 keep float32 state, the update is added in float32 and rounded once.
        lr: step length per group, a float.
        betas: decay of the gradient mean, of the factors L and R (1: plain sums) and of the
            squared gradient used by grafting.
        eps_root: added to the diagonal of every factor; None: `max(1e-10, 1e-6 * trace / k)`.
        eps_graft: added to the root of the squared gradient.
        block: largest tile side; None: 128 on the CPU, on a GPU 512, or 1024 from 500M parameters.
        freq: steps between refreshes of the roots; None: 1 on a GPU with a Newton solver, else 10.
            Roots are also computed on the first preconditioned step.
        start: first preconditioned step; before it the update is the Adam step itself.
        mu, nesterov: outer momentum on the update. Above 0.5 it needs `allow_high_mu`, because
            the paper's authors report divergence at 0.9.
        weight_decay: decoupled, applied before the step and to matrices only.
        solver: "evd", "ndb", "cn", "cn_fp16" (GPU only), "chebyshev"; "auto": evd on the CPU,
            ndb on a GPU.
        newton_steps: iterations of ndb, cn and cn_fp16.
        scaling: "pim" (guarded power iteration) or "fro", for ndb.
        cheb_degree: degree of the Chebyshev sum; its damping is 1e-3 of the scale.
        one_dim: "adamw" or "shampoo" (one-sided, vectors up to 2048 elements) for vectors.
        stack: "model" shares stacks between parameters, "layer" keeps one set per parameter.
        exclude: `exclude(p) -> bool`; parameters it names take AdamW steps, with weight decay.
        seed: start vectors of the power iteration; they depend on it and on the side alone.
        process_group: a torch.distributed group; each rank updates its share of the parameters
            and broadcasts them. State is then per rank.

    A parameter without gradient keeps its state untouched and its own step count. `stats` counts
    "solves", "refreshes" and "fallbacks" (tiles whose root was recomputed in float64).
    Use learning-rate schedules with momentum cycling off. Raises ValueError or TypeError for
    arguments out of range, complex parameters, sparse gradients and non-finite factors.

    Not promised: equal results between "model" and "layer" stacking to the last bit, or between
    devices; state_dict files of another FORMAT.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        *,
        betas: tuple[float, float, float] = (0.9, 0.95, 0.95),
        eps_root: float | None = None,
        eps_graft: float = 1e-8,
        block: int | None = None,
        freq: int | None = None,
        start: int = 1,
        mu: float = 0.0,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        solver: str = "auto",
        newton_steps: int = 15,
        scaling: str = "pim",
        cheb_degree: int = 60,
        one_dim: Literal["adamw", "shampoo"] = "adamw",
        stack: Literal["model", "layer"] = "model",
        exclude: Callable[[Tensor], bool] | None = None,
        seed: int = 0,
        allow_high_mu: bool = False,
        process_group: Any = None,
    ) -> None:
        local = locals()
        self._options = {name: local[name] for name in SHARED}
        check_options(self._options, allow_high_mu=allow_high_mu)
        self._group = process_group
        self._stacks: Stacks | None = None
        self._single: Elementwise | None = None
        self._stale = True
        self._params: list[Tensor] = []
        self._steps: list[int] = []
        self._matrix: dict[int, tuple[int, int]] = {}
        self._owner: list[int] = []
        self._rank = 0
        self.stats = {"solves": 0, "refreshes": 0, "fallbacks": 0}
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters; state of the earlier ones is kept. Only lr and weight_decay may vary."""
        fixed = sorted(set(param_group) & set(SHARED))
        if fixed:
            raise ValueError(
                f"a parameter group sets {', '.join(fixed)}; only {' and '.join(GROUP_LOCAL)} "
                "may differ between groups"
            )
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for name in GROUP_LOCAL:
            if not group[name] >= 0:
                raise ValueError(f"{name} is {group[name]}, expected a number >= 0")
        for p in group["params"]:
            if not p.is_floating_point():
                raise TypeError(f"a parameter is {p.dtype}, expected a real floating-point type")
        self._stale = True

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient; returns the closure's loss.

        Gradients are read, never written. Parameters at different step counts (a gradient was
        missing before) are updated in one batch per count.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._prepare()
        grads = self._gradients()
        cohorts: dict[int, list[int]] = {}
        for i in grads:
            cohorts.setdefault(self._steps[i] + 1, []).append(i)
        with full_precision():
            for t, members in cohorts.items():
                self._advance(t, {i: grads[i] for i in members})
        if self._group is not None:
            self._broadcast()
        return loss

    def _gradients(self) -> dict[int, Tensor]:
        out = {}
        for i, p in enumerate(self._params):
            if p.grad is None:
                continue
            if p.grad.layout != torch.strided:
                raise TypeError(f"parameter {i} has a {p.grad.layout} gradient, expected dense")
            if self._owner[i] == self._rank:
                out[i] = p.grad
            else:
                self._steps[i] += 1
        return out

    def _advance(self, t: int, grads: dict[int, Tensor]) -> None:
        stacks, single = self._require()
        blocked = {i: g.reshape(self._matrix[i]) for i, g in grads.items() if i in self._matrix}
        updates = {
            i: torch.empty(g.shape, device=g.device, dtype=state_dtype(self._params[i].dtype))
            for i, g in blocked.items()
        }
        if blocked:
            stacks.directions(t, blocked, updates)
        updates |= single.directions(t, {i: g for i, g in grads.items() if i not in blocked})
        base = 0
        for group in self.param_groups:
            ids = [base + i for i in range(len(group["params"])) if base + i in updates]
            base += len(group["params"])
            apply_updates(group, [self._params[i] for i in ids], [updates[i] for i in ids])
        for i in grads:
            self._steps[i] = t

    def _require(self) -> tuple[Stacks, Elementwise]:
        self._prepare()
        if self._stacks is None or self._single is None:
            raise RuntimeError("the optimizer state was not built")
        return self._stacks, self._single

    def _prepare(self) -> None:
        """Build the index and the stacks, or rebuild them after add_param_group."""
        if not self._stale:
            return
        self._params = [p for group in self.param_groups for p in group["params"]]
        self._steps += [0] * (len(self._params) - len(self._steps))
        self._assign()
        where: dict[tuple[torch.device, torch.dtype], int] = {}
        blocked, single = [], []
        for i, p in enumerate(self._params):
            if self._owner[i] != self._rank:
                continue
            place = where.setdefault((p.device, state_dtype(p.dtype)), len(where))
            shape = self._blocked_shape(p)
            if shape is None:
                single.append(i)
            else:
                self._matrix[i] = shape[:2]
                blocked.append(Blocked(i, *shape, place))
        options, old = self._options, self._stacks
        block, hyper = resolve(options, self._params)
        plan = build_plan(blocked, block, per_layer=options["stack"] == "layer")
        self._stacks = Stacks(plan, hyper, list(where), self.stats)
        if old is not None:
            self._stacks.adopt(old)
        if self._single is None:
            self._single = Elementwise(hyper.beta_grad, hyper.beta_graft, hyper.eps_graft)
        self._single.extend({i: self._params[i] for i in single})
        self._stale = False

    def _blocked_shape(self, p: Tensor) -> tuple[int, int, int] | None:
        """(rows, cols, sides) of a parameter that gets factors; None for an AdamW step."""
        exclude = self._options["exclude"]
        if p.numel() == 0 or (exclude is not None and exclude(p)):
            return None
        if is_matrix(p):
            rows = next(size for size in p.shape if size != 1)
            return rows, p.numel() // rows, 2
        if self._options["one_dim"] == "shampoo" and p.numel() <= MAX_VECTOR:
            return p.numel(), 1, 1
        return None

    def _assign(self) -> None:
        world = 1
        if self._group is not None:
            world = torch.distributed.get_world_size(self._group)
            self._rank = torch.distributed.get_rank(self._group)
        numels = [p.numel() for p in self._params]
        self._owner = assign_ranks(numels, [not is_matrix(p) for p in self._params], world)

    def _broadcast(self) -> None:
        for p, owner in zip(self._params, self._owner, strict=True):
            source = torch.distributed.get_global_rank(self._group, owner)
            torch.distributed.broadcast(p.detach(), source, group=self._group)

    def state_dict(self) -> dict[str, Any]:
        """Groups, index table, step counts, seed and all stacks, by reference as in torch."""
        stacks, single = self._require()
        out: dict[str, Any] = super().state_dict()
        out["dash"] = {
            "format": FORMAT,
            "seed": self._options["seed"],
            "shapes": [list(p.shape) for p in self._params],
            "index": stacks.plan.table(),
            "steps": list(self._steps),
            "stats": dict(self.stats),
            "tensors": {**stacks.tensors(), **single.tensors()},
        }
        return out

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue bit-identically from `state_dict()`.

        Raises ValueError, before anything changes, if format, shapes, order, tiling or seed of
        the saved optimizer differ from this one.
        """
        stacks, single = self._require()
        saved = state_dict.get("dash")
        if not isinstance(saved, dict):
            raise ValueError("the state has no 'dash' entry, expected one written by Dash")
        tensors = {**stacks.tensors(), **single.tensors()}
        check_saved(saved, self.state_dict()["dash"], tensors)
        plain = {"state": {}, "param_groups": state_dict["param_groups"]}
        super().load_state_dict(plain)
        for name, tensor in tensors.items():
            tensor.copy_(saved["tensors"][name])
        self._steps = list(saved["steps"])
        self.stats.update(saved["stats"])

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles carry the stacks, which torch's own list of fields leaves out."""
        return {**super().__getstate__(), **{name: self.__dict__[name] for name in OWN_FIELDS}}
