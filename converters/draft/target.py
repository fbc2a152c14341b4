"""The model that a draft guesses for, on torch: rows that a head reads, logits, and answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ...errors import ConvertError
from ...graph import Graph, Node
from ...kernels.quant import Matrix
from ...kernels.states import KVState
from ...roles import token_input, vocab_size
from ..heal.loss import LOGITS
from ..torch_graph import Attrs, Slots, TorchGraph, heads_of
from .shape import embedding_node, taps_of

Ids = NDArray[np.int32]
DONE = 0.02  # of a batch that may still be writing when the others have ended


class Rows(NamedTuple):
    """Of tokens [B, T]: hidden [B, T, C] under the head, features [B, T, k C], the taps side by
    side, and embedded [B, T, C]."""

    hidden: Tensor
    features: Tensor
    embedded: Tensor


class Target:
    """A text graph that is not trained. half: compute in bfloat16 where autocast does."""

    def __init__(
        self, graph: Graph, weights: Mapping[str, Matrix | Tensor], device: str, *, half: bool
    ) -> None:
        whole = TorchGraph(graph, weights, device=device)
        select = next((node for node in graph.nodes if node.op == "select"), None)
        if select is None:
            raise ConvertError(
                f"graph {graph.name!r} selects no rows for its logits, expected a language model's",
                code="draft-target",
            )
        self.graph, self.weights, self.device, self.half = graph, whole.weights, device, half
        self.taps, self.vocabulary = taps_of(graph), vocab_size(graph)
        self.hidden_name, self.rows_name = select.inputs
        self.embed, self.tokens = embedding_node(graph), token_input(graph)
        wanted = dict.fromkeys((self.hidden_name, *self.taps, self.embed.output))
        body = graph.cut([v.name for v in graph.inputs], list(wanted))
        head = graph.cut([self.hidden_name], [graph.outputs[0].name])
        self.body = TorchGraph(body, whole.weights, device=device)
        self.head = TorchGraph(head, whole.weights, device=device)

    def casting(self) -> AbstractContextManager[object]:
        if not self.half:
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, torch.bfloat16)

    @torch.no_grad()
    def rows(self, tokens: Tensor) -> Rows:
        """tokens int [B, T]."""
        with self.casting():
            found = self.body.run({self.tokens: tokens})
        taps = torch.cat([found[name] for name in self.taps], -1)
        return Rows(found[self.hidden_name], taps, found[self.embed.output])

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """Rows [B, T, C] -> logits float32 [B, T, V]."""
        every = torch.arange(hidden.shape[1], device=hidden.device)
        with self.casting():
            found = self.head.run({self.hidden_name: hidden, self.rows_name: every})
        return found[self.graph.outputs[0].name].float()

    @torch.no_grad()
    def embedded(self, tokens: Tensor) -> Tensor:
        """Rows [.., C] of tokens int [..]."""
        scale = float(self.embed.attrs.get("scale", 1.0))
        rows: Tensor = F.embedding(tokens, self.weights[self.embed.weights["weight"]]) * scale
        return rows

    def pieces(self, rows: int, length: int) -> Iterator[slice]:
        """Places of `length`, as many at a time as leave room for the logits of `rows` texts."""
        size = max(1, LOGITS // (4 * rows * self.vocabulary))
        for start in range(0, length, size):
            yield slice(start, min(start + size, length))


class Decoder:
    """Answers of many prompts at once, from keys and values that are kept."""

    def __init__(self, target: Target, batch: int, length: int) -> None:
        """length: tokens of prompt and answer at most. Raises ConvertError for graphs that remember
        in other ways than by keys and values."""
        odd = [n for n, s in target.graph.states.items() if not isinstance(s, KVState)]
        if odd:
            raise ConvertError(
                f"states {odd[:4]} of graph {target.graph.name!r}, expected keys and values only",
                code="draft-decoder",
            )
        self.target, self.length = target, length
        kind = torch.bfloat16 if target.half else torch.float32
        self.caches = {
            name: torch.zeros(
                (2, batch, state.kv_heads, length, state.head_dim), dtype=kind, device=target.device
            )
            for name, state in target.graph.states.items()
            if isinstance(state, KVState)
        }
        self.body = target.graph.cut(
            [value.name for value in target.graph.inputs], [target.hidden_name]
        )
        self.run = TorchGraph(self.body, target.weights, device=target.device).run

    @torch.no_grad()
    def write(
        self, prompts: Sequence[Ids], count: int, temperatures: Tensor, ends: Sequence[int],
        random: torch.Generator,
    ) -> list[Ids]:  # fmt: skip
        """Answers of at most `count` tokens, an end token included. temperatures: float [B]."""
        device, batch = self.target.device, len(prompts)
        longest = min(max(map(len, prompts)), self.length - count)
        tokens = torch.zeros((batch, longest), dtype=torch.long)
        for row, ids in enumerate(prompts):
            kept = torch.from_numpy(ids[-longest:].astype(np.int64))
            tokens[row, longest - len(kept) :] = kept
        self.first = torch.tensor([longest - min(len(ids), longest) for ids in prompts]).to(device)
        given, at = tokens.to(device), 0
        stops = torch.tensor(list(ends), device=device)
        made = torch.zeros((batch, count), dtype=torch.long, device=device)
        done = torch.zeros(batch, dtype=torch.bool, device=device)
        for step in range(count):
            hidden = self._feed(given, at)
            at += given.shape[1]
            made[:, step] = picked(self.target.logits(hidden[:, -1:])[:, 0], temperatures, random)
            done |= torch.isin(made[:, step], stops)
            given = made[:, step : step + 1]
            if step % 16 == 15 and float((~done).float().mean()) <= DONE:
                made = made[:, : step + 1]
                break
        return [_ended(ids, ends) for ids in made.cpu().numpy().astype(np.int32)]

    def _feed(self, tokens: Tensor, at: int) -> Tensor:
        """Hidden rows [B, n, C] of tokens [B, n] at places `at` on of the padded texts."""
        count, batch = tokens.shape[1], tokens.shape[0]
        rows = torch.arange(at, at + count, device=tokens.device)
        keys = torch.arange(at + count, device=tokens.device)
        causal = keys <= rows[:, None]  # [n, at + n]
        # what pads a prompt sees itself, so that nothing is divided by zero
        known = (keys >= self.first[:, None, None]) | (keys == rows[:, None])
        seen = known & causal  # [B, n, at + n]

        def attend(node: Node, x: Tensor, slots: Slots, attrs: Attrs) -> Tensor:
            q, k, v = heads_of(x, slots, attrs, rows.expand(3, count))
            cache = self.caches[node.state][:, :batch]
            cache[0, :, :, at : at + count], cache[1, :, :, at : at + count] = k, v
            window = attrs["window"]
            near = seen & (keys > rows[:, None] - window) if window else seen
            k, v = cache[0, :, :, : at + count], cache[1, :, :, : at + count]
            return _attended(q, k, v, near, attrs)

        with self.target.casting():
            given = {self.target.tokens: tokens}
            positions = rows.expand(3, count)
            return self.run(given, positions=positions, attend=attend)[self.target.hidden_name]


def _attended(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, attrs: Attrs) -> Tensor:
    """Queries [B, H, n, D] over [B, G, m, D], those of a group side by side: [B, n, H D]."""
    batch, heads, count, size = q.shape
    groups = k.shape[1]
    share = heads // groups
    q = q.to(k.dtype).reshape(batch, groups, share * count, size)
    mask = seen.repeat(1, share, 1)[:, None]
    if attrs["softcap"]:
        scores = q @ k.transpose(-1, -2) * attrs["scale"]
        scores = attrs["softcap"] * torch.tanh(scores / attrs["softcap"])
        y = scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v
    else:
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=attrs["scale"])
    out: Tensor = y.reshape(batch, heads, count, size).transpose(1, 2).flatten(2)
    return out


def picked(logits: Tensor, temperatures: Tensor, random: torch.Generator) -> Tensor:
    """Tokens int [B] of logits [B, V]: drawn at temperatures [B], the likeliest where that is 0."""
    race = -torch.empty_like(logits).exponential_(generator=random).log()
    warm = temperatures[:, None]
    scored = torch.where(warm > 0, logits / warm.clamp(min=1e-4) + race, logits)
    return scored.argmax(-1)


def _ended(ids: Ids, ends: Sequence[int]) -> Ids:
    stops = np.flatnonzero(np.isin(ids, list(ends)))
    return ids[: stops[0] + 1] if len(stops) else ids
