"""compot: products of large matrices become two, a dictionary and sparse codes (COMPOT).

    y = x W^T   becomes   t = x A,  y = t S        (arXiv 2602.15200)

in the graph two linear nodes, `<weight>.a` [k, m] and `<weight>.s` [n, k] with s values in a row.
How many atoms each matrix gets is allocated over the singular values of all of them. Families store
query, key and value rows in one matrix, gate and up rows in another: these share a dictionary.

Both factors are stored for good: A in an encoding with codes by GPTQ, S as `sparse` (see
`kernels/sparse.py`). Matrices that stay as they are go to the next stage.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import ConvertError
from ...graph import Graph, Node, Weight
from ...kernels.encodings import ENCODINGS, tensors_of
from ...notices import notice
from ..calibrate import Calibration, inputs_of, tell_zeros
from ..compress.allocate import Spectrum, allocate, spectrum
from ..compress.budget import SMALLEST, Dims, choose, factor_bytes
from ..compress.compot import Options
from ..compress.job import Factored, FactorJob, factor_matrix
from ..layers import Layers, passed_nbytes
from ..weights import stored_nbytes, whole
from .base import Context, PartInProgress
from .part_encodings import experts_of, made_for
from .weight_cache import WeightCache

# Bits of the codes' values that go with an encoding of A: 6 are the knee at 4 bits (specs).
VALUE_BITS = {"f16": 16, "int8-g32": 8, "int6-g64": 6, "int5-g64": 6, "int4-g32": 6, "uint3-g64": 5,
              "uint2-g64": 4}  # fmt: skip


@dataclass(frozen=True)
class Factoring:
    """What was asked for. ratio: the share of fp16 bits that is removed from the factored matrices;
    0: the smallest whose weights file has at most `budget` bytes. a: encoding of A. bits: of S's
    values. uniform: the same ratio for all matrices. options: of the alternation."""

    ratio: float
    a: str = "int8-g32"
    bits: int = 8
    uniform: bool = False
    budget: int = 0
    options: Options = field(default_factory=partial(Options, refit=True))


class Compot:
    """rest: what the stages after this one make of a graph, for its bytes. Report: `stored`,
    weights with their error; `layers`, a row for each matrix; `ratio`."""

    name = "compot"

    def __init__(
        self, factoring: Factoring, calibration: Calibration, rest: Callable[[Graph], Graph]
    ) -> None:
        self.factoring, self.calibration, self.rest = factoring, calibration, rest

    def key(self) -> Mapping[str, Any]:
        return {"factoring": asdict(self.factoring), "calibration": self.calibration.key()}

    def nbytes(self, part: PartInProgress) -> int:
        targets = targets_of(part.graph)
        kept = {name: Weight(part.graph.weights[name].shape, self.factoring.a) for name in targets}
        return stored_nbytes(kept) + passed_nbytes(part.graph, self.calibration)

    def run(self, part: PartInProgress, context: Context) -> PartInProgress:
        targets = targets_of(part.graph)
        if experts_of(part.graph):
            notice("experts are not factored, only the matrices beside them")
        if not targets:
            return self._nothing(part)
        self._layers(context, targets)  # too little memory is an error before the work
        with context.workers() as workers:
            jobs = ((name, whole(part.weights[name]).T) for name in targets)
            found = workers.run(spectrum_of, jobs, names=targets)
            spectra = dict(zip(targets, found, strict=True))
            ratio = self.factoring.ratio or self.ratio_within(part.graph, spectra)
            sizes = self.sizes(spectra, ratio)
            graph, factors = factored(part.graph, sizes, self.factoring)
            cache = context.cache({n: graph.weights[n] for pair in factors.values() for n in pair})
            notes = {}
            for name, pair in factors.items():
                records = [cache.done(factor) for factor in pair]
                if all(records):
                    notes[name] = records[1].note  # type: ignore[union-attr]
            left = {name: targets[name] for name in factors if name not in notes}
            done = set(targets.values()) - set(left.values())
            room = {n: factor_bytes(d.m, d.n, d.k) for n, d in sizes.items() if n in left}
            for inputs in self._layers(context, targets, room, done, cache.folder) if left else ():
                tell_zeros(left, inputs)
                names = [name for name, value in left.items() if value in inputs]
                work = (
                    FactorJob(
                        name, whole(part.weights[name]), inputs[left[name]], sizes[name],
                        self.factoring.a, self.factoring.bits, self.factoring.options,
                    )
                    for name in names
                )  # fmt: skip
                made = workers.run(factor_matrix, work, names=names)
                for name, pair in zip(names, made, strict=True):
                    notes[name] = _keep(cache, factors[name], sizes[name], pair)
        weights = {
            name: cache.reader(name) if name in cache.weights else part.weights[name]
            for name in graph.weights
        }
        stored = {}
        for name, (a, s) in factors.items():
            stored[a], stored[s] = notes[name]["a_error"], notes[name]["s_error"]
        rows = [_row(name, sizes[name], notes.get(name, {})) for name in targets]
        after = part.replace(graph=graph, weights=weights)
        return after.reported(self.name, stored=stored, layers=rows, ratio=ratio)

    def _layers(
        self, context: Context, targets: Mapping[str, str], work: Mapping[str, int] | None = None,
        done: Collection[str] = (), folder: Path | None = None,
    ) -> Layers:  # fmt: skip
        """The pass over the calibration. Raises ResourceError for too little memory."""
        return Layers(
            context.fitted,
            context.sequences(self.calibration),
            list(targets.values()),
            done=done,
            threads=context.threads,
            work=work,
            folder=folder,
            progress=context.progress,
        )

    def _nothing(self, part: PartInProgress) -> PartInProgress:
        """A part without matrices that are large enough."""
        notice(f"no matrix of part {part.name!r} has {SMALLEST} rows and columns: none is factored")
        nbytes = stored_nbytes(self.rest(part.graph).weights)
        if 0 < self.factoring.budget < nbytes:
            raise ConvertError(
                f"the weights in {self.factoring.a} take {nbytes} bytes, expected at most "
                f"{self.factoring.budget}",
                code="budget",
                hint="allow more bytes, or ask for --recipe mixed",
            )
        return part

    def ratio_within(self, graph: Graph, spectra: Mapping[str, Spectrum]) -> float:
        """The smallest ratio whose factors fit the budget, in steps of a hundredth."""
        low, high = 1, 90  # hundredths: the first is too small, the last must fit
        least = self._factored_bytes(graph, spectra, high / 100)
        if not 0 < least <= self.factoring.budget:
            raise ConvertError(
                f"COMPOT factors in {self.factoring.a} take {least} bytes at a ratio of 0.9, "
                f"expected at most {self.factoring.budget}",
                code="budget",
                hint="allow more bytes, or factors of fewer bits",
            )
        while high - low > 1:
            middle = (low + high) // 2
            nbytes = self._factored_bytes(graph, spectra, middle / 100)
            low, high = (low, middle) if 0 < nbytes <= self.factoring.budget else (middle, high)
        return high / 100

    def _factored_bytes(self, graph: Graph, spectra: Mapping[str, Spectrum], ratio: float) -> int:
        """Of all weights; 0 where the ratio leaves nothing to factor."""
        made, pairs = factored(graph, self.sizes(spectra, ratio), self.factoring)
        kept = {n: made.weights[n] for pair in pairs.values() for n in pair}
        return stored_nbytes({**self.rest(made).weights, **kept}) if pairs else 0

    def sizes(self, spectra: Mapping[str, Spectrum], ratio: float) -> dict[str, Dims]:
        """(k, s) of each matrix."""
        if self.factoring.uniform:
            return {name: choose(each.m, each.n, ratio) for name, each in spectra.items()}
        found = allocate(list(spectra.values()), ratio)
        return dict(zip(spectra, found.dims, strict=True))


def spectrum_of(job: tuple[str, Any]) -> Spectrum:
    """Of a named weight [m, n]."""
    return spectrum(job[1], name=job[0])


def targets_of(graph: Graph) -> dict[str, str]:
    """Matrices that can be factored, and the values that their products read: not routers of
    experts, nor their stacks."""
    found, routers = inputs_of(graph), made_for(graph, "logits")
    return {
        n: v for n, v in found.items()
        if min(graph.weights[n].shape) >= SMALLEST and n not in routers
    }  # fmt: skip


def factored(
    graph: Graph, sizes: Mapping[str, Dims], factoring: Factoring
) -> tuple[Graph, dict[str, tuple[str, str]]]:
    """The graph with the matrices of `sizes` in two, and the names of both by the matrix's."""
    pairs = {name: (f"{name}.a", f"{name}.s") for name, d in sizes.items() if d.form != "dense"}
    weights = {name: weight for name, weight in graph.weights.items() if name not in pairs}
    taken = set(weights) & {name for pair in pairs.values() for name in pair}
    if taken:
        raise ConvertError(
            f"weights {sorted(taken)[:4]} have the names of factors, expected other ones",
            code="compot-names",
        )
    for name, (a, s) in pairs.items():
        size = sizes[name]
        kind = factoring.a if size.form == "lowrank" else f"sparse{factoring.bits}-s{size.s}"
        weights[a] = Weight((size.k, size.m), factoring.a)
        weights[s] = Weight((size.n, size.k), kind)
    nodes: list[Node] = []
    for node in graph.nodes:
        name = node.weights.get("weight", "")
        if node.op != "linear" or name not in pairs:
            nodes.append(node)
            continue
        a, s = pairs[name]
        between = f"{node.output}.atoms"
        nodes.append(Node("linear", node.inputs, between, {"weight": a}))
        nodes.append(Node("linear", (between,), node.output, {**node.weights, "weight": s}))
    made = graph.replace(nodes=tuple(nodes), weights=weights)
    made.shapes()
    return made, pairs


def _keep(cache: WeightCache, pair: tuple[str, str], size: Dims, done: Factored) -> dict[str, Any]:
    """Write both factors into the cache; their note."""
    note = {
        "a_error": done.a_error, "s_error": done.s_error, "output": done.output,
        "exact": done.exact, "k": size.k, "s": size.s,
    }  # fmt: skip
    for name, matrix in zip(pair, (done.a, done.s), strict=True):
        row = ENCODINGS[cache.weights[name].encoding]
        tensors = tensors_of(matrix)
        for tensor in row.tensors:
            cache.write(name + tensor.suffix, tensors[tensor.key])
        cache.finish(name, note)
    return note


def _row(name: str, size: Dims, note: Mapping[str, Any]) -> dict[str, Any]:
    row = {"name": name, "m": size.m, "n": size.n, "form": size.form, "ratio": size.ratio}
    if note:
        row |= {"k": size.k, "s": size.s, "error": note["output"], "exact": note["exact"]}
    return row
