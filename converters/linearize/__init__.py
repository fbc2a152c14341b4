"""Softmax attention to linear attention: a teacher's layers turned, aligned and distilled.

    made = linearize(graph, weights, Text(train, held), LinearizeOptions("auto", 5_000_000))
    made.graph, made.weights     # an ordinary graph with linear_attention in the turned layers
    made.verdict                 # the gate: what was measured, and whether it passes

Stage 0 fits the new parameters to statistics of the teacher, stage 1 aligns each layer's output on
the teacher's own hidden states, stage 2 distils the logits. "auto" keeps the softmax of the layers
that matter most, of more and more of them, until the gate passes. No published recipe is followed
to the letter: the kernel is "2Mamba2Furious" (arXiv 2602.17363), the stages are those of MOHAWK
(2408.10189) and LoLCATs (2410.10254), the choice of layers is that of 2512.20569 without its
training. Needs torch; importing this package does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ...errors import ConvertError
from ...extras import require
from ...graph import Graph
from ...kernels.quant import Matrix
from .options import Linearized, LinearizeOptions, Text

__all__ = ["LinearizeOptions", "Linearized", "Text", "linearize"]


def linearize(
    graph: Graph,
    weights: Mapping[str, Matrix],
    text: Text,
    options: LinearizeOptions,
    *,
    folder: Path | None = None,
    progress: bool = False,
) -> Linearized:
    """Turn layers of a text graph with f32 weights.

    weights: the teacher's, by graph name. folder: where the work is kept, so that a run that was
    stopped goes on; nothing is kept without one. Under torchrun all ranks call this with the same
    arguments and get the same result. Raises ConvertError: no torch, no layers that can be turned,
    too little text, a loss that is not finite, and with "auto" no hybrid that the gate lets pass.
    """
    require("torch", "linearizing", ConvertError)
    from .run import Run

    return Run(graph, weights, text, options, folder=folder, progress=progress).result()
