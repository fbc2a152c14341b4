"""What both training stages share: batches, progress by tokens or by the clock, what is kept."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import ConvertError
from ..heal.ranks import Ranks
from .options import Ids

BETAS = (0.9, 0.95)
CLIP = 1.0
KEY, ORDER = "key.json", "order.json"  # what states depend on; layers by what they matter
EVERY = 30.0  # seconds between two kept states
Leaves = dict[str, Tensor]


@dataclass(frozen=True)
class Stage:
    """One training stage. tokens, seconds: it ends at the earlier of them. batch: tokens a step.
    micro: tokens at a time. length, last_length: of a sequence, and in the last tenth."""

    name: str
    tokens: int
    seconds: float
    batch: int
    micro: int
    length: int
    last_length: int
    seed: int
    work: str = "linearize"  # what it is a stage of, in errors


class Rows:
    """Sequences cut from a text, each once before any comes again; a step's are the same in every
    run and on every rank."""

    def __init__(self, ids: Ids, length: int, seed: int) -> None:
        self.length, self.seed = length, seed
        self.rows = ids[: len(ids) // length * length].reshape(-1, length)
        self.order: tuple[int, Any] = (-1, None)

    def batch(self, first: int, count: int) -> Ids:
        """Sequences [count, length] from number `first` on."""
        picked = []
        for number in range(first, first + count):
            turn, place = divmod(number, len(self.rows))
            if self.order[0] != turn:
                shuffled = np.random.default_rng([self.seed, turn]).permutation(len(self.rows))
                self.order = (turn, shuffled)
            picked.append(self.order[1][place])
        return self.rows[picked]


class Clock:
    """Progress of a stage from 0 to 1, the same on all ranks."""

    def __init__(self, stage: Stage, ranks: Ranks, device: str) -> None:
        self.stage, self.ranks, self.device = stage, ranks, device
        self.before, self.start = 0.0, time.perf_counter()

    @property
    def elapsed(self) -> float:
        return self.before + time.perf_counter() - self.start

    def progress(self, tokens: int) -> float:
        by_tokens = tokens / self.stage.tokens
        if math.isinf(self.stage.seconds):
            return by_tokens
        passed = torch.tensor([self.elapsed], dtype=torch.float64, device=self.device)
        self.ranks.agree([passed])
        return max(by_tokens, float(passed) / self.stage.seconds)


class Keeper:
    """Where a stage's state is kept: `<stage>.pt`, its tensors and numbers; nothing without a
    folder. One rank writes."""

    def __init__(self, folder: Path | None, ranks: Ranks, key: str) -> None:
        """key: what the states depend on; what lies there under another one is removed."""
        self.folder, self.ranks = folder, ranks
        if folder is not None and not ranks.rank:
            self._clear(folder, key)
        ranks.wait()  # nobody loads what is being removed

    @staticmethod
    def _clear(folder: Path, key: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        told = folder / KEY
        if not told.exists() or told.read_text("utf-8") != key:
            for path in (*folder.glob("*.pt"), *folder.glob("row-*.json"), folder / ORDER):
                path.unlink(missing_ok=True)
            told.write_text(key, "utf-8")

    def load(self, name: str, device: str) -> dict[str, Any] | None:
        path = self.folder / f"{name}.pt" if self.folder else None
        if path is None or not path.exists():
            return None
        try:
            found: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        except (OSError, RuntimeError, ValueError, EOFError):
            return None  # cut off while it was written elsewhere: the stage begins anew
        return found

    def save(self, name: str, state: Mapping[str, Any]) -> None:
        if self.folder is None or self.ranks.rank:
            return
        aside = self.folder / f"{name}.new"
        try:
            torch.save(dict(state), aside)
            os.replace(aside, self.folder / f"{name}.pt")
        finally:
            aside.unlink(missing_ok=True)


def warm_cosine(progress: float, step: int, warm: int, least: float) -> float:
    """Part of the peak rate: a straight line up in `warm` steps, then a cosine down to `least`."""
    fall = least + (1 - least) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return min(1.0, (step + 1) / warm) * fall


class Trainer:
    """The loop of a stage over leaves that require gradients.

    step: (tokens int [n, T], scale) adds the gradient of scale times the summed loss, and gives
    the sum, on one rank's part of a batch. rates: (progress, step) sets the optimizer's rates.
    """

    def __init__(
        self, stage: Stage, ids: Ids, leaves: Leaves, optimizer: torch.optim.Optimizer,
        keeper: Keeper, device: str, *, bar: bool,
    ) -> None:  # fmt: skip
        self.stage, self.leaves, self.optimizer = stage, leaves, optimizer
        self.keeper, self.ranks, self.device, self.bar = keeper, keeper.ranks, device, bar
        self.rows = Rows(ids, stage.length, stage.seed)
        self.last = Rows(ids, min(stage.last_length, len(ids)), stage.seed + 1)
        self.clock = Clock(stage, self.ranks, device)
        self.steps, self.tokens, self.done = 0, 0, False
        self._resume()

    def _resume(self) -> None:
        found = self.keeper.load(self.stage.name, self.device)
        if found is None or set(found["leaves"]) != set(self.leaves):
            return
        with torch.no_grad():
            for name, leaf in self.leaves.items():
                leaf.copy_(found["leaves"][name])
        self.steps, self.tokens, self.clock.before, self.done = found["at"]
        if not self.done:
            self.optimizer.load_state_dict(found["optimizer"])

    def keep(self, *, done: bool = False) -> None:
        self.done = done
        self.keeper.save(
            self.stage.name,
            {
                "leaves": {name: leaf.detach() for name, leaf in self.leaves.items()},
                "optimizer": {} if done else self.optimizer.state_dict(),
                "at": [self.steps, self.tokens, self.clock.elapsed, done],
            },
        )

    def run(
        self,
        step: Callable[[Tensor, float], Tensor],
        rates: Callable[[float, int], None],
        clip: Callable[[], None],
    ) -> None:
        """Until tokens or seconds are used up. Raises ConvertError for a loss that is no number."""
        from tqdm import tqdm

        stage, kept = self.stage, time.perf_counter()
        show = tqdm(
            total=stage.tokens, initial=self.tokens, unit="token", unit_scale=True,
            desc=stage.name, disable=None if self.bar and self.ranks.rank == 0 else True,
        )  # fmt: skip
        with show:
            while not self.done and (progress := self.clock.progress(self.tokens)) < 1:
                rates(progress, self.steps)
                loss, count = self._step(step, progress)
                clip()
                self.optimizer.step()
                self.steps, self.tokens = self.steps + 1, self.tokens + count
                show.update(count)
                if self.steps % 10 == 0:
                    self._look(loss / count, show)
                if time.perf_counter() - kept > EVERY:
                    self.keep()
                    kept = time.perf_counter()
        if not self.done:
            self.keep(done=True)

    def _look(self, loss: Tensor, show: Any) -> None:
        value = float(loss)
        if not math.isfinite(value):
            raise ConvertError(
                f"{self.stage.work}, {self.stage.name}: the loss at step {self.steps} is {value}, "
                "expected a finite number",
                code=f"{self.stage.work}-diverged",
                hint="lower the rate, or use more tokens",
            )
        show.set_postfix_str(f"loss {value:.4f}", refresh=False)

    def _step(self, step: Callable[[Tensor, float], Tensor], progress: float) -> tuple[Tensor, int]:
        """Gradients of one batch, the same on every rank; the summed loss, and its tokens."""
        rows = self.last if progress >= 0.9 else self.rows
        count = max(1, self.stage.batch // rows.length)
        own = rows.batch(self.steps * count, count)[self.ranks.slice]
        self.optimizer.zero_grad(set_to_none=False)
        total, size = torch.zeros((), device=self.device), max(1, self.stage.micro // rows.length)
        for start in range(0, len(own), size):
            some = torch.from_numpy(own[start : start + size]).long().to(self.device)
            total += step(some, 1 / (count * rows.length))
        grads = []
        for leaf in self.leaves.values():
            if leaf.grad is None:
                leaf.grad = torch.zeros_like(leaf)
            grads.append(leaf.grad)
        self.ranks.add_up([*grads, total])
        return total, count * rows.length


def adamw(groups: list[dict[str, Any]], device: str) -> torch.optim.Optimizer:
    """AdamW without decay; one kernel where the device has one."""
    fused = device.startswith("cuda")
    return torch.optim.AdamW(groups, 1e-3, betas=BETAS, weight_decay=0.0, fused=fused)
