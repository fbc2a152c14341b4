"""Decode speed of edgert's encodings and of llama.cpp's quantizations, one thread, in turns.

    python -m benchmarks.compression_speed --work DIR --shape 0.5b-llama 1.1b
    python -m benchmarks.compression_speed --work DIR --checkpoint DIR [DIR ...]

A small model stays in the processor's cache, so the shapes count, with random weights: speed
depends on the stored types, not on the values. All programs are loaded at once and get a burst of
single tokens each round; a ratio is the median over rounds of the two bursts' medians. Lines go to
`benchmarks/results/compression_speed.jsonl`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from edgert.converters.convert import convert

from benchmarks import compression_llama as llama
from benchmarks import machine
from benchmarks.compression_model import stored_bits
from benchmarks.gguf_copy import write_gguf
from benchmarks.runners import LlamaRunner, Runner, SessionRunner
from benchmarks.text_models import random_bundle
from benchmarks.timing import interleaved, writing
from edgert.bundle import Bundle
from edgert.graph import Graph

RESULTS = Path(__file__).resolve().parent / "results" / "compression_speed.jsonl"
ENCODINGS = ("uint2-g64", "uint3-g64", "int4-g32", "int6-g64")
TYPES = ("Q2_K", "Q3_K_M", "Q4_0", "Q4_K_M", "Q6_K")
DEPTH, BURST = 32, 12  # tokens in the cache, tokens of a burst


def bundle_of(source: Path, encoding: str, work: Path) -> Path:
    """A bundle of a checkpoint with its matrices in `encoding`, made once."""
    out = work / f"{source.name}-{encoding}.edge"
    if not (out / "manifest.json").exists():
        convert(source, out, quant=encoding, method="rtn", golden=False, force=True, progress=False)
    return out


def source_gguf(source: Path, work: Path) -> Path:
    """A GGUF of a checkpoint in float16, made once."""
    path = work / f"{source.name}-f16.gguf"
    if not path.exists():
        aside = path.with_suffix(".partial")
        with Bundle.open(bundle_of(source, "f16", work)) as bundle:
            write_gguf(bundle.graph(), bundle.weights(), aside)
        aside.rename(path)
    return path


def gguf_of(source: Path, kind: str, work: Path) -> Path:
    path = work / f"{source.name}-{kind}.gguf"
    if not path.exists():
        aside = path.with_suffix(".partial")
        llama.quantize(source_gguf(source, work), aside, kind, {})
        aside.rename(path)
    return path


def block_bits(bundle: Bundle) -> tuple[int, int, int]:
    """Bits and number of the block matrices' weights, and bytes of all weights."""
    graph: Graph = bundle.graph()
    weights = bundle.weights()
    names = {n.weights["weight"] for n in graph.nodes if n.op == "linear"}
    names -= {n.weights["weight"] for n in graph.nodes if n.op == "embed"}
    names -= {[n for n in graph.nodes if n.op == "linear"][-1].weights["weight"]}
    bits = sum(stored_bits(weights[name]) for name in names)
    count = sum(int(np.prod(graph.weights[name].shape)) for name in names)
    return bits, count, sum(stored_bits(w) for w in weights.values()) // 8


class Named(SessionRunner):
    """A session that is called by its encoding."""

    def __init__(self, bundle: Bundle, encoding: str) -> None:
        super().__init__(bundle, (1,), context=256, name=f"edgert {encoding}")


class NamedLlama(LlamaRunner):
    def __init__(self, path: Path, kind: str) -> None:
        super().__init__(path, 1, context=256)
        self.name = f"llama.cpp {kind}"


def measure(source: Path, work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One model: all encodings and types against each other."""
    runners: list[Runner] = []
    facts: dict[str, dict[str, float]] = {}
    count = 0
    for encoding in args.encodings:
        with Bundle.open(bundle_of(source, encoding, work)) as bundle:
            bits, count, total = block_bits(bundle)
            vocabulary = bundle.graph().weights["embed"].shape[0]
            runners.append(Named(bundle, encoding))
        facts[runners[-1].name] = {"bits": bits, "file_bytes": total}
    for kind in args.types:
        path = gguf_of(source, kind, work)
        found = llama.facts_of(path)
        runners.append(NamedLlama(path, kind))
        facts[runners[-1].name] = {k: found[k] for k in ("bits", "file_bytes", "types")}
    tokens = np.random.default_rng(0).integers(1, vocabulary, DEPTH + BURST).astype(np.int32)
    for runner in runners:
        runner.step(tokens[:DEPTH])
    watch = machine.Watch()
    spent, _ = interleaved(runners, args.rounds, {"write": writing(tokens[DEPTH:], DEPTH)})
    rows = {}
    for runner in runners:
        times = np.array(spent[runner.name, "write"]).reshape(args.rounds, -1)
        rounds = np.median(times, axis=1)
        rows[runner.name] = facts[runner.name] | {
            "ms": float(np.median(rounds) * 1e3),
            "best_ms": float(rounds.min() * 1e3),
            "rounds_ms": [round(float(x) * 1e3, 4) for x in rounds],
            "bits_per_weight": facts[runner.name]["bits"] / count,
        }
        runner.close()
    return {
        "schema": 1, "kind": "compression_speed", "model": source.name, "weights": count,
        "threads": 1, "depth": DEPTH, "machine": machine.describe(), "rows": rows,
        "run": watch.summary(),
    }  # fmt: skip


def report(line: dict[str, Any]) -> None:
    for name, row in line["rows"].items():
        print(f"{line['model']} {name}: {row['bits_per_weight']:.3f} bits, {row['ms']:.2f} ms")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--shape", nargs="*", default=[])
    parser.add_argument("--checkpoint", nargs="*", type=Path, default=[])
    parser.add_argument("--encodings", nargs="+", default=list(ENCODINGS))
    parser.add_argument("--types", nargs="+", choices=llama.TYPES, default=list(TYPES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    sources = list(args.checkpoint)
    for shape in args.shape:
        random_bundle(shape, args.work, "int4")  # makes the checkpoint
        sources.append(args.work / shape)
    for source in sources:
        line = measure(source, args.work, args)
        report(line)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
