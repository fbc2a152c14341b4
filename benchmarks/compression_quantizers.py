"""Quantizers of whole models, for `benchmarks.compression`: weights, exact bits, time and memory.

A recipe is a method and a stored encoding: `gptq uint3-g64`. Of AWQ, the norms in front of fused
q/k/v and gate/up take the scales, and the up projection those of the down projection; the attention
output shares value heads between queries, so there is nothing to fold into and it is only clipped.
"""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import psutil
from edgert.converters.compress.whiten import Gram
from edgert.converters.quantize.awq import awq, fold_norm, fold_rows
from edgert.converters.quantize.gptq import gptq
from edgert.converters.quantize.hqq import hqq
from edgert.converters.quantize.rtn import round_to_nearest
from edgert.kernels.encodings import ENCODINGS
from edgert.kernels.grid import Grid
from edgert.kernels.quant import F32, Matrix, Quantized

from benchmarks.compression_model import Model, stored_bits

FORMATS = (
    "uint2-g64", "uint2-g32", "uint3-g64", "int3-g32", "uint3-g32", "uint4-g64", "int4-g32",
    "uint4-g32", "int5-g64", "int6-g64", "int8-g32",
)  # fmt: skip
METHODS = ("gptq", "rtn", "hqq", "awq")
ENDS = "int8-g32"  # of the embedding, which is the head as well
ENOUGH, DAMP, DAMP_FEW_ROWS = 8, 0.01, 0.1  # as `edgert convert --method gptq` has them
_SAMPLE = 0.01  # seconds between looks at the memory


@dataclass
class Cost:
    """seconds: of this process's cores together. peak: bytes of memory above those at the start."""

    seconds: float = 0.0
    peak: int = 0


@dataclass(frozen=True)
class Outcome:
    """weights: of the graph, those that are not the model's own; float32 where no stored encoding
    computes the method's product. bits: of the block matrices as stored. ends: the embedding's
    encoding. note: what must be said of the row."""

    weights: Mapping[str, Matrix]
    bits: int
    ends: str
    cost: Cost
    note: str = ""
    facts: Mapping[str, float] = field(default_factory=dict)


@contextmanager
def measured() -> Iterator[Cost]:
    """CPU seconds and memory of what happens inside; memory by sampling."""
    cost, done = Cost(), threading.Event()
    process = psutil.Process()
    before, start = process.memory_info().rss, time.process_time()

    def watch() -> None:
        while not done.wait(_SAMPLE):
            cost.peak = max(cost.peak, process.memory_info().rss - before)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield cost
    finally:
        cost.seconds = time.process_time() - start
        done.set()
        watcher.join()


def ever_peak() -> int:
    """The most memory this process ever took, bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def grid_of(encoding: str) -> Grid:
    grid = ENCODINGS[encoding].grid
    if grid is None:
        raise SystemExit(f"{encoding} is no encoding with codes in groups")
    return grid


def damp_of(gram: Gram) -> float:
    return DAMP if gram.rows >= ENOUGH * len(gram.matrix) else DAMP_FEW_ROWS


def by_gptq(w: F32, gram: Gram, encoding: str) -> Quantized:
    """One matrix, as `edgert convert --method gptq` quantizes it."""
    grid = grid_of(encoding)
    return gptq(
        w, gram.matrix, bits=grid.bits, group=grid.group, symmetric=grid.symmetric, clip=True,
        damp=damp_of(gram),
    )  # fmt: skip


def _rtn(w: F32, _: Gram, encoding: str) -> Quantized:
    grid = grid_of(encoding)
    return round_to_nearest(w, bits=grid.bits, group=grid.group, symmetric=grid.symmetric)


def _hqq(w: F32, _: Gram, encoding: str) -> Quantized:
    grid = grid_of(encoding)
    return hqq(w, bits=grid.bits, group=grid.group, symmetric=grid.symmetric)


SIMPLE: Mapping[str, Callable[[F32, Gram, str], Quantized]] = {
    "rtn": _rtn, "hqq": _hqq, "gptq": by_gptq,
}  # fmt: skip


def quantized(model: Model, grams: Mapping[str, Gram], method: str, encoding: str) -> Outcome:
    """All block matrices by one quantizer."""
    with measured() as cost:
        if method == "awq":
            found = _awq_model(model, grams, encoding)
        else:
            quantize = SIMPLE[method]
            found = {
                name: quantize(model.weights[name], grams[value], encoding)
                for name, value in model.inputs.items()
            }
    bits = sum(stored_bits(found[name]) for name in model.inputs)
    return Outcome(found, bits, ENDS, cost)


def _awq_model(model: Model, grams: Mapping[str, Gram], encoding: str) -> dict[str, Matrix]:
    """AWQ with its scales folded into norms and up projections; from the last product of a block
    to the first, since folding changes rows of the product before."""
    grid = grid_of(encoding)
    made = {node.output: node for node in model.graph.nodes}
    weights: dict[str, F32] = dict(model.weights)
    found: dict[str, Matrix] = {}
    for name, value in reversed(list(model.inputs.items())):
        before, gram = made[value], grams[value]
        if before.op == "attention":
            found[name] = round_to_nearest(
                weights[name], bits=grid.bits, group=grid.group, symmetric=grid.symmetric,
                clip=True, gram=gram.matrix,
            )  # fmt: skip
            continue
        scaled = awq(
            weights[name], gram.matrix, bits=grid.bits, group=grid.group,
            symmetric=grid.symmetric, clip=True,
        )  # fmt: skip
        found[name] = scaled.matrix
        if before.op == "rms_norm":
            norm = before.weights["weight"]
            found[norm] = fold_norm(weights[norm], scaled.scale)
        else:  # a gated unit: its up half is multiplied by the activation, so it takes the scale
            fused = made[before.inputs[0]].weights["weight"]
            up = model.parts[fused][1]
            changed = weights[fused].copy()
            changed[up] = fold_rows(changed[up], scaled.scale)
            weights[fused] = np.ascontiguousarray(changed)
    return found
