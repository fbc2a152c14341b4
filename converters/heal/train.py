"""The training loop of healing: batches, gradients over all ranks, schedule, and the verdict."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from ...errors import ConvertError
from ...graph import Graph
from ...kernels.quant import Matrix
from ...roles import vocab_size
from ..optim import Dash
from .loss import TwoPieces, check_text, differentiate, losses
from .options import Healed, HealOptions, Measured
from .parameters import Trained, trained_of
from .ranks import Ranks, joined, local_device

Ids = NDArray[np.int32]
BETAS = (0.9, 0.95)
WARM_UP = 0.05  # of all steps; the rate then falls to zero along a cosine
CLIP = 1.0  # largest norm of the whole gradient
# What a kind of tensor takes of the peak rate, by method.
SHARES = {
    "scales": {"values": 1.0, "scales": 1.0},
    "straight-through": {"values": 0.2, "scales": 0.2, "levels": 1.0},
}


class Split(NamedTuple):
    """Sequences [n, T] to train on and to measure on, and how the steps go."""

    train: Ids
    held_out: Ids
    batch: int
    steps: int


def distil(
    graph: Graph,
    weights: Mapping[str, Matrix],
    teacher_graph: Graph,
    teacher_weights: Mapping[str, Matrix],
    sequences: Sequence[Ids],
    options: HealOptions,
    *,
    progress: bool,
) -> Healed:
    """`heal`, which says what is given and raised."""
    split = divided(sequences, options)
    check_models(graph, teacher_graph, sequences)
    device = local_device(options.device)
    start = time.perf_counter()
    ranks = joined(device)
    half = torch.device(device).type == "cuda"
    exact = TwoPieces(teacher_graph, teacher_weights, device, half=False)
    before, source = measure(graph, weights, exact, split.held_out, ranks, device)
    if not math.isfinite(before.kl):
        raise diverged("before the first step", before.kl, options)
    trained = trained_of(graph, weights, teacher_weights, method=options.method, device=device)
    teacher = TwoPieces(teacher_graph, exact.weights, device, half=half)
    student = TwoPieces(graph, weights, device, half=half)
    train(student, teacher, trained, split, options, ranks, device, progress=progress)
    new = {**weights, **stored(trained, options)}
    after, _ = measure(graph, new, exact, split.held_out, ranks, device)
    improved = after.kl < before.kl  # False for NaN
    return Healed(
        new if improved else dict(weights),
        improved, before, after, source,
        tokens=split.steps * split.batch * split.train.shape[1],
        steps=split.steps,
        seconds=time.perf_counter() - start,
        kept=tuple(sorted(set(graph.weights) - set(trained))),
    )  # fmt: skip


def divided(sequences: Sequence[Ids], options: HealOptions) -> Split:
    """The last sequences kept out, the rest in steps. Raises ConvertError for too few of them."""
    lengths = {len(ids) for ids in sequences}
    if len(sequences) < 2 or len(lengths) != 1 or min(lengths) < 2:
        raise ConvertError(
            f"healing got {len(sequences)} sequences of {sorted(lengths)[:4]} tokens, expected two "
            "or more of one length",
            code="heal-text",
            hint="give a longer text, or ask for shorter sequences",
        )
    out = max(1, min(options.held_out, len(sequences) // 4))
    rows = np.stack(sequences).astype(np.int32)
    length, train = rows.shape[1], len(rows) - out
    batch = min(options.batch, train, -(-options.tokens // length))
    return Split(rows[:train], rows[train:], batch, -(-options.tokens // (batch * length)))


def check_models(graph: Graph, teacher: Graph, sequences: Sequence[Ids]) -> None:
    """ConvertError for models that do not belong together, or not to the text."""
    check_text(graph, "compressed")
    check_text(teacher, "original")
    sizes = vocab_size(graph), vocab_size(teacher)
    if sizes[0] != sizes[1]:
        raise ConvertError(
            f"the compressed model has logits of {sizes[0]} tokens, the original of {sizes[1]}, "
            "expected the same vocabulary",
            code="heal-vocabulary",
            hint="heal a model against the one that it was made from",
        )
    low, high = min(ids.min() for ids in sequences), max(ids.max() for ids in sequences)
    if low < 0 or high >= sizes[0]:
        raise ConvertError(
            f"the text has token ids from {low} to {high}, expected them below {sizes[0]}",
            code="heal-vocabulary",
            hint="take the tokenizer that belongs to the model",
        )


def measure(
    graph: Graph,
    weights: Mapping[str, Matrix],
    teacher: TwoPieces,
    rows: Ids,
    ranks: Ranks,
    device: str,
) -> tuple[Measured, float]:
    """A stored model on sequences, in float32; and the original's own loss there."""
    student = TwoPieces(graph, weights, device, half=False)
    total = torch.zeros(3, dtype=torch.float64, device=device)
    for ids in rows[ranks.slice]:
        total += losses(student, teacher, torch.from_numpy(ids[None]).long().to(device))
    ranks.add_up([total])
    kl, own, source = total.tolist()
    positions = rows.size
    predicted = positions - len(rows)
    return Measured(kl / positions, own / predicted), source / predicted


def batches(split: Split, seed: int) -> Iterator[Ids]:
    """Sequences [batch, T] of every step: shuffled, each once before any comes again."""
    rng = np.random.default_rng(seed)
    order: list[int] = []
    for _ in range(split.steps):
        while len(order) < split.batch:
            order += rng.permutation(len(split.train)).tolist()
        yield split.train[order[: split.batch]]
        order = order[split.batch :]


def rate_at(step: int, steps: int) -> float:
    """Part of the peak rate: a straight line up, then a cosine down to zero."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm + 1) / (steps - warm + 1)))


def optimizer_of(trained: Mapping[str, Trained], options: HealOptions) -> Optimizer:
    """One group for each kind of tensor, with its own share of the rate."""
    kinds: dict[str, list[Tensor]] = {}
    for weight in trained.values():
        for kind, tensor in weight.tensors.items():
            kinds.setdefault(kind, []).append(tensor)
    shares = SHARES[options.method]
    groups: list[dict[str, Any]] = [
        {"params": tensors, "lr": options.peak * shares[kind], "weight_decay": 0.0}
        for kind, tensors in kinds.items()
    ]
    if options.optimizer == "dash":
        return Dash(groups, options.peak, seed=options.seed)
    return torch.optim.AdamW(groups, options.peak, betas=BETAS, weight_decay=0.0)


def train(
    student: TwoPieces,
    teacher: TwoPieces,
    trained: Mapping[str, Trained],
    split: Split,
    options: HealOptions,
    ranks: Ranks,
    device: str,
    *,
    progress: bool,
) -> None:
    """All steps; the result is in `trained`. Raises ConvertError for a loss that is not finite."""
    from tqdm import tqdm

    student.forget(set(trained))
    optimizer = optimizer_of(trained, options)
    peaks = [group["lr"] for group in optimizer.param_groups]
    leaves = [tensor for weight in trained.values() for tensor in weight.tensors.values()]
    ranks.agree(leaves)
    count = split.batch * split.train.shape[1]
    bar = tqdm(
        total=split.steps * count, unit="token", unit_scale=True, desc="heal",
        disable=None if progress and ranks.rank == 0 else True,
    )  # fmt: skip
    with bar:
        for step, rows in enumerate(batches(split, options.seed)):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * rate_at(step, split.steps)
            optimizer.zero_grad()
            loss = gradients(student, teacher, trained, rows, options, ranks, device)
            kl = float(loss) / count
            if not math.isfinite(kl):
                raise diverged(f"at step {step + 1} of {split.steps}", kl, options)
            torch.nn.utils.clip_grad_norm_(leaves, CLIP)
            optimizer.step()
            for weight in trained.values():
                weight.settle()
            bar.update(count)
            bar.set_postfix_str(f"KL {kl:.4f}", refresh=False)
    ranks.agree(leaves)


def gradients(
    student: TwoPieces,
    teacher: TwoPieces,
    trained: Mapping[str, Trained],
    rows: Ids,
    options: HealOptions,
    ranks: Ranks,
    device: str,
) -> Tensor:
    """Gradient of the mean KL of a batch [batch, T] in every tensor to train, the same on every
    rank; the summed KL."""
    dense = {name: weight.dense() for name, weight in trained.items()}
    weights = {name: tensor.detach().requires_grad_() for name, tensor in dense.items()}
    own = rows[ranks.slice]
    total = torch.zeros((), device=device)
    for start in range(0, len(own), size := options.micro_batch or max(1, len(own))):
        tokens = torch.from_numpy(own[start : start + size]).long().to(device)
        total += differentiate(student, weights, teacher, tokens, 1 / rows.size)
    reached = [name for name in dense if weights[name].grad is not None]
    if reached:  # nothing is, where this rank's share is empty
        torch.autograd.backward([dense[n] for n in reached], [weights[n].grad for n in reached])
    leaves = [tensor for weight in trained.values() for tensor in weight.tensors.values()]
    for tensor in leaves:
        if tensor.grad is None:
            tensor.grad = torch.zeros_like(tensor)
    ranks.add_up([*(tensor.grad for tensor in leaves if tensor.grad is not None), total])
    return total


def stored(trained: Mapping[str, Trained], options: HealOptions) -> dict[str, Matrix]:
    """Trained weights as they were stored before. Raises ConvertError."""
    found: dict[str, Matrix] = {}
    for name, weight in trained.items():
        try:
            found[name] = weight.stored()
        except ValueError as error:
            raise ConvertError(
                f"weight {name!r} after healing: {error}",
                code="heal-diverged",
                hint=f"the rate {options.peak:g} is too high for this model: lower it",
                weight=name,
            ) from None
    return found


def diverged(where: str, kl: float, options: HealOptions) -> ConvertError:
    return ConvertError(
        f"healing's loss {where} is {kl}, expected a finite number",
        code="heal-diverged",
        hint=f"lower the rate ({options.peak:g}); nothing of this run was kept",
    )
