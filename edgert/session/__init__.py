"""Sessions: the same interface over every executor."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DeviceError
from ..notices import logger, notice
from .base import Feed, Session, State
from .options import SessionOptions

if TYPE_CHECKING:
    from ..bundle.reader import Bundle

__all__ = ["Feed", "Session", "SessionOptions", "State", "kernel_cache", "open_session", "warm"]


def open_session(
    bundle: Bundle, options: SessionOptions | None = None, *, part: str = ""
) -> Session:
    """A session for a part of the bundle, the text part by default; without options, on the CPU.

    Raises DeviceError for a device that is unknown or not usable here, and for options that the
    device or the model does not take.
    """
    part = bundle.part(part)
    options = _resolved(bundle, options or SessionOptions(), part)
    graph, device = bundle.graph(part), options.device
    context = options.context(graph)
    if options.snapshot_bits != 32 and device != "cpu":
        raise DeviceError(
            f"snapshot_bits is {options.snapshot_bits}, expected 32: "
            f"{device!r} keeps no beginnings",
            code="snapshot-bits",
            hint="leave it out, or use the cpu device",
        )
    if device == "reference":
        options.require_kv_bits((0, 32), "the NumPy path keeps 32")
        from .reference import ReferenceSession

        return ReferenceSession(graph, bundle.weights(part), context=context)
    if device == "cpu":
        check_isa()
        from ..kernels.cpu import code
        from ..storage.cachedir import cache_root
        from .cpu import CpuSession

        try:
            return CpuSession(
                graph,
                bundle.weights(part),
                threads=options.threads,
                context=context,
                kv_bits=options.kv_bits,
                kv_memory=options.kv_memory,
                snapshot_bits=options.snapshot_bits,
                cache=kernel_cache(),
                packed_folders=[cache_root() / "packed"],
                key=bundle.manifest.files[bundle.manifest.parts[part].weights].sha256,
            )
        except code.NoCodeError as error:
            raise _no_code(error) from None
    options.require_kv_bits((0,), f"on {device!r} the ONNX model's precision decides")
    from .ort import open_ort

    return open_ort(bundle, options, part=part)


def _resolved(bundle: Bundle, options: SessionOptions, part: str) -> SessionOptions:
    """The options with the device that "auto", or "cpu" without kernels, stands for."""
    device = options.device
    name, _, flags = device.partition(":")
    if name == "auto":
        name = auto_device(bundle, part)
        device = f"{name}:{flags}" if flags and name != "cpu" else name
    if device == "cpu" and not has_kernels():
        device = "reference"
    return replace(options, device=device)


def auto_device(bundle: Bundle, part: str = "") -> str:
    """ "cuda" where that provider is here and the bundle has an ONNX emission, "cpu" otherwise."""
    from .ort_choice import emitted
    from .providers import DEVICES, is_available

    stepped = bool(bundle.graph(part).states)  # float16 alone, see `providers.Provider.half_only`
    fits = any(v.half or not stepped for v in emitted(bundle, part) if not v.standard)
    return "cuda" if fits and is_available(DEVICES["cuda"]) else "cpu"


def check_isa() -> None:
    """Raises DeviceError where `EDGERT_ISA` asks for instructions that this CPU lacks. Kernels
    refuse the same at import, in their own words."""
    from ..kernels import isa

    try:
        isa.chosen()
    except isa.IsaError as error:
        raise DeviceError(
            str(error), code="isa", hint=f"unset {isa.VARIABLE}, or choose one that this CPU has"
        ) from None


def has_kernels() -> bool:
    """Whether kernels can run here, with a notice where they cannot, or must be compiled though a
    library came with the package."""
    from ..kernels import library
    from ..kernels.cpu import code

    check_isa()
    if code.misread():
        notice(code.misread(), logging.WARNING)
    if code.shipped() is not None:
        return True
    if code.refused():
        notice(
            f"the shipped kernels are not used: {code.refused()}; {library.remedy()}",
            logging.WARNING,
        )
    if code.has_compiler():
        return True
    reason, hint = code.lacking()
    notice(f"{reason}, using the NumPy path (slow); {hint}", logging.WARNING)
    return False


def _no_code(error: Exception) -> DeviceError:
    from ..kernels import library

    hint = f'{library.remedy()}; `pip install "edgert[jit]"` compiles what they lack'
    return DeviceError(str(error), code="kernels", hint=hint)


def kernel_cache() -> Path | None:
    """Folder of compiled kernels for these sources, this Numba and this ISA, which may be somebody
    else's; None where none are compiled, and (with a notice) when nothing can be read or written
    there."""
    from ..kernels import isa, library
    from ..kernels.cpu import code
    from ..storage.cachedir import cache_root, readable, writable

    if code.shipped() is not None:
        return None
    from ..kernels.cpu import jit

    try:
        folder = cache_root() / f"kernels-{isa.chosen()}-{jit.sources_hash()}"
    except library.LibraryError as error:  # compiled from sources that nobody can tell apart
        notice(f"{error}, so kernels are compiled anew at every start")
        return None
    if readable(folder) or writable(folder):
        logger.debug("compiled kernels are kept in %s", folder)
        return folder
    notice(
        f"{folder.parent} cannot be written, so kernels are compiled anew at every start; "
        "set EDGERT_CACHE to a folder that can"
    )
    return None


def warm(progress: Callable[[str, int, int], None] | None = None) -> int:
    """Compile every kernel into the cache; returns how many, 0 where they came with the package.
    progress: (name, done, total)."""
    check_isa()
    from ..kernels.cpu import code
    from ..kernels.cpu.entries import ENTRIES

    if code.shipped() is not None:
        return 0
    if not code.has_compiler():
        reason, hint = code.lacking()
        raise DeviceError(reason, code="kernels", hint=hint)
    code.use_cache(kernel_cache())
    names = code.names()
    for index, name in enumerate(names):
        if progress is not None:
            progress(name, index, len(names))
        code.address(name)
    for name in ENTRIES:
        code.address(name)
    return len(names)
