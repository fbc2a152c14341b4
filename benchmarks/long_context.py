"""Speed and memory at the depth of a long text: softmax attention, linear attention, hybrids.

    python -m benchmarks.long_context --shape 135m --work FOLDER --llama [--minutes 8]
    python -m benchmarks.long_context --page              LONG_CONTEXT.md and its pictures

Random weights in the shapes of real models: `softmax-f16` and `softmax-int8` are the model as it
is, with keys and values of 16 and 8 bits; `2mamba` has linear attention (mode shifted, all
features) in every layer, `hybrid` in three of four. All of them, and llama.cpp's f16 and q8_0
caches (`--llama`), take turns, a few tokens each. A text of the wanted depth is not computed: a
short one's keys and values are repeated, llama.cpp's as well (`llama_cache`), and of a recurrent
state the length is raised, which changes no size.

Prompts are measured in pieces of 256 tokens at each depth. A cell, one engine at one depth, may
take --cap seconds, half of them for single tokens: where 256 tokens of a prompt would not fit into
the rest, 64 are measured, and where these do not fit either the cell says how long they would have
taken. With one thread times are CPU seconds, which other processes do not lengthen.

Each depth's results are appended to benchmarks/results/long_context.jsonl at once. Cells that
stand there, of this processor and as many threads, are not measured again without --again: so a run
goes on where the one before was stopped, by --minutes or by hand.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.gguf_copy import write_gguf
from benchmarks.llama_cache import Content, repeated
from benchmarks.long_context_page import PLAIN, Key, Row, latest, read, write_page
from benchmarks.make_checkpoint import SHAPES
from benchmarks.random_bundle import random_bundle
from benchmarks.runners import Ids, LlamaRunner, SessionRunner
from edgert.bundle import Bundle

RESULTS = Path(__file__).resolve().parent / "results" / "long_context.jsonl"
DEPTHS = (1024, 4096, 16384, 65536, 131072)
START = 512  # tokens that are computed
PIECES = (256, 64)  # tokens of a prompt that are timed at once, the first that fits
TOKENS = 8  # written in a burst
BURSTS = 2  # at the least
LLAMA = "llama.cpp"
ENGINES = {"softmax-f16": 16, "softmax-int8": 8, "2mamba": 16, "hybrid": 16}


def changes_of(engine: str, shape: str) -> dict[str, Any]:
    """Keys of the config that make a shape this engine's model."""
    changes: dict[str, Any] = {"max_position_embeddings": max(DEPTHS) + 1024}
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
    """One engine in one shape, and what it has shown at one depth. share: of a single token's
    seconds, what a prompt's token took at the depth before."""

    def __init__(self, name: str, runner: SessionRunner | LlamaRunner, share: float = 1.0) -> None:
        self.name, self.runner, self.share = name, runner, share
        self.start: dict[str, Any] = {}
        self.content: Content = np.empty(0, np.uint8)

    def begin(self, tokens: Ids) -> None:
        """Compute the first tokens."""
        self.runner.step(tokens)
        if isinstance(self.runner, SessionRunner):
            self.start = self.runner.state.snapshot()
        else:
            self.content = self.runner.content()

    def go(self, depth: int) -> None:
        """Stand behind `depth` tokens, and know nothing of them yet."""
        if isinstance(self.runner, SessionRunner):
            self.runner.state.restore(deepened(self.start, depth))
        else:
            self.runner.become(repeated(self.content, depth // START), depth)
        self.depth, self.spent, self.bursts, self.left = depth, 0.0, 0, 0.0
        self.decode: list[float] = []
        self.prompt: dict[int, list[float]] = {}

    def back(self) -> None:
        """Forget what was written past the depth."""
        if isinstance(self.runner, LlamaRunner):
            self.runner.trim(self.depth)
        elif self.runner.state.rewind(self.depth) != self.depth:
            self.runner.state.restore(deepened(self.start, self.depth))

    def burst(self, tokens: Ids, cap: float, threads: int) -> None:
        """Write TOKENS tokens behind one that does not count, where there is time."""
        if self.bursts >= BURSTS and self.spent * (1 + 1 / self.bursts) > cap / 2:
            return
        self._step(tokens[:1], threads)
        self.decode += [self._step(tokens[at : at + 1], threads) for at in range(TOKENS)]
        self.bursts += 1
        self.back()

    def piece(self, tokens: Ids, cap: float, threads: int) -> None:
        """Read a piece of a prompt, the longest that there is time for; none after a failure."""
        one = float(np.median(self.decode)) * self.share
        for size in PIECES if not self.prompt else list(self.prompt):
            known = min(self.prompt.get(size, [size * one]))
            if self.spent + known <= cap:
                self.prompt.setdefault(size, []).append(self._step(tokens[:size], threads))
                self.back()
                return
        if not self.prompt:
            self.left = one * PIECES[-1]

    def _step(self, tokens: Ids, threads: int) -> float:
        clock = time.process_time if threads == 1 else time.perf_counter
        begin = clock()
        self.runner.step(tokens)
        took = clock() - begin
        self.spent += took
        return took

    def row(self, threads: int) -> Row:
        """What was found at this depth; milliseconds a token, 0 for what was left out."""
        size, found = next(iter(self.prompt.items()), (0, []))
        decode, prompt = float(np.median(self.decode)), min(found, default=0.0) / max(size, 1)
        self.share = prompt / decode or self.share
        state = self.runner if isinstance(self.runner, LlamaRunner) else self.runner.state
        return {
            "engine": self.name, "depth": self.depth, "threads": threads, "bursts": self.bursts,
            "decode_ms": 1e3 * decode, "decode_best_ms": 1e3 * min(self.decode), "piece": size,
            "prompt_ms": 1e3 * prompt, "left_s": self.left, "state_mb": state.nbytes / 1e6,
        }  # fmt: skip


def rounds(
    engines: Sequence[Measured], depth: int, tokens: Ids, args: argparse.Namespace
) -> list[Row]:
    """Bursts of single tokens, then pieces of a prompt, all engines in turns."""
    for engine in engines:
        engine.go(depth)
    for turn in range(args.rounds):
        for engine in engines if turn % 2 == 0 else engines[::-1]:
            engine.burst(tokens, args.cap, args.threads)
    for turn in range(args.prompts):
        for engine in engines if turn % 2 == 0 else engines[::-1]:
            engine.piece(tokens, args.cap, args.threads)
    return [engine.row(args.threads) for engine in engines]


@contextmanager
def opened(shape: str, names: Sequence[str], args: argparse.Namespace) -> Iterator[list[Measured]]:
    """The engines of a shape, behind START tokens, by name."""
    context = max(args.depths) + 1024
    stood = standing(shape, args)
    with ExitStack() as stack:
        engines = []
        for name in names:
            known = [row for (_, _, engine, _), row in stood.items() if engine == name]
            before = [row["prompt_ms"] / row["decode_ms"] for row in known if row["prompt_ms"]]
            runner: SessionRunner | LlamaRunner
            if name in ENGINES:
                bundle = stack.enter_context(Bundle.open(bundle_of(shape, name, args.work)))
                runner = SessionRunner(
                    bundle, [args.threads], context=context, name=name, kv_bits=ENGINES[name]
                )
            else:
                runner = LlamaRunner(
                    gguf_of(shape, args.work), args.threads, context=context, batch=PIECES[0],
                    cache=name.removeprefix(f"{LLAMA}-").removesuffix(PLAIN),
                    flash=not name.endswith(PLAIN),
                )  # fmt: skip
            stack.callback(runner.close)
            engines.append(Measured(name, runner, before[-1] if before else 1.0))
        for engine in engines:
            engine.begin(tokens_of(shape))
        yield engines


def tokens_of(shape: str) -> Ids:
    """What is computed, int32 [START]."""
    rng, vocabulary = np.random.default_rng(0), SHAPES[shape][5]
    return rng.integers(3, min(30000, vocabulary), START, dtype=np.int32)


def names_of(shape: str, args: argparse.Namespace) -> list[str]:
    """Engines that are asked for. llama.cpp's q8_0 takes head sizes that are multiples of 32, and
    flash attention, which makes its tokens slower with f16."""
    _, width, heads, *_ = SHAPES[shape]
    kinds = ["f16", f"f16{PLAIN}"] + ["q8_0"] * (width // heads % 32 == 0)
    return [*args.engines, *(f"{LLAMA}-{kind}" for kind in kinds if args.llama)]


def standing(shape: str, args: argparse.Namespace) -> dict[Key, Row]:
    """Cells of a shape that were measured on this processor."""
    mine = [line for line in read(RESULTS) if line["machine"]["cpu"] == machine.cpu_model()]
    return {key: row for key, row in latest(mine).items() if key[:2] == (shape, args.threads)}


def run(shape: str, args: argparse.Namespace, end: float) -> None:
    """What is missing of a shape, a line of results for each depth; not begun after `end`."""
    stood = {} if args.again else standing(shape, args)
    missing = {
        depth: [n for n in names_of(shape, args) if (shape, args.threads, n, depth) not in stood]
        for depth in args.depths
    }
    names = [n for n in names_of(shape, args) if any(n in each for each in missing.values())]
    missing = {depth: each for depth, each in missing.items() if each}
    if not missing:
        return print(f"{shape}: everything stands")
    if time.monotonic() > end:
        return print(f"{shape} is left out: --minutes are over")
    with opened(shape, names, args) as engines:
        for depth, wanted in missing.items():
            if time.monotonic() > end:
                print(f"{shape} from {depth} tokens on is left out: --minutes are over")
                break
            watch = machine.Watch()
            some = [engine for engine in engines if engine.name in wanted]
            rows = rounds(some, depth, tokens_of(shape), args)
            append(shape, rows, watch)


def append(shape: str, rows: Sequence[Row], watch: machine.Watch) -> None:
    """One line of results."""
    known = {k: v for k, v in machine.describe().items() if k in ("cpu", "cores", "isa")}
    versions = machine.versions()
    known["llama"] = versions.get("llama_cpp_python")
    rows = [{k: _short(v) for k, v in row.items()} for row in rows]
    line = {"shape": shape, "time": time.strftime("%F"), "machine": known, "run": watch.summary()}
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**line, "rows": rows}, separators=(",", ":")) + "\n")
    for row in rows:
        print(json.dumps(row), flush=True)


def bundle_of(shape: str, engine: str, work: Path) -> Path:
    """An engine's random model, made once."""
    kind = "softmax" if "softmax" in engine else engine
    path = work / f"long-{shape}-{kind}.edge"
    if not path.exists():
        random_bundle(shape, path, changes=changes_of(engine, shape))
    return path


def gguf_of(shape: str, work: Path) -> Path:
    """The softmax model's very weights for llama.cpp, made once."""
    path = bundle_of(shape, "softmax-f16", work)
    copy = path.with_suffix(".gguf")
    if not copy.exists():
        aside = copy.with_suffix(".partial")
        with Bundle.open(path) as bundle:
            write_gguf(bundle.graph(), dict(bundle.weights()), aside)
        aside.rename(copy)
    return copy


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", nargs="*", default=[], choices=sorted(SHAPES))
    parser.add_argument("--engines", nargs="*", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--depths", nargs="+", type=int, default=list(DEPTHS))
    parser.add_argument("--work", type=Path, help="folder for random models")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=4, help="bursts of single tokens")
    parser.add_argument("--prompts", type=int, default=2, help="pieces of a prompt")
    parser.add_argument("--cap", type=float, default=30.0, help="seconds of a cell")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no depth after these")
    parser.add_argument("--llama", action="store_true")
    parser.add_argument("--again", action="store_true", help="measure what stands, too")
    parser.add_argument("--page", action="store_true", help="write the page from all results")
    args = parser.parse_args()
    end = time.monotonic() + 60 * args.minutes
    if args.shape and not args.work:
        parser.error("--shape needs --work")
    if any(depth % START for depth in args.depths):
        parser.error(f"--depths {args.depths}, expected multiples of {START}")
    for shape in args.shape:
        args.work.mkdir(parents=True, exist_ok=True)
        run(shape, args, end)
    if args.page:
        write_page(RESULTS)


if __name__ == "__main__":
    main()
