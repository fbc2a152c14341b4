"""What the numbers of a manifest's picture section must be."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from .. import limits

CONDITIONINGS = ("", "labels", "captions")  # of image.conditioning; "": nothing
LATENT_VALUE = 1e6  # largest number of image.latents; from its inverse on where one divides
GUIDANCE = 1000  # largest default


def image_faults(image: Any) -> Iterable[str]:
    """Why a picture section means nothing. image: the manifest's `ImageSpec`."""
    if image.conditioning not in CONDITIONINGS:
        yield f"image.conditioning is {image.conditioning[:32]!r}, expected one of {CONDITIONINGS}"
    if set(image.captions) != set(image.tokenizers) and image.captions:
        yield "image.captions and image.tokenizers name other parts, expected the same"
    for name, caption in image.captions.items():
        ids = (caption.end_id, caption.start_id or 0, caption.pad_id or 0)
        if not 2 <= caption.max_tokens <= limits.CONTEXT_TOKENS or min(ids) < 0:
            yield (
                f"image.captions.{name} has max_tokens {caption.max_tokens} and ids {ids}, "
                f"expected 2 to {limits.CONTEXT_TOKENS} tokens and ids from 0 on"
            )
    numbers = [n for n in (*image.defaults.values(), *image.scheduler.values())
               if isinstance(n, float)]  # fmt: skip
    if image.latents is not None:
        held = image.latents
        numbers += [held.scaling, held.shift, held.low, held.high]
        sizes = 0 < held.channels < 1 << 16 and 0 < held.downscale <= 1 << 10
        if not sizes or held.scaling <= 0 or not held.low < held.high:
            yield f"image.latents is {held}, expected sizes and a scaling above 0 and low < high"
        spans = (held.scaling, held.high - held.low)
        largest = max(map(abs, (held.scaling, held.shift, held.low, held.high)))
        if min(spans) < 1 / LATENT_VALUE or largest > LATENT_VALUE:
            yield (
                f"image.latents is {held}, expected numbers up to {LATENT_VALUE:g}, and scaling "
                f"and high - low from {1 / LATENT_VALUE:g} on"
            )
    if not all(map(math.isfinite, numbers)):
        yield "image holds numbers that are not finite"
    for side in ("width", "height"):
        if not 0 < image.defaults.get(side, 1) <= limits.PICTURE_SIDE:
            yield (
                f"image.defaults.{side} is {image.defaults[side]}, expected 1 to "
                f"{limits.PICTURE_SIDE}"
            )
    for name, low, high in (("steps", 1, limits.IMAGE_STEPS), ("guidance", 0, GUIDANCE)):
        value = image.defaults.get(name, 1)
        if not low <= value <= high or (name == "steps" and value != int(value)):
            yield f"image.defaults.{name} is {value}, expected {low} to {high}"
    bad = [n for n in (*image.labels.values(), image.null_label or 0) if n < 0]
    if bad:
        yield f"image.labels holds class {bad[0]}, expected 0 or more"
