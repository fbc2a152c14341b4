"""mixed: every matrix gets an encoding of its own, so that all fit in a number of bytes and the
model's answers change as little as possible (`quantize/sensitivity.py`, `quantize/mixed.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ...errors import ConvertError
from ...graph import Graph, Weight
from ...kernels.encodings import dequantize, quantize
from ..calibrate import Calibration, inputs_of
from ..families.recipe import F32
from ..quantize.mixed import Candidate, choose
from ..quantize.sensitivity import sensitivities
from ..weights import stored_nbytes, whole
from .base import Context, PartInProgress
from .ends import ends_of
from .part_encodings import experts_of
from .quantize import encoded

MATRICES = (  # what block matrices may be stored as
    "uint2-g64", "uint2-g32", "uint3-g64", "uint3-g32", "uint4-g64", "int4-g32", "int5-g64",
    "int6-g64", "int8-g32",
)  # fmt: skip
ENDS = ("int4-g32", "int5-g64", "int6-g64", "int8-g32")  # embedding and head


class Mixed:
    """budget: bytes of the part's weights file. Report: `encodings`, chosen by weight; `losses`,
    the nats a token that each is expected to cost."""

    name = "mixed"

    def __init__(self, budget: int, calibration: Calibration) -> None:
        self.budget, self.calibration = budget, calibration

    def key(self) -> Mapping[str, Any]:
        return {"budget": self.budget, "calibration": self.calibration.key()}

    def nbytes(self, part: PartInProgress) -> int:
        return 0

    def run(self, part: PartInProgress, context: Context) -> PartInProgress:
        if part.role != "text":
            raise ConvertError(
                f"part {part.name!r} is a {part.role}, expected a text part to measure",
                code="mixed",
                hint="give the same --quant to all matrices",
            )
        if experts_of(part.graph):
            raise ConvertError(
                f"part {part.name!r} has experts, expected a model without: nothing measures yet "
                "what codes of single experts lose",
                code="mixed",
                hint="give the same --quant to all matrices",
            )
        context.cache({})  # so that what is chosen is kept
        tables = self._tables(part, context)
        whole_model = encoded(part.graph, "f32", "f32", dict.fromkeys(tables, "int8-g32"))
        exact = stored_nbytes(whole_model.weights)
        exact -= sum(_nbytes(part.graph, name, "int8-g32") for name in tables)
        least = exact + sum(min(row.nbytes for row in rows) for rows in tables.values())
        if least > self.budget:
            raise ConvertError(
                f"mixed encodings take {least} bytes at least, expected at most {self.budget}",
                code="budget",
                hint="allow more bytes",
            )
        chosen = choose(tables, self.budget - exact)
        return part.reported(
            self.name,
            encodings={name: row.encoding for name, row in chosen.items()},
            losses={name: row.loss for name, row in chosen.items()},
        )

    def _tables(self, part: PartInProgress, context: Context) -> dict[str, list[Candidate]]:
        """What each matrix may be stored as."""
        ends, products = ends_of(part.graph), set(inputs_of(part.graph))
        names = [n for n, w in part.graph.weights.items() if len(w.shape) == 2]
        names = [n for n in names if n in ends or n in products]
        few = replace(self.calibration, sequences=min(self.calibration.sequences, 4))
        found = sensitivities(
            context.fitted, context.sequences(few), names, threads=context.threads,
            progress=context.progress,
        )  # fmt: skip
        tables = {}
        for name in names:
            rows = whole(part.weights[name])
            tables[name] = [
                Candidate(
                    encoding,
                    _nbytes(part.graph, name, encoding),
                    found[name].loss(_error(rows, encoding)),
                )
                for encoding in (ENDS if name in ends else MATRICES)
            ]
        return tables


def _nbytes(graph: Graph, name: str, encoding: str) -> int:
    return stored_nbytes({name: Weight(graph.weights[name].shape, encoding)})


def _error(rows: F32, encoding: str) -> float:
    """Relative RMS of rounding to nearest, over some rows."""
    some = rows[:: max(1, len(rows) // 512)]
    power = float(np.square(some, dtype=np.float64).sum())
    lost = dequantize(quantize(np.ascontiguousarray(some), encoding)) - some
    return float(np.sqrt(np.square(lost, dtype=np.float64).sum() / power)) if power > 0 else 0.0
