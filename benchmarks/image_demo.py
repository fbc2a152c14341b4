"""What the drawing model in the package draws: retrieval of pictures by name, through edgert.

    python -m benchmarks.image_demo [BUNDLE] [--data DIR] [--names 200] [--cache auto none]
        [--threads N] [--sheet FILE]

The measure is that of `recipes/demo_image/evaluate.py` by pixels, with the same names: 200 pictures
of the two emoji sets, asked for by name and style; a drawing is right when its own picture is among
the five nearest of all 3,232, both cut to their content and scaled to 32 x 32. The recipe's own
figure is of float weights in torch; here the bundle's codes are drawn, with and without a cache.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import edgert
from edgert.demo import image_bundle
from edgert.image.model import ImageModel
from recipes.demo_image.evaluate import cut_to_content, full_caption
from recipes.demo_image.sets import Sets, load_sets


def features(images: np.ndarray) -> Tensor:
    """float [n, 3072] of pictures uint8 [n, H, W, 3]."""
    found = []
    for some in torch.from_numpy(images).permute(0, 3, 1, 2).split(256):
        cut = torch.stack([cut_to_content(image) for image in some.float() / 255])
        found.append(F.interpolate(cut, size=(32, 32), mode="area").flatten(1))
    return torch.cat(found)


def drawn(model: ImageModel, texts: list[str], cache: str) -> tuple[np.ndarray, float, float]:
    """Pictures uint8 [n, H, W, 3], mean evaluations, and seconds a picture."""
    images, evaluations, begin = [], 0.0, time.perf_counter()
    for seed, text in enumerate(texts):
        made = model(text, seed=seed, cache=cache)
        images.append(np.asarray(made[0]))
        evaluations += made.evaluations
        print(f"\r{cache}: {seed + 1} of {len(texts)}", end="", flush=True)
    print()
    seconds = (time.perf_counter() - begin) / len(texts)
    return np.stack(images), evaluations / len(texts), seconds


def retrieval(images: np.ndarray, library: Tensor, picks: list[int], sets: Sets) -> list[float]:
    """Shares: own picture nearest; among the five nearest; that or its other style among them."""
    ranks = torch.cdist(features(images), library).topk(5, largest=False).indices
    own = torch.tensor(picks)[:, None]
    names = [
        any(sets.emoji[j].codepoints == sets.emoji[i].codepoints for j in row)
        for i, row in zip(picks, ranks.tolist(), strict=True)
    ]
    first, five = (ranks[:, :1] == own).float().mean(), (ranks == own).any(1).float().mean()
    return [float(first), float(five), sum(names) / len(names)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", nargs="?", type=Path, default=None)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--names", type=int, default=200)
    parser.add_argument("--cache", nargs="+", default=["auto", "none"])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=0, help="of the choice of names")
    args = parser.parse_args()
    sets = load_sets(args.data)
    library = features(sets.images)
    picks = random.Random(args.seed).sample(range(len(sets.emoji)), args.names)
    texts = [full_caption(sets.emoji[i]) for i in picks]
    print("| cache | evaluations | s a picture | top 1 | top 5 | name in top 5 |")
    print("|---|---|---|---|---|---|")
    path = args.bundle or image_bundle()
    with edgert.load(path, threads=args.threads, kind="image") as model:
        for cache in args.cache:
            images, evaluations, seconds = drawn(model, texts, cache)
            shares = " | ".join(f"{x:.1%}" for x in retrieval(images, library, picks, sets))
            print(f"| {cache} | {evaluations:.1f} | {seconds:.2f} | {shares} |")


if __name__ == "__main__":
    main()
