"""Stage 1: every turned layer's heads, made to give what the teacher's give.

All layers at once and each by itself: a layer reads the teacher's hidden states, and its loss is
the mean square of what its heads miss, divided by the mean square of the teacher's. For the first
part only the new parameters are trained, then the projections of queries, keys and values as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...graph import Graph
from ..torch_graph import TorchGraph
from ..torch_packed import documents_of
from .options import NEW_ONLY, Ids
from .plan import Turn, layer_graph
from .training import CLIP, Keeper, Leaves, Stage, Trainer, adamw, warm_cosine
from .window import Left

NEW, OWN, LEAST = 1e-2, 1e-3, 1e-2  # rates of both parts, and of the last step as a part of OWN
WARM = 50  # steps


class Watched:
    """A teacher's values, gathered while its body runs."""

    def __init__(
        self, teacher: TorchGraph, turns: Sequence[Turn], device: str, end: int | None
    ) -> None:
        """end: token that ends a document, None for none."""
        graph, self.end = teacher.graph, end
        last = max(turns, key=lambda turn: turn.layer).output
        names = {name for turn in turns for name in (turn.source, turn.output)}
        body = graph.cut([v.name for v in graph.inputs], [last])
        made = {node.output for node in body.nodes}
        self.names = sorted(names & made)
        self.tokens = next(v.name for v in body.inputs if v.dtype == "int32")
        self.body = TorchGraph(body.with_outputs(self.names), teacher.weights, device=device)
        self.half = device.startswith("cuda")
        self.kind = torch.device(device).type

    @torch.no_grad()
    def __call__(self, tokens: Tensor) -> Mapping[str, Tensor]:
        """tokens int [B, T] -> values [B, T, C] by name."""
        with torch.autocast(self.kind, torch.bfloat16, enabled=self.half):
            return self.body.run({self.tokens: tokens}, documents=self.documents(tokens))

    def documents(self, tokens: Tensor) -> Tensor | None:
        """Which text each token is of, where sequences hold several."""
        return None if self.end is None else documents_of(tokens, self.end)


class Aligner:
    """The turned layers side by side. leaves: what is trained, by graph name."""

    def __init__(
        self, student: Graph, teacher: TorchGraph, turns: Sequence[Turn], leaves: Leaves,
        device: str, end: int | None,
    ) -> None:  # fmt: skip
        self.turns, self.leaves = turns, leaves
        self.watched = Watched(teacher, turns, device, end)
        held = {**teacher.weights, **leaves}
        self.layers: dict[int, TorchGraph] = {}
        self.own: dict[int, list[str]] = {}
        for turn in turns:
            graph = layer_graph(student, turn)
            self.layers[turn.layer] = TorchGraph(graph, held, device=device)
            self.own[turn.layer] = [name for name in graph.weights if name in leaves]

    def error(self, turn: Turn, values: Mapping[str, Tensor], documents: Tensor | None) -> Tensor:
        """The layer's loss, a scalar."""
        layer, wanted = self.layers[turn.layer], values[turn.output].float()
        own = {name: self.leaves[name] for name in self.own[turn.layer]}
        with torch.autocast(self.watched.kind, torch.bfloat16, enabled=self.watched.half):
            given = {turn.source: values[turn.source]}
            found = layer.run(given, documents=documents, weights=own)[turn.output]
        missed = (found.float() - wanted).square().mean()
        return missed / wanted.square().mean().clamp(min=1e-12)

    def step(self, tokens: Tensor, scale: float) -> Tensor:
        """Gradients of all layers; the sum of their losses times the number of tokens."""
        values, total = self.watched(tokens), torch.zeros((), device=tokens.device)
        documents = self.watched.documents(tokens)
        for turn in self.turns:
            loss = self.error(turn, values, documents) * tokens.numel()
            (loss * scale).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    @torch.no_grad()
    def errors(self, rows: Ids, device: str) -> dict[int, float]:
        """Each layer's mean loss on held sequences [n, T]."""
        found = dict.fromkeys((turn.layer for turn in self.turns), 0.0)
        for row in rows:
            tokens = torch.from_numpy(row[None]).long().to(device)
            values, documents = self.watched(tokens), self.watched.documents(tokens)
            for turn in self.turns:
                found[turn.layer] += float(self.error(turn, values, documents)) / len(rows)
        return found


def align(
    aligner: Aligner, new: set[str], ids: Ids, stage: Stage, keeper: Keeper, device: str, *,
    bar: bool, left: Left,
) -> Trainer:  # fmt: skip
    """Train the leaves. new: names that the teacher does not have. left: windows that a step does
    without."""
    leaves = aligner.leaves
    parts = [[leaf for n, leaf in leaves.items() if (n in new) == own] for own in (True, False)]
    optimizer = adamw([{"params": part} for part in parts], device)
    trainer = Trainer(stage, ids, leaves, optimizer, keeper, device, bar=bar)

    def rates(progress: float, step: int) -> None:
        left.at(progress, step)
        first, second = optimizer.param_groups
        if progress < NEW_ONLY:
            first["lr"], second["lr"] = NEW * min(1.0, (step + 1) / WARM), 0.0
            return
        rest = (progress - NEW_ONLY) / (1 - NEW_ONLY)
        first["lr"] = second["lr"] = OWN * warm_cosine(rest, step, WARM, LEAST)

    def clip() -> None:
        for names in aligner.own.values():
            torch.nn.utils.clip_grad_norm_([leaves[name] for name in names], CLIP)

    trainer.run(aligner.step, rates, clip)
    return trainer
