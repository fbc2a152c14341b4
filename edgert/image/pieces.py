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
| `first.x` | [N, D] | rows behind the first block, where there are more |
| `body.x` | [N, D] | rows behind the last block |
| `out` | [H * W, C'] | output: the prediction; channels from C on are a learned variance |

Besides, `blocks.N.attention.out.y`, `blocks.N.cross.out.y` and `blocks.N.ff.down.y` [N, D] are what
block N's attention, cross-attention and feed-forward give, before gates.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import BundleError
from ..graph import Graph

X, TIMESTEP, LABEL, CAPTION = "x", "timestep", "label", "caption"
HEIGHT, WIDTH, ASPECT, GUIDANCE = "height", "width", "aspect", "guidance"
EMBEDDED, TIME, MODULATION, EMBEDDED_CAPTION = "embed.x", "time", "modulation", "embed.caption"
FEATURE, FIRST, BODY, OUT = "feature", "first.x", "body.x", "out"
AUXILIARY = (TIME, MODULATION, EMBEDDED_CAPTION)
INSIDE = re.compile(r"blocks\.\d+\.(attention\.out|cross\.out|ff\.down)\.y")


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


def pieces(graph: Graph, *, feature: bool = False, start: str = EMBEDDED) -> Pieces:
    """The pieces of a denoiser's graph; BundleError for one that has no such values.

    start: where the body begins: `embed.x`, or `first.x`; then `embed` runs the first block too,
    and gives both.
    """
    made = {node.output for node in graph.nodes}
    if missing := sorted({EMBEDDED, start, BODY, OUT} - made):
        raise BundleError(
            f"graph {graph.name!r} computes no {missing}, expected a denoiser that can be cut",
            code="graph-cut",
            hint="run this model whole, with a policy that caches its output",
        )
    held = [name for name in AUXILIARY if name in made]
    given = [*dict.fromkeys((start, EMBEDDED)), *held]
    given += [FEATURE] if feature and FEATURE in made else []
    return Pieces(
        graph.cut([], given, name=f"{graph.name}.embed"),
        reading(graph, [start, *held], BODY, "body"),
        reading(graph, [BODY, *held], OUT, "head"),
    )


@dataclass(frozen=True)
class Blocks:
    """A body that gives what its blocks compute, and one that takes it.

    keep: as `Pieces.body`, with the values `kept` besides. reuse: takes those as inputs too, and
    computes only norms, gates and sums.
    """

    keep: Graph
    reuse: Graph
    kept: tuple[str, ...]


def blocks(graph: Graph) -> Blocks:
    """The body of a denoiser's graph for policies that keep what blocks compute; BundleError for
    one without such values."""
    body = pieces(graph).body
    kept = tuple(node.output for node in body.nodes if INSIDE.fullmatch(node.output))
    names = [value.name for value in body.inputs]
    return Blocks(body.with_outputs(kept), reading(body, [*names, *kept], BODY, "reuse"), kept)


def reading(graph: Graph, inputs: Sequence[str], output: str, name: str) -> Graph:
    """A cut without the inputs that none of its nodes read."""
    cut = graph.cut(inputs, [output], name=f"{graph.name}.{name}")
    read = {value for node in cut.nodes for value in node.inputs}
    return cut.replace(inputs=tuple(value for value in cut.inputs if value.name in read))
