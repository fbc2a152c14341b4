"""What every method of `benchmarks.compression` is given and judged by: a checkpoint's weights in
float32, Gram matrices of its products' inputs on training text, and one examination for all.

The examination is a list of scoring requests in token ids, the same for edgert and llama.cpp: the
first articles of a held-out text in windows of 1,024 tokens that do not overlap, and the first
pairs of each of BLiMP's 67 paradigms.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from edgert.converters import calibrate
from edgert.converters.compress.whiten import Gram
from edgert.converters.convert import convert
from edgert.converters.layers import Layers
from edgert.converters.stages.base import PartInProgress
from edgert.converters.weights import ArrayWeight
from edgert.kernels.encodings import encoding_of, quantize, tensors_of
from edgert.kernels.quant import F32, Matrix
from numpy.typing import NDArray

from edgert.bundle import Bundle
from edgert.evaluation.corpora import load_text
from edgert.evaluation.perplexity import read_text, windows
from edgert.evaluation.scoring import Request, Score, Scorer
from edgert.evaluation.zeroshot import encode_pair, load_task
from edgert.graph import Graph, Weight
from edgert.session.cpu import CpuSession
from edgert.text.tokenizer import Tokenizer

WINDOW = 1024
TRAINING = (("text-wikipedia-plain/train_0.txt.xz", 2), ("text-novels/train.txt.xz", 1))  # shares
BYTES_PER_TOKEN = 8  # of training text read for each token of calibration: enough to draw from
Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Model:
    """weights: float32, all of the graph's. inputs: value that each block matrix's product reads.
    parts: row ranges of the projections that a fused matrix holds, by its name."""

    name: str
    graph: Graph
    weights: Mapping[str, F32]
    tokenizer: Tokenizer
    start: int
    inputs: Mapping[str, str]
    parts: Mapping[str, tuple[slice, ...]]

    @property
    def embedding(self) -> str:
        return next(node for node in self.graph.nodes if node.op == "embed").weights["weight"]

    @property
    def count(self) -> int:
        """Weights in the block matrices."""
        return sum(self.weights[name].size for name in self.inputs)


def load(checkpoint: Path) -> Model:
    """A checkpoint's graph and exact weights."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.edge"
        convert(checkpoint, path, quant="f32", progress=False, golden=False)
        with Bundle.open(path) as bundle:
            graph, text = bundle.graph(), bundle.manifest.text
            weights = {name: np.array(w, np.float32) for name, w in bundle.weights().items()}
            tokenizer = Tokenizer.from_bundle(bundle)
    start = text.eos_token_ids[0] if text.bos_token_id is None else text.bos_token_id
    return Model(
        checkpoint.name, graph, weights, tokenizer, start, calibrate.inputs_of(graph),
        projections(graph),
    )  # fmt: skip


def projections(graph: Graph) -> dict[str, tuple[slice, ...]]:
    """Rows of q, k and v, and of gate and up, in the matrices that hold them; of the others all."""
    users = {node.inputs[0]: node for node in graph.nodes}
    found = {}
    for node in graph.nodes:
        if node.op != "linear":
            continue
        name, user = node.weights["weight"], users.get(node.output)
        rows = graph.weights[name].shape[0]
        sizes = [rows]
        if user is not None and user.op == "attention":
            size, heads, groups = (int(user.attrs[k]) for k in ("head_dim", "heads", "kv_heads"))
            sizes = [heads * size, groups * size, groups * size]
        elif user is not None and user.op == "glu":
            sizes = [rows // 2, rows // 2]
        ends = np.cumsum(sizes).tolist()
        found[name] = tuple(slice(e - s, e) for e, s in zip(ends, sizes, strict=True))
    return found


def training_rows(model: Model, data: Path, sequences: int) -> list[Ids]:
    """Sequences of calibration: two thirds Wikipedia, one third novels, both trained on."""
    total, rows = sum(share for _, share in TRAINING), list[Ids]()
    for place, (file, share) in enumerate(TRAINING):
        last = place == len(TRAINING) - 1
        count = sequences - len(rows) if last else sequences * share // total
        text = read_text(data / file)[: count * WINDOW * BYTES_PER_TOKEN]
        rows += calibrate.sequences_of(model.tokenizer.encode(text), WINDOW, count)
    return rows


def grams_of(model: Model, rows: Sequence[Ids], work: Path, threads: int) -> dict[str, Gram]:
    """Gram matrices by value, as a conversion collects them; kept in `work` for the next run."""
    kept = work / f"{model.name}-grams-{len(rows)}.npz"
    values = list(dict.fromkeys(model.inputs.values()))
    count = sum(map(len, rows))
    if not kept.exists():
        weights = {name: ArrayWeight(array, name) for name, array in model.weights.items()}
        part = PartInProgress("model", "text", model.graph, weights)
        found: dict[str, Gram] = {}
        for inputs in Layers(part, rows, values, threads=threads, held=0):
            found |= {name: each.gram for name, each in inputs.items()}
        aside = kept.with_suffix(".partial.npz")
        np.savez(aside, **{name: gram.matrix for name, gram in found.items()})  # type: ignore[arg-type]
        aside.rename(kept)
    with np.load(kept) as stored:
        return {name: Gram(stored[name], count) for name in values}


def with_ends(model: Model, replaced: Mapping[str, Matrix], ends: str) -> dict[str, Matrix]:
    """All weights of a model: some replaced, the embedding (and head) in the encoding `ends`."""
    found: dict[str, Matrix] = {**model.weights, **replaced}
    if ends != "f32":
        found[model.embedding] = quantize(model.weights[model.embedding], ends)
    return found


def open_cpu(model: Model, replaced: Mapping[str, Matrix], ends: str, threads: int) -> CpuSession:
    """The model on the CPU session, with stored weights as they are."""
    weights = with_ends(model, replaced, ends)
    declared = {n: Weight(model.graph.weights[n].shape, encoding_of(w).name)
                for n, w in weights.items()}  # fmt: skip
    graph = model.graph.replace(weights=declared)
    return CpuSession(graph, weights, threads=threads)


def stored_bits(w: Matrix) -> int:
    """Bits of a weight as a bundle stores it."""
    return 8 * sum(array.nbytes for array in tensors_of(w).values())


class Exam(NamedTuple):
    """text: requests that cover `nbytes` bytes. pairs: good, bad, good, bad, ..."""

    text: list[Request]
    nbytes: int
    pairs: list[Request]


def examination(model: Model, data: Path, nbytes: int, pairs: int) -> Exam:
    """Requests of the first articles of Wikipedia's validation part, `nbytes` bytes at least, and
    of `pairs` pairs of each paradigm of BLiMP."""
    text, size = list[Request](), 0
    for article in load_text("wikipedia", data):
        if size >= nbytes:
            break
        line = (model.start, *model.tokenizer.encode(article))
        size += len(article.encode())
        for begin, first, end in windows(len(line) - 1, WINDOW, WINDOW):
            text.append(Request(line[begin : first + 1], line[first + 1 : end + 1]))
    sentences = [
        encode_pair(model.tokenizer, context, answer, start=model.start, longest=WINDOW)[0]
        for example in load_task("blimp", data, limit=pairs)
        for context, answer in example.pairs
    ]
    return Exam(text, size, sentences)


def judged(exam: Exam, score: Callable[[Sequence[Request]], Sequence[Score]]) -> dict[str, Any]:
    """Bits per byte of the text, accuracy on the pairs and its standard error."""
    nll = -math.fsum(one.logprob for one in score(exam.text))
    values = np.array([one.logprob for one in score(exam.pairs)]).reshape(-1, 2)
    right = values[:, 0] >= values[:, 1]
    return {
        "bits_per_byte": nll / math.log(2) / exam.nbytes,
        "blimp": float(right.mean()),
        "blimp_stderr": float(right.std(ddof=1) / math.sqrt(len(right))),
    }


def judged_on_cpu(
    model: Model, exam: Exam, replaced: Mapping[str, Matrix], ends: str, threads: int
) -> dict[str, Any]:
    """The examination on the CPU session."""
    session = open_cpu(model, replaced, ends, threads)
    try:
        return judged(exam, Scorer(session).score)
    finally:
        session.close()
