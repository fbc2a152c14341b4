"""The values of a denoiser's graph that samplers and cache policies use, and the graph in pieces.

A denoiser computes one picture of one grid: rows [H * W, C] of latents give rows [H * W, C'].

| Name | Shape | Is |
|---|---|---|
| `x` | [H * W, C] | input: latents, row y * W + x |
| `timestep` | [1, 1] | input: the number that the noise schedule gives the network |
| `label` | int32 [1] | input of class-conditional models |
| `caption` | ["M", D] | input of captioned models: the text encoder's rows of real tokens |
| `height`, `width`, `aspect` | [1, 1] | inputs of some models: pixels, and height over width |
| `guidance` | [1, G] | input of some distilled models: the guidance scale (`scale_row`) |
| `embed.x` | [N, D] | rows of tokens before the first block |
| `time` | [1, D] | what the head and the first block know of timestep and label |
| `modulation` | [1, 6 * D] | what all blocks are modulated by, in models where they share it |
| `embed.caption` | ["M", D] | caption rows as blocks read them |
| `feature` | [N, D] | modulated rows that the first block's attention reads (TeaCache, SeaCache) |
| `body.x` | [N, D] | rows behind the last block |
| `out` | [H * W, C'] | output: the prediction; channels from C on are a learned variance |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import BundleError
from ..graph import Graph

X, TIMESTEP, LABEL, CAPTION = "x", "timestep", "label", "caption"
HEIGHT, WIDTH, ASPECT, GUIDANCE = "height", "width", "aspect", "guidance"
EMBEDDED, TIME, MODULATION, EMBEDDED_CAPTION = "embed.x", "time", "modulation", "embed.caption"
FEATURE, BODY, OUT = "feature", "body.x", "out"
AUXILIARY = (TIME, MODULATION, EMBEDDED_CAPTION)


@dataclass(frozen=True)
class Pieces:
    """A denoiser in three graphs, which compose to the whole bit for bit.

    embed: inputs -> `embed.x`, the auxiliary values that the model has, and `feature` where that
    was asked for. body: `embed.x` and auxiliary values -> `body.x`. head: `body.x` and auxiliary
    values -> `out`. Body and head also take graph inputs that they read themselves (a label).
    """

    embed: Graph
    body: Graph
    head: Graph


def pieces(graph: Graph, *, feature: bool = False) -> Pieces:
    """The pieces of a denoiser's graph; BundleError for one that has no such values."""
    made = {node.output for node in graph.nodes}
    if missing := sorted({EMBEDDED, BODY, OUT} - made):
        raise BundleError(
            f"graph {graph.name!r} computes no {missing}, expected a denoiser that can be cut",
            code="graph-cut",
            hint="run this model whole, with a policy that caches its output",
        )
    held = [name for name in AUXILIARY if name in made]
    given = [EMBEDDED, *held, *([FEATURE] if feature and FEATURE in made else [])]
    return Pieces(
        graph.cut([], given, name=f"{graph.name}.embed"),
        reading(graph, [EMBEDDED, *held], BODY, "body"),
        reading(graph, [BODY, *held], OUT, "head"),
    )


def reading(graph: Graph, inputs: Sequence[str], output: str, name: str) -> Graph:
    """A cut without the inputs that none of its nodes read."""
    cut = graph.cut(inputs, [output], name=f"{graph.name}.{name}")
    read = {value for node in cut.nodes for value in node.inputs}
    return cut.replace(inputs=tuple(value for value in cut.inputs if value.name in read))
