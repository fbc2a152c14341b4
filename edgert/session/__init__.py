"""Sessions: the same interface over every executor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DeviceError
from ..notices import notice
from .base import Feed, Session, State

if TYPE_CHECKING:
    from ..bundle.reader import Bundle

__all__ = ["Feed", "Session", "State", "kernel_cache", "open_session", "warm"]


def open_session(
    bundle: Bundle,
    *,
    device: str = "cpu",
    threads: int | None = None,
    ctx_size: int = 0,
    kv_bits: int = 0,
) -> Session:
    """A session on `device` for the bundle's "model" part.

    threads: None means one per performance core. ctx_size: tokens a state may hold, 0 means what
    the model was made for. kv_bits: 32, 16 or 8; 0 lets the model decide. device: "cpu",
    "reference", "auto" (CUDA where it can be used, else "cpu"), or an execution provider of
    onnxruntime with options after a colon, as `providers.parse_device` reads them. Raises
    DeviceError for a device that is unknown or not usable here.
    """
    graph = bundle.graph()
    name, _, flags = device.partition(":")
    if name == "auto":
        name = auto_device(bundle)
        device = f"{name}:{flags}" if flags and name != "cpu" else name
    if not 0 <= ctx_size <= graph.context:
        raise DeviceError(
            f"ctx_size is {ctx_size}, this model takes 1 to {graph.context} tokens",
            code="ctx-size",
            hint="leave it out for all that the model takes",
        )
    if device == "cpu" and not _have_numba():
        notice("numba is not installed, using the NumPy path (slow); `pip install numba` mends it")
        device = "reference"
    if device == "reference":
        _refuse_kv_bits(kv_bits, (0, 32), "the NumPy path keeps 32")
        from .reference import ReferenceSession

        return ReferenceSession(graph, bundle.weights(), context=ctx_size)
    if device == "cpu":
        check_isa()
        from ..storage.cachedir import cache_root
        from .cpu import CpuSession

        return CpuSession(
            graph,
            bundle.weights(),
            threads=threads,
            context=ctx_size,
            kv_bits=kv_bits,
            cache=kernel_cache(),
            twin_folders=[cache_root() / "packed"],
            key=bundle.manifest.files[bundle.manifest.parts["model"].weights].sha256,
        )
    _refuse_kv_bits(kv_bits, (0,), f"on {device!r} the ONNX model's precision decides")
    from .ort import open_ort

    return open_ort(bundle, device=device, threads=threads, ctx_size=ctx_size)


def _refuse_kv_bits(found: int, allowed: tuple[int, ...], why: str) -> None:
    if found not in allowed:
        raise DeviceError(
            f"kv_bits is {found}, {why}, expected {' or '.join(map(str, allowed))}",
            code="kv-bits",
            hint="leave it out, or use the cpu device",
        )


def auto_device(bundle: Bundle) -> str:
    """ "cuda" where that provider is here and the bundle has an ONNX emission, "cpu" otherwise."""
    from .ort import emitted
    from .providers import DEVICES, is_available

    fits = any(variant.half and not variant.standard for variant in emitted(bundle))
    return "cuda" if fits and is_available(DEVICES["cuda"]) else "cpu"


def _have_numba() -> bool:
    from importlib.util import find_spec

    return find_spec("numba") is not None


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


def kernel_cache() -> Path | None:
    """Folder of compiled kernels for these sources, this Numba and this ISA; None (with a notice)
    when nothing can be written there."""
    from ..kernels import isa
    from ..kernels.cpu import vm
    from ..storage.cachedir import cache_root, writable

    folder = cache_root() / f"kernels-{isa.chosen()}-{vm.sources_hash()}"
    if folder.is_dir() or writable(folder):
        return folder
    notice(
        f"{folder.parent} cannot be written, so kernels are compiled anew at every start; "
        "set EDGERT_CACHE to a folder that can"
    )
    return None


def warm(progress: Callable[[str, int, int], None] | None = None) -> int:
    """Compile every kernel into the cache; returns how many. progress: (name, done, total)."""
    check_isa()
    from ..kernels.cpu import (
        kernels,  # noqa: F401  (each registers itself)
        vm,
    )

    vm.use_cache(kernel_cache())
    names = vm.names()
    for index, name in enumerate(names):
        if progress is not None:
            progress(name, index, len(names))
        vm.address(name)
    for name in vm.ENTRIES:
        vm.entry_point(name)
    return len(names)
