"""What a decoder reads of latents, and the pictures that it makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DeviceError
from ..session.base import F32
from .network import to_rows
from .schedules import Array

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..bundle.image_spec import LatentSpec


def decoder_rows(latent: Array, spec: LatentSpec) -> F32:
    """The decoder's rows [H * W, C] of a latent [C, H, W]."""
    rows = to_rows(latent) / np.float32(spec.scaling) + np.float32(spec.shift)
    return np.asarray(rows, np.float32)


def shown(pixels: F32, grid: Sequence[int], spec: LatentSpec) -> Image:
    """The picture that a decoder made of a latent of that height and width. DeviceError where
    values are not finite."""
    from .pictures import to_image

    if bad := int(np.count_nonzero(~np.isfinite(pixels))):
        raise DeviceError(
            f"the decoder makes {bad} values of {pixels.size} that are not finite, expected "
            "numbers",
            code="not-finite",
            hint="run in a wider format (f32), or the weights are damaged",
        )
    unit = (pixels - np.float32(spec.low)) * np.float32(2 / (spec.high - spec.low)) - np.float32(1)
    return to_image(unit, grid[0] * spec.downscale, grid[1] * spec.downscale)
