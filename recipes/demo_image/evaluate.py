"""Figures of a trained model: retrieval of single pictures, and accuracy of scenes.

Retrieval. 200 pictures of the sets are drawn from their captions (name and style). A drawing and
all pictures of both sets are cut to what differs from white and scaled to a square; the distance is
the mean squared difference of the pixels at 32 x 32, or of the autoencoder's latents at 64 x 64.
A drawing is right when its own picture is among the five nearest. Scenes: the detectors of
`detector.py` on held-out seeds, with pairs of objects that were trained on and with pairs that
were not.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from .autoencoder import Autoencoder
from .detector import EmojiDetector, find_shapes, judge, rates
from .png import write_sheet
from .pool import HELD_OUT_SEED, Maker, Sample
from .sample import generate
from .scenes import Scene, Thing, make_scenes
from .sets import NOT_A_THING, Emoji
from .subjects import a
from .train import Model

SHEET = (
    *(f"{a(n)}, 3d style" for n in ("red apple", "cat", "rocket", "hamburger", "octopus")),
    "a pizza, 3d style", "a smiling face with sunglasses, 3d style", "a castle, 3d style",
    *(f"{a(n)}, flat style" for n in ("red apple", "cat", "rocket", "hamburger", "octopus")),
    "a pizza, flat style", "a smiling face with sunglasses, flat style", "a castle, flat style",
    "a frog on a pink background", "a guitar on a light blue background, 3d style",
    "a penguin on a light green background, flat style", "a crown on a lavender background",
    "a robot", "a unicorn", "a cup of coffee", "a birthday cake",
    "a dog left of a tree, flat style", "a cat right of a house, 3d style",
    "a star above a castle, 3d style", "a fox below a rainbow, flat style",
    "a penguin to the left of a soccer ball", "a balloon above a teddy bear",
    "a red apple left of a banana", "a sun above a sailboat on a light blue background",
    "a dog above a star and right of a tree", "a bee above a sunflower and left of a frog",
    "a key below a bell and left of a book, flat style",
    "a panda left of a gift and above a heart, 3d style",
    "a rocket above a car and right of a robot on a lavender background",
    "a crown above a lion and left of a castle", "a duck under a sun and right of a turtle",
    "a cow left of a pig and above a rabbit",
    "a red square left of a blue circle", "a green triangle above a yellow ring",
    "a cyan ring right of a magenta square", "a blue square below a red triangle",
    "a yellow circle above a green square and left of a red ring",
    "a magenta triangle below a cyan circle and right of a blue square",
    "a red ring", "a green circle to the left of a green square",
)  # fmt: skip
COLUMNS = 8


@dataclass(frozen=True)
class Sizes:
    """How much to draw."""

    retrieval: int = 200
    pairs: int = 200  # scenes of two objects, for each kind, seen and unseen
    triples: int = 100
    steps: int = 28
    sheet: int = len(SHEET)
    tuning: int = 96  # scenes of each kind per setting; 0 leaves tuning out


TINY = Sizes(retrieval=6, pairs=2, triples=1, steps=3, sheet=8, tuning=0)
GUIDANCE = (1.5, 2.5, 3.5, 5.0)
SHIFTS = (1.0, 2.0, 3.0)


@dataclass(frozen=True)
class Setting:
    """How to sample."""

    guidance: float = 3.0
    shift: float = 3.0
    steps: int = 28


class Evaluator:
    """A trained model with what it takes to judge it."""

    def __init__(
        self, model: Model, maker: Maker, latents: dict[str, float], setting: Setting
    ) -> None:
        self.model, self.maker, self.setting = model.to(maker.device), maker, setting
        self.tokenizer: Tokenizer = maker.tokenizer
        self.autoencoder: Autoencoder = maker.autoencoder.float()
        self.autoencoder.shift, self.autoencoder.scale = latents["shift"], latents["scale"]
        self.emoji = EmojiDetector(maker.renderer.large, maker.renderer.places)
        self.known: tuple[Tensor, Tensor] | None = None

    def draw(self, texts: list[str], *, seed: int = 0) -> Tensor:
        """float [n, 3, 128, 128] in 0..1"""
        s = self.setting
        z = generate(
            self.model.denoiser, self.model.text, self.tokenizer, texts,
            steps=s.steps, guidance=s.guidance, shift=s.shift, seed=seed,
        )  # fmt: skip
        images = torch.cat([self.autoencoder.decode(some) for some in z.split(64)])
        return (images * 255).round() / 255

    def scenes(self, scenes: list[Scene], *, seed: int = 0) -> dict[str, float]:
        """Accuracy of drawings of the scenes' captions."""
        return self.rated(scenes, self.draw([s.caption for s in scenes], seed=seed))

    def rated(self, scenes: list[Scene], images: Tensor) -> dict[str, float]:
        """Accuracy of given pictures."""
        found: list[list[Thing]]
        if scenes[0].kind == "shapes":
            found = find_shapes(images)
        else:
            found = [[thing for thing, _ in some] for some in self.emoji(images)]
        return rates([judge(s, f) for s, f in zip(scenes, found, strict=True)])

    # ---- retrieval ------------------------------------------------------------------------------

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels [n, 3072] and latents [n, 2048] of the cut-out contents."""
        pixels, latents = [], []
        for some in images.split(256):
            cut = torch.stack([cut_to_content(image) for image in some])
            pixels.append(F.interpolate(cut, size=(32, 32), mode="area").flatten(1))
            latents.append(self.autoencoder.encode(cut).flatten(1))
        return torch.cat(pixels), torch.cat(latents)

    def library(self) -> tuple[Tensor, Tensor]:
        """Features of all pictures of both sets."""
        if self.known is None:
            images = torch.from_numpy(self.maker.sets.images).permute(0, 3, 1, 2)
            parts = [
                self.features(some.to(self.maker.device).float() / 255)
                for some in images.split(512)
            ]
            self.known = (torch.cat([p for p, _ in parts]), torch.cat([z for _, z in parts]))
        return self.known

    def retrieval(self, count: int, *, seed: int = 0) -> dict[str, float]:
        """Shares of drawings whose own picture is nearest, or among the five nearest."""
        sets = self.maker.sets
        rng = random.Random(seed)
        picks = rng.sample(range(len(sets.emoji)), min(count, len(sets.emoji)))
        drawn = self.features(self.draw([full_caption(sets.emoji[i]) for i in picks], seed=seed))
        found: dict[str, float] = {"pictures": len(picks), "among": len(sets.emoji)}
        for kind, library, queries in zip(
            ("pixels", "latents"), self.library(), drawn, strict=True
        ):
            ranks = torch.cdist(queries, library).topk(5, largest=False).indices.cpu()
            own = torch.tensor(picks)[:, None]
            found[f"top 1 by {kind}"] = round(float((ranks[:, :1] == own).float().mean()), 4)
            found[f"top 5 by {kind}"] = round(float((ranks == own).any(1).float().mean()), 4)
            if kind == "pixels":
                found["same name in top 5 by pixels"] = _same_name(sets.emoji, picks, ranks)
        return found


def _same_name(emoji: list[Emoji], picks: list[int], ranks: Tensor) -> float:
    """As top 5, but the picture of that name in the other style counts too."""
    hits = [
        any(emoji[j].codepoints == emoji[i].codepoints for j in row)
        for i, row in zip(picks, ranks.tolist(), strict=True)
    ]
    return round(sum(hits) / len(hits), 4)


def full_caption(emoji: Emoji) -> str:
    """The caption that names one picture: its name and style."""
    name = emoji.name if NOT_A_THING.search(emoji.name) else a(emoji.name)
    return f"{name}, {emoji.style} style"


def cut_to_content(image: Tensor) -> Tensor:
    """float [3, 128, 128] -> [3, 64, 64]: the box of what is not white, padded to a square."""
    inside = (1 - image).amax(0) > 0.1
    ys, xs = torch.nonzero(inside.any(1))[:, 0], torch.nonzero(inside.any(0))[:, 0]
    if not len(ys):
        return torch.ones(3, 64, 64, device=image.device)
    top, bottom, left, right = (int(v) for v in (ys[0], ys[-1] + 1, xs[0], xs[-1] + 1))
    side = max(bottom - top, right - left)
    square = torch.ones(3, side, side, device=image.device)
    y, x = (side - (bottom - top)) // 2, (side - (right - left)) // 2
    square[:, y : y + bottom - top, x : x + right - left] = image[:, top:bottom, left:right]
    return F.interpolate(square[None], size=(64, 64), mode="bilinear", antialias=True)[0]


def tune(evaluator: Evaluator, count: int) -> tuple[Setting, list[dict]]:
    """The best guidance and shift by scenes and retrieval, on seeds and names of their own."""
    table = []
    first = HELD_OUT_SEED + 500_000
    scenes = {kind: make_scenes(kind, count, first, things=2) for kind in ("emoji", "shapes")}
    for shift in SHIFTS:
        for guidance in GUIDANCE:
            evaluator.setting = Setting(guidance, shift)
            right = {k: evaluator.scenes(s, seed=9)["right"] for k, s in scenes.items()}
            top = evaluator.retrieval(count, seed=9)["top 5 by pixels"]
            table.append({"guidance": guidance, "shift": shift, **right, "retrieval": top})
            print(json.dumps(table[-1]), flush=True)
    best = max(table, key=lambda row: row["emoji"] + row["shapes"] + row["retrieval"])
    return Setting(best["guidance"], best["shift"]), table


def held_out_scenes(sizes: Sizes) -> dict[str, list[Scene]]:
    """Scenes to judge by: their seeds are never trained on, and of some nor are their pairs."""
    found = {}
    for kind in ("emoji", "shapes"):
        first = HELD_OUT_SEED + 100_000
        for name, unseen in (("seen", False), ("unseen", True)):
            found[f"{kind}, two, {name} pairs"] = make_scenes(
                kind, sizes.pairs, first, things=2, held_out=unseen
            )
        found[f"{kind}, three"] = make_scenes(kind, sizes.triples, first, things=3)
    return found


def evaluate(
    model: Model,
    latents: dict[str, float],
    data: Path,
    tokenizer: Tokenizer,
    out: Path,
    *,
    sizes: Sizes,
    sample: Sample,
    device: str,
) -> dict:
    """All figures; also written to `out`/results.json, with `sheet.png` beside it.

    Weights are rounded to bfloat16 first, as they ship.
    """
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.to(torch.bfloat16))
    maker = Maker(data, sample, tokenizer, torch.device(device))
    setting, table = Setting(steps=sizes.steps), []
    evaluator = Evaluator(model, maker, latents, setting)
    if sizes.tuning:
        setting, table = tune(evaluator, sizes.tuning)
    evaluator.setting = setting
    out.mkdir(parents=True, exist_ok=True)
    write_sheet(evaluator.draw(list(SHEET[: sizes.sheet])), COLUMNS, out / "sheet.png")
    results: dict = {
        "parameters": {"denoiser": model.denoiser.size, "text encoder": model.text.size},
        "sampling": {"steps": setting.steps, "guidance": setting.guidance, "shift": setting.shift},
        "tuning": table,
        "retrieval": evaluator.retrieval(sizes.retrieval),
        "scenes": {},
        "ceiling": {},
    }
    for name, scenes in held_out_scenes(sizes).items():
        results["scenes"][name] = evaluator.scenes(scenes)
        drawn = maker.renderer(scenes)
        through = torch.cat(
            [evaluator.autoencoder.decode(evaluator.autoencoder.encode(x)) for x in drawn.split(64)]
        )
        results["ceiling"][name] = evaluator.rated(scenes, through)["right"]
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    return results
