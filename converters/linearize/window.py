"""The window of turned layers: what it weighs at first, and how often training leaves it out.

Layers with a window come to ignore their state (arXiv 2510.05901). So in training a part of the
(layer, sequence) pairs goes without one, half of them first, a tenth in the end, evenly between.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ...graph import Graph
from ...kernels.ops import CATALOGUE
from ..heal.ranks import Ranks
from ..torch_graph import TorchGraph, heads_of
from .options import LinearizeOptions
from .plan import Turn, nodes_of

LEFT = (0.5, 0.1)  # share of pairs without a window, at the beginning and in the end
LOOKED = 8  # sequences that shares are taken from, at most
LIMIT = 20.0  # of a log_window, on both sides


class Left:
    """Which windows a step leaves out. span: the part of the whole training that a stage is, as
    (from, to) in 0 .. 1. The same steps leave out the same ones on every start."""

    def __init__(self, span: tuple[float, float], seed: int, ranks: Ranks, device: str) -> None:
        self.span, self.seed, self.rank, self.device = span, seed, ranks.rank, device
        self.share, self.draw = LEFT[0], torch.Generator()
        self.graphs: list[TorchGraph] = []

    def watch(self, graphs: Iterable[TorchGraph]) -> None:
        """Let these go without windows from now on."""
        self.graphs = list(graphs)
        for graph in self.graphs:
            graph.windowed = self.kept

    def end(self) -> None:
        """All windows are back."""
        for graph in self.graphs:
            graph.windowed = None

    def at(self, progress: float, step: int) -> None:
        """A step begins. progress: of the stage."""
        done = self.span[0] + (self.span[1] - self.span[0]) * min(1.0, progress)
        self.share = LEFT[0] + (LEFT[1] - LEFT[0]) * done
        self.draw.manual_seed((self.seed * 1_000_003 + step) * 1009 + self.rank)

    def kept(self, count: int) -> Tensor:
        """bool [count]: which of a layer's sequences have their window."""
        return (torch.rand(count, generator=self.draw) >= self.share).to(self.device)


@torch.no_grad()
def log_windows(
    graph: Graph, student: Graph, teacher: TorchGraph, turns: Sequence[Turn], rows: Tensor,
    new: Mapping[str, Tensor], options: LinearizeOptions,
) -> dict[str, Tensor]:  # fmt: skip
    """log_window [H] of each layer, by name: with the weights that training begins with, the
    window's mean share is that of the teacher's softmax. rows: sequences int [n, T]. new: the other
    new weights by name."""
    by_state = {f"kv{turn.layer}": turn for turn in turns}
    found: dict[int, list[tuple[Tensor, Tensor]]] = {turn.layer: [] for turn in turns}

    def watch(node: object, reads: tuple[Tensor, ...]) -> None:
        turn = by_state.get(getattr(node, "state", ""))
        if turn is None:
            return
        weights, attrs = getattr(node, "weights"), getattr(node, "attrs")  # noqa: B009
        slots = {slot: teacher.weights[name] for slot, name in weights.items()}
        q, k, _ = heads_of(reads[0], slots, CATALOGUE["attention"].check_attrs(attrs))
        own = nodes_of(student, turn)["linear_attention"]
        given = {slot: new[name] for slot, name in own.weights.items() if name in new}
        gates = next(n for n in student.nodes if n.output == own.inputs[1])
        rate = -torch.nn.functional.softplus(new[gates.weights["bias"]])
        found[turn.layer].append(_masses(q[0], k[0], given, rate, own.attrs, options.chunk))

    last = max(turns, key=lambda turn: turn.layer).output
    body = TorchGraph(graph.cut([v.name for v in graph.inputs], [last]), teacher.weights,
                      device=rows.device)  # fmt: skip
    for row in rows[:LOOKED]:
        body.run({graph.inputs[0].name: row[None]}, watch=watch)
    made = {}
    for turn in turns:
        ratios, shares = (torch.cat(part, 1) for part in zip(*found[turn.layer], strict=True))
        name = nodes_of(student, turn)["linear_attention"].weights["log_window"]
        made[name] = solved(ratios, shares.mean(1) if shares.numel() else shares.sum(1))
    return made


def _masses(
    q: Tensor, k: Tensor, w: Mapping[str, Tensor], rate: Tensor, attrs: Mapping[str, object],
    chunk: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Of queries [H, T, P] and keys [G, T, P], for rows from 2 chunks on, [H, rows]: the logarithm
    of the window's weights over the state's, and the softmax's share inside of the window. rate:
    logarithms of decays [G]."""
    groups, length, size = k.shape
    scale = float(attrs["scale"])  # type: ignore[arg-type]
    t = torch.arange(2 * chunk, length, device=q.device)
    tokens = torch.arange(length, device=q.device)
    q = q.float().reshape(groups, -1, length, size)[:, :, 2 * chunk :]
    k = k.float() - w["key_mean"].float()[:, None]
    maps = (w[name].reshape(groups, 1, size, -1) for name in ("q_map", "k_map"))
    seen = tokens <= t[:, None]
    near = seen & (tokens >= (t[:, None] // chunk - 1) * chunk)
    logits = (scale * (q @ k[:, None].transpose(-1, -2))).masked_fill(~seen, -torch.inf)
    odds = logits.softmax(-1)
    ahead, behind = (x @ m for x, m in zip((q, k[:, None]), maps, strict=True))
    x = scale * (ahead @ behind.transpose(-1, -2))
    weights = x.square() if attrs["mode"] == "square" else (x + 1).square() + 1
    gap = (t[:, None] - tokens).clamp(min=0) * rate[:, None, None, None]
    far = (weights * gap.exp() * (seen & ~near)).sum(-1)
    inside = logits.masked_fill(~near, -torch.inf)
    ratio = inside.logsumexp(-1) - inside.amax(-1) - far.clamp(min=1e-30).log()
    return ratio.flatten(0, 1), (odds * near).sum(-1).flatten(0, 1)


def solved(ratios: Tensor, shares: Tensor) -> Tensor:
    """x [H] with mean over rows of 1 / (1 + e^-(x + ratio)) equal to shares [H], by bisection; 0
    without rows."""
    if not ratios.shape[1]:
        return torch.zeros(len(ratios), device=ratios.device)
    low, high = (torch.full_like(shares, side * LIMIT) for side in (-1, 1))
    for _ in range(math.ceil(math.log2(2 * LIMIT / 1e-4))):
        middle = (low + high) / 2
        less = (ratios + middle[:, None]).sigmoid().mean(1) < shares
        low, high = torch.where(less, middle, low), torch.where(less, high, middle)
    return (low + high) / 2
