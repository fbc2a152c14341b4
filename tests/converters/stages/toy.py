"""A source and stages that only tests know: two parts from memory, factors, and a scaled vector.

As a module it is also a row of `sources.base.SOURCES`, for paths that end in ".toy".
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from edgert.converters.families import Part, Recipe
from edgert.converters.sources.base import PlannedPart, Text
from edgert.converters.stages.base import Context, PartInProgress
from edgert.converters.weights import WeightReader, spans_of

from edgert.bundle import TextSpec
from edgert.graph import Graph, Node, Weight
from tests.tiny import BOS, EOS, VOCAB, tiny_graph, tiny_tokenizer, tiny_weights


@dataclass
class ToyTensor:
    values: np.ndarray
    dtype: str = "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self.values[start:stop]


class ToySource:
    """Parts "model" (text) and "draft" (one layer), with every tensor called part.weight."""

    kind = "text"
    family = "toy"
    options: Sequence[str] = ("--toy",)

    def __init__(self, name: str = "toy", *, texts: bool = True) -> None:
        self.name, self.label, self.texts = name, f"{name}.toy", texts
        self.faults: list[str] = []
        self.sidecars = {"LICENSE": b"free"}
        self.closed = False
        self.graphs = {
            "model": tiny_graph(quant="f32"),
            "draft": tiny_graph(quant="f32", layers=1, width=32, heads=2, kv_heads=1, ff=64),
        }
        self.tensors = {
            f"{part}.{name}": ToyTensor(np.asarray(values))
            for part, graph in self.graphs.items()
            for name, values in tiny_weights(graph).items()
        }
        self.nbytes = sum(tensor.values.nbytes for tensor in self.tensors.values())

    def parts(self, faults: list[str]) -> list[PlannedPart]:
        roles = {"model": "text", "draft": "draft"}
        return [
            PlannedPart(part, roles[part], graph, self._recipes(part, graph))
            for part, graph in self.graphs.items()
        ]

    def _recipes(self, part: str, graph: Graph) -> dict[str, Recipe]:
        return {
            name: Recipe((Part(f"{part}.{name}", weight.shape),))
            for name, weight in graph.weights.items()
        }

    def text(self, parts: Sequence[PlannedPart], faults: list[str]) -> Text | None:
        if not self.texts:
            return None
        spec = TextSpec(eos_token_ids=(EOS,), vocab_size=VOCAB, bos_token_id=BOS)
        return Text(spec, {"tokenizer.json": tiny_tokenizer().encode()})

    def image(self, parts: Sequence[PlannedPart], faults: list[str]) -> None:
        return None

    def hashes(self) -> dict[str, str]:
        digest = hashlib.sha256()
        for tensor in self.tensors.values():
            digest.update(tensor.values.tobytes())
        return {self.label: digest.hexdigest()}

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> ToySource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def recognises(source: str | Path) -> bool:
    return str(source).endswith(".toy")


def opened(source: str | Path, **options: Any) -> ToySource:
    return ToySource(Path(source).stem)


class Split:
    """Every `.down` matrix becomes two factors of full rank, by SVD, kept in the cache.

    ran: parts this stage was run on. factored: weights that were decomposed.
    """

    name = "split"

    def __init__(self, balance: float = 0.5) -> None:
        self.balance = balance
        self.ran: list[str] = []
        self.factored: list[str] = []

    def key(self) -> Mapping[str, Any]:
        return {"balance": self.balance}

    def nbytes(self, part: PartInProgress) -> int:
        return 0

    def run(self, part: PartInProgress, context: Context) -> PartInProgress:
        self.ran.append(part.name)
        names = [name for name in part.graph.weights if name.endswith(".down")]
        graph = split_graph(part.graph, names)
        cache = context.cache({f"{n}.{f}": graph.weights[f"{n}.{f}"] for n in names for f in "uv"})
        weights = {name: w for name, w in part.weights.items() if name not in names}
        for name in names:
            factors = [f"{name}.{f}" for f in "uv"]
            if any(cache.done(factor) is None for factor in factors):
                pair = self.factors(name, part.weights[name])
                for factor, values in zip(factors, pair, strict=True):
                    cache.write(factor, values)
                    cache.finish(factor, {})
            weights |= {factor: cache.reader(factor) for factor in factors}
        ranks = {name: min(part.weights[name].shape) for name in names}
        return part.replace(graph=graph, weights=weights).reported(self.name, ranks=ranks)

    def factors(self, name: str, weight: WeightReader) -> tuple[np.ndarray, np.ndarray]:
        self.factored.append(name)
        u, s, v = np.linalg.svd(weight.rows(0, weight.shape[0]), full_matrices=False)
        left, right = u * s**self.balance, s[:, None] ** (1 - self.balance) * v
        return left.astype(np.float32), right.astype(np.float32)


def split_graph(graph: Graph, names: Sequence[str]) -> Graph:
    """The graph with each of these linears as two: first v [R, K], then u [N, R]."""
    weights = {name: w for name, w in graph.weights.items() if name not in names}
    nodes: list[Node] = []
    for node in graph.nodes:
        name = node.weights.get("weight", "")
        if node.op != "linear" or name not in names:
            nodes.append(node)
            continue
        rows, columns = graph.weights[name].shape
        rank, middle = min(rows, columns), f"{node.output}.v"
        weights |= {f"{name}.u": Weight((rows, rank)), f"{name}.v": Weight((rank, columns))}
        nodes += [
            Node("linear", node.inputs, middle, {"weight": f"{name}.v"}),
            Node("linear", (middle,), node.output, {"weight": f"{name}.u"}),
        ]
    return graph.replace(nodes=tuple(nodes), weights=weights)


class Scaled:
    """A reader of another vector, times two."""

    encoding = "f32"

    def __init__(self, inner: WeightReader) -> None:
        self.inner, self.shape = inner, inner.shape

    def spans(self) -> Iterator[tuple[int, int]]:
        return spans_of(self.shape)

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self.inner.rows(start, stop) * np.float32(2)

    def stored(self, start: int, stop: int) -> dict[str, np.ndarray]:
        return {"": self.rows(start, stop)}

    def where(self, start: int, stop: int) -> str:
        return self.inner.where(start, stop)


class Double:
    """The last norm times two, without a cache."""

    name = "double"

    def key(self) -> Mapping[str, Any]:
        return {}

    def nbytes(self, part: PartInProgress) -> int:
        return 0

    def run(self, part: PartInProgress, context: Context) -> PartInProgress:
        return part.replace(weights={**part.weights, "norm": Scaled(part.weights["norm"])})
