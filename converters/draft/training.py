"""Training a draft head on what its model wrote."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import ConvertError
from ...graph import Graph
from ...kernels.encodings import dequantize, rows_of
from ...kernels.quant import Matrix
from ..heal.ranks import Ranks, joined, local_device
from ..linearize.training import Keeper, Leaves, Stage, Trainer, adamw, warm_cosine
from . import losses
from .head import Head, fresh
from .options import F32, MARK, TrainedHead, TrainOptions
from .shape import HeadShape, shape_for, usual_vocabulary
from .target import Ids, Target

WARM = 100  # steps in which the rate rises
CLIP = 0.5  # largest norm of the whole gradient
SEEN = 50  # newest steps whose measures are told
NAME, WORK = "head", "draft"
DIVERGED = f"{WORK}-diverged"  # the code of errors of losses


def frequent(ids: Ids, count: int, vocabulary: int, always: Sequence[int] = ()) -> Ids:
    """The `count` most frequent tokens of ids (marks ignored), `always` among them, rising; the
    lowest ids where fewer occur. vocabulary: of the model."""
    seen = np.bincount(ids & (MARK - 1), minlength=vocabulary)[:vocabulary].astype(np.int64)
    seen[[token for token in always if 0 <= token < vocabulary]] = len(ids) + 1
    order = np.argsort(-seen, kind="stable")[:count]
    return np.sort(order).astype(np.int32)


def train_head(
    graph: Graph,
    weights: Mapping[str, Matrix],
    ids: Ids,
    options: TrainOptions,
    *,
    always: Sequence[int] = (),
    folder: Path | None = None,
    progress: bool = False,
    target: Target | None = None,
) -> TrainedHead:
    """Train a head for a text graph.

    ids: int32 [n], texts end to end, tokens plus MARK where guesses of them are trained. always:
    ids that the head must be able to guess (ends, turns). folder: where work is kept, so that a run
    that was stopped goes on. target: the graph on torch, where it stands already. Under torchrun
    all ranks call this with the same arguments and get the same result. Raises ConvertError: no
    head for such a graph, too little text, a loss that is not finite.
    """
    device = local_device(options.device)
    ranks = joined(device)
    half = torch.device(device).type == "cuda"
    target = target or Target(graph, weights, device, half=half)
    shape = check_options(graph, target.vocabulary, options, ranks)
    _check(ids, options)
    some = frequent(ids, shape.vocabulary, target.vocabulary, always)
    first = fresh(
        shape, _frequencies(graph, weights, shape), _final_norm(graph, weights, shape.width),
        _output_rows(graph, weights, some), seed=options.seed,
    )  # fmt: skip
    return _Training(shape, first, some, target, ids, options, ranks, folder, progress).run()


def check_options(graph: Graph, vocabulary: int, options: TrainOptions, ranks: Ranks) -> HeadShape:
    """The head's shape, before anything is answered. Raises ConvertError for a graph without one
    and for options that do not fit the model or the processes. vocabulary: of the model."""
    each = options.batch // options.length
    if each < 1 or each % ranks.world:
        raise ConvertError(
            f"a batch of {options.batch} tokens has {each} sequences of {options.length} for "
            f"{ranks.world} processes, expected a multiple of it, 1 or more for each",
            code="draft-options",
            hint="choose another --batch or --length",
        )
    count = options.vocabulary or usual_vocabulary(vocabulary)
    if not 1 <= count <= vocabulary:
        raise ConvertError(
            f"a draft vocabulary of {count} tokens, the model has {vocabulary}",
            code="draft-options",
            hint="leave it out for the usual size",
        )
    return shape_for(graph, count)


def _check(ids: Ids, options: TrainOptions) -> None:
    if len(ids) < 2 * options.length:
        raise ConvertError(
            f"draft training got {len(ids)} tokens, expected {2 * options.length} or more",
            code="draft-text",
            hint="give more prompts, or a smaller --length",
        )
    if not (ids >= MARK).any():
        raise ConvertError("draft training got no token that is marked", code="draft-text")


def _frequencies(graph: Graph, weights: Mapping[str, Matrix], shape: HeadShape) -> F32:
    """The model's own rotary frequencies, or usual ones."""
    slots = (n.weights.get("inv_freq", "") for n in graph.nodes if n.op == "attention")
    name = next((name for name in slots if name), "")
    if name:
        return np.asarray(dequantize(weights[name]), np.float32)
    places = np.arange(shape.rotary)
    return (10_000.0 ** (-places / shape.rotary)).astype(np.float32)


def _final_norm(graph: Graph, weights: Mapping[str, Matrix], width: int) -> F32 | None:
    """The weight of the model's last rms_norm over rows of its width."""
    found = [n for n in graph.nodes if n.op == "rms_norm"]
    if not found or graph.weights[found[-1].weights["weight"]].shape != (width,):
        return None
    return np.asarray(dequantize(weights[found[-1].weights["weight"]]), np.float32)


def _output_rows(graph: Graph, weights: Mapping[str, Matrix], ids: Ids) -> F32:
    """The model's own output rows of tokens: its last linear, or its embedding."""
    name = [n for n in graph.nodes if n.op == "linear"][-1].weights["weight"]
    return np.asarray(dequantize(rows_of(weights[name], ids)), np.float32)


class _Training:
    """One run."""

    def __init__(
        self, shape: HeadShape, first: Mapping[str, F32], some: Ids, target: Target, ids: Ids,
        options: TrainOptions, ranks: Ranks, folder: Path | None, progress: bool,
    ) -> None:  # fmt: skip
        self.shape, self.some, self.target = shape, some, target
        self.options, self.ranks = options, ranks
        device = target.device
        held = {name: torch.from_numpy(array).to(device) for name, array in first.items()}
        self.leaves: Leaves = {n: t.requires_grad_() for n, t in held.items() if n != "inv_freq"}
        self.head = Head(shape, held)
        self.some_on = torch.from_numpy(some).long().to(device)
        self.optimizer = adamw([{"params": list(self.leaves.values())}], device)
        key = json.dumps([options.key(), int(np.sum(ids, dtype=np.int64)), len(ids)])
        keeper = Keeper(folder, ranks, key)
        stage = Stage(
            NAME, options.tokens, options.seconds, options.batch, options.micro, options.length,
            options.length, options.seed, WORK,
        )  # fmt: skip
        self.trainer = Trainer(
            stage, ids, self.leaves, self.optimizer, keeper, device, bar=progress
        )
        self.newest: deque[Tensor] = deque(maxlen=SEEN)

    def run(self) -> TrainedHead:
        self.trainer.run(self.step, self.rates, self.clip)
        weights = {name: t.detach().cpu().numpy().copy() for name, t in self.head.weights.items()}
        return TrainedHead(self.shape, weights, self.some, self._told())

    def rates(self, progress: float, step: int) -> None:
        rate = self.options.rate * warm_cosine(progress, step, WARM, 0.0)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def clip(self) -> None:
        torch.nn.utils.clip_grad_norm_(list(self.leaves.values()), CLIP)

    def step(self, some: Tensor, scale: float) -> Tensor:
        """Add the gradient of one rank's sequences [n, T] of a batch; the loss, times its
        tokens."""
        tokens, marks = some & (MARK - 1), (some >= MARK).float()
        share = some.numel() * self.ranks.world * scale  # of these sequences, of the batch
        rows, unrolled = self.target.rows(tokens), self.options.unrolled
        wanted = self._wanted(rows.hidden, marks)
        count = some.shape[1] - 1 - unrolled  # places that guess
        embedded, total = rows.embedded, torch.zeros((), device=some.device)
        behind, grads, told = list[Tensor](), list[Tensor](), list[Tensor]()
        for place in range(unrolled):
            with self.target.casting():
                if place == 0:
                    memory = self.head.first(rows.features[:, :count], embedded[:, 1 : count + 1])
                else:
                    self.head.further(memory, embedded[:, place + 1 : place + 1 + count])
                cut = memory.a.detach().requires_grad_()
                logits = self.head.logits(cut)
            at = slice(place + 1, place + 1 + count)
            found = losses.loss_of(
                logits.float(), losses.Target(wanted.part[:, at], wanted.counts[:, at]),
                self.options.loss, eta=self.options.eta, together=self._sum,
            )  # fmt: skip
            loss = found.loss * losses.decayed(place)
            (loss * share).backward()  # type: ignore[no-untyped-call]
            behind.append(memory.a)
            grads.append(cut.grad if cut.grad is not None else torch.zeros_like(cut))
            total += loss.detach()
            told.append(torch.stack([found.alpha, found.most, found.kl, found.number]))
        torch.autograd.backward(behind, grads)
        self.newest.append(torch.stack(told))
        return total * some.numel() * self.ranks.world

    def _wanted(self, hidden: Tensor, marks: Tensor) -> losses.Target:
        """The model's laws at all places; a place counts where the token behind it is marked."""
        follows = torch.cat([marks[:, 1:], torch.zeros_like(marks[:, :1])], 1)
        pieces = [
            losses.target(self.target.logits(hidden[:, part]), self.some_on, follows[:, part])
            for part in self.target.pieces(*hidden.shape[:2])
        ]
        parts, counts = zip(*pieces, strict=True)
        return losses.Target(torch.cat(parts, 1), torch.cat(counts, 1))

    def _sum(self, own: Tensor) -> Tensor:
        self.ranks.add_up([own])
        return own

    def _told(self) -> dict[str, Any]:
        trainer, found = self.trainer, dict[str, Any]()
        if self.newest:
            sums = torch.stack(list(self.newest)).sum(0)
            self.ranks.add_up([sums])
            means = (sums[:, :3] / sums[:, 3:].clamp(min=1)).cpu().numpy().T
            for name, row in zip(("alpha", "most", "kl"), means, strict=True):
                found[name] = [round(float(value), 4) for value in row]
        return {
            "loss": self.options.loss, "steps": trainer.steps, "tokens": trainer.tokens,
            "seconds": round(trainer.clock.elapsed, 1), **found,
        }  # fmt: skip
