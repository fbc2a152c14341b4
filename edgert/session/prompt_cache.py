"""The prompt cache: known beginnings of a bundle's texts, with a folder of files behind them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from .. import limits
from ..errors import DeviceError
from .base import Session
from .options import SessionOptions
from .pages import PAGE_TOKENS
from .prefix_disk import PrefixDisk
from .prefix_files import FORMAT, PrefixFiles
from .prefixes import PrefixCache

if TYPE_CHECKING:
    from ..bundle.reader import Bundle
    from .cpu import CpuSession

HEADER_BYTES = 1 << 20  # of a file besides its arrays, at most


def open_prefixes(session: Session, bundle: Bundle, options: SessionOptions) -> PrefixCache | None:
    """The beginnings of a bundle's session, with files where the options name a folder. None
    where the session shares nothing. Raises DeviceError for a device that does not, ResourceError
    for a folder that cannot be used."""
    cache: PrefixCache | None = session.prefix_cache()
    if options.prompt_cache is None:
        return cache
    if cache is None:
        raise DeviceError(
            f"a prompt cache on {session.device!r}, expected the device cpu",
            code="prompt-cache-device",
            hint="leave --prompt-cache (prompt_cache) out, or compute on the cpu",
        )
    size = options.prompt_cache_size
    budget = limits.PROMPT_CACHE_BYTES if size is None else size
    owner = owner_of(session, bundle)
    cache.disk = PrefixDisk(cache, PrefixFiles(options.prompt_cache, owner, budget, most_of(cache)))
    return cache


def most_of(cache: PrefixCache) -> int:
    """Bytes that a file of a tree's pools may have."""
    pool, slots = cache.pool, cache.slots
    page = pool.bytes_per_page + pool.bytes_per_fresh
    return page + slots.bytes_per_slot + HEADER_BYTES


def owner_of(session: Any, bundle: Bundle) -> str:
    """A hash of all that a session's states depend on, hex: weights, graph (with its rotary
    settings), precision and layout of pages, and the code that computes. Raises DeviceError where
    that cannot be told."""
    from ..kernels import isa, library
    from ..kernels.cpu import code

    manifest = bundle.manifest
    part = manifest.parts[bundle.part("")]
    cpu: CpuSession = session
    parts = [FORMAT, cpu.fingerprint, str(PAGE_TOKENS), "half" if cpu.slots.half else "whole"]
    try:
        parts += [isa.chosen(), library.sources_hash()]
    except library.LibraryError as error:
        raise DeviceError(
            f"{error}, so that nobody can tell what a prompt cache was computed by",
            code="prompt-cache-device",
            hint="leave --prompt-cache (prompt_cache) out, or install edgert again",
        ) from None
    parts += [manifest.files[name].sha256 for name in (part.weights, part.graph)]
    if code.shipped() is None:
        from ..kernels.cpu import jit

        parts.append(jit.sources_hash())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
