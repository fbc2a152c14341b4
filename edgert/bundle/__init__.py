"""Bundles: reading and writing a directory `name.edge/`, and its manifest."""

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
