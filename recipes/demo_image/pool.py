"""Everything a training step draws from: latents of all pictures and tokens of their captions.

Pictures are drawn and encoded once, on the device that trains; the plans of the scenes come from
their seeds and go to `scenes.jsonl.gz` with exact positions.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from .autoencoder import Autoencoder, load_autoencoder
from .render import Renderer, shifted
from .scenes import SIZE, Scene, make_scenes
from .sets import Sets, captions, load_sets, sprites
from .tokenizer import encode, train_tokenizer

KINDS = ("emoji", "shapes")
CHUNK = 2500  # scenes planned at a time
BATCH = 500  # pictures drawn and encoded at a time
HELD_OUT_SEED = 1_000_000_000  # scenes from this seed on are never trained on


@dataclass(frozen=True)
class Sample:
    """How much of everything to make."""

    every: int = 1  # take every n-th picture of the sets, and all subjects
    moves: int = 24  # places and sizes of each single picture
    captions: int = 48  # of each single picture
    emoji: int = 240_000  # scenes
    shapes: int = 120_000
    held_out: int = 256  # scenes of each kind to validate on
    vocab: int = 4096
    workers: int = 12


TINY = Sample(
    every=80, moves=1, captions=8, emoji=24, shapes=24, held_out=4, vocab=600, workers=1
)  # fmt: skip


@dataclass
class Part:
    """Latents z float16 [n, 32, 16, 16]; captions of picture i: ids[i // moves], [m, c, L]."""

    z: Tensor
    ids: Tensor
    moves: int = 1

    def draw(self, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """z float32 [rows, 32, 16, 16] and ids int64 [rows, L], with replacement."""
        device = self.z.device
        pick = torch.randint(len(self.z), (rows,), device=device, generator=generator)
        said = torch.randint(self.ids.shape[1], (rows,), device=device, generator=generator)
        return self.z[pick].float(), self.ids[pick // self.moves, said].long()


@dataclass
class Pool:
    """The parts to train on ("single", "emoji", "shapes"), those to validate on, and how to read
    them.
    """

    parts: dict[str, Part]
    held_out: dict[str, Part]
    autoencoder: Autoencoder
    renderer: Renderer


def _plan(job: tuple[str, int, int]) -> list[Scene]:
    kind, count, first = job
    return make_scenes(kind, count, first)


def plan(sample: Sample) -> dict[str, list[Scene]]:
    """All training scenes, by kind."""
    jobs = [
        (kind, min(CHUNK, total - first), first)
        for kind, total in (("emoji", sample.emoji), ("shapes", sample.shapes))
        for first in range(0, total, CHUNK)
    ]
    if sample.workers == 1:
        done = [_plan(job) for job in jobs]
    else:
        with ProcessPoolExecutor(sample.workers, mp_context=get_context("fork")) as workers:
            done = list(workers.map(_plan, jobs))
    plans: dict[str, list[Scene]] = {kind: [] for kind in KINDS}
    for (kind, _, _), scenes in zip(jobs, done, strict=True):
        plans[kind] += scenes
    return plans


def write_plans(plans: dict[str, list[Scene]], path: Path) -> None:
    """The sidecar: one JSON line a scene."""
    with gzip.open(path, "wt", compresslevel=3) as handle:
        for scenes in plans.values():
            handle.writelines(json.dumps(scene.line()) + "\n" for scene in scenes)


def single_captions(sets: Sets, each: int, *, seed: int = 0) -> list[str]:
    """`each` captions of every single picture, one picture after the other."""
    rng = random.Random(seed)
    return [captions(emoji, rng) for emoji in sets.emoji for _ in range(each)]


def caption_tokenizer(data: Path, sample: Sample) -> Tokenizer:
    """A tokenizer of the captions of both sets and of some scenes."""
    sets = load_sets(data, every=sample.every)
    some = replace(
        sample, emoji=min(sample.emoji, 3000), shapes=min(sample.shapes, 1000), workers=1
    )
    scenes = [s.caption for kind in plan(some).values() for s in kind]
    words = [word for emoji in sets.emoji for word in (emoji.name, *emoji.keywords)]
    return train_tokenizer([*single_captions(sets, 8), *words, *scenes], sample.vocab)


def places(count: int, *, seed: int = 0) -> Tensor:
    """x, y and side of single pictures, float [count, 3]: nearly the whole canvas."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(count, 3, generator=generator)
    side = SIZE * (0.8 + 0.2 * draws[:, 2])
    room = (SIZE - side) / 2 + 2
    centre = SIZE / 2 + (2 * draws[:, :2] - 1) * room[:, None]
    return torch.cat([centre, side[:, None]], 1)


class Maker:
    """Draws and encodes; holds the sets, the sprites, the autoencoder and the tokenizer."""

    def __init__(
        self, data: Path, sample: Sample, tokenizer: Tokenizer, device: torch.device
    ) -> None:
        self.sample, self.tokenizer, self.device = sample, tokenizer, device
        self.sets = load_sets(data, every=sample.every)
        cut, where = sprites(self.sets)
        self.renderer = Renderer(cut.to(device), where)
        torch.backends.cudnn.benchmark = device.type == "cuda"
        self.half = torch.float16 if device.type == "cuda" else torch.float32
        self.autoencoder = load_autoencoder(data).to(device, memory_format=torch.channels_last)
        self.autoencoder.encoder.to(self.half)

    def encode(self, pictures: Iterator[Tensor], count: int) -> Tensor:
        """Raw latents float16 [count, 32, 16, 16] of batches of pictures in 0..1, as 8 bits have
        them.
        """
        out = torch.empty(count, 32, SIZE // 8, SIZE // 8, dtype=torch.float16, device=self.device)
        begin = 0
        for batch in pictures:
            x = ((batch * 255).round() / 255).to(self.half, memory_format=torch.channels_last)
            with torch.no_grad():
                out[begin : begin + len(x)] = self.autoencoder.encoder(x).to(torch.float16)
            begin += len(x)
        return out

    def singles(self, moves: int, *, seed: int = 0, every: int = 1) -> Part:
        """Every picture of the sets, or every n-th, at `moves` places."""
        chosen, each = torch.arange(0, len(self.sets.emoji), every), self.sample.captions
        n = len(chosen)
        images = torch.from_numpy(self.sets.images)
        where = places(n * moves, seed=seed).to(self.device)
        owners = chosen.repeat_interleave(moves)
        batches = (
            shifted(images[owners[i : i + BATCH]].to(self.device), where[i : i + BATCH])
            for i in range(0, n * moves, BATCH)
        )
        ids = encode(self.tokenizer, single_captions(self.sets, each))
        tokens = torch.from_numpy(ids).view(len(self.sets.emoji), each, -1)[chosen].to(self.device)
        return Part(self.encode(batches, n * moves), tokens, moves)

    def scenes(self, scenes: list[Scene]) -> Part:
        """Scenes of one kind."""
        batches = (self.renderer(scenes[i : i + BATCH]) for i in range(0, len(scenes), BATCH))
        ids = torch.from_numpy(encode(self.tokenizer, [s.caption for s in scenes]))
        return Part(self.encode(batches, len(scenes)), ids[:, None].to(self.device))


def build(
    data: Path, sample: Sample, tokenizer: Tokenizer, device: torch.device, sidecar: Path | None
) -> Pool:
    """Plan, draw and encode everything; shift and scale are measured on the training latents."""
    plans = plan(sample)  # before the device is touched: it forks
    if sidecar is not None:
        write_plans(plans, sidecar)
    maker = Maker(data, sample, tokenizer, device)
    parts = {"single": maker.singles(sample.moves)}
    parts |= {kind: maker.scenes(scenes) for kind, scenes in plans.items()}
    some = max(1, len(maker.sets.emoji) // sample.held_out)
    held_out = {"single": maker.singles(1, seed=1, every=some)}
    for kind in KINDS:
        held_out[kind] = maker.scenes(make_scenes(kind, sample.held_out, HELD_OUT_SEED))
    model = maker.autoencoder.float()
    model.shift, model.scale = statistics(list(parts.values()))
    for part in [*parts.values(), *held_out.values()]:
        for some in part.z.split(20_000):
            some.copy_((some.float() - model.shift) * model.scale)
    return Pool(parts, held_out, model, maker.renderer)


def statistics(parts: list[Part]) -> tuple[float, float]:
    """Mean, and one over the standard deviation, of the latents, each part weighing the same."""
    means, squares = [], []
    for part in parts:
        some = part.z[:: max(1, len(part.z) // 20_000)].double()
        means.append(float(some.mean()))
        squares.append(float(some.square().mean()))
    mean = sum(means) / len(means)
    variance = sum(squares) / len(squares) - mean**2
    return round(mean, 5), round(variance**-0.5, 5)
