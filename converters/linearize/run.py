"""A linearizing from its statistics to its verdict."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...errors import ConvertError
from ...graph import Graph
from ...kernels.quant import Matrix
from ...roles import vocab_size
from ..heal.loss import TwoPieces, check_text
from ..heal.ranks import joined, local_device
from ..torch_graph import TorchGraph
from .align import Aligner, align
from .distil import distil
from .gate import divergence, judged, kept_counts, ranking
from .options import ALIGNED, Ids, Linearized, LinearizeOptions, Text, Verdict
from .plan import Turn, attention_weights, hybrid_graph, layer_graph, new_weights, turnable
from .statistics import initial, moments
from .training import ORDER, Keeper, Leaves, Stage, Trainer
from .window import Left, log_windows

STATISTICS = (64, 1024)  # sequences, tokens of each
RANKED = 64  # held sequences that layers are ranked on, at most
HELD = 1024  # tokens of a held sequence


class Run:
    """One linearizing; see `linearize`."""

    def __init__(
        self, graph: Graph, weights: Mapping[str, Matrix], text: Text, options: LinearizeOptions,
        *, folder: Path | None, progress: bool,
    ) -> None:  # fmt: skip
        check_text(graph, "original")
        self.graph, self.text, self.options = graph, text, options
        self.start, self.bar = time.perf_counter(), progress
        self.turns = turnable(graph, options)
        self.counts()
        self.device = local_device(options.device)
        self.ranks = joined(self.device)
        self.keeper = Keeper(folder, self.ranks, self._key())
        self.half = self.device.startswith("cuda")
        self.context = graph.context or max(options.lengths)
        self.held = self._held()
        self.teacher = TorchGraph(graph, weights, device=self.device)
        with single_precision_matmul(self.half):
            self.exact = TwoPieces(
                graph, self.teacher.weights, self.device, half=False, end=text.end
            )
            self.fast = TwoPieces(
                graph, self.teacher.weights, self.device, half=self.half, end=text.end
            )
        self.steps = 0

    def _key(self) -> str:
        """What kept states must agree in; tokens and seconds may change between two runs."""
        asked = self.options
        sizes = [(turn.layer, turn.features, turn.window) for turn in self.turns]
        return json.dumps(
            [self.graph.name, sizes, asked.mode, asked.chunk, asked.seed, self.text.end]
        )

    def _held(self) -> Ids:
        """Held sequences [n, T]. Raises ConvertError for too little text, or strange tokens."""
        length = min(HELD, self.context, len(self.text.held))
        train, low = self.text.train, min(self.options.lengths[0], self.context)
        if length < 2 or len(train) < 2 * low:
            raise ConvertError(
                f"linearizing got {len(train)} tokens to train on and {len(self.text.held)} to "
                f"measure on, expected at least {2 * low} and 2",
                code="calibration-text",
                hint="give a longer text",
            )
        high = max(int(train.max()), int(self.text.held.max()))
        if high >= vocab_size(self.graph):
            raise ConvertError(
                f"the text has token {high}, expected tokens below {vocab_size(self.graph)}",
                code="linearize-vocabulary",
                hint="take the tokenizer that belongs to the model",
            )
        held = self.text.held
        return held[: len(held) // length * length].reshape(-1, length)

    def stage(self, name: str, second: bool) -> Stage:
        asked, first = self.options, round(ALIGNED * self.options.tokens)
        lengths = [min(n, self.context, len(self.text.train)) for n in asked.lengths]
        return Stage(
            name, max(1, asked.tokens - first if second else first), asked.seconds[second],
            asked.batch, asked.micro_batch, lengths[int(second)],
            lengths[2] if second else lengths[0], asked.seed + second,
        )  # fmt: skip

    def result(self) -> Linearized:
        """All stages."""
        with single_precision_matmul(self.half):
            aligned = self.aligned()
            errors = self.aligner.errors(self.held[:8], self.device)
            order = () if self.options.layers == "all" else self.order(aligned)
            return self._attempts(aligned, order, errors)

    def _attempts(
        self, aligned: Leaves, order: tuple[int, ...], errors: Mapping[int, float]
    ) -> Linearized:
        layers, tried = [turn.layer for turn in self.turns], dict[int, Verdict]()
        for count in self.counts():
            turned = sorted(set(layers) - set(order[:count]))
            graph, weights, told = self.attempt(turned, aligned)
            tried[count] = told
            if told.passed or self.options.layers != "auto":
                return Linearized(
                    graph, weights, tuple(turned), told, order, errors, tried, self.steps,
                    time.perf_counter() - self.start,
                )  # fmt: skip
        lines = [f"{count} kept: {'; '.join(told.failed)}" for count, told in tried.items()]
        raise ConvertError(
            f"no hybrid of {len(layers)} layers passes the gate: {' | '.join(lines)}",
            code="linearize-gate",
            hint="train for more --tokens, or take what a number makes: --linearize "
            f"{len(layers) - max(tried)}",
        )

    def counts(self) -> list[int]:
        """How many layers keep their softmax, attempt by attempt. Raises ConvertError for more
        layers than there are."""
        asked, layers = self.options.layers, len(self.turns)
        if asked == "auto":
            return kept_counts(layers)
        if isinstance(asked, int) and asked > layers:
            raise ConvertError(
                f"{asked} layers to linearize, expected at most {layers}: so many attend over the "
                "whole context",
                code="linearize-layers",
            )
        return [0 if asked == "all" else layers - int(asked)]

    def aligned(self) -> Leaves:
        """Stage 0 and 1: the new weights and the layers' own, by name."""
        student = hybrid_graph(self.graph, [turn.layer for turn in self.turns], self.options)
        new, leaves = set(new_weights(student, self.graph)), dict[str, Tensor]()
        if self.keeper.load("align", "cpu") is None:
            leaves = self._fitted(student)
        else:  # they are loaded
            leaves = {n: torch.empty(student.weights[n].shape, device=self.device) for n in new}
        for turn in self.turns:
            for name in layer_graph(student, turn).weights:
                if name not in leaves and not is_frequency(student, name):
                    leaves[name] = self.teacher.weights[name].clone()
        leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items()}
        self.ranks.agree(list(leaves.values()))
        self.aligner = Aligner(
            student, self.teacher, self.turns, leaves, self.device, self.text.end
        )
        stage = self.stage("align", False)
        left = Left((0.0, ALIGNED), stage.seed, self.ranks, self.device)
        left.watch(self.aligner.layers.values())
        align(
            self.aligner, new, self.text.train, stage, self.keeper, self.device,
            bar=self.bar, left=left,
        )  # fmt: skip
        left.end()
        return leaves

    def _fitted(self, student: Graph) -> Leaves:
        count, length = STATISTICS[0], min(STATISTICS[1], self.context, len(self.text.train))
        ids = self.text.train[: len(self.text.train) // length * length].reshape(-1, length)
        rows = torch.from_numpy(ids[:: max(1, len(ids) // count)][:count]).long().to(self.device)
        told = moments(self.graph, self.teacher, self.turns, rows)
        found = {
            name: value.to(self.device)
            for turn in self.turns
            for name, value in initial(student, turn, told[turn.layer], self.options).items()
        }
        if any(turn.window for turn in self.turns):
            found |= log_windows(
                self.graph, student, self.teacher, self.turns, rows, found, self.options
            )
        return found

    def weights_of(self, graph: Graph, turned: Iterable[int], aligned: Leaves) -> dict[str, Tensor]:
        """Those of a hybrid behind stage 1: layers that stay have the teacher's."""
        own = {name for turn in self._chosen(turned) for name in layer_graph(graph, turn).weights}
        return {
            name: (aligned[name] if name in own and name in aligned else self.teacher.weights[name])
            .detach().clone()
            for name in graph.weights
        }  # fmt: skip

    def _chosen(self, turned: Iterable[int]) -> list[Turn]:
        wanted = set(turned)
        return [turn for turn in self.turns if turn.layer in wanted]

    def order(self, aligned: Leaves) -> tuple[int, ...]:
        """Layers by what restoring each one's softmax gains behind stage 1."""
        kept = self.keeper.folder / ORDER if self.keeper.folder else None
        if kept is not None and kept.exists():
            return tuple(json.loads(kept.read_text("ascii")))
        layers, held = tuple(turn.layer for turn in self.turns), self.held[:RANKED]

        def kl(without: int) -> float:
            turned = [layer for layer in layers if layer != without]
            graph = hybrid_graph(self.graph, turned, self.options)
            weights = self.weights_of(graph, turned, aligned)
            student = TwoPieces(graph, weights, self.device, half=self.half, end=self.text.end)
            return divergence(student, self.fast, held, self.ranks, self.device)[0]

        found, _ = ranking(kl(-1), kl, layers)
        if kept is not None and not self.ranks.rank:
            kept.write_text(json.dumps(found), "ascii")
        return found

    def attempt(
        self, turned: list[int], aligned: Leaves, begun: Mapping[str, Matrix] | None = None
    ) -> tuple[Graph, dict[str, Matrix], Verdict]:
        """Stage 2 of a hybrid from stage 1 on, and its verdict. begun: weights of this hybrid from
        an earlier stage 2, which this one goes on from."""
        graph = hybrid_graph(self.graph, turned, self.options)
        if begun is None:
            weights = self.weights_of(graph, turned, aligned)
        else:
            weights = {
                n: torch.tensor(np.asarray(begun[n]), dtype=torch.float32, device=self.device)
                for n in graph.weights
            }
        leaves = {n: w.requires_grad_() for n, w in weights.items() if not is_frequency(graph, n)}
        student = TwoPieces(graph, weights, self.device, half=self.half, end=self.text.end)
        attention = attention_weights(graph, self._chosen(turned))
        parameters = sum(w.numel() for w in self.teacher.weights.values())
        stage = self.stage(f"distil-{len(turned)}", True)
        left = Left((1.0 if begun else ALIGNED, 1.0), stage.seed, self.ranks, self.device)
        left.watch([student.body])
        trainer: Trainer = distil(
            student, self.fast, leaves, attention, self.text.train, stage, self.keeper,
            self.device, rate=self.options.rate_for(parameters),
            next_token=self.options.next_token, bar=self.bar, left=left,
        )  # fmt: skip
        left.end()
        self.steps = trainer.steps
        made = {name: weight.detach() for name, weight in weights.items()}
        measured = TwoPieces(graph, made, self.device, half=False, end=self.text.end)
        told = judged(measured, self.exact, self.text, self.held, self.ranks, self.device)
        arrays: dict[str, Matrix] = {n: np.asarray(w.cpu().numpy()) for n, w in made.items()}
        return graph, arrays, told


def is_frequency(graph: Graph, name: str) -> bool:
    """Whether a weight is a rotary embedding's frequencies, which nobody trains."""
    slots = (slot for node in graph.nodes for slot, w in node.weights.items() if w == name)
    return any(slot.startswith("inv_freq") for slot in slots)


@contextmanager
def single_precision_matmul(fast: bool) -> Iterator[None]:
    """Products of float32 by tensor cores, where that is wanted."""
    before = torch.get_float32_matmul_precision()
    if fast:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
