"""Quality and exact bytes of every compression method, beside llama.cpp's own quantizations.

    python -m benchmarks.compression CHECKPOINT [CHECKPOINT ...] --work DIR [--data DIR]
        [--methods dense quantizers mixed llama svd compot low cospadi] [--match WORDS]
        [--ratios 0.2 0.3 0.4] [--sequences 64] [--text-bytes 100000] [--pairs 10] [--threads 1]
        [--processes N] [--heal TOKENS]
    python -m benchmarks.compression_page                 tables in benchmarks/COMPRESSION.md

Each row is appended to `benchmarks/results/compression.jsonl` as soon as it is known, and a row
that is there is not computed again: a run may be stopped and started at will. Calibration is on
training text, judgement on held-out text (`compression_model.py`). For times of one core set
OPENBLAS_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from edgert.converters.compress.whiten import Gram
from edgert.converters.heal import HealOptions, heal
from edgert.converters.quantize.base import energy
from edgert.kernels.encodings import dequantize
from edgert.kernels.quant import Quantized

from benchmarks import compression_llama as llama
from benchmarks import compression_quantizers as quantizers
from benchmarks.compression_factors import Factored, Plan, Recipe
from benchmarks.compression_mixed import Mixed
from benchmarks.compression_model import (
    WINDOW,
    Exam,
    Ids,
    Model,
    examination,
    grams_of,
    judged,
    judged_on_cpu,
    load,
    stored_bits,
    training_rows,
    with_ends,
)  # fmt: skip
from benchmarks.compression_quantizers import Cost, Outcome
from benchmarks.machine import cpu_model

RESULTS = Path(__file__).resolve().parent / "results" / "compression.jsonl"
HELD_OUT = 8  # sequences that healing is judged on
SETS = ("dense", "quantizers", "mixed", "llama", "svd", "compot", "low", "cospadi")
MIXED_BITS = (2.6, 3.0, 3.3, 3.5, 3.7, 4.0, 4.3, 4.5, 5.0, 5.5, 6.25)
LOW_BITS = ((8, 8), (6, 6), (4, 6), (4, 4))
LOW_RATIOS = (0.2, 0.3, 0.4, 0.5, 0.6)
Line = dict[str, Any]


class Run:
    """One checkpoint: what is needed by all methods, made when it is first asked for."""

    def __init__(self, checkpoint: Path, args: argparse.Namespace) -> None:
        self.args, self.work = args, args.work
        self.model: Model = load(checkpoint)
        self.rows: list[Ids] = training_rows(self.model, args.data, args.sequences)
        self.exam: Exam = examination(self.model, args.data, args.text_bytes, args.pairs)
        self.done = {line["key"] for line in read(args.out)}
        self._grams: dict[str, Gram] | None = None

    @property
    def grams(self) -> dict[str, Gram]:
        if self._grams is None:
            self._grams = grams_of(self.model, self.rows, self.work, self.args.threads)
        return self._grams

    def key(self, method: str, healed: int = 0) -> str:
        args = self.args
        setting = f"{args.sequences}x1024 {args.text_bytes}b {args.pairs}p"
        return f"{self.model.name} | {method} | {setting} | heal {healed}"

    def wanted(self, method: str) -> bool:
        fits = all(word in method for word in self.args.match)
        return fits and self.key(method, self.args.heal) not in self.done

    def write(self, method: str, side: str, line: Line) -> None:
        healed = self.args.heal if side == "edgert" else 0
        whole: Line = {
            "schema": 1, "kind": "compression", "key": self.key(method, healed),
            "model": self.model.name, "side": side, "method": method, "healed": healed,
            "weights": self.model.count, "sequences": self.args.sequences,
            "text_bytes": self.exam.nbytes, "pairs": len(self.exam.pairs) // 2,
            "date": datetime.date.today().isoformat(), "cpu": cpu_model(),
        }  # fmt: skip
        whole |= line
        self.args.out.parent.mkdir(parents=True, exist_ok=True)
        with self.args.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(whole, ensure_ascii=False) + "\n")
        self.done.add(whole["key"])
        print(
            f"{self.model.name} {side} {method}: {whole['bits'] / whole['weights']:.3f} bits, "
            f"{whole['file_bytes'] / 1e6:.2f} MB, {whole['bits_per_byte']:.4f} bits a byte, "
            f"BLiMP {whole['blimp']:.4f}, {whole['seconds']:.1f} s",
            flush=True,
        )

    def edgert(self, method: str, found: Outcome) -> None:
        """Heal if asked to, judge and write one row of edgert's."""
        if self.args.heal:
            found = healed(self, found, self.args.heal)
        line = judged_on_cpu(self.model, self.exam, found.weights, found.ends, self.args.threads)
        weights = with_ends(self.model, found.weights, found.ends)
        others = sum(stored_bits(w) for name, w in weights.items() if name not in self.model.inputs)
        embed = stored_bits(weights[self.model.embedding]) // 8
        line |= {
            "bits": found.bits, "embed_bytes": embed, "file_bytes": (found.bits + others) // 8,
            "seconds": found.cost.seconds, "peak_bytes": found.cost.peak, "note": found.note,
            **found.facts,
        }  # fmt: skip
        self.write(method, "edgert", line)


def healed(run: Run, found: Outcome, tokens: int) -> Outcome:
    """The outcome after healing on `tokens` tokens of training text, of codes and scales."""
    rows = training_rows(run.model, run.args.data, -(-tokens // WINDOW) + HELD_OUT)
    weights = with_ends(run.model, found.weights, found.ends)
    options = HealOptions(tokens, method="straight-through", held_out=HELD_OUT)
    with quantizers.measured() as cost:
        new = heal(run.model.graph, weights, run.model.graph, run.model.weights, rows, options)
    total = Cost(found.cost.seconds + cost.seconds, max(found.cost.peak, cost.peak))
    return Outcome(dict(new.weights), found.bits, "f32", total, found.note)


def read(path: Path) -> list[Line]:
    if not path.exists():
        return []
    return [json.loads(text) for text in path.read_text("utf-8").splitlines() if text]


def dense(run: Run) -> None:
    """The exact weights in float32 (counted as the bfloat16 that they are), and in float16."""
    bits, none = 16 * run.model.count, Cost()
    if run.wanted("dense f32"):
        run.edgert("dense f32", Outcome({}, bits, "f32", none, "counted as 16 bits a weight"))
    if run.wanted("dense f16"):
        halves = {name: run.model.weights[name].astype(np.float16) for name in run.model.inputs}
        run.edgert("dense f16", Outcome(halves, bits, "f16", none))


def quantized(run: Run) -> None:
    for encoding, method in product(run.args.formats, quantizers.METHODS):
        name = f"{method} {encoding}"
        if run.wanted(name):
            found = quantizers.quantized(run.model, run.grams, method, encoding)
            error = output_error(run, found) if method != "awq" else {}
            run.edgert(name, Outcome(found.weights, found.bits, found.ends, found.cost, "", error))


def mixed(run: Run) -> None:
    left = [bits for bits in MIXED_BITS if run.wanted(f"mixed gptq {bits:g}")]
    if left:
        found = Mixed(run.model, run.grams, run.rows, run.args.threads)
        for bits in left:
            run.edgert(f"mixed gptq {bits:g}", found.outcome(bits))


def output_error(run: Run, found: Outcome) -> dict[str, float]:
    """Root mean square over matrices of the outputs' relative error on the calibration text."""
    errors = []
    for name, value in run.model.inputs.items():
        stored, w, gram = found.weights[name], run.model.weights[name], run.grams[value].matrix
        values = dequantize(stored) if isinstance(stored, Quantized) else stored
        lost = energy(values.astype(np.float64) - w, gram)
        errors.append(lost / energy(w.astype(np.float64), gram))
    return {"output_error": float(np.sqrt(np.mean(errors)))}


def llamas(run: Run) -> None:
    for kind, aid in product(run.args.types, ("", " imatrix")):
        if not run.wanted(kind + aid):
            continue
        source = llama.exact_gguf(run.model, run.work)
        weights = llama.importance(run.model, run.grams) if aid else {}
        target = run.work / f"{run.model.name}-{kind}{aid.replace(' ', '-')}.gguf"
        try:
            seconds = llama.quantize(source, target, kind, weights)
        except RuntimeError as error:
            print(f"{run.model.name} llama.cpp {kind}{aid}: not made: {error}", flush=True)
            continue
        scorer = llama.LlamaScorer(target, run.args.threads, 2048)
        try:
            line = judged(run.exam, scorer.score)
        finally:
            scorer.close()
        run.write(kind + aid, "llama.cpp", line | llama.facts_of(target) | {"seconds": seconds})


def recipes(names: tuple[str, ...], ratios: list[float]) -> Iterator[tuple[Plan, list[Recipe]]]:
    """Factorisations, and the rows that each one gives."""
    for ratio in ratios:
        if "svd" in names:
            for base, allocated in product(("svd", "svd-llm"), (False, True)):
                if (base, allocated) != ("svd", True):
                    plan = Plan(base, ratio, allocated)
                    yield plan, [Recipe(plan)]
        if "compot" in names:
            for allocated, shared in product((False, True), (False, True)):
                plan = Plan("compot", ratio, allocated, shared)
                yield plan, [Recipe(plan), Recipe(plan, refit=True)]
        if "cospadi" in names:
            plan = Plan("cospadi", ratio)
            yield plan, [Recipe(plan)]
    for ratio in LOW_RATIOS if "low" in names else ():
        for shared in (False, True):
            plan = Plan("compot", ratio, True, shared)
            yield plan, [Recipe(plan, True, a, values) for a, values in LOW_BITS]


def factored(run: Run) -> None:
    for plan, rows in recipes(tuple(run.args.methods), run.args.ratios):
        left = [recipe for recipe in rows if run.wanted(recipe.name)]
        if left:
            found = Factored(
                run.model, run.grams, plan, exact=run.args.exact, processes=run.args.processes
            )
            for recipe in left:
                run.edgert(recipe.name, found.outcome(recipe))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    shared = os.environ.get("EDGERT_SHARED_DATA", "")
    usual = Path(shared) if shared else Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="for GGUFs and Gram matrices")
    parser.add_argument("--data", type=Path, default=usual)
    parser.add_argument("--methods", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--match", nargs="*", default=[], help="only rows with these words")
    parser.add_argument("--formats", nargs="+", default=list(quantizers.FORMATS))
    parser.add_argument("--types", nargs="+", choices=llama.TYPES, default=list(llama.TYPES))
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.2, 0.3, 0.4])
    parser.add_argument("--sequences", type=int, default=64, help="of 1,024 tokens")
    parser.add_argument("--text-bytes", type=int, default=100_000)
    parser.add_argument("--pairs", type=int, default=10, help="of each BLiMP paradigm")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1, help="that factor matrices")
    parser.add_argument("--heal", type=int, default=0, metavar="TOKENS", help="not factorisations")
    parser.add_argument("--exact", action="store_true", help="judge products in float32")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    for checkpoint in args.checkpoints:
        run = Run(checkpoint, args)
        if "dense" in args.methods:
            dense(run)
        if "quantizers" in args.methods:
            quantized(run)
        if "mixed" in args.methods:
            mixed(run)
        if "llama" in args.methods and not args.heal:
            llamas(run)
        if not args.heal:  # products stand for factors here: see compression_healed.py
            factored(run)


if __name__ == "__main__":
    main()
