"""edgert: compress a trained model on a desktop, run it fast on a laptop or a Jetson board.

    import edgert

    with edgert.load("model.edge") as model:
        print(model.generate("Once upon a time", max_tokens=64).text)

Importing this package imports nothing heavy; names arrive when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import load
    from .errors import (
        BundleError,
        ConvertError,
        DeviceError,
        EdgertError,
        RequestError,
        ResourceError,
    )
    from .image.model import ImageModel, Pictures, Step
    from .image.request import ImageOptions
    from .text.conversation import Conversation
    from .text.model import TextModel
    from .text.params import SamplingOptions, SamplingParams
    from .text.results import DraftStats, Generation, Timings, TokenLogprob, Usage
    from .text.speculative.options import DraftOptions
    from .text.stream import AsyncStream, Stream

__version__ = "0.1.0"

_HOMES = {
    "load": "api",
    "TextModel": "text.model",
    "AsyncStream": "text.stream",
    "Conversation": "text.conversation",
    "DraftOptions": "text.speculative.options",
    "DraftStats": "text.results",
    "Generation": "text.results",
    "ImageModel": "image.model",
    "ImageOptions": "image.request",
    "Pictures": "image.model",
    "Step": "image.model",
    "SamplingOptions": "text.params",
    "SamplingParams": "text.params",
    "Stream": "text.stream",
    "Timings": "text.results",
    "TokenLogprob": "text.results",
    "Usage": "text.results",
    "BundleError": "errors",
    "ConvertError": "errors",
    "DeviceError": "errors",
    "EdgertError": "errors",
    "RequestError": "errors",
    "ResourceError": "errors",
}

__all__ = [
    "AsyncStream",
    "BundleError",
    "Conversation",
    "ConvertError",
    "DeviceError",
    "DraftOptions",
    "DraftStats",
    "EdgertError",
    "Generation",
    "ImageModel",
    "ImageOptions",
    "Pictures",
    "RequestError",
    "ResourceError",
    "SamplingOptions",
    "SamplingParams",
    "Step",
    "Stream",
    "TextModel",
    "Timings",
    "TokenLogprob",
    "Usage",
    "__version__",
    "load",
]


def __getattr__(name: str) -> Any:
    """PEP 562: the module that holds a public name is imported on first use."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
