"""quantize: every weight into the encoding it is stored in, with the error that this costs."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ...errors import ConvertError
from ...graph import Graph, Weight
from ...kernels.encodings import DEFAULT, ENCODINGS, EXACT, asked
from ..quantize.rtn import encode_weight
from ..report import relative
from ..weights import WeightReader, stored_nbytes
from .base import Context, PartInProgress
from .weight_cache import WeightCache


def encodings_asked(quant: str, embed_quant: str | None) -> tuple[str, str]:
    """Canonical encodings of matrices and of embedding and head."""
    known = asked()
    for name in (quant, embed_quant):
        if name is not None and name not in known:
            raise ConvertError(
                f"quantization {name!r} is unknown, expected one of {sorted(known)}",
                code="quant",
                hint=f"{DEFAULT} is the default",
            )
    quant = known[quant]
    return quant, ENCODINGS[quant].ends or quant if embed_quant is None else known[embed_quant]


def encoded(graph: Graph, quant: str, embed_quant: str) -> Graph:
    """The graph with its weights as wanted, f32 where that encoding is not for their rank.

    embed_quant: for embeddings and, where there are some, for the last linear: the head.
    """
    ends = {n.weights["weight"] for n in graph.nodes if n.op == "embed"}
    if ends:
        ends |= {n.weights["weight"] for n in [n for n in graph.nodes if n.op == "linear"][-1:]}
    weights = {}
    for name, w in graph.weights.items():
        wanted = embed_quant if name in ends else quant
        fits = len(w.shape) in ENCODINGS[wanted].ranks
        weights[name] = Weight(w.shape, wanted if fits else EXACT)
    return graph.replace(weights=weights)


class Quantize:
    """Round-to-nearest. Report: `relative_rms`, the RMS of the error over that of the values, by
    weight."""

    name = "quantize"

    def __init__(self, quant: str, embed_quant: str) -> None:
        self.quant, self.embed_quant = quant, embed_quant

    def key(self) -> Mapping[str, Any]:
        return {"quant": self.quant, "embed": self.embed_quant}

    def nbytes(self, part: PartInProgress) -> int:
        return stored_nbytes(encoded(part.graph, self.quant, self.embed_quant).weights)

    def run(self, part: PartInProgress, context: Context) -> PartInProgress:
        from tqdm import tqdm

        graph = encoded(part.graph, self.quant, self.embed_quant)
        cache = context.cache(graph.weights)
        errors = {}
        bar = tqdm(
            total=stored_nbytes(graph.weights), unit="B", unit_scale=True, desc="quantize",
            disable=None if context.progress else True,
        )  # fmt: skip
        with bar, ThreadPoolExecutor(context.threads, "edgert-convert") as pool:
            for name in graph.weights:
                record = cache.done(name)
                if record is None:
                    errors[name] = self._weight(name, part.weights[name], cache, pool, context, bar)
                else:
                    errors[name] = float(record.note.get("error", 0.0))
                    bar.update(stored_nbytes({name: graph.weights[name]}))
        weights = {name: cache.reader(name) for name in graph.weights}
        return part.replace(graph=graph, weights=weights).reported(self.name, relative_rms=errors)

    def _weight(
        self,
        name: str,
        weight: WeightReader,
        cache: WeightCache,
        pool: ThreadPoolExecutor,
        context: Context,
        bar: Any,
    ) -> float:
        """Encode one weight into the cache; its relative error."""
        lost = power = 0.0
        encoding = cache.weights[name].encoding
        for piece in encode_weight(name, weight, encoding, pool, ahead=context.threads + 2):
            for suffix, array in piece.arrays.items():
                cache.write(name + suffix, array)
                bar.update(array.nbytes)
            lost, power = lost + piece.lost, power + piece.power
        error = relative(lost, power)
        cache.finish(name, {"error": error})
        return error
