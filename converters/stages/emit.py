"""emit: the files of a part in the bundle: its graph, its weights, and what else comes with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...storage.safetensors_writer import TensorWriter
from ..weights import specs_of
from .base import Context, PartInProgress
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
        for file, data in part.files.items():
            context.writer.file(file).write_bytes(data)
        cache = cache_of(part)
        if cache is None:
            copy_weights(part, weights_file)
        else:
            cache.deliver(weights_file)
        return part


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
