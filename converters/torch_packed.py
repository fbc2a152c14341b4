"""Several documents in one training sequence: nothing of one reaches another.

    documents   ... 3 3 3 4 4 4 4 5 ...       int [B, T]
    places      ... 7 8 9 0 1 2 3 0 ...       rotary positions, and chunks of windows

Softmax masks pairs of different documents; so does linear attention, whose decay at a document's
first token is thereby 0; a convolution's taps that reach back beyond it are 0. So rows are those of
the documents computed apart.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConvertError
from ..graph import Graph

RESETS = {"attention", "shared_attention", "causal_conv", "linear_attention"}


class Packed(NamedTuple):
    """Of sequences [B, T]: the document of each token, and its place in that."""

    document: Tensor
    place: Tensor

    @property
    def together(self) -> Tensor:
        """bool [B, T, T]: whether two tokens are of one document."""
        return self.document[:, :, None] == self.document[:, None, :]

    def before(self, steps: int) -> Tensor:
        """bool [B, T]: whether the token so many steps before is of the same document."""
        return self.place >= steps


def packed(document: Tensor) -> Packed:
    """document: int [B, T], whose value changes where a document begins."""
    t = torch.arange(document.shape[1], device=document.device).expand_as(document)
    begins = F.pad(document[:, 1:] != document[:, :-1], (1, 0), value=True)
    first = torch.where(begins, t, 0).cummax(1).values
    return Packed(begins.cumsum(1), t - first)


def documents_of(tokens: Tensor, end: int) -> Tensor:
    """Of tokens [B, T] that stand behind each other, documents: one ends with each token `end`."""
    return F.pad((tokens == end).long().cumsum(1)[:, :-1], (1, 0))


def check_resets(graph: Graph) -> None:
    """Raises ConvertError for a graph whose nodes carry something from document to document."""
    for node in graph.nodes:
        long = "inv_freq_long" in node.weights
        if long or (node.state and node.op not in RESETS):
            what = "rotary factors that change with the length" if long else "a state of its own"
            raise ConvertError(
                f"node {node.output!r} ({node.op}) has {what}, expected {sorted(RESETS)} with "
                "one set of factors where documents are packed",
                code="torch-packed",
                hint="train on one document a sequence",
            )
