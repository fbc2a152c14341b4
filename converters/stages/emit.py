"""emit: the files of a part in the bundle: its graph, its weights, and what else comes with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...bundle.origins import Origin, Origins, origins_file, to_json
from ...storage.safetensors_writer import TensorWriter
from ..families.recipe import Part
from ..weights import specs_of
from .base import Context, PartInProgress
from .read import RecipeWeight
from .weight_cache import CachedWeight, WeightCache


def part_files(name: str) -> tuple[str, str]:
    """Names of a part's graph file and weights file."""
    weights = "weights.safetensors" if name == "model" else f"{name}.weights.safetensors"
    return f"{name}.graph.json", weights


class Emit:
    """Writes them. A cache that holds just these weights becomes the file, without a copy; its
    weights can then not be read any more."""

    name = "emit"

    def key(self) -> Mapping[str, Any]:
        return {}

    def nbytes(self, part: PartInProgress) -> int:
        return 0

    def run(self, part: PartInProgress, context: Context) -> PartInProgress:
        graph_file, weights_file = map(context.writer.file, part_files(part.name))
        graph_file.write_bytes(part.graph.to_json())
        if part.role == "text" and (found := origins(part, context.source)):
            context.writer.file(origins_file(part.name)).write_bytes(to_json(found))
        for file, data in part.files.items():
            context.writer.file(file).write_bytes(data)
        cache = cache_of(part)
        if cache is None:
            copy_weights(part, weights_file)
        else:
            cache.deliver(weights_file)
        return part


def origins(part: PartInProgress, source: PartInProgress) -> Origins:
    """The checkpoint tensors of the matrices that are still what they were when they were read."""
    found = {}
    products = {node.weights["weight"] for node in part.graph.nodes if node.op == "linear"}
    for name in sorted(products):
        read = source.weights.get(name)
        if isinstance(read, RecipeWeight) and read.shape == part.graph.weights[name].shape:
            found[name] = tuple(_origin(each) for each in read.recipe.parts)
    return {name: parts for name, parts in found.items() if parts}


def _origin(part: Part) -> Origin:
    rows, inputs = part.meant
    return Origin(part.name, (rows, inputs), part.span, part.alias, part.scale, part.pairs or ())


def cache_of(part: PartInProgress) -> WeightCache | None:
    """The cache whose file holds the weights of a part and nothing else, in order."""
    caches = {id(w.cache): w.cache for w in part.weights.values() if isinstance(w, CachedWeight)}
    found = next(iter(caches.values()), None)
    if found is None or len(caches) > 1 or specs_of(found.weights) != specs_of(part.graph.weights):
        return None
    return found if all(isinstance(w, CachedWeight) for w in part.weights.values()) else None


def copy_weights(part: PartInProgress, path: Path) -> None:
    """The weights of a part, wherever they lie, in one file."""
    with TensorWriter(path, specs_of(part.graph.weights)) as file:
        for name, weight in part.weights.items():
            for start, stop in weight.spans():
                for suffix, array in weight.stored(start, stop).items():
                    file.write(name + suffix, array)
