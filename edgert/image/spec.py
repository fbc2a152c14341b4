"""What a bundle says of its pictures, checked as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import BundleError, ConvertError, RequestError
from .request import STEPS
from .schedules import Kind, Sampler, flux_mu, sampler_of

if TYPE_CHECKING:
    from ..bundle.image_spec import ImageSpec, LatentSpec
    from ..bundle.reader import Bundle


def spec_of(bundle: Bundle) -> tuple[ImageSpec, LatentSpec]:
    """How a bundle's pictures are made; BundleError where it does not say."""
    spec = bundle.manifest.image
    if bundle.manifest.kind != "image":
        raise BundleError(
            f"{bundle.path} is of kind {bundle.manifest.kind!r}, expected 'image'",
            code="bundle-kind",
            hint="`edgert inspect` says what is in it; models that draw are made from pipelines",
        )
    sizes = {"width", "height"} <= set(spec.defaults) if spec is not None else False
    if spec is None or spec.latents is None or not sizes or "_class_name" not in spec.scheduler:
        raise BundleError(
            f"{bundle.path}: the section `image` lacks latents, scheduler._class_name, or "
            "defaults.width and height, expected all of them",
            code="manifest",
            hint="the bundle was made by another edgert; convert the model again",
        )
    _check_schedule(bundle, spec, spec.latents)
    return spec, spec.latents


def sampler_of_spec(
    spec: ImageSpec, grid: tuple[int, int], steps: int, kind: Kind | None = None
) -> Sampler:
    """The sampler over a bundle's noise schedule, for latents of `grid` (height, width)."""
    mu = None
    if spec.scheduler.get("use_dynamic_shifting"):
        mu = flux_mu(spec.scheduler, grid[0] * grid[1])
    return sampler_of(spec.scheduler, steps, kind=kind, mu=mu)


def _check_schedule(bundle: Bundle, spec: ImageSpec, latents: LatentSpec) -> None:
    """The schedule and the default steps make a sampler: else the bundle is at fault, not what
    somebody asks for later."""
    grid = tuple(int(spec.defaults[side]) // latents.downscale for side in ("height", "width"))
    try:
        sampler_of_spec(spec, (grid[0], grid[1]), int(spec.defaults.get("steps", STEPS)))
    except (ConvertError, RequestError) as error:
        raise BundleError(
            f"{bundle.path}: image.scheduler makes no sampler: {error.message}",
            code=error.code,
            hint="the bundle is damaged or was made by another edgert; convert the model again",
        ) from None
