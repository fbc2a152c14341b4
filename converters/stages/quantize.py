"""quantize: every weight into the encoding it is stored in, with the error that this costs."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ...errors import ConvertError
from ...graph import Graph, Weight
from ..quantize.rtn import encode_weight
from ..report import relative
from ..weights import WeightReader, stored_nbytes
from .base import Context, PartInProgress
from .weight_cache import WeightCache

QUANTS = {
    "f32": "f32",
    "f16": "f16",
    "int8": "int8-g32",
    "int8-g32": "int8-g32",
    "int4": "int4-g32",
    "int4-g32": "int4-g32",
}


def encodings_asked(quant: str, embed_quant: str | None) -> tuple[str, str]:
    """Canonical encodings of matrices and of embedding and head."""
    for asked in (quant, embed_quant):
        if asked is not None and asked not in QUANTS:
            raise ConvertError(
                f"quantization {asked!r} is unknown, expected one of {sorted(QUANTS)}",
                code="quant",
                hint="int4-g32 is the default",
            )
    quant = QUANTS[quant]
    if embed_quant is not None:
        return quant, QUANTS[embed_quant]
    return quant, "int8-g32" if quant.startswith("int") else quant


def encoded(graph: Graph, quant: str, embed_quant: str) -> Graph:
    """The graph with its matrices in the wanted encodings; vectors stay f32.

    embed_quant: for embeddings and, where there are some, for the last linear: the head.
    """
    ends = {n.weights["weight"] for n in graph.nodes if n.op == "embed"}
    if ends:
        ends |= {n.weights["weight"] for n in [n for n in graph.nodes if n.op == "linear"][-1:]}
    weights = {
        name: Weight(
            w.shape, (embed_quant if name in ends else quant) if len(w.shape) == 2 else "f32"
        )
        for name, w in graph.weights.items()
    }
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
