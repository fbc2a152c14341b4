"""Bundles of random codes in the shapes of real models, written in seconds without a checkpoint.

    python -m benchmarks.random_bundle 1.1b random-1.1b.edge [--quant f16]

The same seed gives the same bytes on every machine, so that tokens which one machine computed can
be compared on another. Speed does not depend on the values; they are such that activations keep
their size and logits depend on the whole prompt.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from edgert.converters import families
from edgert.converters.stages.emit import part_files
from edgert.converters.stages.part_encodings import encodings_of
from edgert.converters.stages.quantize import encoded, encodings_asked
from edgert.kernels.encodings import ENCODINGS
from numpy.typing import NDArray

from benchmarks.make_checkpoint import SHAPES, config_of, tokenizer_json
from edgert.bundle import FORMAT, BundleWriter, Manifest, Part, TextSpec
from edgert.bundle.check import tensors_of
from edgert.graph import Weight
from edgert.storage.safetensors_writer import TensorWriter, aligned_order

LOGITS = 2.0  # deviation of the logits
BLOCK = 4_000_037  # float values drawn; longer tensors repeat them


def random_bundle(
    shape: str,
    out: Path,
    quant: str = "int4",
    *,
    seed: int = 0,
    changes: Mapping[str, Any] | None = None,
) -> Path:
    """Write the bundle `out` of a shape of `make_checkpoint.SHAPES`; returns it. changes: keys of
    the config that are others."""
    config = {**config_of(shape, "f16"), **(changes or {})}
    model = families.build(config)
    matrices, table = encodings_asked(quant, None)
    own = encodings_of("text", model.graph, matrices, table)
    graph = encoded(model.graph, matrices, table, own)
    ends = {n.weights["weight"] for n in graph.nodes if n.op == "embed"}
    ends.add([n for n in graph.nodes if n.op == "linear"][-1].weights["weight"])
    specs = {t: s for n, w in graph.weights.items() for t, s in tensors_of(n, w).items()}
    graph_file, weights_file = part_files("model")
    with BundleWriter(out) as writer:
        writer.file(graph_file).write_bytes(graph.to_json())
        with TensorWriter(writer.file(weights_file), aligned_order(specs)) as file:
            for index, (name, weight) in enumerate(graph.weights.items()):
                rng = np.random.default_rng([seed, index])
                fixed = model.tensors[name].values
                gain = LOGITS if name in ends else 1.0
                for tensor, piece in _values(name, weight, fixed, gain, rng):
                    file.write(tensor, piece)
        text = json.dumps(tokenizer_json(config["vocab_size"]), ensure_ascii=False)
        writer.file("tokenizer.json").write_text(text, encoding="utf-8")
        spec = TextSpec(eos_token_ids=(2,), vocab_size=config["vocab_size"])
        parts = {"model": Part(graph_file, weights_file)}
        return writer.finish(Manifest(FORMAT, "text", f"random-{shape}-{quant}", parts, spec))


def _values(
    name: str, weight: Weight, fixed: NDArray[Any] | None, gain: float, rng: np.random.Generator
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Stored tensors of a weight, in pieces; `fixed` instead of random ones where given."""
    if fixed is not None:
        yield name, fixed.astype(np.float32)
        return
    if len(weight.shape) == 1:
        noise = 0.02 * rng.standard_normal(weight.shape).astype(np.float32)
        yield name, noise + np.float32("norm" in name)
        return
    deviation = gain / weight.shape[1] ** 0.5
    for tensor, (dtype, shape) in tensors_of(name, weight).items():
        size = int(np.prod(shape))
        if dtype == "U8":
            yield tensor, np.frombuffer(rng.bytes(size), np.uint8)
            continue
        kind = np.float16 if dtype == "F16" else np.float32
        if tensor.endswith(".scales"):
            scales = deviation / _spread(weight.encoding) * rng.uniform(0.5, 1.5, size)
            yield tensor, scales.astype(kind)
            continue
        block = (deviation * rng.standard_normal(min(size, BLOCK), np.float32)).astype(kind)
        for start in range(0, size, len(block)):
            yield tensor, block[: size - start]


def _spread(encoding: str) -> float:
    """Deviation of uniform codes, in three digits: bundles made so have long been compared."""
    return float(f"{((4 ** ENCODINGS[encoding].bits - 1) / 12) ** 0.5:.3g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--quant", default="int4")
    args = parser.parse_args()
    print(random_bundle(args.shape, args.bundle, args.quant))


if __name__ == "__main__":
    main()
