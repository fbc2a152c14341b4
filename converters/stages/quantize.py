"""quantize: every weight into the encoding it is stored in, with the error that this costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ConvertError, ResourceError
from ...graph import Graph, Weight
from ...kernels.encodings import DEFAULT, ENCODINGS, EXACT, asked, dequantize, tensors_of
from ...notices import notice
from .. import calibrate, calibration_memory
from ..calibrate import Calibration
from ..calibration_text import tokens_of
from ..compress.whiten import Gram
from ..quantize.gptq import gptq
from ..quantize.rtn import encode_weight
from ..report import relative
from ..weights import WeightReader, stored_nbytes
from .base import Context, PartInProgress
from .weight_cache import WeightCache

# GPTQ's damping, of the mean of the Gram matrix's diagonal: with few rows for each input the larger
# one loses less on other text (benchmarks/NOTES.md).
ENOUGH, DAMP, DAMP_FEW_ROWS = 8, 0.01, 0.1


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
    """Every weight into its encoding, to nearest, or by GPTQ (`quantize/gptq.py`) where a product's
    matrix has codes and there is a calibration. Report: `relative_rms`, the RMS of the error over
    that of the values, by weight."""

    name = "quantize"

    def __init__(
        self, quant: str, embed_quant: str, calibration: Calibration | None = None
    ) -> None:
        self.quant, self.embed_quant, self.calibration = quant, embed_quant, calibration

    def key(self) -> Mapping[str, Any]:
        key: dict[str, Any] = {"quant": self.quant, "embed": self.embed_quant}
        return key if self.calibration is None else {**key, "gptq": self.calibration.key()}

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
        records = {name: cache.done(name) for name in graph.weights}
        later = {
            name: value for name, value in self._calibrated(graph).items() if records[name] is None
        }
        sequences = self._sequences(later, part, context)
        with bar, ThreadPoolExecutor(context.threads, "edgert-convert") as pool:
            for name in graph.weights:
                record = records[name]
                if name in later:
                    continue
                if record is None:
                    errors[name] = self._weight(name, part.weights[name], cache, pool, context, bar)
                else:
                    errors[name] = float(record.note.get("error", 0.0))
                    bar.update(stored_nbytes({name: graph.weights[name]}))
            if later:
                errors |= self._by_gptq(later, part, cache, sequences, context, bar)
        errors = {name: errors[name] for name in graph.weights}
        weights = {name: cache.reader(name) for name in graph.weights}
        return part.replace(graph=graph, weights=weights).reported(self.name, relative_rms=errors)

    def _calibrated(self, graph: Graph) -> dict[str, str]:
        """Matrices that GPTQ encodes, and the values that their products read."""
        if self.calibration is None:
            return {}
        rows = {name: ENCODINGS[weight.encoding] for name, weight in graph.weights.items()}
        inputs = calibrate.inputs_of(graph)
        return {name: value for name, value in inputs.items() if rows[name].grid is not None}

    def _sequences(
        self, matrices: Mapping[str, str], part: PartInProgress, context: Context
    ) -> list[NDArray[np.int32]]:
        """What is calibrated on; faults of the text and want of memory show before the work."""
        if self.calibration is None or not matrices:
            return []
        if context.tokenizer is None:
            raise ConvertError(
                "this model has no tokenizer, expected one to read the calibration text with",
                code="calibration",
                hint="convert it without --method gptq",
            )
        calibration_memory.require(part.graph, matrices)
        asked = self.calibration
        length = min(asked.length, part.graph.context)
        ids = tokens_of(context.tokenizer, asked.text)
        sequences = calibrate.sequences_of(ids, length, asked.sequences)
        if len(sequences) < asked.sequences:
            notice(
                f"the calibration text has {len(ids)} tokens, enough for {len(sequences)} of "
                f"{asked.sequences} sequences of {length}: it is calibrated on these"
            )
        return sequences

    def _by_gptq(
        self,
        matrices: Mapping[str, str],
        part: PartInProgress,
        cache: WeightCache,
        sequences: Sequence[NDArray[np.int32]],
        context: Context,
        bar: Any,
    ) -> dict[str, float]:
        """Encode matrices into the cache, as many at a time as their Gram matrices leave room
        for; their relative errors."""
        errors, length = {}, len(sequences[0])
        with calibrate.running(part, threads=context.threads, context=length) as session:
            if session.context < length:
                raise ResourceError(
                    f"there is memory for {session.context} tokens of a calibration sequence, "
                    f"expected {length}",
                    code="memory",
                    hint=calibration_memory.HINT,
                )
            for grams in calibration_memory.collected(
                session, sequences, matrices, progress=context.progress
            ):
                for name in [name for name, value in matrices.items() if value in grams]:
                    gram = grams[matrices[name]]
                    errors[name] = _gptq(name, part.weights[name], gram, cache, bar)
        return errors

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


def _gptq(name: str, weight: WeightReader, gram: Gram, cache: WeightCache, bar: Any) -> float:
    """One matrix by GPTQ into the cache; its relative error."""
    rows = np.concatenate([weight.rows(start, stop) for start, stop in weight.spans()])
    row = ENCODINGS[cache.weights[name].encoding]
    damp = DAMP if gram.rows >= ENOUGH * rows.shape[1] else DAMP_FEW_ROWS
    if not gram.matrix.any():
        notice(
            f"{name}: all its inputs are 0 on the calibration text, its codes are rounded to "
            "nearest instead of chosen by GPTQ"
        )
    try:
        stored = gptq(
            rows, gram.matrix, bits=row.bits, group=row.group, symmetric=not row.zeros, clip=True,
            damp=damp,
        )  # fmt: skip
    except ConvertError as fault:
        raise ConvertError(
            f"weight {name!r}: {fault.message}",
            code=fault.code,
            hint=fault.hint or "convert without --method gptq, or give another text",
        ) from None
    except MemoryError:
        raise calibration_memory.out_of_memory(f"weight {name!r}", rows.shape[1]) from None
    for key, array in tensors_of(stored).items():
        cache.write(f"{name}.{key}", array)
        bar.update(array.nbytes)
    lost = float(np.square(dequantize(stored) - rows, dtype=np.float64).sum())
    error = relative(lost, float(np.square(rows, dtype=np.float64).sum()))
    cache.finish(name, {"error": error})
    return error
