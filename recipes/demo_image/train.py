"""Training: flow matching over latents, caption encoder and denoiser together.

The velocity is eps - x0, sigma is the sigmoid of a normal draw, and the time that the denoiser sees
is 1000 sigma. The learning rate warms up, stays, and falls in a straight line to zero; all of it
by the clock (or by steps), so a run ends when it should. What is kept is an exponential
moving average of the weights.
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from .bind import BindConfig, bind
from .denoiser import Denoiser, DenoiserConfig
from .pool import Pool
from .text_encoder import TextConfig, TextEncoder


@dataclass(frozen=True)
class TrainConfig:
    """One run. Exactly one of `steps`, `seconds` and `deadline` is set."""

    lr: float = 1e-3
    text_lr: float = 2e-4  # of the caption encoder
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    warmup: float = 0.02  # of the run
    decay: float = 0.5  # of the run, at its end
    clip: float = 1.0
    ema: float = 0.9995
    rows: int = 512
    single: float = 0.42  # of the rows; the rest is scenes
    emoji: float = 0.35
    dropout: float = 0.1  # captions left out
    steps: int | None = None
    seconds: float | None = None
    deadline: float | None = None  # seconds since the epoch
    seed: int = 0
    device: str = "cuda"
    compile: bool = True
    log_every: int = 50  # steps
    validate_every: float = 0.05  # of the run
    checkpoint_every: float = 120.0  # seconds; 0 writes only the last one
    stop_after: int | None = None  # steps; to test resuming

    def __post_init__(self) -> None:
        given = [self.steps, self.seconds, self.deadline]
        if sum(value is not None for value in given) != 1:
            raise ValueError(f"set one of steps, seconds and deadline: {given}")

    def counts(self) -> dict[str, int]:
        """Rows of each part in a batch."""
        single, emoji = round(self.rows * self.single), round(self.rows * self.emoji)
        return {"single": single, "emoji": emoji, "shapes": self.rows - single - emoji}


class Model(nn.Module):
    """Both trained networks."""

    def __init__(self, text: TextConfig, denoiser: DenoiserConfig) -> None:
        super().__init__()
        self.text = TextEncoder(text)
        self.denoiser = Denoiser(denoiser)

    def forward(self, z: Tensor, sigma: Tensor, ids: Tensor) -> Tensor:
        """z [B, 32, 16, 16], sigma [B], ids int64 [B, L] -> velocity"""
        mask = ids > 0
        out: Tensor = self.denoiser(z, 1000 * sigma, self.text(ids, mask), mask)
        return out

    def compile_blocks(self) -> None:
        """Compile one block of each kind: much faster to compile than the whole."""
        for block in [*self.text.encoder["block"], *self.denoiser.transformer_blocks]:
            block.compile(dynamic=False)


def flow_loss(model: Model, x0: Tensor, ids: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Mean squared error of the velocity, per row: [B]."""
    level = sigma[:, None, None, None]
    v = model((1 - level) * x0 + level * noise, sigma, ids)
    return (v.float() - (noise - x0)).square().mean((1, 2, 3))


class Trainer:
    """Owns the model, its average, the optimizer and the clock of one run."""

    def __init__(
        self,
        text: TextConfig,
        denoiser: DenoiserConfig,
        config: TrainConfig,
        pool: Pool,
        out: Path,
    ) -> None:
        self.config, self.pool, self.out = config, pool, out
        out.mkdir(parents=True, exist_ok=True)
        self.device = torch.device(config.device)
        torch.manual_seed(config.seed)
        self.model = Model(text, denoiser).to(self.device)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        if config.compile:
            self.model.compile_blocks()
        self.optimizer = self._optimizer()
        self.draws = torch.Generator(self.device).manual_seed(config.seed)
        self.step_count, self.before, self.begin = 0, 0.0, time.time()
        self.log_file = out / "log.jsonl"

    def _optimizer(self) -> torch.optim.Optimizer:
        """AdamW; weight decay on matrices only; each group has its share of the rate."""
        config, groups = self.config, []
        for network, share in (
            (self.model.denoiser, 1.0),
            (self.model.text, config.text_lr / config.lr),
        ):
            parameters = list(network.parameters())
            for matrices, decay in ((True, config.weight_decay), (False, 0.0)):
                some = [p for p in parameters if (p.ndim >= 2) == matrices]
                groups.append({"params": some, "weight_decay": decay, "share": share})
        fused = self.device.type == "cuda"
        return torch.optim.AdamW(groups, lr=self.config.lr, betas=self.config.betas, fused=fused)

    # ---- schedule -------------------------------------------------------------------------------

    def elapsed(self) -> float:
        """Seconds of this run, those before a resume included."""
        return self.before + time.time() - self.begin

    def progress(self) -> float:
        """0 at the start, 1 when the run is over."""
        if self.config.steps is not None:
            return self.step_count / self.config.steps
        total = self.config.seconds
        if self.config.deadline is not None:
            total = self.before + self.config.deadline - self.begin
        return self.elapsed() / max(total or 0.0, 1e-3)

    def rate(self, progress: float) -> float:
        """Learning rate."""
        up = progress / self.config.warmup if self.config.warmup else 1.0
        down = (1 - progress) / self.config.decay
        return self.config.lr * max(min(up, 1.0, down), 1e-3)

    # ---- steps ----------------------------------------------------------------------------------

    def batch(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x0, ids (some empty), noise and sigma of one step."""
        drawn = [self.pool.parts[k].draw(n, self.draws) for k, n in self.config.counts().items()]
        x0, ids = (torch.cat(some) for some in zip(*drawn, strict=True))
        options: dict = {"device": self.device, "generator": self.draws}
        left_out = torch.rand(len(ids), 1, **options) < self.config.dropout
        ids = torch.where(left_out, empty_like(ids), ids)
        noise = torch.randn(x0.shape, **options)
        sigma = torch.sigmoid(torch.randn(len(ids), **options))
        return x0, ids, noise, sigma

    def step(self) -> Tensor:
        """One optimizer step; returns the losses of the parts [3], on the device."""
        rate = self.rate(self.progress())
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        with self.autocast():
            losses = flow_loss(self.model, *self.batch())
        losses.mean().backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step_count += 1
        self._average()
        parts = losses.detach().split(list(self.config.counts().values()))
        return torch.stack([part.mean() for part in parts])

    @torch.no_grad()
    def _average(self) -> None:
        keep = min(self.config.ema, (1 + self.step_count) / (10 + self.step_count))
        torch._foreach_lerp_(
            list(self.average.parameters()), list(self.model.parameters()), 1 - keep
        )

    def autocast(self) -> torch.autocast:
        """bfloat16 on a GPU, float32 on the CPU."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def run(self) -> None:
        """Train to the end (or to `stop_after`), from the last checkpoint if there is one."""
        self.resume()
        self._warm_up()
        self.begin, saved = time.time(), time.time()
        start, next_validation = self.step_count, self.progress() + self.config.validate_every
        losses: list[Tensor] = []
        while self.progress() < 1.0 and self.step_count != self.config.stop_after:
            losses.append(self.step())
            if self.step_count % self.config.log_every == 0:
                mean = torch.stack(losses).mean(0).tolist()  # waits for the device
                speed = (self.step_count - start) * self.config.rows / (time.time() - self.begin)
                rate = self.rate(self.progress())
                self.log(**_named(mean), lr=rate, rows_per_second=round(speed))
                losses = []
            if self.progress() >= next_validation:
                next_validation += self.config.validate_every
                self.log(**self.validate())
            if self.config.checkpoint_every and time.time() - saved > self.config.checkpoint_every:
                self.save()
                saved = time.time()
        self.log(**self.validate())
        self.save()

    def bind(self, tokenizer: Tokenizer, config: BindConfig) -> None:
        """Before the first step: teach the caption encoder which thing stands where."""
        if config.steps and not self.checkpoint.exists():
            told = bind(self.model.text, tokenizer, config)
            self.average.text.load_state_dict(self.model.text.state_dict())
            self.log(sides_told_rightly=round(told, 4))

    def _warm_up(self) -> None:
        """Compile outside the clock; the generator is put back."""
        if not self.config.compile:
            return
        begin, kept = time.time(), self.draws.get_state()
        with self.autocast():
            flow_loss(self.model, *self.batch()).mean().backward()
        self.optimizer.zero_grad(set_to_none=True)
        self.draws.set_state(kept)
        self.log(compile_seconds=round(time.time() - begin, 1))

    # ---- validation and logs --------------------------------------------------------------------

    @torch.no_grad()
    def validate(self, rows: int = 256) -> dict[str, float]:
        """Loss of the averaged weights on held-out scenes and on new places of single pictures."""
        generator = torch.Generator(self.device).manual_seed(1)
        found = {}
        for name, part in self.pool.held_out.items():
            n = min(rows, len(part.z))
            pick = torch.linspace(0, len(part.z) - 1, n, device=self.device).long()
            x0, ids = part.z[pick].float(), part.ids[pick // part.moves, 0].long()
            noise = torch.randn(x0.shape, device=self.device, generator=generator)
            sigma = (torch.arange(n, device=self.device) % 16 + 0.5) / 16
            with self.autocast():
                loss = flow_loss(self.average, x0, ids, noise, sigma).mean()
            found[f"valid_{name}"] = round(float(loss), 5)
        return found

    def log(self, **values: object) -> None:
        """One JSON line with the run's position."""
        line = {
            "step": self.step_count,
            "seconds": round(self.elapsed(), 1),
            "rows": self.step_count * self.config.rows,
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
                "average": self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "text_config": asdict(self.model.text.config),
                "denoiser_config": asdict(self.model.denoiser.config),
                "latents": {
                    "shift": self.pool.autoencoder.shift,
                    "scale": self.pool.autoencoder.scale,
                },
                "draws": self.draws.get_state(),
                "step": self.step_count,
                "seconds": self.elapsed(),
            },
            aside,
        )
        os.replace(aside, self.checkpoint)

    def resume(self) -> bool:
        """Continue from the checkpoint if there is one."""
        if not self.checkpoint.exists():
            return False
        saved = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        self.model.load_state_dict(saved["model"])
        self.average.load_state_dict(saved["average"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.draws.set_state(saved["draws"].cpu())
        self.step_count, self.before = saved["step"], saved["seconds"]
        return True


def empty_like(ids: Tensor) -> Tensor:
    """The ids of the empty caption: </s> and padding."""
    empty = torch.zeros_like(ids)
    empty[:, 0] = 1
    return empty


def load_trained(path: Path) -> tuple[Model, dict[str, float]]:
    """The averaged weights of a checkpoint, and the latents' shift and scale."""
    saved = torch.load(path, map_location="cpu", weights_only=True)
    model = Model(TextConfig(**saved["text_config"]), DenoiserConfig(**saved["denoiser_config"]))
    model.load_state_dict(saved["average"])
    return model.eval().requires_grad_(False), saved["latents"]


def read_log(path: Path) -> Iterator[dict]:
    """The lines of a log."""
    for line in path.read_text().splitlines():
        yield json.loads(line)


def _named(losses: list[float]) -> dict[str, float]:
    names = ("single", "emoji", "shapes")
    return {f"loss_{name}": round(x, 5) for name, x in zip(names, losses, strict=True)}
