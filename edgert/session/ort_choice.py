"""Which of a bundle's .onnx files a session on an execution provider opens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BundleError, DeviceError
from ..kernels.encodings import ENCODINGS
from .onnx_io import Variant
from .onnx_names import Emission
from .providers import Provider

if TYPE_CHECKING:
    from ..bundle.reader import Bundle


def emissions(bundle: Bundle, part: str = "") -> list[Emission]:
    """The .onnx files that a bundle has of a part."""
    part = bundle.part(part)
    found = (Emission.of_file(part, name) for name in bundle.manifest.files)
    return [emission for emission in found if emission is not None]


def emitted(bundle: Bundle, part: str = "") -> list[Variant]:
    """The ONNX variants that a bundle holds of a part's graph, or of a piece or another size."""
    return list(dict.fromkeys(emission.variant for emission in emissions(bundle, part)))


def files_of(bundle: Bundle, part: str, variant: Variant) -> dict[str, list[Path]]:
    """The files of a part in one dialect, by piece, those of the part's own size first."""
    found: dict[str, list[Path]] = {}
    for emission in sorted(emissions(bundle, part), key=lambda e: e.size or (0, 0)):
        if emission.variant == variant:
            found.setdefault(emission.piece, []).append(bundle.path_of(emission.name))
    return found


def check_weights(bundle: Bundle, part: str, provider: Provider) -> None:
    """QNN leaves DequantizeLinear by blocks to the CPU, and what its simulator then computes from
    the codes is wrong: refused even where nodes on the CPU are allowed."""
    used = {weight.encoding for weight in bundle.graph(part).weights.values()}
    found = {name for name in used if not ENCODINGS[ENCODINGS[name].dense or name].plain}
    if provider.float_weights and found:
        raise DeviceError(
            f"{provider.name} has no kernel for the {sorted(found)} weights of {bundle.path}, "
            "expected f16 or f32",
            code="device-weights",
            hint="convert the model with --quant f16 for this device",
        )


def choose(bundle: Bundle, part: str, provider: Provider) -> Variant:
    """The variant in the provider's dialect, in its better precision if that was emitted, and
    rather one that takes embeddings, or computes batches, too."""
    stepped = bool(bundle.graph(part).states)
    variants = [
        v
        for v in emitted(bundle, part)
        if v.standard == provider.standard and (v.half or not (provider.half_only and stepped))
    ]
    if not variants:
        precision = "f16" if provider.half else "f32"
        raise BundleError(
            f"{bundle.path} has no ONNX model that fits {provider.name}, found "
            f"{sorted(n for n in bundle.manifest.files if n.endswith('.onnx'))}",
            code="onnx-missing",
            hint=f"edgert export {bundle.path} --precision {precision}"
            + (" --standard" if provider.standard else ""),
        )

    def order(v: Variant) -> tuple[bool, bool, bool, bool, str]:
        return v.half != provider.half, not v.embeddings, not v.batch, not v.fused, v.suffix

    return min(variants, key=order)
