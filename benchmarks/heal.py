"""What healing wins back: held-out KL and loss of rounded models before and after it.

    python benchmarks/heal.py --model CHECKPOINT --text FILE [--tokens 1000000] [--formats ...]
    torchrun --nproc-per-node 2 benchmarks/heal.py --model CHECKPOINT --text FILE

CHECKPOINT is a folder in the Hugging Face layout, FILE a UTF-8 text, plain, .xz or .gz; repeat
--model for several. Needs torch, tokenizers, safetensors, msgspec and tqdm; neither kernels nor an
installation of edgert, nor the network. Matrices are rounded to nearest; embedding and head are
int8-g32, as a conversion stores them. KL is KL(original || model), all figures in nats a token on
the last sequences, which no training saw. A line of JSON a run goes to --lines.

On a busy CPU set OMP_NUM_THREADS=1: threads that wait for each other take most of the time.
"""

from __future__ import annotations

import argparse
import gzip
import json
import lzma
import os
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run as a script, the folder of this file stands first

import edgert  # noqa: E402

if str(ROOT) not in edgert.__path__:
    edgert.__path__.append(str(ROOT))  # its other rooms, where it is not installed

from edgert.converters.calibrate import sequences_of  # noqa: E402
from edgert.converters.heal import Healed, HealOptions, heal  # noqa: E402
from edgert.converters.sources.base import open_source  # noqa: E402
from edgert.converters.stages.quantize import encoded  # noqa: E402
from edgert.converters.stages.read import RecipeWeight, build_tokenizer  # noqa: E402
from edgert.kernels.encodings import ENCODINGS, quantize  # noqa: E402
from edgert.kernels.quant import Matrix  # noqa: E402

from edgert.graph import Graph  # noqa: E402

FORMATS = ("int4-g32", "uint3-g64", "uint2-g64")
METHODS, OPTIMIZERS = ("scales", "straight-through"), ("adamw", "dash")
OPENED = {".xz": lzma.open, ".gz": gzip.open}


class Model(NamedTuple):
    """A checkpoint in float32, and a text in its tokens."""

    name: str
    graph: Graph
    weights: dict[str, Matrix]
    ids: list[int]


def load(checkpoint: Path, text: Path, tokens: int) -> Model:
    """A checkpoint, and the first `tokens` tokens of a text or somewhat more."""
    with OPENED.get(text.suffix, open)(text, "rt", encoding="utf-8") as file:
        wanted = str(file.read(8 * tokens))
    with open_source(checkpoint) as source:
        faults = list(source.faults)
        parts = source.parts(faults)
        found = source.text(parts, faults)
        if faults or found is None:
            raise SystemExit("\n".join(faults) or f"{checkpoint} has no text")
        readers = {n: RecipeWeight(r, source.tensors) for n, r in parts[0].weights.items()}
        weights: dict[str, Matrix] = {n: r.rows(0, r.shape[0]) for n, r in readers.items()}
        ids = build_tokenizer(found).encode(wanted)
        return Model(checkpoint.name, parts[0].graph, weights, ids)


def rounded(model: Model, name: str) -> tuple[Graph, dict[str, Matrix]]:
    """The model with its matrices rounded to nearest."""
    graph = encoded(model.graph, name, ENCODINGS[name].ends or name)
    return graph, {
        weight: quantize(np.asarray(model.weights[weight]), declared.encoding)
        for weight, declared in graph.weights.items()
    }


def line(model: str, name: str, options: HealOptions, found: Healed) -> dict[str, Any]:
    """One run as JSON."""
    return {
        "date": time.strftime("%Y-%m-%d"), "model": model, "format": name, **options.key(),
        "steps": found.steps, "trained": found.tokens, "kl_before": found.start.kl,
        "kl_after": found.end.kl, "improved": found.improved, "nats_before": found.start.nats,
        "nats_after": found.end.nats, "nats_source": found.source, "seconds": found.seconds,
    }  # fmt: skip


def runs(args: argparse.Namespace) -> Iterator[tuple[str, HealOptions]]:
    """Every format by every setting."""
    rates = args.rates or [None]
    for name, method, optimizer, rate in product(
        args.formats, args.methods, args.optimizers, rates
    ):
        yield name, HealOptions(
            args.tokens, method, optimizer, rate, batch=args.batch, device=args.device,
            micro_batch=args.micro_batch, held_out=args.held_out, seed=args.seed,
        )  # fmt: skip


HEAD = (
    f"{'format':10} {'method':17} {'optimizer':9} {'rate':>7} {'tokens':>9} {'s':>7}  "
    f"{'KL before':>9} {'after':>7} {'left':>6}  {'nats before':>11} {'after':>7} {'source':>7}"
)


def row(line: dict[str, Any]) -> str:
    left = line["kl_after"] / line["kl_before"]
    return (
        f"{line['format']:10} {line['method']:17} {line['optimizer']:9} {line['rate']:7.0e} "
        f"{line['trained']:9} {line['seconds']:7.1f}  {line['kl_before']:9.4f} "
        f"{line['kl_after']:7.4f} {left:6.1%}  {line['nats_before']:11.4f} "
        f"{line['nats_after']:7.4f} {line['nats_source']:7.4f}"
        + ("" if line["improved"] else "  not better: thrown away")
    )


def machine(args: argparse.Namespace) -> str:
    import torch

    where = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if where == "cuda" else f"{os.cpu_count()} CPU threads"
    ranks = os.environ.get("WORLD_SIZE", "1")
    return f"{name}, {ranks} rank(s), torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, action="append", required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=1_000_000, help="of training")
    parser.add_argument("--length", type=int, default=512, help="tokens of a sequence")
    parser.add_argument("--sequences", type=int, help="default: as many as the tokens ask for")
    parser.add_argument("--held-out", type=int, default=32, help="sequences to measure on")
    parser.add_argument("--formats", nargs="+", default=FORMATS)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--optimizers", nargs="+", default=OPTIMIZERS)
    parser.add_argument("--rates", type=float, nargs="+", help="default: the method's own")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--micro-batch", type=int)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--device")
    parser.add_argument("--lines", type=Path, help="append JSON lines to this file")
    args = parser.parse_args()
    count = args.sequences or -(-args.tokens // args.length) + args.held_out
    first = os.environ.get("RANK", "0") == "0"
    if first:
        print(machine(args))
    for checkpoint in args.model:
        model = load(checkpoint, args.text, count * args.length)
        sequences = sequences_of(model.ids, args.length, count)
        if first:
            held = min(args.held_out, len(sequences) // 4)
            print(f"\n{model.name}: {len(sequences)} sequences of {args.length}, {held} held out")
            print(HEAD, flush=True)
        for name, options in runs(args):
            graph, weights = rounded(model, name)
            found = heal(graph, weights, model.graph, model.weights, sequences, options)
            if first:
                made = line(model.name, name, options, found)
                print(row(made), flush=True)
                if args.lines:
                    with open(args.lines, "a", encoding="utf-8") as file:
                        file.write(json.dumps(made) + "\n")


if __name__ == "__main__":
    main()
