"""draft: the layer that a checkpoint brings for guesses, as the part `draft` of the bundle.

It is one layer beside the text part, which no other stage looks at: its matrices are stored as
embeddings are, rounded to nearest.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ...bundle.draft import ROLE
from ...graph import Graph
from ...storage.safetensors_writer import TensorWriter
from ..quantize.rtn import encode_weight
from ..weights import specs_of, stored_nbytes
from .base import Context, NativeDraft, PartInProgress
from .emit import part_files
from .part_encodings import encodings_of
from .quantize import encoded


def stored(draft: NativeDraft, quant: str) -> Graph:
    """The graph with its matrices as `quant`."""
    return encoded(draft.graph, quant, quant, encodings_of(ROLE, draft.graph, quant, quant))


class Draft:
    """Writes the files of a draft part beside the text part's."""

    name = "draft"

    def __init__(self, draft: NativeDraft, quant: str) -> None:
        self.draft, self.graph = draft, stored(draft, quant)
        self.size = stored_nbytes(self.graph.weights)

    def key(self) -> Mapping[str, Any]:
        return {"graph": self.graph.to_json().decode(), "taps": list(self.draft.taps)}

    def nbytes(self, part: PartInProgress) -> int:
        return self.size if part.role == "text" else 0

    def run(self, part: PartInProgress, context: Context) -> PartInProgress:
        if part.role != "text":
            return part
        graph_file, weights_file = map(context.writer.file, part_files(ROLE))
        graph_file.write_bytes(self.graph.to_json())
        ids = np.asarray(self.draft.ids, "<i4")
        context.writer.file(self.draft.spec.ids).write_bytes(ids.tobytes())
        with (
            TensorWriter(weights_file, specs_of(self.graph.weights)) as file,
            ThreadPoolExecutor(context.threads, "edgert-convert") as pool,
        ):
            for name, weight in self.graph.weights.items():
                reader, ahead = self.draft.weights[name], context.threads + 2
                for piece in encode_weight(name, reader, weight.encoding, pool, ahead=ahead):
                    for suffix, array in piece.arrays.items():
                        file.write(name + suffix, array)
        return part.reported(self.name, bytes=self.size, vocabulary=len(ids))
