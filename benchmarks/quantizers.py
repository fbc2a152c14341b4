"""What each quantizer loses: output errors, bits and seconds, by method, bits and group.

    python -m benchmarks.quantizers                          random correlated data
    python -m benchmarks.quantizers --model CHECKPOINT --text FILE[.xz] [--nll]
    python -m benchmarks.quantizers --time 135m              GPTQ's time on a whole model

The error is ||X (W' - W)^T|| / ||X W^T||, of a model the square root of the mean square over its
matrices, on text that calibration did not see. bits: stored a weight, scales and zero points
included. nll: what the whole model loses in nats a token on such text. For times on one core set
OPENBLAS_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import lzma
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run as a script, the folder of this file stands first

from edgert.converters.convert import convert  # noqa: E402
from edgert.converters.quantize.awq import awq  # noqa: E402
from edgert.converters.quantize.base import energy  # noqa: E402
from edgert.converters.quantize.gptq import gptq  # noqa: E402
from edgert.converters.quantize.hqq import hqq  # noqa: E402
from edgert.converters.quantize.rtn import round_to_nearest  # noqa: E402
from edgert.kernels.encodings import ENCODINGS, dequantize  # noqa: E402
from edgert.kernels.quant import Quantized  # noqa: E402

from benchmarks.make_checkpoint import SHAPES  # noqa: E402
from edgert.bundle import Bundle  # noqa: E402
from edgert.graph import Graph  # noqa: E402
from edgert.session.base import Feed  # noqa: E402
from edgert.session.reference import ReferenceSession  # noqa: E402
from edgert.text.tokenizer import Tokenizer  # noqa: E402

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
ROWS = 256  # tokens of a sequence
TESTS = 12  # sequences that calibration does not see
GRIDS = [row.grid for row in ENCODINGS.values() if row.grid is not None]
FORMATS = {grid.name: grid for grid in sorted(GRIDS, key=lambda grid: (grid.bits, grid.group))}
USUAL = [name for name, grid in FORMATS.items() if grid.group == 64 or grid.bits in (2, 3, 4)]


class Layer(NamedTuple):
    """A matrix [N, K] and the Gram matrices [K, K] of its inputs: for calibration and for tests."""

    w: F32
    seen: F64
    unseen: F64


def _awq(w: F32, g: F64, clip: bool, **options: Any) -> tuple[Quantized, F32]:
    found = awq(w, g, clip=clip, **options)
    return found.matrix, dequantize(found.matrix) / found.scale


def _plain(matrix: Quantized) -> tuple[Quantized, F32]:
    return matrix, dequantize(matrix)


Method = Callable[..., tuple[Quantized, F32]]
METHODS: dict[str, Method] = {
    "rtn": lambda w, g, **o: _plain(round_to_nearest(w, **o)),
    "rtn clip": lambda w, g, **o: _plain(round_to_nearest(w, clip=True, **o)),
    "rtn clip, diag G": lambda w, g, **o: _plain(round_to_nearest(w, clip=True, gram=g, **o)),
    "hqq": lambda w, g, **o: _plain(hqq(w, **o)),
    "awq": lambda w, g, **o: _awq(w, g, False, **o),
    "awq clip": lambda w, g, **o: _awq(w, g, True, **o),
    "gptq plain order": lambda w, g, **o: _plain(gptq(w, g, act_order=False, **o)),
    "gptq": lambda w, g, **o: _plain(gptq(w, g, **o)),
    "gptq clip": lambda w, g, **o: _plain(gptq(w, g, clip=True, **o)),
}


class Found(NamedTuple):
    """error: relative, over all layers. bits: of a weight. weights: as the products see them."""

    error: float
    bits: float
    seconds: float
    weights: dict[str, F32]


def measure(layers: Mapping[str, Layer], method: str, **options: Any) -> Found:
    """One method on all layers."""
    errors, nbytes, spent, weights = [], 0, 0.0, {}
    for name, layer in layers.items():
        start = time.perf_counter()
        stored, values = METHODS[method](layer.w, layer.seen, **options)
        spent += time.perf_counter() - start
        nbytes += sum(array.nbytes for array in stored.tensors.values())
        lost = energy(values.astype(np.float64) - layer.w, layer.unseen)
        errors.append(lost / energy(layer.w.astype(np.float64), layer.unseen))
        weights[name] = values
    size = sum(layer.w.size for layer in layers.values())
    return Found(float(np.sqrt(np.mean(errors))), 8 * nbytes / size, spent, weights)


def random_layers() -> dict[str, Layer]:
    """Heavy-tailed weights; inputs whose sizes fall as i^-0.7, mixed."""
    layers = {}
    for seed, (n, k) in enumerate(((576, 576), (576, 1536))):
        rng = np.random.default_rng(seed)
        w = (rng.standard_t(5, (n, k)) * 0.02).astype(np.float32)
        mix = np.eye(k) + 0.3 * np.linalg.qr(rng.standard_normal((k, k)))[0]
        size = rng.permutation(np.arange(1, k + 1) ** -0.7)
        x = [(rng.standard_normal((8 * k, k)) * size) @ mix for _ in range(2)]
        layers[f"{n}x{k}"] = Layer(w, x[0].T @ x[0], x[1].T @ x[1])
    return layers


class Model:
    """A checkpoint in float32 on the reference session."""

    def __init__(self, checkpoint: Path, text: Path, sequences: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "m.edge"
            convert(checkpoint, path, quant="f32", progress=False, golden=False)
            with Bundle.open(path) as bundle:
                self.graph: Graph = bundle.graph()
                self.weights = {n: np.array(w) for n, w in bundle.weights().items()}
                tokenizer = Tokenizer.from_bundle(bundle)
        opened = lzma.open if text.suffix == ".xz" else open
        with opened(text, "rt", encoding="utf-8") as file:
            ids = tokenizer.encode(file.read(8 * ROWS * (sequences + TESTS)))
        rows = np.array(ids[: len(ids) // ROWS * ROWS], np.int32).reshape(-1, ROWS)
        wanted = sequences + TESTS
        if len(rows) < wanted:
            raise SystemExit(f"{text} gives {len(rows)} sequences, expected {wanted}")
        rows = np.random.default_rng(42).permutation(rows)
        self.seen, self.unseen = rows[:sequences], rows[sequences:wanted]

    def inputs(self) -> dict[str, str]:
        """The products' weights, the head excepted, and the values that they read."""
        tables = {n.weights["weight"] for n in self.graph.nodes if n.op == "embed"}
        linears = [node for node in self.graph.nodes if node.op == "linear"][:-1]
        named = {node.weights["weight"]: node.inputs[0] for node in linears}
        return {name: value for name, value in named.items() if name not in tables}

    def layers(self) -> dict[str, Layer]:
        inputs = self.inputs()
        seen, unseen = (self.grams(part, inputs.values()) for part in (self.seen, self.unseen))
        return {
            name: Layer(self.weights[name], seen[value], unseen[value])
            for name, value in inputs.items()
        }

    def grams(self, sequences: NDArray[np.int32], values: Iterable[str]) -> dict[str, F64]:
        """X^T X of some values: float32 products, added up in float64."""
        out: dict[str, F64] = defaultdict(lambda: np.zeros(()))
        session = ReferenceSession(self.graph, self.weights)
        for ids in sequences:
            feed = Feed(session.new_state(), ids, "none", taps=tuple(dict.fromkeys(values)))
            for name, x in session.step([feed])[0].taps.items():
                out[name] = out[name] + (x.T @ x).astype(np.float64)
        return out

    def nll(self, weights: Mapping[str, F32]) -> float:
        """Nats a token of the unseen text, with some weights replaced."""
        session, total = ReferenceSession(self.graph, {**self.weights, **weights}), 0.0
        for ids in self.unseen:
            logits = session.step([Feed(session.new_state(), ids, "all")])[0].logits[:-1]
            logits = logits - logits.max(-1, keepdims=True)
            right = logits[np.arange(len(logits)), ids[1:]]
            total += float(np.mean(np.log(np.exp(logits).sum(-1)) - right))
        return total / len(self.unseen)


def rows_of(
    layers: Mapping[str, Layer], args: argparse.Namespace, model: Model | None, dense: float
) -> Iterator[list[str]]:
    for name in args.formats:
        grid = FORMATS[name]
        for method in args.methods:
            found = measure(
                layers, method, bits=grid.bits, group=grid.group, symmetric=grid.symmetric
            )
            cells = [name, method, f"{found.error:.4f}", f"{found.bits:.3f}"]
            cells.append(f"{found.seconds:.2f}")
            if model is not None and args.nll:
                cells.append(f"{model.nll(found.weights) - dense:+.4f}")
            yield cells


def time_of(shape: str) -> None:
    """GPTQ of a whole model by one of its layers, which are alike."""
    layers, width, heads, kv_heads, ff = SHAPES[shape][:5]
    size = (heads + 2 * kv_heads) * width // heads
    spent = 0.0
    for n, k in ((size, width), (width, width), (2 * ff, width), (width, ff)):
        rng = np.random.default_rng(n)
        w = (rng.standard_normal((n, k)) * 0.02).astype(np.float32)
        x = rng.standard_normal((2 * k, k))
        gram = x.T @ x
        start = time.perf_counter()
        gptq(w, gram, bits=4, group=32)
        now = time.perf_counter() - start
        print(f"{n} x {k}: {now:.3f} s")
        spent += now
    print(f"{shape}: {layers} layers, {layers * spent:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--text", type=Path, help="UTF-8, .xz or not; needed with --model")
    parser.add_argument("--sequences", type=int, default=48, help=f"of {ROWS} tokens")
    parser.add_argument("--nll", action="store_true", help="run the whole model, too")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=USUAL)
    parser.add_argument("--time", choices=sorted(SHAPES), metavar="SHAPE")
    args = parser.parse_args()
    if args.time:
        time_of(args.time)
        return
    if bool(args.model) != bool(args.text) or (args.nll and not args.model):
        parser.error("--model and --text go together, and --nll needs them")
    model = Model(args.model, args.text, args.sequences) if args.model else None
    layers = model.layers() if model else random_layers()
    dense = model.nll({}) if model and args.nll else 0.0
    if args.nll:
        print(f"dense: {dense:.4f} nats a token\n")
    print("| encoding | method | error | bits | seconds |" + " nll |" * bool(args.nll))
    print("|---|---|---|---|---|" + "---|" * bool(args.nll))
    for cells in rows_of(layers, args, model, dense):
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
