"""quantize: every weight into the encoding it is stored in, with the error that this costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ...errors import ConvertError
from ...graph import Graph, Weight
from ...kernels.encodings import DEFAULT, ENCODINGS, EXACT, asked
from ...notices import notice
from ..calibrate import Calibration, inputs_of, tell_zeros
from ..layers import Layers, passed_nbytes
from ..quantize.job import METHODS, Encoded, Job, encode_matrix
from ..quantize.rtn import encode_weight
from ..report import relative
from ..weights import WeightReader, stored_nbytes, whole
from .base import Context, PartInProgress
from .ends import ends_of
from .part_encodings import encodings_of, experts_of, matrices
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


def encoded(
    graph: Graph, quant: str, embed_quant: str, chosen: Mapping[str, str] | None = None
) -> Graph:
    """The graph with its weights as wanted, f32 where that encoding is not for their rank or use.

    embed_quant: for embeddings and, where there are some, for the last linear: the head. chosen:
    encodings that single weights have or shall have.
    """
    ends, free, weights = ends_of(graph), matrices(graph), {}
    for name, w in graph.weights.items():
        wanted = (chosen or {}).get(name, embed_quant if name in ends else quant)
        fits = name in free and len(w.shape) in ENCODINGS[wanted].ranks
        weights[name] = Weight(w.shape, wanted if fits else EXACT)
    return graph.replace(weights=weights)


class Quantize:
    """Every weight into its encoding. Weights that a stage before has stored, and encodings that it
    has chosen, are taken over (its report's `stored` and `encodings`, by weight).

    method: to nearest (`rtn`), `hqq`, or `gptq` where a product's matrix has codes: it needs a
    calibration. Report: `relative_rms`, the RMS of the error over that of the values, by weight;
    `output_rms`, the same of the products' outputs where there were inputs; `methods`, where
    another one than asked for lost less.
    """

    name = "quantize"

    def __init__(
        self,
        quant: str,
        embed_quant: str,
        calibration: Calibration | None = None,
        method: str = "",
    ) -> None:
        method = method or ("rtn" if calibration is None else "gptq")
        if method not in METHODS or (method == "gptq" and calibration is None):
            given = "without calibration" if calibration is None else "with calibration"
            raise ConvertError(
                f"method {method!r} {given}, expected one of {list(METHODS)}, gptq with one",
                code="method",
            )
        self.quant, self.embed_quant, self.method = quant, embed_quant, method
        self.calibration = calibration if method == "gptq" else None

    def key(self) -> Mapping[str, Any]:
        key: dict[str, Any] = {"quant": self.quant, "embed": self.embed_quant}
        key |= {"method": self.method}
        return key if self.calibration is None else {**key, "gptq": self.calibration.key()}

    def nbytes(self, part: PartInProgress) -> int:
        stored = stored_nbytes(self._encoded(part, {}).weights)
        return stored + (passed_nbytes(part.graph, self.calibration) if self.calibration else 0)

    def _encoded(self, part: PartInProgress, chosen: Mapping[str, str]) -> Graph:
        """The part's graph with all encodings."""
        own = encodings_of(part.role, part.graph, self.quant, self.embed_quant)
        return encoded(part.graph, self.quant, self.embed_quant, {**own, **chosen})

    def run(self, part: PartInProgress, context: Context) -> PartInProgress:
        from tqdm import tqdm

        stored, chosen = taken_over(part)
        graph = self._encoded(part, chosen)
        ours = {name: weight for name, weight in graph.weights.items() if name not in stored}
        cache = context.cache(ours)
        records = {name: record for name in ours if (record := cache.done(name)) is not None}
        notes: dict[str, dict[str, Any]] = {name: record.note for name, record in records.items()}
        later = self._later(graph, set(ours))
        every = set(later.values())
        later = {name: value for name, value in later.items() if name not in notes}
        layers = self._layers(later, context, cache, every)  # before the work: it checks the memory
        bar = tqdm(
            total=stored_nbytes(ours), unit="B", unit_scale=True, desc="quantize",
            disable=None if context.progress else True,
        )  # fmt: skip
        with bar, ThreadPoolExecutor(context.threads, "edgert-convert") as pool:
            bar.update(stored_nbytes({name: ours[name] for name in notes}))
            for name in [name for name in ours if name not in notes and name not in later]:
                notes[name] = self._weight(name, part.weights[name], cache, pool, context, bar)
            for name, found in self._by_jobs(later, part, context, cache, layers):
                for key, array in found.arrays.items():
                    cache.write(f"{name}.{key}", array)
                    bar.update(array.nbytes)
                notes[name] = _note(found)
                cache.finish(name, notes[name])
        weights = {n: part.weights[n] if n in stored else cache.reader(n) for n in graph.weights}
        after = part.replace(graph=graph, weights=weights)
        return after.reported(self.name, **self._report(graph, notes, stored))

    def _report(
        self, graph: Graph, notes: Mapping[str, Mapping[str, Any]], stored: Mapping[str, float]
    ) -> dict[str, Any]:
        errors = {n: notes[n]["error"] if n in notes else stored[n] for n in graph.weights}
        outputs = {n: note["output"] for n, note in notes.items() if "output" in note}
        other = {
            n: m for n, note in notes.items() if (m := note.get("method")) and m != self.method
        }
        found: dict[str, Any] = {"relative_rms": errors}
        found |= {"output_rms": outputs} if outputs else {}
        return found | ({"methods": other} if other else {})

    def _later(self, graph: Graph, ours: set[str]) -> dict[str, str]:
        """Matrices that are encoded whole, and the values that their products read."""
        if self.method == "rtn":
            return {}
        if experts_of(graph):
            notice(f"{self.method} chooses no codes of experts yet: theirs are rounded to nearest")
        rows = {name: ENCODINGS[weight.encoding] for name, weight in graph.weights.items()}
        return {
            name: value
            for name, value in inputs_of(graph).items()
            if name in ours and rows[name].grid is not None
        }

    def _layers(
        self, matrices: Mapping[str, str], context: Context, cache: WeightCache, every: set[str]
    ) -> Layers | None:
        """The pass over the calibration, where matrices need one. every: the values of these and
        of those that an earlier run has encoded. Raises ResourceError for too little memory."""
        if self.calibration is None or not matrices:
            return None
        return Layers(
            context.fitted,
            context.sequences(self.calibration),
            sorted(every),
            done=every - set(matrices.values()),
            threads=context.threads,
            folder=cache.folder,
            progress=context.progress,
        )

    def _by_jobs(
        self,
        matrices: Mapping[str, str],
        part: PartInProgress,
        context: Context,
        cache: WeightCache,
        layers: Layers | None,
    ) -> Iterator[tuple[str, Encoded]]:
        """Matrices as they are encoded, layer by layer where they need inputs."""
        if not matrices:
            return

        def job(name: str, inputs: Any = None) -> Job:
            return Job(name, whole(part.weights[name]), cache.weights[name].encoding, self.method,
                       inputs)  # fmt: skip

        with context.workers() as workers:
            if layers is None:
                jobs = (job(name) for name in matrices)
                yield from zip(
                    matrices, workers.run(encode_matrix, jobs, names=matrices), strict=True
                )
                return
            for inputs in layers:
                tell_zeros(matrices, inputs)
                names = [name for name, value in matrices.items() if value in inputs]
                jobs = (job(name, inputs[matrices[name]]) for name in names)
                yield from zip(names, workers.run(encode_matrix, jobs, names=names), strict=True)

    def _weight(
        self,
        name: str,
        weight: WeightReader,
        cache: WeightCache,
        pool: ThreadPoolExecutor,
        context: Context,
        bar: Any,
    ) -> dict[str, Any]:
        """Encode one weight into the cache, rows at a time; its note."""
        lost = power = 0.0
        encoding = cache.weights[name].encoding
        for piece in encode_weight(name, weight, encoding, pool, ahead=context.threads + 2):
            for suffix, array in piece.arrays.items():
                cache.write(name + suffix, array)
                bar.update(array.nbytes)
            lost, power = lost + piece.lost, power + piece.power
        note = {"error": relative(lost, power)}
        cache.finish(name, note)
        return note


def taken_over(part: PartInProgress) -> tuple[dict[str, float], dict[str, str]]:
    """Weights that stages before have stored for good, with their errors; and encodings that they
    have chosen."""
    stored: dict[str, float] = {}
    chosen: dict[str, str] = {}
    for report in part.reports.values():
        stored |= report.get("stored", {})
        chosen |= report.get("encodings", {})
    chosen |= {name: part.weights[name].encoding for name in stored}
    return stored, chosen


def _note(found: Encoded) -> dict[str, Any]:
    note: dict[str, Any] = {"error": found.error, "method": found.method}
    return note if found.output != found.output else {**note, "output": found.output}
