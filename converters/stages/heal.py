"""heal: a short distillation of what the stages before made of a part, against its source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ConvertError
from ...extras import require
from ...kernels.encodings import ENCODINGS, encoding_of, tensors_of
from ...kernels.quant import Matrix
from ..calibrate import Calibration
from ..heal import Healed, HealOptions, heal
from ..weights import WeightReader, stored_nbytes, whole
from .base import Context, PartInProgress, Stage
from .read import Reading
from .weight_cache import WeightCache

DIGITS = 6  # of reported figures


class Heal:
    """Weights of a text part, trained towards the source and stored as they were
    (`converters/heal/`); other parts pass. It stands behind the stages that change numbers.

    options: how. text: what is read, in pieces of its `length` tokens. quantizer: the stage whose
    result is healed, which knows what it takes on disk. Report: held-out KL and loss before and
    after, in nats a token, and how much was trained.
    """

    name = "heal"

    def __init__(
        self, options: HealOptions, text: Calibration, quantizer: Stage | None = None
    ) -> None:
        require("torch", "healing", ConvertError)
        self.options, self.text, self.quantizer = options, text, quantizer

    def key(self) -> Mapping[str, Any]:
        return {**self.options.key(), "text": self.text.key()}

    def nbytes(self, part: PartInProgress) -> int:
        if part.role != "text":
            return 0
        if self.quantizer is not None:
            return self.quantizer.nbytes(part)
        return stored_nbytes(part.graph.weights)

    def run(self, part: PartInProgress, context: Context) -> PartInProgress:
        if part.role != "text":
            return part
        sequences = self._sequences(context)
        source = context.source
        healed = heal(
            part.graph,
            {name: stored(reader) for name, reader in part.weights.items()},
            source.graph,
            {name: whole(reader) for name, reader in source.weights.items()},
            sequences,
            self.options,
            progress=context.progress,
        )
        cache = context.cache(part.graph.weights)
        for name in part.graph.weights:  # all of them, so that the cache can become the file
            keep(name, healed.weights[name], cache)
        weights = {name: cache.reader(name) for name in part.graph.weights}
        return part.replace(weights=weights).reported(self.name, **report(healed, self.options))

    def check(self, reading: Reading) -> None:
        """Raise ConvertError for too little text, before the work of the stages before this one."""
        template = reading.template() if self.text.chats else None
        for part in reading.parts:
            length = part.graph.context
            if part.role != "text":
                continue
            if len(found := self.text.for_healing(reading.tokenizer, template, length)) < 2:
                raise ConvertError(
                    f"healing got 1 sequences of {len(found[0])} tokens from {self.text.name}, "
                    "expected two or more: one is to measure on",
                    code="calibration-text",
                    hint="give a longer text",
                )

    def _sequences(self, context: Context) -> list[NDArray[np.int32]]:
        """All of the text but what a result is measured on, whatever else it is used for."""
        template = context.template() if self.text.chats else None
        length = context.source.graph.context
        return self.text.for_healing(context.tokenizer, template, length)


def stored(reader: WeightReader) -> Matrix:
    """A whole weight in its encoding."""
    found, row = reader.stored(0, reader.shape[0]), ENCODINGS[reader.encoding]
    return row.load({tensor.key: found[tensor.suffix] for tensor in row.tensors}, reader.shape)


def keep(name: str, weight: Matrix, cache: WeightCache) -> None:
    """A stored weight into the cache."""
    tensors = tensors_of(weight)
    for tensor in encoding_of(weight).tensors:
        cache.write(name + tensor.suffix, tensors[tensor.key])
    cache.finish(name, {})


def report(healed: Healed, options: HealOptions) -> dict[str, Any]:
    """What the bundle says of it (JSON-ready)."""
    figures = {
        "kl_before": healed.start.kl, "kl_after": healed.end.kl,
        "nats_before": healed.start.nats, "nats_after": healed.end.nats,
        "nats_source": healed.source,
    }  # fmt: skip
    return {
        "method": options.method, "optimizer": options.optimizer, "rate": options.peak,
        "tokens": healed.tokens, "steps": healed.steps, "improved": healed.improved,
        **{name: round(figure, DIGITS) for name, figure in figures.items()},
        "kept": list(healed.kept),
    }  # fmt: skip
