"""Training: one schedule, two stages (pre-training, then chat tuning), exact resume.

The learning rate warms up over steps and then falls in a straight line to zero at the end of the
run, measured in steps or in seconds of training. Chat tuning takes the last `chat_share` of the
run, where the rate is already low. Seconds count training steps only: not compilation, validation
or checkpoints, so runs with different optimizers can be compared at equal time.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .clock import Pace, generators, set_generators
from .mix import CHAT, PRETRAIN, Batch, Mixer, Share
from .model import Llama, ModelConfig
from .optimizers import build_optimizer


@dataclass(frozen=True)
class TrainConfig:
    """One run. Exactly one of `steps` and `seconds` is set."""

    optimizer: str = "adamw"
    lr: float = 3e-3
    weight_decay: float = 0.3
    warmup: int = 150  # steps
    clip: float = 1.0
    rows: int = 64  # rows of `context` tokens per step
    micro: int | None = None  # rows of one forward and backward; default: all
    steps: int | None = None
    seconds: float | None = None
    chat_share: float = 0.2  # of the run; 0 leaves chat tuning out
    pretrain: tuple[Share, ...] = PRETRAIN
    chat: tuple[Share, ...] = CHAT
    seed: int = 0
    device: str = "cuda"
    compile: bool = True
    log_every: int = 20  # steps
    validate_every: float = 0.05  # of the run
    checkpoint_every: float = 120.0  # seconds; 0 writes only the last one
    stop_after: int | None = None  # steps; to test resuming

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.seconds is None):
            raise ValueError(f"set steps or seconds, not both: {self.steps} and {self.seconds}")


@dataclass
class State:
    """Where a run stands; with weights, optimizer and generators it is all a resume needs."""

    step: int = 0
    elapsed: float = 0.0  # seconds of training
    chat_begin: int | None = None  # first step of chat tuning


class Trainer:
    """Owns the model, the optimizer and the clock of one run."""

    def __init__(
        self, model_config: ModelConfig, config: TrainConfig, corpus: Path, out: Path
    ) -> None:
        self.config, self.corpus, self.out = config, corpus, out
        out.mkdir(parents=True, exist_ok=True)
        self.device = torch.device(config.device)
        torch.manual_seed(config.seed)
        self.model = Llama(model_config).to(self.device)
        self.optimizer = build_optimizer(
            config.optimizer, self.model, lr=config.lr, weight_decay=config.weight_decay
        )
        self.state = State()
        self.loss = (
            torch.compile(self.model.loss, dynamic=False) if config.compile else self.model.loss
        )
        self.mixers: dict[str, Mixer] = {}
        self.log_file = out / "log.jsonl"

    # ---- schedule -------------------------------------------------------------------------------

    def progress(self) -> float:
        """0 at the start, 1 when the run is over."""
        if self.config.steps is not None:
            return self.state.step / self.config.steps
        return self.state.elapsed / (self.config.seconds or 1.0)

    def rate(self) -> float:
        """Learning rate of the coming step."""
        warm = min(1.0, (self.state.step + 1) / self.config.warmup)
        return self.config.lr * warm * max(0.0, 1.0 - self.progress())

    def stage(self) -> tuple[str, int]:
        """Name of the current stage and the step within it."""
        if self.state.chat_begin is None and self.config.chat_share > 0:
            if self.progress() >= 1.0 - self.config.chat_share:
                self.state.chat_begin = self.state.step
        if self.state.chat_begin is None:
            return "pretrain", self.state.step
        return "chat", self.state.step - self.state.chat_begin

    def mixer(self, stage: str) -> Mixer:
        """The stage's batches; loaded when first needed."""
        if stage not in self.mixers:
            self.mixers.clear()
            shares = self.config.pretrain if stage == "pretrain" else self.config.chat
            self.mixers[stage] = Mixer(
                self.corpus,
                shares,
                rows=self.config.rows,
                context=self.model.config.context,
                seed=self.config.seed,
                device=self.device,
            )
        return self.mixers[stage]

    # ---- steps ----------------------------------------------------------------------------------

    def step(self) -> Tensor:
        """One optimizer step; returns the loss (a scalar on the device)."""
        stage, index = self.stage()
        batch = self.mixer(stage).batch(index)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        loss = self.forward_backward(batch)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.state.step += 1
        return loss

    def forward_backward(self, batch: Batch) -> Tensor:
        """Gradients of a batch, some rows at a time; returns its loss."""
        self.model.train()
        whole = batch.weights.sum().clamp_min(1.0)
        total = torch.zeros((), device=self.device)
        for rows in batch.pieces(self.config.micro):
            with self.autocast():
                loss = self.loss(rows.tokens, rows.targets, rows.weights)
            loss = loss * (rows.weights.sum().clamp_min(1.0) / whole)
            loss.backward()
            total += loss.detach()
        return total

    def autocast(self) -> torch.autocast:
        """bfloat16 on a GPU, float32 on the CPU."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def run(self) -> State:
        """Train to the end (or to `stop_after`), from the last checkpoint if there is one."""
        self.resume()
        self.warm_up()
        saved = time.perf_counter()
        next_validation = self.progress() + self.config.validate_every
        losses: list[Tensor] = []
        pace = Pace(self.device)
        while self.progress() < 1.0 and self.state.step != self.config.stop_after:
            rate = self.rate()
            losses.append(self.step())
            self.state.elapsed += pace.lap()
            if self.state.step % self.config.log_every == 0:
                self.log(stage=self.stage()[0], loss=float(torch.stack(losses).mean()), lr=rate)
                losses = []
            if self.progress() >= next_validation:
                next_validation += self.config.validate_every
                self.log(valid_bpb=self.validate(), **self.validate_answers())
                pace.restart()
            if (
                self.config.checkpoint_every
                and time.perf_counter() - saved > self.config.checkpoint_every
            ):
                self.save()
                saved = time.perf_counter()
                pace.restart()
        self.state.elapsed += pace.finish()
        self.log(valid_bpb=self.validate(), **self.validate_answers())
        self.save()
        return self.state

    def warm_up(self) -> None:
        """Compile outside the clock: one forward and backward, then generators are put back."""
        if not self.config.compile:
            return
        begin, kept = time.perf_counter(), generators(self.device)
        stage, index = self.stage()
        self.forward_backward(self.mixer(stage).batch(index))
        self.optimizer.zero_grad(set_to_none=True)
        set_generators(self.device, kept)
        self.log(compile_seconds=round(time.perf_counter() - begin, 2))

    # ---- validation and logs --------------------------------------------------------------------

    @torch.no_grad()
    def validate(self, rows: int = 48) -> float:
        """Bits per byte on the first rows of the Wikipedia validation text.

        A running figure that ignores document borders; evaluate.py has the real one.
        """
        tokens = np.load(self.corpus / "validation.tokens.npy").astype(np.int64)
        size = json.loads((self.corpus / "corpus.json").read_text())["validation"]
        context = self.model.config.context
        rows = min(rows, (len(tokens) - 1) // context)
        flat = torch.from_numpy(tokens[: rows * context + 1]).to(self.device)
        self.model.eval()
        nats = 0.0
        with self.autocast():
            for i in range(0, rows, 16):
                span = flat[i * context : min(i + 16, rows) * context + 1]
                x, y = span[:-1].view(-1, context), span[1:].view(-1, context)
                nats += (
                    float(self.model.loss(x, y, torch.ones_like(y, dtype=torch.float))) * x.shape[0]
                )
        return nats / rows / math.log(2) * size["tokens"] / size["bytes"]

    @torch.no_grad()
    def validate_answers(self, rows: int = 24) -> dict[str, float]:
        """Nats per answer token on the first rows of each held-out part of dialogues."""
        self.model.eval()
        context, found = self.model.config.context, {}
        for path in sorted(self.corpus.glob("*_valid.mask.npy")):
            name = path.name.removesuffix(".mask.npy")
            flat = np.load(self.corpus / f"{name}.tokens.npy").astype(np.int64)
            size = min(rows, (len(flat) - 1) // context) * context
            if not size:
                continue
            tokens = torch.from_numpy(flat[: size + 1]).to(self.device)
            mask = torch.from_numpy(np.load(path)[1 : size + 1]).float().to(self.device)
            x, y = tokens[:-1].view(-1, context), tokens[1:].view(-1, context)
            w, nats = mask.view(-1, context), 0.0
            with self.autocast():
                for i in range(0, len(x), 8):
                    some = slice(i, i + 8)
                    nats += float(self.model.loss(x[some], y[some], w[some])) * float(w[some].sum())
            found[name] = round(nats / max(1.0, float(w.sum())), 4)
        return found

    def log(self, **values: object) -> None:
        """One JSON line with the run's position."""
        tokens = self.state.step * self.config.rows * self.model.config.context
        line = {
            "step": self.state.step,
            "seconds": round(self.state.elapsed, 2),
            "tokens": tokens,
            **values,
        }
        with self.log_file.open("a") as handle:
            handle.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

    # ---- checkpoints ----------------------------------------------------------------------------

    @property
    def checkpoint(self) -> Path:
        """The one checkpoint file of a run."""
        return self.out / "checkpoint.pt"

    def save(self) -> None:
        """Write aside, then rename: the old checkpoint stays whole until the new one is."""
        aside = self.checkpoint.with_suffix(".new")
        torch.save(
            {
                "model": self.model.state_dict(),
                "model_config": asdict(self.model.config),
                "optimizer": self.optimizer.state_dict(),
                "state": asdict(self.state),
                "generators": generators(self.device),
            },
            aside,
        )
        os.replace(aside, self.checkpoint)

    def resume(self) -> bool:
        """Continue from the checkpoint if there is one."""
        if not self.checkpoint.exists():
            return False
        saved = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        if saved["model_config"] != asdict(self.model.config):
            raise ValueError(
                f"{self.checkpoint} holds {saved['model_config']}, not {asdict(self.model.config)}"
            )
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.state = State(**saved["state"])
        set_generators(self.device, saved["generators"])
        return True


def read_log(path: Path) -> Iterator[dict]:
    """The lines of a log."""
    for line in path.read_text().splitlines():
        yield json.loads(line)
