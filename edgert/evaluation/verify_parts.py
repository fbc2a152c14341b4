"""What `edgert verify --device` asks of pictures: nothing is recorded in their bundles, so every
part computes a small fixed input on the device, and must answer as the NumPy path does."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle.image_spec import ImageSpec
from ..bundle.reader import Bundle
from ..errors import DeviceError, EdgertError, RequestError
from ..graph import Graph
from ..image.resize import resized
from ..kernels.encodings import EXACT
from ..session.base import Session
from ..session.options import SessionOptions

ROWS = 5  # of values whose number of rows is free
SIDES = (4, 8, 16)  # latents a side that are tried, of models that were made for more
# Relative RMS that answers may differ by: products of codes round what they read to 8 bits.
FLOATS, HALVES, CODED = 1e-3, 2e-2, 0.1


def part_faults(bundle: Bundle, spec: ImageSpec, options: SessionOptions) -> dict[str, str]:
    """By part: why its answers on the device are not those of the NumPy path, "" where they are.
    Raises DeviceError for a device that cannot be used."""
    return {name: _fault(bundle, name, spec, options) for name in bundle.manifest.parts}


def _fault(bundle: Bundle, part: str, spec: ImageSpec, options: SessionOptions) -> str:
    from ..session import open_session

    whole, emitted = bundle.graph(part), options.device not in ("cpu", "reference")
    graph = whole if emitted else small(whole, spec)  # files are of some sizes only
    inputs = fixed_inputs(graph)
    try:
        wanted = _answers(
            open_session(bundle, SessionOptions("reference"), part=part), inputs, graph
        )
        session = open_session(bundle, options, part=part)
        half = session.halves
        found = _answers(session, inputs, graph)
    except DeviceError:
        raise
    except EdgertError as error:
        return error.message
    exact = all(w.encoding == EXACT for w in graph.weights.values())
    limit = CODED if not exact else HALVES if half else FLOATS
    for name, value in wanted.items():
        lost = distance(value, found[name])
        if not lost <= limit:
            return (
                f"{name!r} differs from the NumPy path by {lost:.2g} of its values' RMS, expected "
                f"at most {limit:g}"
            )
    return ""


def _answers(
    session: Session, inputs: dict[str, NDArray[Any]], graph: Graph
) -> dict[str, NDArray[np.float32]]:
    try:
        return session.run(inputs, graph)
    finally:
        session.close()


def small(graph: Graph, spec: ImageSpec) -> Graph:
    """The graph for a smaller picture, where it is made for one size and takes another."""
    side = {n: spec.defaults.get(n, 0) for n in ("height", "width")}
    if spec.latents is None or not all(side.values()):
        return graph
    scale = spec.latents.downscale
    made = int(side["height"]) // scale, int(side["width"]) // scale
    for wanted in SIDES:
        if wanted >= min(made):
            break
        try:
            return resized(graph, made, (wanted, wanted))
        except RequestError:
            continue
    return graph


def fixed_inputs(graph: Graph) -> dict[str, NDArray[Any]]:
    """The same numbers for a graph every time: normal ones, and indices from 0 on."""
    rng, found = np.random.default_rng(0), dict[str, NDArray[Any]]()
    bounds = graph.index_bounds()
    for value in graph.inputs:
        rows = value.shape[0] if isinstance(value.shape[0], int) else ROWS
        if value.dtype == "f32":
            found[value.name] = rng.standard_normal((rows, int(value.shape[1]))).astype(np.float32)
            continue
        limit = min((n if isinstance(n, int) else ROWS for n in bounds[value.name]), default=1)
        found[value.name] = (np.arange(rows) % limit).astype(np.int32)
    return found


def distance(wanted: NDArray[Any], found: NDArray[Any]) -> float:
    """RMS of the difference over that of what is wanted; NaN where something is not finite."""
    a, b = wanted.astype(np.float64), found.astype(np.float64)
    size = float(np.sqrt(np.mean(a * a)))
    error = float(np.sqrt(np.mean((a - b) ** 2)))
    return error / size if size else error
