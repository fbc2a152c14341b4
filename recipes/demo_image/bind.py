"""Teaches the caption encoder which thing stands where, before the denoiser learns to use it.

The first run, without this, left the encoder a bag of words: pictures of "a cat left of a dog" show
both, side by side, in either order. Here a linear head reads from the states of every noun's tokens
on which side its thing stands.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from .scenes import DIRECTIONS, Scene, make_scenes
from .text_encoder import TextEncoder
from .tokenizer import LENGTH, encode

KINDS = ("emoji", "shapes")


@dataclass(frozen=True)
class BindConfig:
    """One run."""

    steps: int = 1500
    rows: int = 256
    lr: float = 1e-3
    scenes: int = 20_000  # of each kind
    seed: int = 0


def sides(scene: Scene) -> list[tuple[int, int]]:
    """For each thing, on which side of the others it stands: x and y in -1, 0, 1."""
    found = [[0, 0] for _ in scene.things]
    for first, relation, second in scene.clauses:
        for axis in (0, 1):
            found[first][axis] += DIRECTIONS[relation][axis]
            found[second][axis] -= DIRECTIONS[relation][axis]
    return [(x, y) for x, y in found]


def targets(scene: Scene, offsets: list[tuple[int, int]]) -> np.ndarray:
    """int8 [LENGTH, 3]: x, y and whether the token is of a noun, from the tokens' offsets."""
    out = np.zeros((LENGTH, 3), np.int8)
    begin = 0
    for thing, (x, y) in zip(scene.things, sides(scene), strict=True):
        begin = scene.caption.index(thing.name, begin)
        end = begin + len(thing.name)
        for i, (left, right) in enumerate(offsets[:LENGTH]):
            if right > left and left < end and right > begin and right <= end:
                out[i] = x, y, 1
        begin = end
    return out


def examples(tokenizer: Tokenizer, scenes: list[Scene]) -> tuple[Tensor, Tensor]:
    """Token ids int64 [n, LENGTH] and their targets float [n, LENGTH, 3]."""
    captions = [scene.caption for scene in scenes]
    read = tokenizer.encode_batch(captions)
    wanted = np.stack([targets(s, e.offsets) for s, e in zip(scenes, read, strict=True)])
    return torch.from_numpy(encode(tokenizer, captions)).long(), torch.from_numpy(wanted).float()


class Binder(nn.Module):
    """The encoder and a head that reads sides from it."""

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.width, 2)

    def forward(self, ids: Tensor) -> Tensor:
        """ids [B, L] -> sides [B, L, 2]"""
        said: Tensor = self.head(self.encoder(ids, ids > 0))
        return said


def agreement(said: Tensor, wanted: Tensor) -> float:
    """Share of noun tokens whose both sides are said rightly (nearest of -1, 0, 1)."""
    right = (said.round().clamp(-1, 1) == wanted[..., :2]).all(-1)
    nouns = wanted[..., 2] > 0
    return float(right[nouns].float().mean())


def bind(encoder: TextEncoder, tokenizer: Tokenizer, config: BindConfig) -> float:
    """Train in place on the encoder's device; returns the agreement on held-out scenes."""
    device = encoder.shared.weight.device
    torch.manual_seed(config.seed)
    binder = Binder(encoder).to(device)
    optimizer = torch.optim.AdamW(binder.parameters(), lr=config.lr, weight_decay=0.0)
    made = [scene for kind in KINDS for scene in make_scenes(kind, config.scenes)]
    ids, wanted = examples(tokenizer, made)
    longest = int((ids > 0).sum(1).max())
    generator = torch.Generator().manual_seed(config.seed)
    for step in range(config.steps):
        pick = torch.randint(len(ids), (config.rows,), generator=generator)
        x, y = ids[pick, :longest].to(device), wanted[pick, :longest].to(device)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * min(1.0, (step + 1) / 30) * (1 - step / config.steps)
        said = binder(x)
        loss = ((said - y[..., :2]).square().sum(-1) * y[..., 2]).sum() / y[..., 2].sum()
        loss.backward()
        nn.utils.clip_grad_norm_(binder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return held_out_agreement(binder, tokenizer, device)


@torch.no_grad()
def held_out_agreement(binder: Binder, tokenizer: Tokenizer, device: torch.device) -> float:
    """Agreement on scenes whose pairs are never trained on."""
    scenes = [s for kind in KINDS for s in make_scenes(kind, 200, 10**9, held_out=True, things=2)]
    ids, wanted = examples(tokenizer, scenes)
    return agreement(binder(ids.to(device)).cpu(), wanted)
