"""Prompts with seeds for `benchmarks.image_caching`, and whether a drawing shows its scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgert.image.calibration import default_prompts
from edgert.image.model import ImageModel

# Seeds of noise, and of scenes (beyond the first that training leaves out), of each set.
FIRST_SEED = {"calibration": 0, "tuning": 10_000, "test": 20_000}
FIRST_SCENE = {"calibration": 1_000_600_000, "tuning": 1_000_700_000, "test": 1_000_800_000}
KIND = "shapes"


@dataclass(frozen=True)
class Prompt:
    """A caption (or class), the seed of its noise, and the plan that its drawing is judged by."""

    text: str
    seed: int
    scene: Any = None


def prompts_for(
    model: ImageModel, purpose: str, count: int, *, scenes: bool = True
) -> list[Prompt]:
    """`count` runs of a set; calibration has two of each prompt, as `edgert calibrate` has."""
    first = FIRST_SEED[purpose]
    each = 2 if purpose == "calibration" else 1
    plans = _scenes(purpose, -(-count // each)) if scenes else []
    if plans and model.spec.conditioning == "captions":
        return [Prompt(plans[i // each].caption, first + i, plans[i // each]) for i in range(count)]
    texts = default_prompts(model)
    return [Prompt(texts[i // each % len(texts)], first + i) for i in range(count)]


def _scenes(purpose: str, count: int) -> list[Any]:
    """The recipe's scenes; none without the recipe."""
    try:
        from recipes.demo_image.scenes import make_scenes
    except ImportError:
        return []
    found: list[Any] = make_scenes(KIND, count, FIRST_SCENE[purpose])
    return found


def right(prompts: Sequence[Prompt], pictures: Sequence[NDArray[np.uint8]]) -> list[int] | None:
    """1 for each picture that shows its scene (objects and relations), 0 for others; None where
    the prompts have no scenes."""
    if any(prompt.scene is None for prompt in prompts):
        return None
    import torch

    from recipes.demo_image.detector import find_shapes, judge

    unit = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    found = [things for some in unit.split(64) for things in find_shapes(some)]
    return [int(judge(p.scene, f).right) for p, f in zip(prompts, found, strict=True)]
