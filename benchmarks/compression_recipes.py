"""What `edgert convert` itself makes, for `benchmarks.compression`: recipes within a number of
bytes, judged as the bundles that they are.

    python -m benchmarks.compression_recipes CHECKPOINT --work DIR --megabytes 12.86 29.78
        [--recipes mixed compot-int4] [--heal TOKENS]

Megabytes are those of a file of weights that a bundle is set beside (a GGUF, say): the bundle gets
as many for its weights, and what tokenizer, graph and manifest take besides.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from edgert.converters.calibrate import Calibration
from edgert.converters.convert import convert
from edgert.converters.pipeline import other_bytes
from edgert.converters.sources.base import open_source
from edgert.converters.stages.read import read

from benchmarks import compression_quantizers as quantizers
from benchmarks.compression import RESULTS, Run
from benchmarks.compression_model import BYTES_PER_TOKEN, TRAINING, WINDOW, judged
from edgert.bundle import Bundle
from edgert.evaluation.perplexity import read_text
from edgert.evaluation.scoring import Scorer
from edgert.session import SessionOptions, open_session


def training_text(data: Path, sequences: int) -> str:
    """Text of about the tokens that `compression_model.training_rows` reads."""
    total = sum(share for _, share in TRAINING)
    pieces = []
    for file, share in TRAINING:
        size = sequences * share * WINDOW * BYTES_PER_TOKEN // total
        pieces.append(read_text(data / file)[:size])
    return "\n\n".join(pieces)


def row(run: Run, checkpoint: Path, recipe: str, megabytes: float) -> None:
    """Convert, judge and write one row."""
    args = run.args
    name = f"recipe {recipe} {megabytes:g} MB"
    if not run.wanted(name):
        return
    with open_source(checkpoint) as source:
        others = other_bytes(read(source))
    calibration = Calibration(training_text(args.data, args.sequences), args.sequences)
    out = args.work / f"{run.model.name}-{recipe}-{megabytes:g}-{args.heal}.edge"
    with quantizers.measured() as cost:
        convert(
            checkpoint, out, recipe=recipe, budget_mb=megabytes + others / 1e6, force=True,
            calibration=calibration, heal=args.heal, golden=False,
        )  # fmt: skip
    with Bundle.open(out) as bundle:
        session = open_session(bundle, SessionOptions(device="cpu", threads=args.threads))
        try:
            line = judged(run.exam, Scorer(session).score)
        finally:
            session.close()
        size = (out / "weights.safetensors").stat().st_size
        weights, graph = bundle.weights(), bundle.graph()
        told = [
            graph.weights[name].encoding
            for name in graph.weights
            if len(graph.weights[name].shape) == 2
        ]
        ends = {n.weights["weight"] for n in graph.nodes if n.op == "embed"}
        blocks = [n for n in graph.weights if len(graph.weights[n].shape) == 2 and n not in ends]
    from benchmarks.compression_model import stored_bits

    line |= {
        "bits": sum(stored_bits(weights[name]) for name in blocks), "file_bytes": size,
        "embed_bytes": sum(stored_bits(weights[name]) for name in ends) // 8,
        "seconds": cost.seconds, "peak_bytes": cost.peak,
        "note": ", ".join(f"{told.count(e)} {e}" for e in sorted(set(told)) if "sparse" not in e),
    }  # fmt: skip
    run.write(name, "edgert", line)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    shared = os.environ.get("EDGERT_SHARED_DATA", "")
    usual = Path(shared) if shared else Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=usual)
    parser.add_argument("--megabytes", nargs="+", type=float, required=True)
    parser.add_argument("--recipes", nargs="+", default=["mixed", "compot-int4"])
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--text-bytes", type=int, default=100_000)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--heal", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    args.match = []
    args.work.mkdir(parents=True, exist_ok=True)
    run = Run(args.checkpoint, args)
    for megabytes in args.megabytes:
        for recipe in args.recipes:
            row(run, args.checkpoint, recipe, megabytes)


if __name__ == "__main__":
    main()
