"""What may be asked of a picture, checked, and joined with the bundle's defaults."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from .. import limits
from ..errors import RequestError
from ..text.param_checks import between

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..bundle.image_spec import ImageSpec, LatentSpec

STEPS, GUIDANCE = 20, 4.5  # where neither caller nor bundle says


class ImageOptions(TypedDict, total=False):
    """The options of `ImageModel.__call__` besides the prompt; None means the same as leaving one
    out."""

    negative_prompt: str | None
    steps: int | None
    cfg_scale: float | None
    seed: int | None
    width: int | None
    height: int | None
    batch: int | None
    sampler: str | None
    cache: str | None
    nfe: float | None
    init: Image | None
    strength: float | None


@dataclass(frozen=True, kw_only=True)
class Request:
    """A picture's parameters with nothing left open. grid: height and width in latents."""

    prompt: str
    negative_prompt: str
    steps: int
    cfg_scale: float
    seeds: tuple[int, ...]
    width: int
    height: int
    grid: tuple[int, int]
    sampler: str | None
    cache: str
    nfe: float | None
    init: Image | None
    strength: float

    def settings(self) -> dict[str, Any]:
        """What a PNG carries of it."""
        found: dict[str, Any] = {
            "prompt": self.prompt, "negative_prompt": self.negative_prompt, "steps": self.steps,
            "cfg_scale": self.cfg_scale, "width": self.width, "height": self.height,
        }  # fmt: skip
        if self.init is not None:
            found["strength"] = self.strength
        return found


def resolve(spec: ImageSpec, latents: LatentSpec, prompt: str, given: dict[str, Any]) -> Request:
    """Raises RequestError for options that are unknown, of a wrong type or out of range."""
    if unknown := sorted(set(given) - set(ImageOptions.__annotations__)):
        raise RequestError(
            f"no option {unknown[0][:80]!r}, expected some of "
            f"{', '.join(ImageOptions.__annotations__)}",
            code="parameter",
            hint="help(edgert.ImageModel) says what each one means",
            field=unknown[0],
        )
    asked = {key: value for key, value in given.items() if value is not None}
    text = {"prompt": prompt, "negative_prompt": asked.get("negative_prompt", "")}
    for name, value in (*text.items(), *((n, asked.get(n, "")) for n in ("sampler", "cache"))):
        if not isinstance(value, str):
            raise _mistyped(name, value, "a text")
        if name in text and len(value) > limits.PROMPT_BYTES // 64:
            raise _mistyped(name, f"{len(value)} characters", f"{limits.PROMPT_BYTES // 64}")
    defaults = spec.defaults
    width = _whole(asked, "width", int(defaults.get("width", 0)) or 8 * latents.downscale)
    height = _whole(asked, "height", int(defaults.get("height", 0)) or 8 * latents.downscale)
    for name, side in (("width", width), ("height", height)):
        between(name, side, 1, limits.IMAGE_SIDE)
        if side % latents.downscale:
            raise RequestError(
                f"{name} is {side}, expected a multiple of {latents.downscale}",
                code="image-size",
                hint=f"{side // latents.downscale * latents.downscale or latents.downscale} is",
                field=name,
            )
    steps = _whole(asked, "steps", int(defaults.get("steps", STEPS)))
    batch = _whole(asked, "batch", 1)
    seed = _whole(asked, "seed", secrets.randbits(32))
    between("steps", steps, 1, limits.IMAGE_STEPS)
    between("batch", batch, 1, limits.IMAGE_BATCH)
    between("seed", seed, 0, (1 << limits.SEED_BITS) - 1)
    nfe = _number(asked, "nfe", math.nan)
    if "nfe" in asked:
        between("nfe", nfe, 1, steps)
    if (init := asked.get("init")) is not None and not hasattr(init, "convert"):
        raise _mistyped("init", init, "a picture of Pillow, as PIL.Image.open gives")
    return Request(
        **text, steps=steps,
        cfg_scale=_number(asked, "cfg_scale", float(defaults.get("guidance", GUIDANCE))),
        seeds=tuple((seed + index) % (1 << limits.SEED_BITS) for index in range(batch)),
        width=width, height=height,
        grid=(height // latents.downscale, width // latents.downscale),
        sampler=asked.get("sampler"), cache=asked.get("cache", "auto"),
        nfe=nfe if "nfe" in asked else None, init=asked.get("init"),
        strength=_number(asked, "strength", 0.75),
    )  # fmt: skip


def _whole(asked: dict[str, Any], name: str, default: int) -> int:
    value = asked.get(name, default)
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise _mistyped(name, value, "a whole number")
    return int(value.__index__())


def _number(asked: dict[str, Any], name: str, default: float) -> float:
    value = asked.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _mistyped(name, value, "a number")
    if name in asked and not math.isfinite(value):
        raise _mistyped(name, value, "a finite number")
    return float(value)


def _mistyped(name: str, value: object, expected: str) -> RequestError:
    return RequestError(
        f"{name} is {str(value)[:80]!r}, expected {expected}",
        code="parameter-type",
        hint="help(edgert.ImageModel) says what each one means",
        field=name,
    )
