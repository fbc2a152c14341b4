"""What `edgert export` writes: for every part of a bundle its graphs, and each one's file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ..bundle.reader import Bundle
from ..errors import ConvertError, EdgertError
from ..graph import Graph
from ..image.emissions import Size, graphs_of, own_size
from ..roles import BATCHED
from ..session.onnx_io import Variant, embedded
from ..session.onnx_names import Emission

# Roles whose graphs are float16 where that is asked for. Text encoders (T5) and autoencoders (of
# SDXL) have values beyond 65504, and run once a picture.
HALF = ("denoiser",)


@dataclass(frozen=True)
class Target:
    """A file to write: the emission of `graph`, with further outputs `taps`."""

    emission: Emission
    graph: Graph
    taps: tuple[str, ...] = ()


def targets_of(
    bundle: Bundle, variant: Variant, taps: Sequence[str] = (), size: Size | None = None
) -> list[Target]:
    """The files of every part, in the order of their names; ConvertError for options that do not
    fit the bundle."""
    computed = {n: {node.output for node in bundle.graph(n).nodes} for n in bundle.manifest.parts}
    if unknown := sorted(set(taps).difference(*computed.values())):
        raise ConvertError(
            f"no part of {bundle.path} computes {unknown}, expected names of values",
            code="onnx-options",
            hint="the graph file names them; rows behind layer N are layers.N.add2.y",
        )
    pictures = bundle.manifest.kind == "image"
    _check(bundle, variant, size, pictures=pictures)
    found = list[Target]()
    for part in sorted(bundle.manifest.parts):
        made = _drawn(bundle, part, variant, size) if pictures else _whole(bundle, part, variant)
        for target in made:
            wanted = () if target.emission.piece else taps
            found.append(replace(target, taps=tuple(t for t in wanted if t in computed[part])))
    names = Counter(target.emission.name for target in found)
    if twice := [name for name, count in names.items() if count > 1]:
        raise ConvertError(
            f"{bundle.path} has parts whose pieces would be the same files {twice[:4]}, expected "
            "other names of parts",
            code="onnx-options",
        )
    return found


def _check(bundle: Bundle, variant: Variant, size: Size | None, *, pictures: bool) -> None:
    if size is not None and not pictures:
        raise ConvertError(
            f"{bundle.path} is a bundle of the kind {bundle.manifest.kind!r}, expected one that "
            "draws for a size of pictures",
            code="onnx-options",
            hint="leave --size out",
        )
    if (variant.batch or variant.fused) and not pictures:
        raise ConvertError(
            f"{bundle.path} is a bundle of the kind {bundle.manifest.kind!r}, expected one that "
            "draws for batches of pictures",
            code="onnx-options",
            hint="leave --batch and --fused out",
        )
    if pictures and variant.embeddings:
        raise ConvertError(
            f"{bundle.path} draws from captions or labels, expected a model that takes embeddings",
            code="onnx-options",
            hint="leave --embeddings out",
        )
    if pictures and variant.rows:
        raise ConvertError(
            f"rows {variant.rows}: a bundle that draws has a fixed grid anyway and captions of any "
            "length, expected no fixed rows",
            code="onnx-options",
            hint="leave --rows and --capacity out; --size is the size of the picture",
        )


def _whole(bundle: Bundle, part: str, variant: Variant) -> Iterator[Target]:
    graph = bundle.graph(part)
    yield Target(Emission(part, part_variant(graph, variant)), graph)


def _drawn(bundle: Bundle, part: str, variant: Variant, size: Size | None) -> Iterator[Target]:
    """A part of a bundle of pictures, and its pieces. What does not depend on the size of the
    picture is emitted without one."""
    role = bundle.manifest.parts[part].role
    if role not in HALF:
        variant = replace(variant, half=False)
    if role not in BATCHED:
        variant = replace(variant, batch=False, fused=False)
    other = size if size != own_size(bundle) else None
    try:
        graphs = list(graphs_of(bundle, part, size))
    except EdgertError as error:
        raise ConvertError(error.message, code="onnx-options", hint=error.hint) from None
    sized = None if graphs[0][1] == bundle.graph(part) else other
    for piece, graph in graphs:
        yield Target(Emission(part, variant, piece, sized), graph)


def part_variant(graph: Graph, variant: Variant) -> Variant:
    """What `variant` means for a part: one without tokens takes what it takes."""
    return variant if embedded(graph) else replace(variant, embeddings=False)
