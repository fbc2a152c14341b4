"""KL(original || model) over all logits, a few rows of them in memory at a time.

A text graph is cut where it selects rows: the body gives hidden rows once, the head turns some of
them into logits. The head of each chunk is differentiated at once, so that the logits of a whole
batch never stand in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from ...errors import ConvertError
from ...graph import Graph
from ...kernels.quant import Matrix
from ...roles import row_input, token_input, vocab_size
from ..torch_graph import TorchGraph
from ..torch_packed import check_resets, documents_of

LOGITS = 1 << 26  # bytes of float32 logits in a chunk; some five such arrays are alive at a time

Dense = Mapping[str, Tensor]


def check_text(graph: Graph, whose: str) -> None:
    """ConvertError for a graph that does not turn tokens into logits of selected rows."""
    if not token_input(graph) or not row_input(graph):
        raise ConvertError(
            f"the {whose} model takes {[value.name for value in graph.inputs]}, expected tokens "
            "and the rows whose logits are wanted",
            code="heal-graph",
            hint="only language models are healed",
        )


class TwoPieces:
    """A text graph on torch, cut into body and head."""

    def __init__(
        self, graph: Graph, weights: Mapping[str, Matrix | Tensor], device: str, *, half: bool,
        end: int | None = None,
    ) -> None:  # fmt: skip
        """half: compute in bfloat16 where autocast does. end: token that ends a document; what
        stands behind it in a sequence is a text of its own."""
        if end is not None:
            check_resets(graph)
        whole = TorchGraph(graph, weights, device=device)
        select = next(node for node in graph.nodes if node.op == "select")
        self.weights = whole.weights
        self.hidden_name, self.rows_name = select.inputs
        self.token_name, self.logits_name = token_input(graph), graph.outputs[0].name
        self.vocabulary = vocab_size(graph)
        body = graph.cut([v.name for v in graph.inputs], [self.hidden_name])
        head = graph.cut([self.hidden_name], [self.logits_name])
        self.body = TorchGraph(body, whole.weights, device=device)
        self.head = TorchGraph(head, whole.weights, device=device)
        self.kind = torch.device(device).type
        self.half, self.end = half, end

    def forget(self, names: set[str]) -> None:
        """Drop weights that every call brings along."""
        for module in (self.body, self.head):
            module.weights = {n: w for n, w in module.weights.items() if n not in names}
        self.weights = {n: w for n, w in self.weights.items() if n not in names}

    def _casting(self) -> AbstractContextManager[object]:
        return torch.autocast(self.kind, torch.bfloat16) if self.half else nullcontext()

    def hidden(self, tokens: Tensor, weights: Dense | None = None) -> Tensor:
        """tokens int [B, T] -> rows [B, T, C]."""
        with self._casting():
            given = {self.token_name: tokens}
            own = None if self.end is None else documents_of(tokens, self.end)
            return self.body.run(given, documents=own, weights=weights)[self.hidden_name]

    def odds(self, hidden: Tensor, rows: Tensor, weights: Dense | None = None) -> Tensor:
        """Log-probabilities float32 [B, R, V] of rows int [R]."""
        with self._casting():
            given = {self.hidden_name: hidden, self.rows_name: rows}
            logits = self.head.run(given, weights=weights)[self.logits_name]
        return logits.float().log_softmax(-1)


def chunks(tokens: Tensor, vocabulary: int) -> Iterator[Tensor]:
    """Positions of sequences [B, T], as many as their logits leave room for."""
    count, length = tokens.shape
    size = max(1, LOGITS // (4 * count * vocabulary))
    for start in range(0, length, size):
        yield torch.arange(start, min(start + size, length), device=tokens.device)


def divergence(target: Tensor, guess: Tensor) -> Tensor:
    """KL of log-probabilities [.., V], summed."""
    return (target.exp() * (target - guess)).sum()


def differentiate(
    student: TwoPieces, weights: Dense, teacher: TwoPieces, tokens: Tensor, scale: float,
    *, next_token: float = 0.0,
) -> Tensor:  # fmt: skip
    """Add the gradient of `scale` times the summed KL to the leaves `weights`; the sum. next_token:
    weight of the student's own loss in predicting the next token, which the sum leaves out."""
    with torch.no_grad():
        wanted = teacher.hidden(tokens)
    rows = student.hidden(tokens, weights)
    cut = rows.detach().requires_grad_()
    total = torch.zeros((), device=tokens.device)
    for some in chunks(tokens, student.vocabulary):
        with torch.no_grad():
            target = teacher.odds(wanted, some)
        guess = student.odds(cut, some, weights)
        loss = divergence(target, guess)
        total += loss.detach()
        if next_token:
            known = some[some < tokens.shape[1] - 1]
            own = guess[:, : len(known)].gather(-1, tokens[:, known + 1][..., None])
            loss = loss - next_token * own.sum()
        (loss * scale).backward()  # type: ignore[no-untyped-call]
    rows.backward(cut.grad)  # type: ignore[no-untyped-call]
    return total


@torch.no_grad()
def losses(student: TwoPieces, teacher: TwoPieces, tokens: Tensor) -> Tensor:
    """float64 [3], summed over tokens [B, T]: KL of B T positions; own losses of student and
    teacher in predicting the next token, B (T - 1) of them."""
    wanted, rows = teacher.hidden(tokens), student.hidden(tokens)
    out = torch.zeros(3, dtype=torch.float64, device=tokens.device)
    for some in chunks(tokens, student.vocabulary):
        target, guess = teacher.odds(wanted, some), student.odds(rows, some)
        known = some[some < tokens.shape[1] - 1]
        following = tokens[:, known + 1][..., None]
        out[0] += divergence(target, guess)
        out[1] -= guess[:, : len(known)].gather(-1, following).sum()
        out[2] -= target[:, : len(known)].gather(-1, following).sum()
    return out
