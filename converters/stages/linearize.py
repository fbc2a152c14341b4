"""linearize: softmax attention of a part becomes linear, before anything is compressed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import ConvertError
from ...extras import require
from ...graph import Graph
from ...notices import notice
from ..calibrate import Calibration
from ..linearize import Linearized, LinearizeOptions, Text, linearize
from ..linearize.memory import Memory, memory_of
from ..linearize.passkeys import passkey_prompts
from ..linearize.plan import turnable
from ..weights import stored_nbytes, whole
from .base import Context, PartInProgress
from .read import Reading

if TYPE_CHECKING:
    from ...text.template import ChatTemplate
    from ...text.tokenizer import Tokenizer


class Linearize:
    """A text part with linear attention in the layers that were asked for, see
    `converters/linearize/`; other parts pass. Stages behind it calibrate on the turned part;
    healing's teacher stays the source.

    Report: memory, verdicts by the number of kept layers, and the errors of stage 1.
    """

    name = "linearize"

    def __init__(self, options: LinearizeOptions, text: Calibration) -> None:
        require("torch", "linearizing", ConvertError)
        self.options, self.text = options, text

    def key(self) -> Mapping[str, Any]:
        return {**self.options.key(), "text": self.text.key()}

    def nbytes(self, part: PartInProgress) -> int:
        # the turned part, and for each of two stages its tensors with two moments
        return 7 * stored_nbytes(part.graph.weights) if part.role == "text" else 0

    def check(self, reading: Reading) -> None:
        """Before the work: what linear layers remember beside keys and values. Raises ConvertError
        for layers that cannot be turned and for states larger than keys and values."""
        for part in reading.parts:
            if part.role == "text":
                self.memory(part.graph)

    def memory(self, graph: Graph) -> Memory:
        turns, asked = turnable(graph, self.options), self.options
        told = memory_of(turns, asked.mode)
        served = asked.serve or graph.context
        advice = told.check(served, anyway=asked.anyway)
        if asked.progress:
            notice(told.table(served))
        if advice:
            notice(advice)
        return told

    def run(self, part: PartInProgress, context: Context) -> PartInProgress:
        if part.role != "text":
            return part
        text = self._text(part, context)
        made = linearize(
            part.graph,
            {name: whole(reader) for name, reader in part.weights.items()},
            text,
            self.options,
            folder=context.work(),
            progress=context.progress,
        )
        if not made.verdict.passed:
            notice("the gate does not pass this model: " + "; ".join(made.verdict.failed))
        cache = context.cache(made.graph.weights)
        for name in made.graph.weights:
            cache.write(name, np.asarray(made.weights[name], np.float32))
            cache.finish(name, {})
        weights = {name: cache.reader(name) for name in made.graph.weights}
        told = report(made, self.options)
        served = self.options.serve or part.graph.context
        memory = memory_of(turnable(part.graph, self.options), self.options.mode)
        told["memory"] = memory.to_dict(served)
        if text.end is not None and context.tokenizer is not None:
            told["document_end"] = context.tokenizer.piece_of(text.end)
        return part.replace(graph=made.graph, weights=weights).reported(self.name, **told)

    def _text(self, part: PartInProgress, context: Context) -> Text:
        """All of the text but what a result is measured on."""
        template = context.template() if self.text.chats else None
        length, tokenizer = part.graph.context, context.tokenizer
        asked = self._ended(part.graph, tokenizer, template)
        held = asked.held(tokenizer, template, length)
        kept = {ids.tobytes() for ids in held}
        every = asked.every_sequence(tokenizer, template, length)
        train = [ids for ids in every if ids.tobytes() not in kept]
        if not train or tokenizer is None:
            raise ConvertError(
                f"linearizing got {len(every)} sequences of {len(every[0])} tokens from "
                f"{self.text.name}, expected two or more: one is to measure on",
                code="calibration-text",
                hint="give a longer text",
            )
        held_ids = np.concatenate(held)
        filler = held_ids if asked.end is None else held_ids[held_ids != asked.end]
        prompts = passkey_prompts(filler, tokenizer.encode, length)  # each is one document
        return Text(np.concatenate(train), held_ids, prompts, asked.end)

    def _ended(
        self, graph: Graph, tokenizer: Tokenizer | None, template: ChatTemplate | None
    ) -> Calibration:
        """The text with the token at which documents end, where one can be told and the graph
        can begin anew behind it."""
        from ..torch_packed import check_resets

        end = None if tokenizer is None else self.text.ending(tokenizer, template)
        if tokenizer is None or end is None:
            return self.text
        try:
            check_resets(graph)
        except ConvertError as error:
            notice(f"documents of {self.text.name} run into each other: {error.message}")
            return self.text
        if self.options.progress:
            notice(
                f"documents of {self.text.name} end at {tokenizer.piece_of(end)!r}: in training "
                "each begins anew"
            )
        return replace(self.text, end=end)


def windows(graph: Graph) -> int:
    """Tokens that a window holds at least; 0 without one."""
    found = [n.attrs for n in graph.nodes if n.op == "linear_attention" and n.attrs.get("window")]
    return int(found[0]["chunk"]) if found else 0


def report(made: Linearized, options: LinearizeOptions) -> dict[str, Any]:
    """What the bundle says of it (JSON-ready)."""
    return {
        "mode": options.mode,
        "window": windows(made.graph),
        "tokens": options.tokens,
        "turned": list(made.turned),
        "order": list(made.order),
        "aligned": {str(layer): round(error, 4) for layer, error in made.aligned.items()},
        "passed": made.verdict.passed,
        "tried": {str(count): told.to_dict() for count, told in made.tried.items()},
    }
