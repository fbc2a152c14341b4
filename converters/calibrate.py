"""Gram matrices of the inputs of a model's products, collected by running the model itself.

Quantizers and factorisations weigh a weight's errors by `G = X^T X` of what its product reads
(`compress/whiten.py`). The model runs on the CPU session over
sequences of tokens and gives the values that its products read as taps: torch is not needed.
Products that read one value (queries, keys and values; gate and up) share one matrix.

`G` of a value of width m takes 8 m^2 bytes. What does not fit the memory at one time is collected
in several passes over the sequences.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConvertError
from ..graph import Graph, Weight
from ..kernels.encodings import EXACT, quantize
from ..session.base import Feed, Session
from .calibration_text import read_text
from .compress.whiten import Gram, GramAccumulator
from .stages.base import PartInProgress

MEMORY = 1 << 30  # bytes for the matrices of one pass
ROUNDED = "int8-g32"  # what a calibrating model's matrices are stored in
LENGTH = 1024  # tokens of a sequence, as COMPOT has them (arXiv 2602.15200)


@dataclass(frozen=True)
class Calibration:
    """A text and how much of it a model is run over: `sequences` pieces of `length` tokens."""

    text: str
    sequences: int = 64
    length: int = LENGTH

    @classmethod
    def read(cls, path: str | Path, sequences: int = 64, length: int = LENGTH) -> Calibration:
        """A UTF-8 text file. Raises ConvertError for one that is none, see `calibration_text`."""
        return cls(read_text(path), sequences, length)

    def key(self) -> dict[str, Any]:
        """What a result depends on."""
        digest = hashlib.sha256(self.text.encode()).hexdigest()
        return {"text": digest, "sequences": self.sequences, "length": self.length}


def inputs_of(graph: Graph) -> dict[str, str]:
    """Matrices of the graph's products, and the value that each reads: those of every token, not
    the head's, which reads selected rows, nor one that is an embedding table as well."""
    tables = {node.weights["weight"] for node in graph.nodes if node.op == "embed"}
    shapes = graph.shapes()
    made = {node.output for node in graph.nodes}
    return {
        node.weights["weight"]: node.inputs[0]
        for node in graph.nodes
        if node.op == "linear"
        and node.weights["weight"] not in tables
        and node.inputs[0] in made
        and shapes[node.inputs[0]][0] != "R"
    }


def sequences_of(
    ids: Sequence[int], length: int, count: int, *, seed: int = 42
) -> list[NDArray[np.int32]]:
    """`count` pieces of `length` tokens from a text, drawn without repetition; all there are where
    the text is shorter. Raises ConvertError for a text shorter than one piece."""
    whole = len(ids) // length if length > 0 else 0
    if whole < 1 or count < 1:
        raise ConvertError(
            f"the calibration text has {len(ids)} tokens, expected at least {max(1, length)} for "
            f"{count} sequences",
            code="calibration-text",
            hint="give a longer text, or ask for shorter sequences",
        )
    rows = np.asarray(ids[: whole * length], np.int32).reshape(whole, length)
    chosen = np.sort(np.random.default_rng(seed).permutation(whole)[:count])
    return list(rows[chosen])


def collect(
    session: Session,
    sequences: Sequence[NDArray[np.int32]],
    values: Sequence[str],
    *,
    memory: int = MEMORY,
    progress: bool = False,
    nonfinite: str = "drop",
) -> dict[str, Gram]:
    """The Gram matrix of each of `values` (`inputs_of`), over all tokens of all sequences.

    sequences: int32, each at most the session's context. memory: bytes that matrices may take at a
    time, one at least. nonfinite: batches with NaN or infinity are left out and counted
    (`Gram.dropped`), or ("refuse") are a ConvertError that names the value and the tokens.
    """
    from tqdm import tqdm

    widths = {name: int(session.graph.shapes()[name][1]) for name in dict.fromkeys(values)}
    turns = list(passes(widths, memory))
    found: dict[str, Gram] = {}
    bar = tqdm(
        total=len(turns) * sum(map(len, sequences)), unit="token", desc="calibrate",
        disable=None if progress else True,
    )  # fmt: skip
    with bar:
        for names in turns:
            sums = {
                name: GramAccumulator(widths[name], name=name, nonfinite=nonfinite)
                for name in names
            }
            for number, ids in enumerate(sequences, 1):
                _feed(session, ids, sums, bar, f"sequence {number} of {len(sequences)}")
            found |= {name: total.finish() for name, total in sums.items()}
    return found


def passes(widths: Mapping[str, int], memory: int) -> Iterator[tuple[str, ...]]:
    """Values whose matrices fit the memory together, in the order of the model."""
    names: list[str] = []
    taken = 0
    for name, width in widths.items():
        size = gram_bytes(width)
        if names and taken + size > memory:
            yield tuple(names)
            names, taken = [], 0
        names.append(name)
        taken += size
    if names:
        yield tuple(names)


def gram_bytes(width: int) -> int:
    """Memory of one Gram matrix while it is summed: float64, and a float32 product."""
    return 12 * width * width


def _feed(
    session: Session, ids: NDArray[np.int32], sums: Mapping[str, GramAccumulator], bar: Any,
    where: str,
) -> None:  # fmt: skip
    state = session.new_state(len(ids))
    try:
        for start in range(0, len(ids), session.max_rows):
            piece = np.asarray(ids[start : start + session.max_rows], np.int32)
            (result,) = session.step([Feed(state, piece, "none", taps=tuple(sums))])
            state.commit(len(piece))
            for name, total in sums.items():
                try:
                    total.add(result.taps[name])
                except ConvertError as error:
                    place = (
                        f"{where} of the calibration text, tokens {start} to {start + len(piece)}"
                    )
                    raise ConvertError(
                        f"{error.message} ({place})",
                        code="calibration-values",
                        hint="the model overflows on this text: convert it without --method gptq, "
                        "or check the checkpoint",
                    ) from None
            bar.update(len(piece))
    finally:
        state.close()


@contextmanager
def running(
    part: PartInProgress, *, threads: int | None = None, context: int = 0
) -> Iterator[Session]:
    """A CPU session over a part's weights, matrices rounded to int8-g32: half a percent of them,
    for prompts at several times the speed of floats. Without kernels, on NumPy. context: tokens of
    the longest sequence, at most; 0: as the model's. Raises ConvertError for weights that are not
    finite or too large for these codes."""
    from ..kernels.cpu import code
    from ..session.cpu import CpuSession
    from ..session.reference import ReferenceSession

    weights: dict[str, Any] = {}
    declared: dict[str, Weight] = {}
    for name, reader in part.weights.items():
        rows = [reader.rows(start, stop) for start, stop in reader.spans()]
        array = np.concatenate(rows)
        encoding = ROUNDED if array.ndim == 2 else EXACT
        try:
            weights[name] = quantize(array, encoding)
        except ValueError as error:
            raise ConvertError(
                f"weight {name!r}: {error}, expected values that {encoding} can hold, as the model "
                "is calibrated with",
                code="weight-range",
                hint="convert without --method gptq, or check the checkpoint",
            ) from None
        declared[name] = Weight(array.shape, encoding)
    graph = part.graph.replace(weights=declared)
    if code.available():
        session: Session = CpuSession(graph, weights, threads=threads, context=context)
    else:
        session = ReferenceSession(graph, weights)
    try:
        yield session
    finally:
        session.close()
