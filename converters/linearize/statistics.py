"""Stage 0: what the new parameters of a layer begin with, from statistics of the teacher.

    keys        k - key_mean, the mean key behind the rotation: softmax does not see a constant
    maps        of rank r, least E[(q . k - q_map^T q . k_map^T k)^2] for independent q and k:
                SVD Cq^1/2 Ck^1/2 = U S V^T, q_map = Cq^-1/2 U S^1/2, k_map = Ck^-1/2 V S^1/2
    their size  tau = min(1, beta / |1st percentile of s q . k|), so that 99 % of the logits are
                where (x + beta)^2 rises
    decay       half of a weight is left after the head's mean look-back distance

Cq, Ck: second moments [P, P] of queries (over a group's heads) and of centred keys.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...graph import Graph
from ...kernels.linear_attention import LEAST_GAMMA
from ...kernels.ops import CATALOGUE
from ..torch_graph import TorchGraph, heads_of
from .options import LinearizeOptions
from .plan import Turn, nodes_of

RIDGE = 1e-4  # of a second moment's mean eigenvalue
SINKS = 4  # first tokens that many heads look at whatever the text is
BACK = (16.0, 65536.0)  # tokens, limits of a half-life
PAIRED = 8  # sequences that pairs of tokens are looked at in, at most
PAIRS = 1 << 16  # logits that a percentile is taken of


@dataclass
class Moments:
    """Sums over tokens of one layer, float64."""

    count: int = 0
    queries: Tensor = field(default_factory=lambda: torch.zeros(()))
    keys: Tensor = field(default_factory=lambda: torch.zeros(()))
    mean: Tensor = field(default_factory=lambda: torch.zeros(()))
    back: Tensor = field(default_factory=lambda: torch.zeros(()))
    low: Tensor = field(default_factory=lambda: torch.zeros(()))
    paired: int = 0

    def add(self, q: Tensor, k: Tensor) -> None:
        """Queries [B, H, T, P] and keys [B, G, T, P]."""
        groups = k.shape[1]
        batch, _, length, size = q.shape
        q, k = q.double().reshape(batch, groups, -1, length, size), k.double()
        share = q.shape[2]
        self.queries = self.queries + torch.einsum("bgstc,bgstd->gcd", q, q) / share
        self.keys = self.keys + torch.einsum("bgtc,bgtd->gcd", k, k)
        self.mean = self.mean + k.sum((0, 2))
        self.count += k.shape[0] * k.shape[2]

    def add_pairs(self, q: Tensor, k: Tensor, scale: float) -> None:
        """Look-back and low logits of one sequence: queries [H, T, P], keys [G, T, P]."""
        groups, length = k.shape[:2]
        q = q.float().reshape(groups, -1, length, q.shape[-1])
        k = k.float() - (self.mean / self.count).to(k.device, torch.float32)[:, None]
        x = scale * (q @ k[:, None].transpose(-1, -2))  # [G, H / G, T, T]
        t = torch.arange(length, device=x.device)
        gap = t[:, None] - t[None, :]
        seen = gap >= 0
        sample = x.flatten(0, 1).masked_select(seen).view(groups, -1)
        step = max(1, sample.shape[1] // PAIRS)
        self.low = self.low + sample[:, ::step].double().quantile(0.01, dim=1)
        far = seen & (t >= SINKS)[None, :]
        odds = x.masked_fill(~far, -torch.inf)[:, :, SINKS:].softmax(-1)
        back = (odds * gap[SINKS:].clamp(min=0)).sum(-1)
        self.back = self.back + back.mean((1, 2)).double()
        self.paired += 1


@torch.no_grad()
def moments(
    graph: Graph, teacher: TorchGraph, turns: Sequence[Turn], rows: Tensor
) -> dict[int, Moments]:
    """Of the teacher's layers on sequences int [n, T], a few at a time."""
    found = {turn.layer: Moments() for turn in turns}
    by_state = {f"kv{turn.layer}": turn.layer for turn in turns}
    paired = False

    def watch(node: object, reads: tuple[Tensor, ...]) -> None:
        layer = by_state.get(getattr(node, "state", ""))
        if layer is None:
            return
        weights, attrs = getattr(node, "weights"), getattr(node, "attrs")  # noqa: B009
        slots = {slot: teacher.weights[name] for slot, name in weights.items()}
        checked = CATALOGUE["attention"].check_attrs(attrs)
        q, k, _ = heads_of(reads[0], slots, checked)
        if not paired:
            found[layer].add(q, k)
        else:
            found[layer].add_pairs(q[0], k[0], checked["scale"])

    last = max(turns, key=lambda turn: turn.layer).output
    body = TorchGraph(graph.cut([v.name for v in graph.inputs], [last]), teacher.weights,
                      device=rows.device)  # fmt: skip
    for row in rows:
        body.run({graph.inputs[0].name: row[None]}, watch=watch)
    paired = True
    for row in rows[:PAIRED]:
        body.run({graph.inputs[0].name: row[None]}, watch=watch)
    return found


def _root(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """C^1/2 and C^-1/2 of symmetric [G, P, P], with a ridge."""
    size = matrix.shape[-1]
    trace = matrix.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None].clamp(min=1e-12)
    ridge = RIDGE * trace / size * torch.eye(size, dtype=matrix.dtype, device=matrix.device)
    values, vectors = torch.linalg.eigh(matrix + ridge)
    root = values.clamp(min=1e-30).sqrt()[:, None, :]
    turned = vectors.transpose(-1, -2)
    return (vectors * root) @ turned, (vectors / root) @ turned


def feature_maps(queries: Tensor, keys: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """q_map and k_map [G, P, r] of second moments [G, P, P]."""
    (q_root, q_back), (k_root, k_back) = _root(queries), _root(keys)
    u, s, vt = torch.linalg.svd(q_root @ k_root)
    root = s[:, None, :rank].sqrt()
    return q_back @ u[..., :rank] * root, k_back @ vt.transpose(-1, -2)[..., :rank] * root


def unsoftplus(value: float) -> float:
    """x with log(1 + e^x) = value."""
    return math.log(math.expm1(value)) if value < 30 else value


def initial(
    student: Graph, turn: Turn, told: Moments, options: LinearizeOptions
) -> dict[str, Tensor]:
    """The layer's new weights by graph name, float32."""
    mean = told.mean / told.count
    queries = told.queries / told.count
    keys = told.keys / told.count - mean[:, :, None] * mean[:, None, :]
    q_map, k_map = feature_maps(queries, keys, turn.features)
    low = (told.low / told.paired).clamp(max=-1e-6)
    tau = (1.0 / -low).clamp(max=1.0).sqrt()[:, None, None]
    half = (told.back / told.paired).clamp(*BACK)
    nodes = nodes_of(student, turn)
    conv, gates, own = nodes["causal_conv"], None, nodes["linear_attention"]
    gates = next(n for n in student.nodes if n.output == own.inputs[1])
    taps = torch.zeros(student.weights[conv.weights["weight"]].shape)
    taps[:, -1] = 1.0
    groups = turn.kv_heads
    found = {
        conv.weights["weight"]: taps,
        conv.weights["bias"]: torch.zeros(len(taps)),
        gates.weights["weight"]: torch.zeros(student.weights[gates.weights["weight"]].shape),
        gates.weights["bias"]: torch.tensor([unsoftplus(math.log(2) / float(h)) for h in half]),
        own.weights["q_map"]: (q_map * tau).flatten(0, 1),
        own.weights["k_map"]: (k_map * tau).flatten(0, 1),
        own.weights["key_mean"]: mean,
    }
    if options.mode == "shifted":
        found[own.weights["beta"]] = torch.full((groups,), unsoftplus(1.0))
        found[own.weights["gamma"]] = torch.full((groups,), unsoftplus(1.0 - LEAST_GAMMA))
    return {name: value.float().contiguous() for name, value in found.items()}
