"""The methods of `benchmarks.compression` on the small model that `benchmarks.compot_lm` trains.

    OPENBLAS_NUM_THREADS=1 python -m benchmarks.compression_small --save FILE

A loss is nats a byte above the exact model on held-out text, all 7 projections of each block
compressed; activations stay float. Lines go to `benchmarks/results/compression_small.jsonl`, and
what is there is not computed again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import torch
from edgert.converters.compress.allocate import allocate, spectrum
from edgert.converters.compress.checks import F64
from edgert.converters.compress.compot import Options, compot
from edgert.converters.compress.whiten import Gram
from edgert.converters.quantize.awq import awq
from edgert.kernels.encodings import dequantize

from benchmarks.compot_lm import Bench, prepare
from benchmarks.compression_factors import Plan, Recipe, quantized_factors
from benchmarks.compression_model import stored_bits
from benchmarks.compression_quantizers import SIMPLE, grid_of, measured

RESULTS = Path(__file__).resolve().parent / "results" / "compression_small.jsonl"
FORMATS = ("uint2-g32", "uint3-g32", "int3-g32", "int4-g32", "int6-g32", "int8-g32")
METHODS = ("gptq", "rtn", "hqq", "awq")
RATIOS = (0.2, 0.3, 0.4, 0.5, 0.6)
LOW_BITS = ((8, 8), (6, 6), (4, 6), (4, 4), (3, 4))
TOKENS = 256 * 96  # of calibration


def gram_of(bench: Bench, name: str) -> Gram:
    """What the whitening was made of, with its ridge."""
    lower = bench.whitenings[name].lower
    return Gram(lower @ lower.T, TOKENS)


def quantizer(bench: Bench, method: str, encoding: str) -> tuple[dict[str, F64], int]:
    """Weights `[inputs, outputs]` of one quantizer, and their bits."""
    grid, found, bits = grid_of(encoding), dict[str, F64](), 0
    for name, weight in bench.weights.items():
        w, gram = np.ascontiguousarray(weight.T, np.float32), gram_of(bench, name)
        if method == "awq":
            options = {"bits": grid.bits, "group": grid.group, "symmetric": grid.symmetric}
            scaled = awq(w, gram.matrix, clip=True, **options)
            stored, values = scaled.matrix, dequantize(scaled.matrix) / scaled.scale
        else:
            stored = SIMPLE[method](w, gram, encoding)
            values = dequantize(stored)
        found[name], bits = values.T.astype(np.float64), bits + stored_bits(stored)
    return found, bits


def factors(bench: Bench, ratio: float) -> Iterator[tuple[str, dict[str, F64], int]]:
    """COMPOT, allocated and refitted, with its factors in few bits."""
    sizes = allocate([spectrum(w) for w in bench.weights.values()], ratio, smallest=1).dims
    made = {}
    for (name, w), size in zip(bench.weights.items(), sizes, strict=True):
        if size.form != "dense":
            made[name] = compot(w, bench.whitenings[name], size.k, size.s, Options(refit=True))
    for a, values in LOW_BITS:
        recipe = Recipe(Plan("compot", ratio, allocated=True), True, a, values)
        found, bits = {}, 0
        for name, w in bench.weights.items():
            gram = gram_of(bench, name)
            if name in made:
                white = bench.whitenings[name]
                found[name], size_bits = quantized_factors(made[name], w, white, gram, recipe)
            else:
                stored = SIMPLE["gptq"](np.ascontiguousarray(w.T, np.float32), gram, f"int{a}-g32")
                found[name], size_bits = (
                    dequantize(stored).T.astype(np.float64),
                    stored_bits(stored),
                )
            bits += size_bits
        yield recipe.name, found, bits


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--save", type=Path, help="keep the trained model here, or read it")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    bench = prepare(args.save)
    count = sum(w.size for w in bench.weights.values())
    lines = args.out.read_text("utf-8").splitlines() if args.out.exists() else []
    done = {json.loads(text)["method"] for text in lines}

    def write(method: str, found: dict[str, F64], bits: int, seconds: float) -> None:
        line = {
            "schema": 1, "kind": "compression_small", "method": method, "bits": bits,
            "weights": count, "dense": bench.dense, "above_dense": bench.above_dense(found),
            "seconds": seconds,
        }  # fmt: skip
        with args.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{method}: {bits / count:.3f} bits, {line['above_dense']:+.4f}", flush=True)

    for encoding, method in product(FORMATS, METHODS):
        if f"{method} {encoding}" not in done:
            with measured() as cost:
                weights, bits = quantizer(bench, method, encoding)
            write(f"{method} {encoding}", weights, bits, cost.seconds)
    for ratio in RATIOS:
        for name, weights, bits in factors(bench, ratio):
            if name not in done:
                write(name, weights, bits, 0.0)


if __name__ == "__main__":
    main()
