"""Bundles: reading and writing a directory `name.edge/`, and its manifest.

A name's module is imported when the name is first used, so that reading a bundle does not import
what writes one.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .manifest import (
        FORMAT,
        MANIFEST_NAME,
        FileEntry,
        Golden,
        Manifest,
        Part,
        Provenance,
        TextSpec,
    )
    from .reader import Bundle, Verify
    from .writer import BundleWriter

_HOMES = {"Bundle": "reader", "BundleWriter": "writer", "Verify": "reader"}

__all__ = [
    "FORMAT",
    "MANIFEST_NAME",
    "Bundle",
    "BundleWriter",
    "FileEntry",
    "Golden",
    "Manifest",
    "Part",
    "Provenance",
    "TextSpec",
    "Verify",
]


def __getattr__(name: str) -> Any:
    """PEP 562: the module that holds a public name is imported on first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES.get(name, 'manifest')}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
