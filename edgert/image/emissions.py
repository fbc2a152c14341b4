"""Graphs of a bundle of pictures that are emitted as ONNX files: every part, a denoiser's pieces,
for one size of picture.

These are the very graphs that `network.Network` and `model.ImageModel` run: a session finds a
file by the hash of its graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..errors import RequestError
from ..graph import Graph
from ..session.onnx_names import Emission
from ..session.ort_choice import emissions
from .model import spec_of
from .network import cuts
from .resize import resized

if TYPE_CHECKING:
    from ..bundle.reader import Bundle

Size = tuple[int, int]  # width and height in pixels


def graphs_of(bundle: Bundle, part: str, size: Size | None = None) -> Iterator[tuple[str, Graph]]:
    """Pieces and their graphs of a part, "" for the whole, for pictures of `size`, by default of
    the model's own. Raises RequestError for a size that the model does not take."""
    graph = bundle.graph(part)
    if size is not None:
        graph = resized(graph, grid_of(bundle, own_size(bundle)), grid_of(bundle, size))
    yield "", graph
    yield from cuts(graph).items()


def own_size(bundle: Bundle) -> Size:
    """Width and height in pixels that a bundle's graphs were made for."""
    defaults = spec_of(bundle)[0].defaults
    return int(defaults["width"]), int(defaults["height"])


def grid_of(bundle: Bundle, size: Size) -> tuple[int, int]:
    """Height and width in latents of a picture; RequestError where it has no whole ones."""
    down = spec_of(bundle)[1].downscale
    if any(side < down or side % down for side in size):
        raise RequestError(
            f"the size is {size[0]}x{size[1]}, expected multiples of {down} pixels",
            code="image-size",
            hint="leave it out for the model's own",
            field="size",
        )
    return size[1] // down, size[0] // down


def graph_of(bundle: Bundle, emission: Emission) -> Graph | None:
    """The graph that a listed file must be an emission of; None where the model has none such."""
    return dict(graphs_of(bundle, emission.part, emission.size)).get(emission.piece)


def placed_graphs(bundle: Bundle, part: str) -> list[Graph]:
    """Graphs of a part that the bundle has files of, each once."""
    found = {(e.piece, e.size): graph_of(bundle, e) for e in emissions(bundle, part)}
    return [graph for graph in found.values() if graph is not None]
