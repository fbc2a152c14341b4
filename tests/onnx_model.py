"""Emitting a graph with given weights into a folder, for tests that need an .onnx file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edgert.converters import onnx_emit
from edgert.kernels.quant import Matrix

from edgert.graph import Graph
from edgert.session.onnx_io import PLAIN, Variant
from edgert.session.ort import OrtSession

from .tiny import write_weights

WEIGHTS = "weights.safetensors"


def emit_model(
    graph: Graph,
    weights: Mapping[str, Matrix],
    folder: Path,
    variant: Variant = PLAIN,
    taps: Sequence[str] = (),
) -> Path:
    """The .onnx file of a graph beside its weights, both in `folder`."""
    if not (folder / WEIGHTS).exists():
        write_weights(folder / WEIGHTS, graph, weights)
    target = folder / f"model{variant.suffix}.onnx"
    return onnx_emit.write(graph, folder / WEIGHTS, target, variant, taps)


def ort_session(
    graph: Graph,
    weights: Mapping[str, Matrix],
    folder: Path,
    variant: Variant = PLAIN,
    taps: Sequence[str] = (),
    **options: object,
) -> OrtSession:
    """Emit and open on onnxruntime's CPU provider."""
    model = emit_model(graph, weights, folder, variant, taps)
    return OrtSession(graph, weights, model, variant=variant, threads=1, **options)  # type: ignore[arg-type]
