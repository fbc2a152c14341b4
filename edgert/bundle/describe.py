"""What a checkpoint or a bundle holds, and what running it will take."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import msgspec

from ..errors import RequestError
from ..forecast.memory import BASE, footprint
from ..graph import Graph, Weight
from ..kernels.encodings import ENCODINGS, asked, on_cpu, packed_bytes
from ..kernels.states import ConvState, KVState, LatentState, RecurrentState
from ..roles import vocab_size
from ..storage.safetensors import nbytes_of
from .check import tensors_of
from .image_spec import ImageSpec


class Description(msgspec.Struct, frozen=True):
    """What `inspect` tells. Sizes in bytes, context and cache in tokens.

    encodings: bytes of the weights by encoding (of a checkpoint: as stored there). cache_per_token:
    at 16 bits. state_bytes: what recurrent states hold of a sequence, however long it is. memory: a
    process with a full context (`forecast.memory`). converted: of a
    checkpoint, what each --quant would make of the weights. packed: of sparse weights, bytes as the
    CPU session packs them, by kernel: in their dense form, or with indices. model: text or image;
    of an image model, layers, vocabulary, context and cache are 0, `parts` has bytes by part and
    `picture` how it is sampled.
    """

    kind: str
    path: str
    name: str
    layers: int
    parameters: int
    vocabulary: int
    context: int
    encodings: dict[str, int]
    weights: int
    cache_per_token: int
    memory: int
    converted: dict[str, int] = {}
    packed: dict[str, int] = {}
    provenance: dict[str, Any] = {}
    model: str = "text"
    parts: dict[str, int] = {}
    picture: dict[str, Any] = {}
    state_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found


def inspect(path: str | PathLike[str]) -> Description:
    """Describe a bundle (also by its name in the store), a checkpoint directory or a hub id. Raises
    what reading either raises."""
    from .store import located

    folder = located(path)
    if (folder / "manifest.json").is_file():
        return describe_bundle(folder)
    files = ("config.json", "model_index.json")
    if folder.exists() and not any((folder / name).is_file() for name in files):
        raise RequestError(
            f"{folder} holds neither manifest.json nor config.json, expected a bundle or a "
            "checkpoint directory",
            code="inspect-path",
            hint="name the directory itself, not a file in it",
        )
    return describe_checkpoint(path)


def describe_bundle(path: Path) -> Description:
    """A bundle, all its hashes checked."""
    from .reader import Bundle

    with Bundle.open(path) as bundle:
        manifest = bundle.manifest
        if manifest.image is not None:
            graphs = {name: bundle.graph(name) for name in manifest.parts}
            made = msgspec.to_builtins(manifest.provenance)
            return _pictures("bundle", path, manifest.name, graphs, manifest.image, provenance=made)
        graph = bundle.graph()
    encodings: Counter[str] = Counter()
    packed: Counter[str] = Counter()
    for weight in graph.weights.values():
        encodings[weight.encoding] += stored_bytes(weight)
        if ENCODINGS[weight.encoding].dense:
            kernel = on_cpu(weight.encoding, weight.shape[-1]).kernel
            packed[kernel] += packed_bytes(weight.encoding, *weight.shape)
    return _description(
        "bundle", path, manifest.name, graph, encodings, packed=dict(sorted(packed.items())),
        provenance=msgspec.to_builtins(manifest.provenance),
    )  # fmt: skip


def describe_checkpoint(source: str | PathLike[str]) -> Description:
    """A checkpoint in the Hugging Face layout, or its hub id; of weights, only headers are read."""
    from ..converters.families.config import refused
    from ..converters.sources.base import open_source
    from ..converters.stages.quantize import encoded, encodings_asked
    from ..storage.safetensors import nbytes_of

    with open_source(Path(source) if Path(source).exists() else str(source)) as opened:
        faults: list[str] = []
        parts = opened.parts(faults)
        image = opened.image(parts, faults)
        if faults:
            raise refused(faults)
        if image is not None:
            graphs = {part.name: part.graph for part in parts}
            return _pictures("checkpoint", source, opened.name, graphs, image.spec)
        graph = parts[0].graph
        encodings: dict[str, int] = {}
        for tensor in opened.tensors.values():
            key, size = tensor.dtype.lower(), nbytes_of(tensor.dtype, tensor.shape)
            encodings[key] = encodings.get(key, 0) + size
        name = opened.name
    converted = {
        quant: sum(
            map(stored_bytes, encoded(graph, *encodings_asked(quant, None)).weights.values())
        )
        for quant in sorted(set(asked().values()))
    }
    return _description("checkpoint", source, name, graph, encodings, converted=converted)


def _pictures(
    kind: str,
    path: str | PathLike[str],
    name: str,
    graphs: Mapping[str, Graph],
    spec: ImageSpec,
    **more: Any,
) -> Description:
    """A picture pipeline; of a checkpoint, sizes are those in 32 bits."""
    encodings: Counter[str] = Counter()
    for graph in graphs.values():
        for weight in graph.weights.values():
            encodings[weight.encoding] += stored_bytes(weight)
    parts = {part: sum(map(stored_bytes, graph.weights.values())) for part, graph in graphs.items()}
    weights = sum(parts.values())
    return Description(
        kind=kind, path=str(path), name=name, layers=0,
        parameters=sum(map(parameters, graphs.values())), vocabulary=0, context=0,
        encodings=dict(sorted(encodings.items())), weights=weights, cache_per_token=0,
        memory=weights + round(BASE), model="image", parts=parts,
        picture={
            **spec.defaults, "conditioning": spec.conditioning, "labels": len(spec.labels),
            "scheduler": spec.scheduler.get("_class_name", ""),
        },
        **more,
    )  # fmt: skip


def _description(
    kind: str,
    path: str | PathLike[str],
    name: str,
    graph: Graph,
    encodings: dict[str, int],
    **more: Any,
) -> Description:
    weights = sum(encodings.values())
    cache, states = cache_per_token(graph), state_bytes(graph)
    return Description(
        kind=kind,
        path=str(path),
        name=name,
        layers=layers(graph),
        parameters=parameters(graph),
        vocabulary=vocab_size(graph),
        context=graph.context,
        encodings=dict(sorted(encodings.items())),
        weights=weights,
        cache_per_token=cache,
        memory=_memory(graph, weights, cache * graph.context),
        state_bytes=states,
        **more,
    )


def _memory(graph: Graph, weights: int, cache: int) -> int:
    """Bytes of a process with a full context: as the CPU session lays it out where that has kernels
    for the weights, else as they are stored."""
    if any(ENCODINGS[weight.encoding].cpu is None for weight in graph.weights.values()):
        return weights + cache + round(BASE)
    return round(footprint(graph, tokens=graph.context).total)


def stored_bytes(weight: Weight) -> int:
    """Bytes of a weight in `weights.safetensors`."""
    return sum(nbytes_of(*spec) for spec in tensors_of("", weight).values())


def parameters(graph: Graph) -> int:
    """Trained numbers: all weights once, but for the rotary tables, which are computed."""
    tables = {
        name
        for node in graph.nodes
        for slot, name in node.weights.items()
        if slot.startswith("inv_freq")
    }
    return sum(math.prod(w.shape) for name, w in graph.weights.items() if name not in tables)


def layers(graph: Graph) -> int:
    """Layers that remember: states of one number are of one layer."""
    return len({re.sub(r"^\D+(?=\d+$)", "", name) for name in graph.states})


def state_bytes(graph: Graph) -> int:
    """Bytes of a sequence's recurrent states, float32, whatever its length; those that keep every
    token at the whole context."""
    values = 0
    for spec in graph.states.values():
        if isinstance(spec, RecurrentState):
            columns = spec.value_dim + spec.normaliser
            tail = min(spec.tail, graph.context or spec.tail)
            values += spec.heads * spec.key_dim * columns + tail * spec.tail_width
        elif isinstance(spec, ConvState):
            values += (spec.width - 1 + spec.tail) * spec.channels
    return 4 * values


def cache_per_token(graph: Graph) -> int:
    """Bytes of keys and values of one token at 16 bits."""
    states = graph.states.values()
    whole = sum(4 * s.kv_heads * s.head_dim for s in states if isinstance(s, KVState))
    return whole + sum(2 * s.size for s in states if isinstance(s, LatentState))
