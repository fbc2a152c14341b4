"""edgert against llama.cpp on the same CPU, the same weights, in one interleaved run.

    python -m benchmarks.text_peers --shape 135m 0.5b 1.1b --trained --work FOLDER [--quick]
    python -m benchmarks.text_peers --shape moe --work FOLDER     32 experts, 4 active
    python -m benchmarks.text_peers model.edge --work FOLDER --peers llama ort

A bundle's weights are written as GGUF without loss (int4 as Q4_0, int8 as Q8_0), the logits of
both programs are compared on a real text, and nothing is timed when they are too far apart
(`text_models.allowed`). Then bursts alternate: prompts, single tokens at several depths, four rows
at once, and between them plain streaming reads of memory, for each number of threads. Needs
`llama-cpp-python` and `gguf` (`pip install edgert[bench]`). Further peers: `ort` (onnxruntime's
MatMulNBits on edgert's own ONNX emission), `torch` (transformers with dense weights, of --shape
models only: a note, not the same bits). Results go to benchmarks/results/text_peers.jsonl.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from edgert.kernels.bandwidth import read_gbps

from benchmarks import machine, text_models, timing
from benchmarks.make_checkpoint import SHAPES
from benchmarks.runners import Ids, LlamaRunner, Runner, SessionRunner
from benchmarks.targets import least, ratio, verdict
from edgert.bundle import Bundle
from edgert.roles import vocab_size

RESULTS = Path(__file__).resolve().parent / "results" / "text_peers.jsonl"
CACHED = 64e6  # bytes; smaller models may live in the last-level cache, memory does not limit them
PEERS = ("llama", "ort", "torch")


@dataclass(frozen=True)
class Plan:
    """What is measured: rounds are bursts of each program; a burst writes `burst` tokens."""

    threads: tuple[int, ...] = (1, 2)
    depths: tuple[int, ...] = (0, 1024, 4096)
    prompt: int = 512
    burst: int = 16
    rounds: int = 6
    prompts: int = 4
    stream_passes: int = 2

    def fitting(self, context: int) -> Plan:
        """Without what a model of `context` tokens cannot hold."""
        depths = tuple(d for d in self.depths if d + self.burst + 1 <= context)
        return Plan(
            self.threads, depths, min(self.prompt, context), self.burst, self.rounds, self.prompts,
            self.stream_passes,
        )  # fmt: skip


QUICK = Plan(depths=(0, 1024), rounds=3, prompts=2)


class Contest:
    """Rows and ratios of one model."""

    def __init__(self, plan: Plan, shape: str, edgert: SessionRunner, vocabulary: int) -> None:
        self.plan, self.shape, self.edgert = plan, shape, edgert
        self.rows: list[timing.Row] = []
        self.ratios: list[dict[str, Any]] = []
        self.speeds: dict[int, float] = {}
        generator = np.random.default_rng(0)
        longest = max(plan.prompt, *plan.depths, plan.burst)
        self.tokens: Ids = generator.integers(0, vocabulary, longest, dtype=np.int32)

    def _rows(
        self, test: str, runners: Sequence[Runner], rounds: int, burst: timing.Burst,
        *, threads: int, depth: int, tokens: int, stream: bool = False,
    ) -> list[timing.Row]:  # fmt: skip
        """Measure one test on every runner."""
        for runner in runners:
            runner.use(threads)
        look = (lambda: self.stream(threads)) if stream else None
        spent, others = timing.interleaved(runners, rounds, {test: burst}, between=look)
        found = [
            timing.row(test, name, threads, depth, tokens, times, others)
            for (name, _), times in spent.items()
        ]
        self.rows += found
        return found

    def stream(self, threads: int) -> None:
        """One look at how fast memory can be read now; the best one counts."""
        speed = float(read_gbps(threads, passes=self.plan.stream_passes))
        self.speeds[threads] = max(speed, self.speeds.get(threads, 0.0))

    def _against(self, figure: str, rows: list[timing.Row]) -> None:
        own, *others = rows
        for other in others:
            self.note(ratio(self.shape, figure, own.threads, own.depth, own, other))

    def note(self, found: dict[str, Any]) -> None:
        self.ratios.append(found)
        print("  " + described(found), flush=True)

    def prompts(self, runners: Sequence[Runner], threads: int) -> None:
        """Whole prompts from nothing."""
        count = self.plan.prompt
        burst = timing.reading(self.tokens[:count])
        rows = self._rows(
            f"pp{count}", runners, self.plan.prompts, burst, threads=threads, depth=0, tokens=count
        )
        self._against("pp", rows)

    def writing(self, runners: Sequence[Runner], threads: int, depth: int) -> None:
        """Single tokens after `depth` tokens, and shares of the streaming-read limit where
        the model is too large for the caches."""
        burst = timing.writing(self.tokens[: self.plan.burst], depth)
        rows = self._rows(
            f"tg{self.plan.burst}", runners, self.plan.rounds, burst, threads=threads, depth=depth,
            tokens=1, stream=True,
        )  # fmt: skip
        self._against("tg", rows)
        if self.edgert.read_bytes() < CACHED:
            return
        limit = self.speeds[threads] * 1e9 / self.edgert.read_bytes()
        for row, runner in zip(rows, runners, strict=True):
            if isinstance(runner, SessionRunner | LlamaRunner):  # the others read other bytes
                self.note(self._share(row, limit))

    def _share(self, row: timing.Row, limit: float) -> dict[str, Any]:
        """A program's speed over the tokens a second that streaming reads would allow."""
        share, wanted = row.tps / limit, None
        if row.engine == "edgert":
            wanted = least("read share", self.shape, row.threads, row.depth)
        return {
            "test": "read share", "engine": row.engine, "against": "streaming read",
            "threads": row.threads, "depth": row.depth, "ratio": round(share, 3),
            "ratio_best": round(row.tps_best / limit, 3), "target": wanted,
            "verdict": verdict(share, wanted),
        }  # fmt: skip

    def verifying(self, runners: Sequence[Runner], threads: int) -> None:
        """Four rows in one step against four steps, in each program for itself."""
        four, count = self.tokens[:4], 4
        bursts = {
            "verify4": timing.verifying(four, 0, together=True),
            "4 x tg1": timing.verifying(four, 0, together=False),
        }
        for runner in runners:
            runner.use(threads)
        spent, others = timing.interleaved(runners, self.plan.rounds, bursts)
        for runner in runners:
            own, other = (
                timing.row(test, runner.name, threads, 0, count, spent[runner.name, test], others)
                for test in bursts
            )
            self.rows += [own, other]
            self.note(ratio(self.shape, "verify4", threads, 0, own, other))

    def fill(self, runners: Sequence[Runner], depth: int) -> None:
        """Bring all sequences to `depth` tokens, with all threads."""
        for runner in runners:
            runner.use(max(self.plan.threads))
            runner.trim(0)
            if depth:
                runner.step(self.tokens[:depth])

    def against_llama(self, llama: Runner) -> None:
        """Everything."""
        both = [self.edgert, llama]
        for threads in self.plan.threads:
            self.prompts(both, threads)
            self.verifying(both, threads)
        for depth in self.plan.depths:
            self.fill(both, depth)
            for threads in self.plan.threads:
                self.writing(both, threads, depth)

    def against(self, peer: Runner) -> None:
        """Prompts and writing from nothing only."""
        self.fill([self.edgert, peer], 0)
        for threads in self.plan.threads:
            self.prompts([self.edgert, peer], threads)
            self.writing([self.edgert, peer], threads, 0)


def described(found: dict[str, Any]) -> str:
    """A ratio in one line."""
    wanted = f"  (>= {found['target']}) {found['verdict']}" if found["target"] else ""
    return (
        f"{found['engine']:11s} {found['test']:10s} depth {found['depth']:4d}  "
        f"threads {found['threads']}  vs {found['against']:14s} "
        f"{found['ratio']:6.2f}  best {found['ratio_best']:5.2f}{wanted}"
    )


def measure(
    path: Path, plan: Plan, work: Path, peers: Sequence[str], checkpoint: Path | None
) -> dict[str, Any]:
    """One model against every wanted peer; the line for the results file."""
    watch = machine.Watch()
    with Bundle.open(path) as bundle:
        graph = bundle.graph()
        plan, shape = plan.fitting(graph.context), text_models.shape_of(graph)
        context = min(graph.context, max(*plan.depths, plan.prompt) + 2 * plan.burst)
        context = min(graph.context, -(-context // 256) * 256)
        prompt = text_models.prompt_of(bundle)
        edgert = SessionRunner(bundle, plan.threads, context=context)
        contest = Contest(plan, shape, edgert, vocab_size(graph))
        line: dict[str, Any] = {
            "schema": 1, "kind": "text_peers", "model": path.name.removesuffix(".edge"),
            "shape": shape, "weights": shape_facts(bundle), "machine": machine.describe(),
            "plan": {"rounds": plan.rounds, "prompts": plan.prompts, "burst": plan.burst},
            "peers": {}, "missing": {},
        }  # fmt: skip
        try:
            print(f"{line['model']}: {line['weights']}", flush=True)
            for peer in peers:
                try:
                    line["peers"][peer] = run_peer(
                        peer, contest, bundle, work, context, prompt, checkpoint
                    )
                except (ImportError, OSError, RuntimeError, ValueError) as error:
                    line["missing"][peer] = f"{type(error).__name__}: {error}"[:200]
                    print(f"  {peer}: not measured, {line['missing'][peer]}", flush=True)
        finally:
            edgert.close()
    line["rows"] = [row.to_dict() for row in contest.rows]
    line["ratios"] = contest.ratios
    line["read_gbps"] = {str(k): round(v, 2) for k, v in contest.speeds.items()}
    line["run"] = watch.summary()
    return line


def shape_facts(bundle: Bundle) -> dict[str, Any]:
    """Bytes of the weights by encoding."""
    from edgert.bundle.describe import stored_bytes

    found: dict[str, int] = {}
    for weight in bundle.graph().weights.values():
        found[weight.encoding] = found.get(weight.encoding, 0) + stored_bytes(weight)
    return found


def run_peer(
    peer: str, contest: Contest, bundle: Bundle, work: Path, context: int, prompt: Ids,
    checkpoint: Path | None,
) -> dict[str, Any]:  # fmt: skip
    """Check one peer's logits and time it; what is known about it besides times."""
    threads = contest.plan.threads
    runner, facts = make_runner(peer, bundle, work, threads, context, checkpoint)
    try:
        found = text_models.divergence(contest.edgert, runner, prompt, threads)
        facts |= runner.facts() if isinstance(runner, LlamaRunner) else {}
        print(f"  {runner.name}: logits {text_models.said(found)}", flush=True)
        if peer != "torch" and found["relative_rms"] > text_models.DIVERGENCE:
            found["own_spread"] = text_models.own_spread(bundle, contest.edgert, prompt)
            limit = text_models.allowed(found["own_spread"])
            print(f"  edgert apart from itself with another cache: {found['own_spread']:.3%}")
            if found["relative_rms"] > limit:
                raise ValueError(
                    f"logits are {found['relative_rms']:.2%} apart (relative RMS), expected at "
                    f"most {limit:.2%}; refusing to time different models"
                )
        contest.against_llama(runner) if peer == "llama" else contest.against(runner)
        return facts | {"logits": found}
    finally:
        runner.close()


def make_runner(
    peer: str, bundle: Bundle, work: Path, threads: Sequence[int], context: int,
    checkpoint: Path | None,
) -> tuple[Runner, dict[str, Any]]:  # fmt: skip
    """A peer, loaded."""
    if peer == "llama":
        copy = text_models.gguf_of(bundle, work)
        same = text_models.check_bits(bundle, copy)
        llama = LlamaRunner(copy, max(threads), context=context)
        print(f"  llama.cpp: {llama.facts()['system_info']}", flush=True)
        return llama, {"same_weight_values": same}
    from benchmarks import more_runners

    if peer == "ort":
        copy = more_runners.with_onnx(bundle.path, work)
        return more_runners.ort_runner(copy, threads, context=context), {}
    if checkpoint is None:
        raise ValueError("no checkpoint at hand, only --shape models have one")
    return more_runners.TorchRunner(checkpoint, "bf16"), {"weights": "dense bf16"}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundles", nargs="*", type=Path, metavar="BUNDLE")
    parser.add_argument("--shape", nargs="*", default=[], choices=sorted(SHAPES))
    parser.add_argument("--trained", action="store_true", help="and the trained models at hand")
    parser.add_argument("--quant", default="int4", choices=("int4", "int8"))
    parser.add_argument("--work", type=Path, required=True, help="for GGUFs and random models")
    parser.add_argument("--peers", nargs="*", default=["llama"], choices=PEERS)
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--depths", nargs="*", type=int)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, no depth 4096")
    parser.add_argument("--prepare", action="store_true", help="make the models, time nothing")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    base = QUICK if args.quick else Plan()
    plan = Plan(
        tuple(args.threads), tuple(args.depths or base.depths), base.prompt, base.burst,
        base.rounds, base.prompts, base.stream_passes,
    )  # fmt: skip
    jobs: list[tuple[Path, Path | None]] = [(path, None) for path in args.bundles]
    for shape in args.shape:
        jobs.append((text_models.random_bundle(shape, args.work, args.quant), args.work / shape))
    if args.trained:
        jobs += [(path, None) for path in text_models.trained_bundles(args.work, args.quant)]
    if not jobs:
        raise SystemExit("nothing to measure: name bundles, or --shape, or --trained")
    for path, checkpoint in jobs:
        if args.prepare:
            with Bundle.open(path) as bundle:
                text_models.gguf_of(bundle, args.work)
            continue
        line = measure(path, plan, args.work, args.peers, checkpoint)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        run = line["run"]
        print(
            f"  {run['seconds']:.0f} s, other processes used {run['other_cores']:.2f} cores"
            f"{' - NOISY' if run['noisy'] else ''}",
            flush=True,
        )


if __name__ == "__main__":
    main()
