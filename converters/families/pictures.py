"""Components of picture pipelines by the class that their config names, and who builds them.

A denoiser's module has `read(config, faults)`, with the sizes `in_channels` and `sample_size`, and
`build(config, height, width, faults)` for latents of that size; a text encoder's has
`build(config, faults)`; an autoencoder's has `latents(config, faults)`, what lies between it and
the denoiser, and `decoder` and `encoder(config, height, width, faults)`, for latents of that size.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any, Protocol

from ...bundle.image_spec import LatentSpec
from ...errors import ConvertError
from .config import refused
from .recipe import FamilyModel

Config = Mapping[str, Any]

DENOISERS: Mapping[str, str] = {
    "DiTTransformer2DModel": ".dit",
    "PixArtTransformer2DModel": ".pixart",
    "UNet2DConditionModel": ".unet",
}
# Of the class that older releases had for both: module by its `norm_type`.
GENERIC = "Transformer2DModel"
BY_NORM: Mapping[str, str] = {"ada_norm_zero": ".dit", "ada_norm_single": ".pixart"}
TEXT_ENCODERS: Mapping[str, str] = {
    "CLIPTextModel": ".clip",
    "CLIPTextModelWithProjection": ".clip",
    "T5EncoderModel": ".t5",
}
AUTOENCODERS: dict[str, str] = {
    "AutoencoderKL": ".autoencoder_kl",
    "AutoencoderTiny": ".autoencoder_tiny",
    "TAEF2": ".taef2",
}


class Sizes(Protocol):
    """What every denoiser's config says: channels of latents, and the side that it is made for."""

    @property
    def in_channels(self) -> int: ...

    @property
    def sample_size(self) -> int: ...


class Denoiser(Protocol):
    """A denoiser's module."""

    def read(self, raw: Config, faults: list[str]) -> Sizes: ...

    def build(self, raw: Config, height: int, width: int, faults: list[str]) -> FamilyModel: ...


class TextEncoder(Protocol):
    """A text encoder's module."""

    def build(self, raw: Config, faults: list[str]) -> FamilyModel: ...


class Autoencoder(Protocol):
    """An autoencoder's module."""

    def latents(self, raw: Config, faults: list[str]) -> LatentSpec: ...

    def decoder(self, raw: Config, height: int, width: int, faults: list[str]) -> FamilyModel: ...

    def encoder(self, raw: Config, height: int, width: int, faults: list[str]) -> FamilyModel: ...


def denoiser(kind: Any, raw: Config) -> Denoiser:
    """The module for a denoiser's class; ConvertError for unknown ones."""
    if kind != GENERIC:
        found: Denoiser = _module("denoiser", kind, DENOISERS)
        return found
    norm = raw.get("norm_type")
    if not isinstance(norm, str) or norm not in BY_NORM:
        raise refused([f"config 'norm_type' is {str(norm)[:40]!r} of the class {GENERIC}, expected "
                       f"one of {sorted(BY_NORM)}"])  # fmt: skip
    found = _module("denoiser", norm, BY_NORM)
    return found


def text_encoder(kind: Any) -> TextEncoder:
    """The module for a text encoder's class; ConvertError for unknown ones."""
    found: TextEncoder = _module("text encoder", kind, TEXT_ENCODERS)
    return found


def autoencoder(kind: Any) -> Autoencoder:
    """The module for an autoencoder's class; ConvertError for unknown ones."""
    found: Autoencoder = _module("autoencoder", kind, AUTOENCODERS)
    return found


def _module(what: str, kind: Any, known: Mapping[str, str]) -> Any:
    if isinstance(kind, str) and kind in known:
        return import_module(known[kind], __package__)
    raise unknown(f"the {what} is a", kind, known)


def unknown(what: str, kind: Any, known: Iterable[str]) -> ConvertError:
    """The refusal of a class by name, with those that are known."""
    names = sorted(known)
    near = difflib.get_close_matches(str(kind)[:64], names, 2, 0.5)
    return ConvertError(
        f"{what} {str(kind)[:64]!r}, edgert converts {names}"
        + (f"; nearest: {', '.join(near)}" if near else ""),
        code="picture-class",
        hint="edgert does not guess: a component of another class needs its own family in "
        "converters/families",
        kind=str(kind)[:64],
    )
