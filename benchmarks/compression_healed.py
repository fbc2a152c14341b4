"""Bundles of `edgert convert`, plain and by COMPOT, as they are and healed with the same tokens.

    python -m benchmarks.compression_healed CHECKPOINT --work DIR --bundles uint3-g64
        [compot-int4-0.5 ...] [--tokens 1500000] [--updates scales straight-through]

A bundle is an encoding (codes by GPTQ), or `compot-int8-CR` or `compot-int4-CR`. It is healed as
it is stored: A and S, not their product. Without tokens it is only made and judged as it is; it
stays in `--work` for a later call. Healing takes a CUDA device where there is one. Calibration
would as well: make the bundles with CUDA_VISIBLE_DEVICES empty where it should be on the CPU, as
that of the other rows is.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgert.converters.calibrate import Calibration
from edgert.converters.convert import convert
from edgert.converters.heal import HealOptions, heal
from edgert.converters.heal.options import METHODS
from edgert.kernels.quant import Matrix

from benchmarks.compression import HELD_OUT, RESULTS, Run
from benchmarks.compression_model import WINDOW, judged, stored_bits, training_rows
from benchmarks.compression_quantizers import Cost, measured
from benchmarks.compression_recipes import training_text
from edgert.bundle import Bundle
from edgert.evaluation.scoring import Scorer
from edgert.graph import Graph
from edgert.session.cpu import CpuSession

COMPOT = "compot-int"


def asked(name: str) -> dict[str, Any]:
    """A bundle's name as options of `convert`."""
    if not name.startswith(COMPOT):
        return {"quant": name, "method": "gptq"}
    bits, ratio = name.removeprefix(COMPOT).split("-")
    return {"recipe": COMPOT + bits, "compot": float(ratio)}


def made(run: Run, checkpoint: Path, name: str) -> tuple[Path, Cost]:
    """The bundle, made if it is not there, and what making it took."""
    args, out, cost = run.args, run.args.work / f"{run.model.name}-{name}.edge", Cost()
    if not out.exists():
        text = training_text(args.data, args.sequences)
        with measured() as cost:
            convert(
                checkpoint, out, calibration=Calibration(text, args.sequences), golden=False,
                progress=False, threads=args.threads, **asked(name),
            )  # fmt: skip
    return out, cost


def figures(run: Run, graph: Graph, weights: Mapping[str, Matrix]) -> dict[str, Any]:
    """Quality and bytes of stored weights."""
    session = CpuSession(graph, weights, threads=run.args.threads)
    try:
        line = judged(run.exam, Scorer(session).score)
    finally:
        session.close()
    tables = {node.weights["weight"] for node in graph.nodes if node.op == "embed"}
    blocks = [n for n, w in graph.weights.items() if len(w.shape) == 2 and n not in tables]
    return line | {
        "bits": sum(stored_bits(weights[name]) for name in blocks),
        "embed_bytes": sum(stored_bits(weights[name]) for name in tables) // 8,
        "file_bytes": sum(map(stored_bits, weights.values())) // 8,
    }


def as_it_is(run: Run, checkpoint: Path, name: str) -> None:
    """Write a bundle's row before healing."""
    if run.wanted(method := f"bundle {name}"):
        out, cost = made(run, checkpoint, name)
        with Bundle.open(out) as bundle:
            line = figures(run, bundle.graph(), bundle.weights())
        line |= {"seconds": cost.seconds, "peak_bytes": cost.peak, "note": ""}
        run.write(method, "edgert", line)


def healed(run: Run, checkpoint: Path, name: str, update: str) -> None:
    """Write a bundle's row after healing."""
    if not run.wanted(method := f"bundle {name} {update}"):
        return
    args, model, tokens = run.args, run.model, run.args.heal
    rows = training_rows(model, args.data, -(-tokens // WINDOW) + HELD_OUT)
    options = HealOptions(tokens, update, held_out=HELD_OUT)
    out, _ = made(run, checkpoint, name)
    with Bundle.open(out) as bundle, measured() as cost:
        graph = bundle.graph()
        found = heal(graph, bundle.weights(), model.graph, model.weights, rows, options)
        line = figures(run, graph, found.weights)
    line |= {
        "seconds": cost.seconds, "peak_bytes": cost.peak, "heal_seconds": found.seconds,
        "kl_before": found.start.kl, "kl_after": found.end.kl, "improved": found.improved,
        "trained": found.tokens, "rate": options.peak, "note": "",
    }  # fmt: skip
    run.write(method, "edgert", line)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    shared = os.environ.get("EDGERT_SHARED_DATA", "")
    usual = Path(shared) if shared else Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="for bundles")
    parser.add_argument("--data", type=Path, default=usual)
    parser.add_argument("--bundles", nargs="+", required=True)
    parser.add_argument("--tokens", type=int, default=0, dest="heal", help="of healing")
    parser.add_argument("--updates", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--text-bytes", type=int, default=100_000)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    args.match = []
    args.work.mkdir(parents=True, exist_ok=True)
    run = Run(args.checkpoint, args)
    for name in args.bundles:
        if args.heal:
            for update in args.updates:
                healed(run, args.checkpoint, name, update)
        else:
            as_it_is(run, args.checkpoint, name)


if __name__ == "__main__":
    main()
