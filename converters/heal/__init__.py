"""Healing: a short distillation of a compressed model against the original.

    healed = heal(graph, weights, teacher_graph, teacher_weights, sequences, HealOptions(200_000))
    healed.weights           # as `weights`: the same names, encodings and shapes
    healed.before, healed.after  # KL of the original to the compressed model, nats a token

The loss is KL(original || compressed) over all logits of every position. What is trained follows
from how a weight is stored (`parameters.py`); the result is stored the same way. Under `torchrun`
each rank takes its share of every batch. Needs torch; importing this package does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ...errors import ConvertError
from ...extras import require
from ...graph import Graph
from ...kernels.quant import Matrix
from .options import Healed, HealOptions

__all__ = ["HealOptions", "Healed", "heal"]


def heal(
    graph: Graph,
    weights: Mapping[str, Matrix],
    teacher_graph: Graph,
    teacher_weights: Mapping[str, Matrix],
    sequences: Sequence[NDArray[np.int32]],
    options: HealOptions,
    *,
    progress: bool = False,
) -> Healed:
    """Train a compressed model towards the original on sequences of one length.

    graph, weights: the compressed model. teacher_graph, teacher_weights: the original, which takes
    and gives the same. sequences: int32 [T] each; the last ones are kept out and measured before
    and after. Where the measure is not better, the weights come back as they were. Where
    torch.distributed is initialised, or torchrun's environment says so, all ranks call this with
    the same arguments and get the same weights; only one of them should write.
    Raises ConvertError: no torch, too little text, models that do not fit each other, a loss that
    is not finite.
    """
    require("torch", "healing", ConvertError)
    from .train import distil

    return distil(
        graph, weights, teacher_graph, teacher_weights, sequences, options, progress=progress
    )
