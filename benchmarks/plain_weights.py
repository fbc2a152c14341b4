"""A copy of a bundle that draws whose weights are the same numbers in f32 or f16.

    python -m benchmarks.plain_weights quantized.edge plain.edge [--encoding f16]

The CPU session rounds what products with quantized weights read to 8 bits; of such a copy it does
not, so that pictures of other devices can be compared with its own. In f16 the weights are rounded
once more. Tables of caches, which belong to the other weights, stay behind.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import msgspec
import numpy as np
from edgert.kernels.encodings import ENCODINGS, dequantize

from edgert.bundle import Bundle
from edgert.bundle.writer import BundleWriter
from edgert.graph import Graph
from edgert.storage.safetensors_writer import TensorWriter, aligned_order


def plain_bundle(source: Path, out: Path, encoding: str = "f32") -> Path:
    """Write the copy, unless it is there; returns it. encoding: f32 or f16, of quantized weights;
    with f32 of all."""
    if out.exists():
        return out
    with Bundle.open(source) as bundle, BundleWriter(out) as writer:
        manifest = bundle.manifest
        copied = {name for name in manifest.files if not name.endswith((".onnx", ".npz"))}
        for part, entry in manifest.parts.items():
            graph = plain_graph(bundle.graph(part), encoding)
            write_weights(bundle, part, graph, writer.file(entry.weights))
            writer.file(entry.graph).write_bytes(graph.to_json())
            copied -= {entry.graph, entry.weights}
        for name in copied:
            shutil.copy(bundle.path_of(name), writer.file(name))
        return writer.finish(manifest.replace(name=f"{manifest.name}-{encoding}", golden=[]))


def plain_graph(graph: Graph, encoding: str) -> Graph:
    """The graph over weights in another encoding."""
    weights = {
        name: weight
        if encoding == "f16" and ENCODINGS[weight.encoding].plain
        else msgspec.structs.replace(weight, encoding=encoding)
        for name, weight in graph.weights.items()
    }
    return graph.replace(weights=weights)


def write_weights(bundle: Bundle, part: str, graph: Graph, path: Path) -> None:
    kinds = {"f32": ("F32", np.float32), "f16": ("F16", np.float16)}
    specs = {name: (kinds[w.encoding][0], tuple(w.shape)) for name, w in graph.weights.items()}
    stored = bundle.weights(part)
    with TensorWriter(path, aligned_order(specs)) as file:
        for name, weight in graph.weights.items():
            file.write(name, dequantize(stored[name]).astype(kinds[weight.encoding][1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--encoding", choices=("f32", "f16"), default="f32")
    args = parser.parse_args()
    print(plain_bundle(args.bundle, args.out, args.encoding))


if __name__ == "__main__":
    main()
