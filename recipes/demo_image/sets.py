"""The two emoji sets: pictures at 128 x 128 on white, names, captions, and cut-out sprites."""

from __future__ import annotations

import gzip
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .subjects import SUBJECTS, a

SIZE = 128
STYLES = ("flat", "3d")  # of Noto, of Fluent
FOLDERS = {"flat": "img-noto-emoji-64", "3d": "img-fluent-emoji-3d-128"}
NOT_A_THING = re.compile(
    r"button|symbol|sign|arrow|keycap|flag|letter|digit|square|circle|person|people|man|men|woman|"
    r"women|face|hand|family|kiss|couple|\d"
)  # names that take no article
KEYWORD = re.compile(r"^[a-z][a-z ]+$")


@dataclass(frozen=True)
class Emoji:
    """One picture of a set."""

    style: str
    codepoints: str  # without variation selectors, in the form of `SUBJECTS`
    name: str  # lower case; unique within the style
    keywords: tuple[str, ...]


@dataclass(frozen=True)
class Sets:
    """Both sets one after the other: images uint8 [n, 128, 128, 3] and what they show."""

    images: np.ndarray
    emoji: list[Emoji]

    def index(self, codepoints: str, style: str) -> int:
        """Position of a picture."""
        return self._places()[codepoints, style]

    def _places(self) -> dict[tuple[str, str], int]:
        return {(e.codepoints, e.style): i for i, e in enumerate(self.emoji)}


def load_sets(data: Path, *, every: int = 1) -> Sets:
    """Both sets without skin-tone variants; `every`-th picture only, and all subjects."""
    images, emoji = [], []
    for style in STYLES:
        folder = data / FOLDERS[style]
        rows = [json.loads(line) for line in gzip.open(folder / "captions.jsonl.gz", "rt")]
        keep = [
            i
            for i, row in enumerate(rows)
            if not row.get("skin_tone") and (i % every == 0 or _points(row) in SUBJECTS.values())
        ]
        with np.load(folder / "images.npz") as archive:
            images.append(enlarge(archive["images"][keep]))
        emoji += _named(style, [rows[i] for i in keep])
    return Sets(np.concatenate(images), emoji)


def enlarge(images: np.ndarray) -> np.ndarray:
    """uint8 [n, s, s, 3] -> uint8 [n, 128, 128, 3], bicubic."""
    if images.shape[1] == SIZE:
        return images
    out = []
    for some in np.array_split(images, max(1, len(images) // 256)):
        x = torch.from_numpy(np.array(some)).permute(0, 3, 1, 2).float()
        x = F.interpolate(x, size=(SIZE, SIZE), mode="bicubic", align_corners=False)
        out.append(x.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(out)


def _points(row: dict) -> str:
    parts = (p.lstrip("0") for p in row["codepoints"].lower().split("-"))
    return "-".join(p for p in parts if p != "fe0f")


def _named(style: str, rows: list[dict]) -> list[Emoji]:
    """Short names; where two pictures share one, both go by their Unicode names."""
    short = [((r["keywords"] or [r["name"]])[0].strip() or r["name"]).lower() for r in rows]
    short = [
        r["name"].lower() if short.count(s) > 1 else s for r, s in zip(rows, short, strict=True)
    ]
    named = {points: name for name, points in SUBJECTS.items()}
    return [
        Emoji(
            style,
            _points(row),
            named.get(_points(row), name),
            tuple(k.lower() for k in row["keywords"][1:] if KEYWORD.match(k.lower())),
        )
        for row, name in zip(rows, short, strict=True)
    ]


def captions(emoji: Emoji, rng: random.Random) -> str:
    """One caption of a single picture: its name, at times keywords or the style."""
    name, draw = emoji.name, rng.random()
    thing = name if NOT_A_THING.search(name) else a(name)
    if draw < 0.45:
        text = thing
    elif draw < 0.65:
        text = name
    elif draw < 0.75:
        text = f"{name} emoji"
    elif draw < 0.93 and emoji.keywords:
        some = rng.sample(emoji.keywords, min(len(emoji.keywords), rng.randint(1, 3)))
        text = ", ".join([name, *some])
    elif draw < 0.97 and len(emoji.keywords) > 1:
        text = ", ".join(rng.sample(emoji.keywords, min(len(emoji.keywords), 3)))
    else:
        text = f"a picture of {thing}"
    return f"{text}, {emoji.style} style" if rng.random() < 0.55 else text


def cut_out(images: np.ndarray) -> Tensor:
    """Premultiplied RGBA float [n, 4, 128, 128] in 0..1 of pictures on white.

    The background is what near-white pixels connect to the border. Pixels next to it are taken as
    mixtures with white: the more so the lighter they are.
    """
    x = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 255
    darkest = x.amin(1, keepdim=True)
    light = (darkest > 0.955).float()
    outside = torch.zeros_like(light)
    outside[..., 0, :] = outside[..., -1, :] = outside[..., 0] = outside[..., -1] = 1.0
    outside *= light
    for _ in range(2 * SIZE):
        grown = F.max_pool2d(outside, 3, 1, 1) * light
        if torch.equal(grown, outside):
            break
        outside = grown
    near = F.max_pool2d(outside, 5, 1, 2)
    alpha = torch.where(near > 0, ((1 - darkest) / 0.5).clamp(0, 1), torch.ones_like(light))
    alpha = torch.where(outside > 0, (1 - darkest).clamp(0, 1), alpha)
    colour = (x - (1 - alpha)).clamp(min=0.0)  # what white did not give
    return torch.cat([torch.minimum(colour, alpha), alpha], 1)


def sprites(sets: Sets) -> tuple[Tensor, dict[tuple[str, str], int]]:
    """RGBA sprites of all subjects in both styles, centred, filling the frame; places by
    (subject, style).
    """
    pairs = [(name, style) for style in STYLES for name in SUBJECTS]
    picked = sets.images[[sets.index(SUBJECTS[name], style) for name, style in pairs]]
    rgba = cut_out(picked)
    return torch.stack([_fill(s) for s in rgba]), {pair: i for i, pair in enumerate(pairs)}


def _fill(sprite: Tensor) -> Tensor:
    """The sprite's box, padded to a square and scaled to the frame."""
    ys, xs = torch.nonzero(sprite[3] > 0.1, as_tuple=True)
    top, bottom, left, right = ys.min(), ys.max() + 1, xs.min(), xs.max() + 1
    side = int(max(bottom - top, right - left))
    square = torch.zeros(4, side, side)
    y, x = (side - int(bottom - top)) // 2, (side - int(right - left)) // 2
    square[:, y : y + bottom - top, x : x + right - left] = sprite[:, top:bottom, left:right]
    return F.interpolate(square[None], size=(SIZE, SIZE), mode="bilinear", antialias=True)[0]
