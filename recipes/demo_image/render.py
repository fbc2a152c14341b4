"""Pictures of plans, in batches, on whichever device holds the sprites."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .scenes import COLOURS, SHAPES, SIZE, Scene
from .subjects import BACKGROUNDS

RING = 0.55  # inner radius of a ring
NOISE = 0.05  # of a gray background
SMALL = 64  # side of the sprites for small objects
CELLS = 16  # of the background's noise a side


def paste(canvas: Tensor, sprite: Tensor, places: Tensor) -> Tensor:
    """Premultiplied RGBA [n, 4, s, s] over RGB [n, 3, 128, 128] at (x, y, side) [n, 3]."""
    x, y, side = places.unbind(1)
    theta = torch.zeros(len(places), 2, 3, device=places.device)
    theta[:, 0, 0] = theta[:, 1, 1] = SIZE / side
    theta[:, 0, 2], theta[:, 1, 2] = (SIZE - 2 * x) / side, (SIZE - 2 * y) / side
    grid = F.affine_grid(theta, [len(places), 4, SIZE, SIZE], align_corners=False)
    drawn = F.grid_sample(sprite, grid, align_corners=False)
    return drawn[:, :3] + (1 - drawn[:, 3:]) * canvas


def shifted(images: Tensor, places: Tensor) -> Tensor:
    """Single pictures on white, uint8 [n, 128, 128, 3], moved and scaled: [n, 3, 128, 128]."""
    x = images.permute(0, 3, 1, 2).float() / 255
    return paste(torch.ones_like(x), torch.cat([x, torch.ones_like(x[:, :1])], 1), places)


class Renderer:
    """Draws scenes; holds the sprites at two sizes, so that small objects are not aliased."""

    def __init__(self, sprites: Tensor, places: dict[tuple[str, str], int]) -> None:
        self.places = places
        self.large = sprites
        self.small = F.interpolate(sprites, size=(SMALL, SMALL), mode="area")
        self.device = sprites.device

    def __call__(self, scenes: list[Scene]) -> Tensor:
        """Scenes of one kind -> float [n, 3, 128, 128] in 0..1"""
        return self.emoji(scenes) if scenes[0].kind == "emoji" else self.shapes(scenes)

    def emoji(self, scenes: list[Scene]) -> Tensor:
        """Sprites on plain backgrounds."""
        plain = torch.tensor([BACKGROUNDS[s.background] for s in scenes], device=self.device) / 255
        canvas = plain[:, :, None, None].expand(-1, -1, SIZE, SIZE).contiguous()
        for slot in range(max(len(s.things) for s in scenes)):
            rows = [i for i, s in enumerate(scenes) if slot < len(s.things)]
            big = [i for i in rows if scenes[i].things[slot].side > SMALL]
            for some, sprites in ((big, self.large), (sorted({*rows} - {*big}), self.small)):
                if not some:
                    continue
                things = [scenes[i].things[slot] for i in some]
                index = [
                    self.places[t.name, scenes[i].style] for i, t in zip(some, things, strict=True)
                ]
                where = torch.tensor([(t.x, t.y, t.side) for t in things], device=self.device)
                at = torch.tensor(some, device=self.device)
                sprite = sprites[torch.tensor(index, device=self.device)]
                canvas[at] = paste(canvas[at], sprite, where)
        return canvas.clamp(0, 1)

    def shapes(self, scenes: list[Scene]) -> Tensor:
        """Coloured shapes on gray with band-limited noise."""
        noise = []
        for scene in scenes:
            generator = torch.Generator().manual_seed(scene.seed)
            noise.append(torch.randn(1, CELLS, CELLS, generator=generator))
        rough = torch.stack(noise).to(self.device) * NOISE
        gray = torch.tensor([s.gray for s in scenes], device=self.device)[:, None, None, None]
        rough = F.interpolate(rough, size=(SIZE, SIZE), mode="bicubic", align_corners=False)
        canvas = (gray + rough).clamp(0, 1).expand(-1, 3, -1, -1)
        for slot in range(max(len(s.things) for s in scenes)):
            cover, colour = self._slot(scenes, slot)
            canvas = canvas * (1 - cover) + colour * cover
        return canvas

    def _slot(self, scenes: list[Scene], slot: int) -> tuple[Tensor, Tensor]:
        """Coverage [n, 1, 128, 128] and colour [n, 3, 1, 1] of the objects in one slot."""
        rows = []
        for scene in scenes:
            thing = scene.things[slot] if slot < len(scene.things) else None
            colour, shape = thing.name.split() if thing else ("red", "square")
            where = (thing.x, thing.y, thing.side / 2) if thing else (0.0, 0.0, -1e3)
            rows.append((*COLOURS[colour], SHAPES.index(shape), *where))
        table = torch.tensor(rows, device=self.device, dtype=torch.float)
        distances = shape_distances(*(table[:, i, None, None] for i in (4, 5, 6)))
        picked = distances.gather(
            1, table[:, 3].long()[:, None, None, None].expand(-1, 1, SIZE, SIZE)
        )
        return (0.5 - picked).clamp(0, 1), table[:, :3, None, None] / 255


def shape_distances(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """[n, 4, 128, 128]: pixels outside (positive) or inside (negative) the border of each shape."""
    line = torch.arange(SIZE, device=x.device) + 0.5
    dx, dy = line[None, None, :] - x, line[None, :, None] - y
    round_ = (dx**2 + dy**2).sqrt()
    dx, dy = torch.broadcast_tensors(dx, dy)
    square = torch.maximum(dx.abs(), dy.abs()) - radius
    circle = round_ - radius
    slope = (2 * dx.abs() - dy - radius) / 5**0.5
    triangle = torch.maximum(slope, dy - radius)
    ring = torch.maximum(circle, RING * radius - round_)
    return torch.stack([square, circle, triangle, ring], 1)
