"""Exact detectors of what stands in a scene's picture, and the judgement of its caption.

Coloured shapes: nearest palette colour of every saturated pixel, 4-connected components of 320
pixels or more (20 at 32 x 32), and the best of the four shapes drawn in the component's box.
Emoji: what differs from the border's colour, and the nearest sprite by mean squared difference at
32 x 32 in the component's box.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .render import RING
from .scenes import COLOURS, OPPOSITE, SHAPES, SIZE, Scene, Thing, relations

LEAST = 320  # pixels of a component
SATURATION = 0.25  # of an object's pixel
OVERLAP = 0.6  # least intersection over union with a shape's template
CONTRAST = 0.08  # an emoji's pixel differs by so much from the background in some channel
EMOJI_SIDE = 32
FARTHEST = 0.08  # mean squared difference beyond which an emoji is unknown


def components(mask: Tensor) -> Tensor:
    """bool [n, H, W] -> int64 [n, H, W]: one number for each 4-connected part, -1 outside."""
    _, height, width = mask.shape
    own = torch.arange(height * width, device=mask.device).view(1, height, width)
    labels = torch.where(mask, own, -1)
    while True:
        x = labels.float()[:, None]
        x = torch.maximum(F.max_pool2d(x, (3, 1), 1, (1, 0)), F.max_pool2d(x, (1, 3), 1, (0, 1)))
        flat = torch.where(mask, x[:, 0].long(), -1).flatten(1)
        # the number of the cell that gave its number: halves the way to the part's highest cell
        new = torch.where(flat >= 0, flat.gather(1, flat.clamp(min=0)), -1).view_as(labels)
        if torch.equal(new, labels):
            return labels
        labels = new


def boxes(mask: Tensor, least: int = LEAST) -> list[list[tuple[int, int, int, int, np.ndarray]]]:
    """Per picture of bool [n, H, W]: (left, top, right, bottom, cells in that box) of each part."""
    labels = components(mask).cpu().numpy()
    found = []
    for picture in labels:
        numbers, counts = np.unique(picture[picture >= 0], return_counts=True)
        parts = []
        for number in numbers[counts >= least]:
            ys, xs = np.nonzero(picture == number)
            left, right, top, bottom = xs.min(), xs.max() + 1, ys.min(), ys.max() + 1
            cells = picture[top:bottom, left:right] == number
            parts.append((int(left), int(top), int(right), int(bottom), cells))
        found.append(parts)
    return found


def shape_of(cells: np.ndarray) -> str:
    """The shape whose template fits bool [h, w] best, or "unknown"."""
    height, width = cells.shape
    v = (np.arange(height) + 0.5)[:, None] / height * 2 - 1
    u = (np.arange(width) + 0.5)[None] / width * 2 - 1
    radius = np.sqrt(u**2 + v**2)
    templates = {
        "square": np.ones_like(radius, bool),
        "circle": radius <= 1,
        "triangle": np.abs(u) <= (v + 1) / 2,
        "ring": (radius <= 1) & (radius >= RING),
    }
    scores = {s: (t & cells).sum() / (t | cells).sum() for s, t in templates.items()}
    best = max(SHAPES, key=lambda s: scores[s])
    return best if scores[best] >= OVERLAP else "unknown"


def find_shapes(images: Tensor) -> list[list[Thing]]:
    """float [n, 3, 128, 128] in 0..1 -> the coloured shapes of each picture."""
    top, bottom = images.amax(1), images.amin(1)
    vivid = (top - bottom) / top.clamp(min=1e-6) >= SATURATION
    palette = torch.tensor(list(COLOURS.values()), device=images.device) / 255
    distances = (images[:, None] - palette[None, :, :, None, None]).pow(2).sum(2)
    nearest = distances.argmin(1)
    found: list[list[Thing]] = [[] for _ in images]
    for i, colour in enumerate(COLOURS):
        mask = vivid & (nearest == i)
        rows = torch.nonzero(mask.sum((1, 2)) >= LEAST)[:, 0].tolist()
        for row, parts in zip(rows, boxes(mask[rows]) if rows else [], strict=True):
            for left, top_, right, bottom_, cells in parts:
                thing = _thing(f"{colour} {shape_of(cells)}", left, top_, right, bottom_)
                found[row].append(thing)
    return found


def _thing(name: str, left: int, top: int, right: int, bottom: int) -> Thing:
    return Thing(name, (left + right) / 2, (top + bottom) / 2, max(right - left, bottom - top))


class EmojiDetector:
    """Finds the subjects' sprites in pictures with a plain background."""

    def __init__(self, sprites: Tensor, places: dict[tuple[str, str], int]) -> None:
        size = (EMOJI_SIDE, EMOJI_SIDE)
        self.names = [name for name, _ in places]  # in the order of the sprites
        self.styles = [style for _, style in places]
        self.small = F.interpolate(sprites, size=size, mode="area")

    def __call__(self, images: Tensor) -> list[list[tuple[Thing, str]]]:
        """float [n, 3, 128, 128] in 0..1 -> subject and style of each thing in each picture."""
        frame = torch.cat(
            [images[..., :3, :].flatten(2), images[..., -3:, :].flatten(2),
             images[..., :3].flatten(2), images[..., -3:].flatten(2)], 2)  # fmt: skip
        plain = frame.median(2).values  # [n, 3]
        differs = (images - plain[:, :, None, None]).abs().amax(1) > CONTRAST
        joined = F.max_pool2d(differs[:, None].float(), 5, 1, 2)[:, 0] > 0
        found = []
        for image, colour, parts in zip(images, plain, boxes(joined), strict=True):
            rims = [_less_rim(part[:4]) for part in parts]
            found.append([self._name(image, colour, rim) for rim in rims])
        return found

    def _name(
        self, image: Tensor, colour: Tensor, box: tuple[int, int, int, int]
    ) -> tuple[Thing, str]:
        left, top, right, bottom = box
        side = max(right - left, bottom - top)
        square = colour[:, None, None].expand(3, side, side).clone()
        y, x = (side - (bottom - top)) // 2, (side - (right - left)) // 2
        square[:, y : y + bottom - top, x : x + right - left] = image[:, top:bottom, left:right]
        size = (EMOJI_SIDE, EMOJI_SIDE)
        seen = F.interpolate(square[None], size=size, mode="bilinear", antialias=True)
        drawn = self.small[:, :3] + (1 - self.small[:, 3:]) * colour[None, :, None, None]
        distance = (drawn - seen).pow(2).mean((1, 2, 3))
        best = int(distance.argmin())
        name = self.names[best] if float(distance[best]) <= FARTHEST else "unknown"
        return _thing(name, left, top, right, bottom), self.styles[best]


def _less_rim(box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """The box without the two pixels a side that joining added, unless it ends at the border."""
    left, top, right, bottom = box
    return (
        left + 2 * (left > 0),
        top + 2 * (top > 0),
        right - 2 * (right < SIZE),
        bottom - 2 * (bottom < SIZE),
    )


@dataclass(frozen=True)
class Verdict:
    """What a picture got right of its plan."""

    objects: bool  # every named thing is there exactly once
    nothing_else: bool  # and there is no other
    relations: bool  # and every clause is true
    axes: bool  # or true when the two things of a clause are swapped

    @property
    def right(self) -> bool:
        """Objects and relations."""
        return self.objects and self.relations


def judge(scene: Scene, found: list[Thing]) -> Verdict:
    """GenEval's rule in strict mode: named objects once each, and the relations between them."""
    named = [thing.name for thing in scene.things]
    seen = [[t for t in found if t.name == name] for name in named]
    objects = all(len(some) == 1 for some in seen)
    true = objects and all(r in relations(seen[i][0], seen[j][0]) for i, r, j in scene.clauses)
    axes = objects and all(
        {r, OPPOSITE[r]} & relations(seen[i][0], seen[j][0]) for i, r, j in scene.clauses
    )
    return Verdict(objects, objects and len(found) == len(named), true, axes)


def rates(verdicts: list[Verdict]) -> dict[str, float]:
    """Shares of the verdicts: objects, relations where the objects are there, both."""
    n = max(1, len(verdicts))
    objects = sum(v.objects for v in verdicts)
    right = sum(v.right for v in verdicts)
    return {
        "pictures": len(verdicts),
        "objects": round(objects / n, 4),
        "nothing else": round(sum(v.nothing_else for v in verdicts) / n, 4),
        "relations given objects": round(right / max(1, objects), 4),
        "axes given objects": round(sum(v.axes for v in verdicts) / max(1, objects), 4),
        "right": round(right / n, 4),
    }
