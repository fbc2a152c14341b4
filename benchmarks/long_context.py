"""Speed and memory at the depth of a long text: softmax attention, linear attention, hybrids.

    python -m benchmarks.long_context --shape 135m --work FOLDER [--threads 1] [--depths 1024 65536]
    python -m benchmarks.long_context --shape 135m --work FOLDER --llama        beside llama.cpp

Random weights in the shapes of real models: `softmax-f16` and `softmax-int8` are the model as it
is, with keys and values of 16 and 8 bits; `2mamba` has linear attention (mode shifted, all
features) in every layer, `hybrid` in three of four. All of them, and llama.cpp's f16 and q8_0
caches, take turns, a few tokens each. A text of the wanted depth is not computed: a short one's
pages are repeated, and of a recurrent state the length is raised, which changes no size. llama.cpp
reads its prompt, so its depths end at --llama-depth.

Prompts are measured in pieces of 256 tokens at each depth; the time of a whole prompt is their sum,
as straight lines between the depths. With one thread times are CPU seconds, which other processes
do not lengthen. Results go to benchmarks/results/long_context.jsonl and long_context.png.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.gguf_copy import write_gguf
from benchmarks.make_checkpoint import SHAPES
from benchmarks.random_bundle import random_bundle
from benchmarks.runners import Ids, LlamaRunner, SessionRunner
from edgert.bundle import Bundle

RESULTS = Path(__file__).resolve().parent / "results" / "long_context.jsonl"
DEPTHS = (1024, 4096, 16384, 65536, 131072)
START = 1024  # tokens that are computed
PIECE = 256  # tokens of a prompt that are timed at once
TOKENS = 8  # written in a burst
LLAMA = "llama.cpp"
ENGINES = {"softmax-f16": 16, "softmax-int8": 8, "2mamba": 16, "hybrid": 16}
Row = dict[str, Any]


def changes_of(engine: str, shape: str, context: int) -> dict[str, Any]:
    """Keys of the config that make a shape this engine's model."""
    changes: dict[str, Any] = {"max_position_embeddings": context}
    layers = SHAPES[shape][0]
    linear = {"2mamba": range(layers), "hybrid": [i for i in range(layers) if i % 4 != 3]}
    if engine in linear:
        kinds = ["full_attention"] * layers
        for layer in linear[engine]:
            kinds[layer] = "linear_attention"
        changes |= {"layer_types": kinds, "linear_attention": {"mode": "shifted"}}
    return changes


def deepened(snapshot: Mapping[str, Any], depth: int) -> dict[str, Any]:
    """A snapshot of START tokens as one of `depth`: pages again and again, recurrent states as
    they are."""
    more, times = depth - START, depth // START
    found: dict[str, Any] = {**snapshot, "length": depth}
    for part in ("keys", "values"):
        pages = snapshot.get(part, {})
        found[part] = {name: np.tile(array, (times, 1)) for name, array in pages.items()}
    if "slots" in snapshot:
        moved = ("fold", "first")
        found["slots"] = {
            name: {key: value + more if key in moved else value for key, value in parts.items()}
            for name, parts in snapshot["slots"].items()
        }
    return found


class Measured:
    """One engine in one shape."""

    def __init__(self, name: str, runner: SessionRunner | LlamaRunner) -> None:
        self.name, self.runner, self.start = name, runner, dict[str, Any]()
        self.decode: list[float] = []
        self.prompt: list[float] = []

    def begin(self, tokens: Ids) -> None:
        """Compute the first tokens."""
        self.runner.step(tokens[:START])
        if isinstance(self.runner, SessionRunner):
            self.start = self.runner.state.snapshot()

    def go(self, depth: int, tokens: Ids) -> None:
        """Stand behind `depth` tokens."""
        if isinstance(self.runner, SessionRunner):
            self.runner.state.restore(deepened(self.start, depth))
            return
        for at in range(self.runner.length, depth, PIECE):
            self.runner.step(np.resize(tokens, PIECE)[: min(PIECE, depth - at)])

    def back(self, depth: int) -> None:
        """Forget what was written past `depth`."""
        if isinstance(self.runner, LlamaRunner):
            self.runner.trim(depth)

    @property
    def nbytes(self) -> int:
        """What the sequence takes, 0 where the engine does not tell."""
        return self.runner.state.nbytes if isinstance(self.runner, SessionRunner) else 0


def rounds(
    engines: Sequence[Measured], depth: int, tokens: Ids, turns: tuple[int, int], threads: int
) -> list[Row]:
    """Bursts of single tokens and pieces of a prompt, in turns: of how many the first have each."""
    count, prompts = turns
    clock = time.process_time if threads == 1 else time.perf_counter
    for engine in engines:
        engine.decode, engine.prompt = [], []
    for turn in range(count):
        for engine in engines if turn % 2 == 0 else engines[::-1]:
            engine.go(depth, tokens)
            engine.runner.step(tokens[:1])
            for at in range(TOKENS):
                begin = clock()
                engine.runner.step(tokens[at : at + 1])
                engine.decode.append(clock() - begin)
            engine.back(depth)
            if turn < prompts:
                engine.go(depth, tokens)
                begin = clock()
                engine.runner.step(np.resize(tokens, PIECE))
                engine.prompt.append((clock() - begin) / PIECE)
                engine.back(depth)
    return [_row(engine, depth, threads) for engine in engines]


def _row(engine: Measured, depth: int, threads: int) -> Row:
    decode, prompt = np.median(engine.decode), min(engine.prompt, default=float("nan"))
    return {
        "engine": engine.name, "depth": depth, "threads": threads, "decode_ms": 1e3 * decode,
        "decode_best_ms": 1e3 * min(engine.decode), "prompt_ms": 1e3 * prompt,
        "state_mb": engine.nbytes / 1e6,
    }  # fmt: skip


def whole_prompts(rows: Sequence[Row]) -> list[Row]:
    """Seconds of a prompt as long as each depth, by engine."""
    found = []
    for name in dict.fromkeys(row["engine"] for row in rows):
        own = [row for row in rows if row["engine"] == name]
        depths = np.array([0, *(row["depth"] for row in own)], float)
        costs = np.array([row["prompt_ms"] for row in own]) / 1e3
        costs = np.concatenate([costs[:1], costs])
        spent = np.cumsum(np.diff(depths) * (costs[1:] + costs[:-1]) / 2)
        for row, seconds in zip(own, spent, strict=True):
            found.append({"engine": name, "prompt": row["depth"], "seconds": float(seconds)})
    return found


def ratios(rows: Sequence[Row]) -> list[Row]:
    """Times of softmax with f16 keys over those of the others."""
    base = {row["depth"]: row for row in rows if row["engine"] == "softmax-f16"}
    return [
        {
            "against": "softmax-f16", "engine": row["engine"], "depth": row["depth"],
            "decode": base[row["depth"]]["decode_ms"] / row["decode_ms"],
            "prompt": base[row["depth"]]["prompt_ms"] / row["prompt_ms"],
        }
            for row in rows
        if row["depth"] in base
    ]  # fmt: skip


def run(shape: str, args: argparse.Namespace) -> list[Row]:
    """All engines of a shape at all depths."""
    context, engines, bundles = max(args.depths) + 1024, list[Measured](), list[Bundle]()
    for name in args.engines:
        bundles.append(Bundle.open(bundle_of(shape, name, args)))
        bits = ENGINES[name]
        runner = SessionRunner(
            bundles[-1], [args.threads], context=context, name=name, kv_bits=bits
        )
        engines.append(Measured(name, runner))
    if args.llama:
        engines += llamas(shape, args)
    vocabulary = SHAPES[shape][5]
    tokens: Ids = np.random.default_rng(0).integers(
        3, min(30000, vocabulary), START, dtype=np.int32
    )
    for engine in engines:
        engine.begin(tokens)
    rows: list[Row] = []
    for depth in args.depths:
        there = [e for e in engines if LLAMA not in e.name or depth <= args.llama_depth]
        found = rounds(there, depth, tokens, (args.rounds, args.prompts), args.threads)
        for row in found:
            print(json.dumps({k: _short(v) for k, v in row.items()}), flush=True)
        rows += found
    for engine in engines:
        engine.runner.close()
    for bundle in bundles:
        bundle.close()
    return rows


def llamas(shape: str, args: argparse.Namespace) -> list[Measured]:
    """llama.cpp over the softmax model's very weights, with caches of f16 and of q8_0, which takes
    head sizes that are multiples of 32."""
    depths = [depth for depth in args.depths if depth <= args.llama_depth]
    if not depths:
        raise SystemExit(f"no depth of {args.depths} is at most --llama-depth {args.llama_depth}")
    _, width, heads, *_ = SHAPES[shape]
    path = bundle_of(shape, "softmax-f16", args)
    copy = path.with_suffix(".gguf")
    if not copy.exists():
        aside = copy.with_suffix(".partial")
        with Bundle.open(path) as bundle:
            write_gguf(bundle.graph(), dict(bundle.weights()), aside)
        aside.rename(copy)
    return [
        Measured(
            f"{LLAMA}-{kind}",
            LlamaRunner(copy, args.threads, context=max(depths) + 1024, batch=PIECE, cache=kind),
        )
        for kind in (["f16", "q8_0"] if width // heads % 32 == 0 else ["f16"])
    ]


def bundle_of(shape: str, engine: str, args: argparse.Namespace) -> Path:
    """An engine's random model, made once."""
    context = max(args.depths) + 1024
    kind = "softmax" if "softmax" in engine else engine
    path: Path = args.work / f"long-{shape}-{kind}-{context}.edge"
    if not path.exists():
        random_bundle(shape, path, changes=changes_of(engine, shape, context))
    return path


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def picture(by_shape: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Tokens a second by depth, a shape each."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(by_shape), figsize=(5 * len(by_shape), 4), squeeze=False)
    for axis, (shape, rows) in zip(axes[0], by_shape.items(), strict=True):
        for name in dict.fromkeys(row["engine"] for row in rows):
            own = [row for row in rows if row["engine"] == name]
            speed = [1e3 / row["decode_ms"] for row in own]
            axis.loglog([row["depth"] for row in own], speed, marker="o", label=name, base=2)
        axis.set(title=shape, xlabel="tokens before", ylabel="tokens a second")
        axis.grid(alpha=0.3)
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", nargs="+", default=["135m"], choices=sorted(SHAPES))
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--depths", nargs="+", type=int, default=list(DEPTHS))
    parser.add_argument("--work", type=Path, required=True, help="folder for random models")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=2, help="rounds that time prompts, too")
    parser.add_argument("--llama", action="store_true")
    parser.add_argument("--llama-depth", type=int, default=16384)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    by_shape = {shape: run(shape, args) for shape in args.shape}
    with RESULTS.open("a", encoding="utf-8") as file:
        for shape, rows in by_shape.items():
            facts = {"shape": shape, "machine": machine.describe(), "rows": rows}
            facts |= {"prompts": whole_prompts(rows), "ratios": ratios(rows)}
            file.write(json.dumps(facts, default=float) + "\n")
            for row in [*facts["ratios"], *facts["prompts"]]:
                print(json.dumps({k: _short(v) for k, v in row.items()}))
    picture(by_shape, RESULTS.with_suffix(".png"))


if __name__ == "__main__":
    main()
