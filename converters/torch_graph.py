"""A graph on torch: the same nodes over torch tensors, differentiable in the weights.

Healing, COMPOT and draft training run a graph on whole sequences, many at once, with gradients. So
it takes a batch of full sequences, attends causally without a cache, and keeps every weight
as a float tensor that may require a gradient. Quantized weights enter dequantized; the activations
of their products stay float (the runtime quantizes them too, see `kernels/linear.py`).

Letters as in `kernels/ops.py`, and B sequences of T tokens each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConvertError
from ..graph import Graph, Node
from ..kernels.attention_lower import axes_of
from ..kernels.encodings import dequantize
from ..kernels.ops import CATALOGUE
from ..kernels.quant import Matrix
from ..kernels.states import BorrowedState, KVState, LatentState
from ..roles import row_input, token_input
from .torch_experts import EXPERTS
from .torch_grid import GRIDS
from .torch_linear import linear_attention
from .torch_packed import Packed, check_resets, packed
from .torch_recurrent import RECURRENT, packed_conv
from .torch_rows import ROWS

Slots = Mapping[str, Tensor]
Attrs = Mapping[str, Any]
Watch = Callable[[Node, tuple[Tensor, ...]], None]
Attend = Callable[[Node, Tensor, Slots, Attrs], Tensor]


def _rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    unit: Tensor = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return unit * weight


def _embed(inputs: tuple[Tensor, ...], w: Slots, attrs: Attrs) -> Tensor:
    rows: Tensor = F.embedding(inputs[0], w["weight"]) * attrs["scale"]
    return rows


def _rms_norm(inputs: tuple[Tensor, ...], w: Slots, attrs: Attrs) -> Tensor:
    return _rms(inputs[0], w["weight"], attrs["eps"])


def _linear(inputs: tuple[Tensor, ...], w: Slots, attrs: Attrs) -> Tensor:
    return F.linear(inputs[0], w["weight"], w.get("bias"))


def _glu(inputs: tuple[Tensor, ...], w: Slots, attrs: Attrs) -> Tensor:
    gate, up = inputs[0].chunk(2, dim=-1)
    if attrs["act"] == "silu":
        return F.silu(gate) * up
    return F.gelu(gate, approximate="tanh" if attrs["act"] == "gelu_tanh" else "none") * up


def _add(inputs: tuple[Tensor, ...], w: Slots, attrs: Attrs) -> Tensor:
    return inputs[0] + inputs[1]


def _select(inputs: tuple[Tensor, ...], w: Slots, attrs: Attrs) -> Tensor:
    return inputs[0].index_select(1, inputs[1])


def _softcap(inputs: tuple[Tensor, ...], w: Slots, attrs: Attrs) -> Tensor:
    cap: float = attrs["cap"]
    return cap * torch.tanh(inputs[0] / cap)


class Cache(NamedTuple):
    """Keys and values [B, G, T, D] that an attention node has made, for nodes that read them."""

    keys: Tensor
    values: Tensor


def _rotate(x: Tensor, position: Tensor, inv_freq: Tensor, scale: float) -> Tensor:
    """x [B, heads, T, D] rotated by position [T, half], or [B, 1, T, half]; inv_freq [half], or as
    position; channels past the rotary ones pass."""
    half = inv_freq.shape[-1]
    angle = position * inv_freq.to(torch.float32)
    cos, sin = (angle.cos() * scale).to(x.dtype), (angle.sin() * scale).to(x.dtype)
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


def _rotated(x: Tensor, w: Slots, attrs: Attrs, positions: Tensor | None) -> Tensor:
    """x [B, T, heads, D] -> [B, heads, T, D], rotated where the node has frequencies. positions:
    [3, T], or [3, B, 1, T]."""
    x = x.transpose(1, 2)
    if "inv_freq" not in w:
        return x
    length, pairs = x.shape[2], len(w["inv_freq"])
    if positions is None:
        positions = torch.arange(length, device=x.device).expand(3, length)
    axes = torch.from_numpy(axes_of(attrs, pairs)).to(x.device)
    position = positions.to(torch.float32)[axes].movedim(0, -1)
    if "inv_freq_long" in w and length > attrs["rope_switch"]:
        return _rotate(x, position, w["inv_freq_long"], attrs["rope_long_scale"])
    return _rotate(x, position, _grown(w["inv_freq"], position, attrs), attrs["rope_scale"])


def _grown(inv_freq: Tensor, position: Tensor, attrs: Attrs) -> Tensor:
    """Frequencies [half], or of rows as their positions are, as `attention.grown` has them."""
    growth, length = attrs["rope_growth"], attrs["rope_length"]
    if not growth:
        return inv_freq
    stretch = (growth * (position.double() + 1) / length - growth + 1).clamp(min=1)
    share = torch.arange(len(inv_freq), device=inv_freq.device) / (len(inv_freq) - 1)
    made: Tensor = (inv_freq.double() * stretch ** -share.double()).float()
    return made


def _visible(length: int, window: int, device: torch.device) -> Tensor:
    """bool [T, T]: query row t sees key j when t - window < j <= t (window 0: all j <= t)."""
    t = torch.arange(length, device=device)
    seen = t[None, :] <= t[:, None]
    return seen & (t[None, :] > t[:, None] - window) if window else seen


def _attend(
    q: Tensor, cache: Cache, attrs: Attrs, sinks: Tensor | None = None, own: Packed | None = None
) -> Tensor:
    """Queries [B, H, T, D] over keys and values of as many rows -> [B, T, H * D]. sinks: [H]."""
    share = attrs["heads"] // attrs["kv_heads"]
    k, v = (x.repeat_interleave(share, dim=1) for x in cache)
    seen = _visible(q.shape[2], attrs["window"], q.device)
    seen = seen if own is None else seen & own.together[:, None]
    if attrs["softcap"] or sinks is not None:
        scores = q @ k.transpose(-1, -2) * attrs["scale"]
        if attrs["softcap"]:
            scores = attrs["softcap"] * torch.tanh(scores / attrs["softcap"])
        scores = scores.masked_fill(~seen, -torch.inf)
        if sinks is not None:
            column = sinks[:, None, None].to(scores.dtype).expand(*scores.shape[:-1], 1)
            scores = torch.cat([scores, column], dim=-1)
        y = scores.softmax(-1)[..., : k.shape[2]] @ v
    else:
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=attrs["scale"])
    out: Tensor = y.transpose(1, 2).flatten(2)
    return out


def heads_of(
    x: Tensor, w: Slots, attrs: Attrs, positions: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows [q | k | v] -> queries [B, H, T, D], keys and values [B, G, T, D], normed and rotated
    as an attention node has them."""
    heads, groups, size = attrs["heads"], attrs["kv_heads"], attrs["head_dim"]
    rows = x.view(*x.shape[:2], heads + 2 * groups, size)
    q, k, v = rows[:, :, :heads], rows[:, :, heads:-groups], rows[:, :, -groups:]
    q, k = (_prepared(x, f"{n}_norm", w, attrs, positions) for x, n in ((q, "q"), (k, "k")))
    return q, k, v.transpose(1, 2)


def _prepared(x: Tensor, norm: str, w: Slots, attrs: Attrs, positions: Tensor | None) -> Tensor:
    """x [B, T, heads, D] -> [B, heads, T, D], normed and rotated in the order that the node has."""
    if norm not in w:
        return _rotated(x, w, attrs, positions)
    if attrs["norm_last"]:
        return _rms(_rotated(x, w, attrs, positions), w[norm], attrs["qk_eps"])
    return _rotated(_rms(x, w[norm], attrs["qk_eps"]), w, attrs, positions)


def _attention(
    x: Tensor, w: Slots, attrs: Attrs, positions: Tensor | None, own: Packed | None
) -> tuple[Tensor, Cache]:
    """Rows [q | k | v], or [q | k], -> attended rows and the cache they make."""
    if attrs["values"]:  # the last channels of keys
        rows = x.view(*x.shape[:2], attrs["heads"] + 1, -1)
        rows = _rotated(rows, w, attrs, positions)
        q, k = rows[:, :-1], rows[:, -1:]
        v = k[..., -attrs["values"] :]
    else:
        q, k, v = heads_of(x, w, attrs, positions)
    cache = Cache(k, v)
    return _attend(q, cache, attrs, w.get("sinks"), own), cache


def _shared_attention(
    x: Tensor, w: Slots, attrs: Attrs, positions: Tensor | None, cache: Cache, own: Packed | None
) -> Tensor:
    """Rows of queries over another node's cache."""
    q = x.view(*x.shape[:2], attrs["heads"], attrs["head_dim"])
    return _attend(_prepared(q, "q_norm", w, attrs, positions), cache, attrs, w.get("sinks"), own)


def _add_learned_positions(x: Tensor, w: Slots, attrs: Attrs, p: Tensor) -> Tensor:
    return x + w["weight"][p]


def _scale_by_position(x: Tensor, w: Slots, attrs: Attrs, p: Tensor) -> Tensor:
    width = attrs["width"]
    factors = w["weight"][p // attrs["every"]]
    return torch.cat([x[..., :width] * factors[..., None], x[..., width:]], dim=-1)


TORCH: dict[str, Callable[[tuple[Tensor, ...], Slots, Attrs], Tensor]] = {
    "embed": _embed,
    "rms_norm": _rms_norm,
    "linear": _linear,
    "glu": _glu,
    "add": _add,
    "select": _select,
    "softcap": _softcap,
    **ROWS,
    **GRIDS,
    **RECURRENT,
    **EXPERTS,
}


# Ops that read where rows stand: the last argument, int [T] or [B, T].
PLACED: dict[str, Callable[[Tensor, Slots, Attrs, Tensor], Tensor]] = {
    "add_learned_positions": _add_learned_positions,
    "scale_by_position": _scale_by_position,
}


class TorchGraph:
    """A graph and its weights on torch.

    weights: graph weight name -> stored matrix or vector (NumPy, Quantized) or a float tensor.
    Afterwards `self.weights` holds float tensors by the same names; call `requires_grad_()` on
    those to be trained, or pass replacements to `__call__`. Raises ConvertError when a weight is
    missing or of another shape than the graph declares.
    """

    def __init__(
        self,
        graph: Graph,
        weights: Mapping[str, Matrix | Tensor],
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        graph.shapes()
        self.graph = graph
        self.windowed: Callable[[int], Tensor] | None = None
        # decays are differences of large sums: autocast must not round what they are made of
        linear = (node for node in graph.nodes if node.op == "linear_attention")
        self.exact = {node.inputs[1] for node in linear}
        self.weights: dict[str, Tensor] = {}
        for name, spec in graph.weights.items():
            if name not in weights:
                raise ConvertError(f"weight {name!r} is missing", code="torch-weights")
            tensor = _tensor(weights[name])
            if tuple(tensor.shape) != spec.shape:
                raise ConvertError(
                    f"weight {name!r} has shape {tuple(tensor.shape)}, expected {spec.shape}",
                    code="torch-weights",
                )
            # rotary frequencies stay float32: positions times a rounded frequency drift
            kind = torch.float32 if self._is_frequency(name) else dtype
            self.weights[name] = tensor.to(device=device, dtype=kind)

    def _is_frequency(self, name: str) -> bool:
        slots = (slot for node in self.graph.nodes for slot, w in node.weights.items() if w == name)
        return any(slot.startswith("inv_freq") for slot in slots)

    def __call__(
        self,
        tokens: Tensor,
        rows: Tensor | None = None,
        *,
        documents: Tensor | None = None,
        weights: Mapping[str, Tensor] | None = None,
        watch: Watch | None = None,
    ) -> Tensor:
        """tokens int [B, T] -> logits float [B, R, V], in this graph's dtype.

        rows: int [R], positions whose logits are wanted (default: all T, R = T). documents,
        weights, watch: as `run` takes them.
        """
        given = {token_input(self.graph): tokens}
        if name := row_input(self.graph):
            given[name] = torch.arange(tokens.shape[1], device=tokens.device)
            given[name] = given[name] if rows is None else rows
        made = self.run(given, documents=documents, weights=weights, watch=watch)
        return made[self.graph.outputs[0].name]

    def run(
        self,
        inputs: Mapping[str, Tensor],
        *,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        weights: Mapping[str, Tensor] | None = None,
        watch: Watch | None = None,
        attend: Attend | None = None,
    ) -> dict[str, Tensor]:
        """Every input by name to every output by name, for B whole sequences.

        inputs: float [B, N, width] or int [B, N], selected rows int [R]. positions: int [3, T],
        rotary axes, the same in all sequences (default: 0 to T - 1). documents: int [B, T], in
        place of positions, of several texts in a sequence: rows are those of each text alone, with
        positions from 0 (`torch_packed`). weights: tensors that stand in for some of `self.weights`
        in this call. watch: called with every node and its inputs before it runs (calibration
        statistics). attend: computes nodes that own keys and values instead, from their rows
        [q | k | v], for whoever keeps a cache.

        `self.windowed`: B -> bool [B], called by each linear layer with a window: the sequences in
        which it has that; the state holds all tokens in the others.
        """
        values, caches, own = dict(inputs), dict[str, Cache](), None
        if documents is not None:
            check_resets(self.graph)
            own = packed(documents)
            positions = own.place[None, :, None].expand(3, -1, -1, -1)
        held = {**self.weights, **(weights or {})}
        for node in self.graph.nodes:
            reads = tuple(values[name] for name in node.inputs)
            if watch is not None:
                watch(node, reads)
            slots = {slot: held[name] for slot, name in node.weights.items()}
            attrs = CATALOGUE[node.op].check_attrs(node.attrs)
            state = self.graph.states.get(node.state)
            if isinstance(state, BorrowedState):
                cache = caches[state.owner]
                made = _shared_attention(reads[0], slots, attrs, positions, cache, own)
            elif isinstance(state, KVState) and attend is not None:
                made = attend(node, reads[0], slots, attrs)
            elif isinstance(state, KVState | LatentState):
                made, cache = _attention(reads[0], slots, attrs, positions, own)
                caches[node.state] = cache
            elif node.op == "linear_attention":
                turn = partial(_rotated, w=slots, attrs=attrs, positions=positions)
                near = self.windowed if attrs["window"] else None
                keep = near(len(reads[0])) if near is not None else None
                made = linear_attention(reads, slots, attrs, turn, own, keep)
            else:
                made = self._plain(node, reads, slots, attrs, positions, own)
            values[node.output] = made
        return {value.name: values[value.name] for value in self.graph.outputs}

    def _plain(
        self, node: Node, reads: tuple[Tensor, ...], slots: Slots, attrs: Attrs,
        positions: Tensor | None, own: Packed | None,
    ) -> Tensor:  # fmt: skip
        """A node's value where that takes no other node's keys and values."""
        if node.op in PLACED:
            p = torch.arange(reads[0].shape[1], device=reads[0].device)
            p = p if positions is None else positions[0]
            return PLACED[node.op](reads[0], slots, attrs, p if own is None else own.place)
        if own is not None and node.op == "causal_conv":
            return packed_conv(reads[0], slots, attrs, own)
        if node.output in self.exact and node.op == "linear":
            with torch.autocast(reads[0].device.type, enabled=False):
                wide = {slot: weight.float() for slot, weight in slots.items()}
                return _linear((reads[0].float(),), wide, attrs)
        return TORCH[node.op](reads, slots, attrs)


def _tensor(weight: Matrix | Tensor) -> Tensor:
    if isinstance(weight, Tensor):
        return weight
    return torch.from_numpy(np.ascontiguousarray(dequantize(weight)))
