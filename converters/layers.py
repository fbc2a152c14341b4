"""The inputs of a model's products, layer by layer: one pass over the calibration text.

The graph is cut where a single value is passed on, between a transformer's attention and its
feed-forward block and after both. One segment at a time is in memory: it runs over all sequences,
gives the Gram matrices of what its products read, and the value that the next segment starts with.
So a model takes the memory of its widest segment, whatever its size, and every sequence is computed
once. The caller works on a segment's matrices before the next one runs.

What is passed on, float32 [tokens, C], lies in a file of the folder that is given, with its
SHA-256: a run that was stopped goes on from the last whole segment.

A segment runs on a CUDA device by torch where both are there, else on the CPU session with its
matrices in int8-g32 (half a percent of a product, at several times the speed of floats), else on
NumPy.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import ConvertError
from ..graph import Graph
from ..kernels.cpu import code
from ..kernels.encodings import EXACT, quantize
from ..kernels.quant import Matrix
from ..notices import notice
from ..roles import token_input
from ..session.base import Feed
from .calibrate import Calibration, inputs_of
from .calibration_memory import ROUNDED, Work, out_of_memory, require
from .compress.whiten import GramAccumulator, Inputs
from .families.recipe import F32
from .running import session_of
from .segments import segments
from .stages.base import PartInProgress
from .stages.part_encodings import matrices
from .weights import WeightReader, whole

HELD = 8  # one of so many sequences is kept for checks
ON_GPU = 4  # sequences at a time


def passed_nbytes(graph: Graph, calibration: Calibration) -> int:
    """Bytes of disk that what is passed on takes, at most."""
    shapes = graph.shapes()
    widths = [int(shapes[node.output][-1]) for node in graph.nodes if node.op == "add"]
    rows = calibration.sequences * min(calibration.length, graph.context or calibration.length)
    return 2 * 4 * rows * max(widths, default=0)


class _Runner(Protocol):
    """Runs one segment over one sequence."""

    def rows(self, given: NDArray[Any]) -> Iterator[Mapping[str, F32]]:
        """The taps over a sequence, in pieces of rows. given: int32 [n] or float32 [n, C]."""

    def close(self) -> None: ...


class _OnSession:
    """On the CPU session, or on NumPy where there are no kernels."""

    def __init__(
        self, graph: Graph, readers: Mapping[str, WeightReader], taps: Sequence[str], threads: int,
        length: int,
    ) -> None:  # fmt: skip
        free, weights = matrices(graph), dict[str, Matrix]()
        for name in graph.weights:
            array = whole(readers[name])
            weights[name] = rounded(name, array) if name in free else array
        self.first = "" if token_input(graph) else graph.inputs[0].name
        self.taps = [name for name in taps if name != self.first]
        if not graph.states:
            graph = graph.with_outputs(self.taps)
        self.session = session_of(graph, weights, threads=threads, context=length)

    def rows(self, given: NDArray[Any]) -> Iterator[Mapping[str, F32]]:
        pieces = range(0, len(given), self.session.max_rows)
        if not self.session.graph.states:
            for start in pieces:
                piece = given[start : start + self.session.max_rows]
                yield {self.first: piece, **self.session.run({self.first: piece})}
            return
        state = self.session.new_state(len(given))
        try:
            for start in pieces:
                piece = given[start : start + self.session.max_rows]
                inputs, ids = ({self.first: piece}, None) if self.first else ({}, piece)
                feed = Feed(state, ids, "none", inputs=inputs, taps=tuple(self.taps))
                (result,) = self.session.step([feed])
                state.commit(len(piece))
                yield {**inputs, **result.taps}
        finally:
            state.close()

    def close(self) -> None:
        self.session.close()


class _OnGpu:
    """By torch on a CUDA device, in float32."""

    def __init__(
        self, graph: Graph, readers: Mapping[str, WeightReader], taps: Sequence[str]
    ) -> None:
        from .torch_graph import TorchGraph

        self.graph = TorchGraph(
            graph, {name: whole(readers[name]) for name in graph.weights}, device="cuda"
        )
        self.first, self.taps = token_input(graph) or graph.inputs[0].name, taps

    def rows(self, given: NDArray[Any]) -> Iterator[Mapping[str, F32]]:
        import torch

        kept: dict[str, Any] = {}

        def watch(node: Any, reads: tuple[Any, ...]) -> None:
            kept.update((n, x) for n, x in zip(node.inputs, reads, strict=True) if n in self.taps)

        with torch.no_grad():
            one = torch.from_numpy(np.ascontiguousarray(given)).cuda()[None]
            kept |= self.graph.run({self.first: one}, watch=watch)
        yield {name: kept[name][0].float().cpu().numpy() for name in self.taps}

    def close(self) -> None:
        self.graph.weights.clear()


def rounded(name: str, array: F32) -> Matrix:
    """A matrix as the calibrating model has it. Raises ConvertError for values that do not fit."""
    try:
        return quantize(array, ROUNDED if array.ndim == 2 else EXACT)
    except ValueError as error:
        raise ConvertError(
            f"weight {name!r}: {error}, expected values that {ROUNDED} can hold, as the model is "
            "calibrated with",
            code="weight-range",
            hint="convert with --method rtn, or check the checkpoint",
        ) from None


def on_gpu() -> bool:
    """Whether torch and a CUDA device are there. Torch is not imported without the device."""
    if not any(map(os.path.exists, ("/dev/nvidiactl", "/dev/nvgpu", "/dev/nvhost-gpu"))):
        return False
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return bool(torch.cuda.is_available())


class Layers:
    """One pass over calibration sequences, segment by segment.

        layers = Layers(part, sequences, values, threads=4, folder=cache.folder)
        for inputs in layers:                   # {value: Inputs} of each segment with values wanted
            ...                                 # work on the matrices that read them

    part: as the source gives it. sequences: int32 [n] each. values: wanted, as `inputs_of` names
    them. done: those of them that are not needed any more. held: one of so many sequences is kept
    for checks, 0: none. threads: of the session, and matrices that are worked on at a time. work:
    bytes that one of these takes, by matrix, where it is not GPTQ. folder: where what is passed on
    is kept; nothing is kept without one.
    """

    def __init__(
        self,
        part: PartInProgress,
        sequences: Sequence[NDArray[np.int32]],
        values: Sequence[str],
        *,
        done: Collection[str] = (),
        held: int = HELD,
        threads: int = 1,
        work: Mapping[str, int] | None = None,
        folder: Path | None = None,
        progress: bool = False,
    ) -> None:
        self.part, self.sequences = part, list(sequences)
        self.values = set(values) - set(done)
        self.held, self.threads, self.progress = held, threads, progress
        self.segments = segments(part.graph, sorted(set(values)))
        self.kept = _Kept(folder, sum(map(len, sequences)))
        matrices = {n: v for n, v in inputs_of(part.graph).items() if v in self.values}
        require(self.segments, matrices, self.kept.total, Work(threads, work or {}))
        self.gpu = on_gpu()
        if not self.gpu and not code.available():
            notice(
                "no CPU kernels and no GPU here, so the model is calibrated on NumPy, which is "
                "slow; `--method rtn` does without"
            )

    def __iter__(self) -> Iterator[dict[str, Inputs]]:
        from tqdm import tqdm

        first, given = self.kept.latest(self.sequences, len(self.segments))
        rows = sum(map(len, self.sequences))
        bar = tqdm(
            total=rows * len(self.segments), initial=rows * first, unit="token", desc="calibrate",
            unit_scale=True, disable=None if self.progress else True,
        )  # fmt: skip
        with bar:
            for index in range(first, len(self.segments)):
                graph = self.segments[index]
                reads = (name for node in graph.nodes for name in node.inputs)
                wanted = [name for name in dict.fromkeys(reads) if name in self.values]
                given = yield from self._values(graph, given, wanted, bar)
                given = self.kept.store(index + 1, given)
        self.kept.remove()

    def _values(
        self, graph: Graph, given: Sequence[NDArray[Any]], wanted: list[str], bar: Any
    ) -> Generator[dict[str, Inputs], None, list[F32]]:
        """What a segment passes on; its wanted values together, or in turns where the memory does
        not hold them. Raises ResourceError where it does not hold one."""
        try:
            found, passed = self._segment(graph, given, wanted, bar)
        except MemoryError as error:
            if len(wanted) < 2:
                width = int(graph.shapes()[wanted[0]][1]) if wanted else 0
                raise out_of_memory(wanted[0] if wanted else graph.name, width, error) from None
            notice(
                f"the inputs' matrices of {len(wanted)} products do not fit the memory together: "
                "fewer at a time, in more passes over their layer"
            )
            half = len(wanted) // 2
            yield from self._values(graph, given, wanted[:half], bar)
            passed = yield from self._values(graph, given, wanted[half:], bar)
            return passed
        if found:
            yield found
        return passed

    def _segment(
        self, graph: Graph, given: Sequence[NDArray[Any]], wanted: Sequence[str], bar: Any
    ) -> tuple[dict[str, Inputs], list[F32]]:
        shapes = graph.shapes()
        widths = {name: int(shapes[name][1]) for name in wanted}
        fit, check = (
            {n: GramAccumulator(width, name=n, nonfinite="refuse") for n, width in widths.items()}
            for _ in range(2)
        )
        out, passed = graph.outputs[0].name, list[F32]()
        taps = list(dict.fromkeys([*([] if graph is self.segments[-1] else [out]), *wanted]))
        runner: _Runner = (
            _OnGpu(graph, self.part.weights, taps)
            if self.gpu
            else _OnSession(
                graph, self.part.weights, taps, self.threads, max(map(len, self.sequences))
            )
        )
        try:
            for number, sequence in enumerate(given):
                sums = check if self.held and number % self.held == self.held - 1 else fit
                pieces = []
                for result in runner.rows(sequence):
                    for name, total in sums.items():
                        _add(total, result[name], number, len(given))
                    if out in taps:
                        pieces.append(np.array(result[out]))
                if pieces:
                    passed.append(np.concatenate(pieces))
                bar.update(len(sequence))
        finally:
            runner.close()
        enough = 0 < self.held <= len(given)
        return {
            name: Inputs(fit[name].finish(), check[name].finish() if enough else None)
            for name in wanted
        }, passed


def _add(total: GramAccumulator, rows: F32, number: int, count: int) -> None:
    try:
        total.add(rows)
    except ConvertError as error:
        raise ConvertError(
            f"{error.message} (sequence {number + 1} of {count} of the calibration text)",
            code="calibration-values",
            hint="the model overflows on this text: convert it with --method rtn, or check the "
            "checkpoint",
        ) from None


class _Kept:
    """What is passed on, in a file: `passed-<segment>.f32`, with its description beside it."""

    def __init__(self, folder: Path | None, rows: int) -> None:
        self.folder, self.total = folder, rows

    def _paths(self, index: int) -> tuple[Path, Path]:
        folder = self.folder or Path()
        return folder / f"passed-{index}.f32", folder / f"passed-{index}.json"

    def latest(
        self, sequences: Sequence[NDArray[np.int32]], count: int
    ) -> tuple[int, list[NDArray[Any]]]:
        """The segment to begin with, and what it is given."""
        for index in range(count - 1, 0, -1) if self.folder else ():
            data, about = self._paths(index)
            try:
                told = json.loads(about.read_text("ascii"))
                lengths = [len(s) for s in sequences]
                rows = np.fromfile(data, np.float32).reshape(self.total, -1)
                if told != {"lengths": lengths, "sha256": _sha256(rows)}:
                    continue
            except (OSError, ValueError):
                continue
            return index, np.split(rows, np.cumsum(lengths)[:-1])
        return 0, list(sequences)

    def store(self, index: int, passed: Sequence[F32]) -> list[NDArray[Any]]:
        """Keep what segment `index` begins with, drop what the one before began with."""
        if self.folder is not None and passed:
            data, about = self._paths(index)
            rows = np.concatenate(passed)
            rows.tofile(data)
            text = json.dumps({"lengths": [len(p) for p in passed], "sha256": _sha256(rows)})
            about.write_text(text, "ascii")
            self._drop(index - 1)
        return list(passed)

    def _drop(self, index: int) -> None:
        for path in self._paths(index) if self.folder else ():
            path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Drop all."""
        for path in self.folder.glob("passed-*") if self.folder else ():
            path.unlink(missing_ok=True)


def _sha256(rows: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(rows).data).hexdigest()
