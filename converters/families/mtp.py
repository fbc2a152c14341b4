"""The layer of Qwen3-Next and Qwen 3.5 that predicts one token more (multi-token prediction).

A checkpoint may bring it as `mtp.*`. transformers does not read it; vLLM's models of these names
are the published implementation. With h(t) the model's rows behind its last norm and e the
embedding of a token,

    u(t) = fc [norm(e(x[t + 1])) | norm(h(t))]
    n(t) = norm(layer(u)(t))             a layer of gated attention, of the model's own kind
    logits = head n(t)                   of the token x[t + 2]; the model's own head

and a further guess reads (e(guess), n) in place of (e(x[t + 1]), h). So it is a draft head
(`edgert.bundle.draft`): `features` are the rows in front of the model's last norm, which this graph
computes again, and `next` is n. A row has features or `hidden`: the norm of zeros is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

from ...bundle.draft import EMBEDDING, FEATURES, HIDDEN, NEXT
from ...graph import Graph, Value
from . import blocks, delta
from .recipe import FamilyModel, Part, Recipe

PREFIX = "mtp"
GUESSED = 32_768  # tokens that a guess is among, besides special ones
Feeds = Callable[[blocks.Builder], delta.Feed]


def guessed(vocabulary: int, special: Iterable[int]) -> list[int]:
    """Ids that a guess is among, rising: the special ones, and of large vocabularies the lowest
    others, which tokenizers made by merging found first, since they are the most frequent."""
    own = (token for token in special if 0 <= token < vocabulary)
    return sorted({*range(min(vocabulary, GUESSED)), *own})


def layer(
    c: delta.Config, model: FamilyModel, ids: Sequence[int], feeds: Feeds | None = None
) -> FamilyModel:
    """Graph and recipes of a model's layer, whose logits are of `ids`. feeds: makes the
    feed-forward of its layer, where that is no usual one."""
    b = blocks.Builder(c, head_dim=c.head_dim)
    b.prefix = f"{PREFIX}.layers"
    rotary = delta.turns(b, c, [delta.FULL], [])  # what is wrong with it, the model has told
    normed = b.norm(FEATURES, "model_norm", "model.norm.weight", offset=delta.NORM)
    rows = b.add(normed, HIDDEN, "rows")
    both = [
        b.norm(x, f"norm_{name}", f"{PREFIX}.pre_fc_norm_{name}.weight", offset=delta.NORM)
        for name, x in (("embedding", EMBEDDING), ("hidden", rows))
    ]
    u = b.node("concat", both, "both")
    u = b.linear(u, "fc", [Part(f"{PREFIX}.fc.weight", (b.width, 2 * b.width))])
    u = delta.layer(b, 0, u, c, rotary, feed=feeds(b) if feeds else None)
    weights = {"weight": b.vector("norm", f"{PREFIX}.norm.weight", b.width, offset=delta.NORM)}
    b.node("rms_norm", [u], "norm", output=NEXT, weights=weights, attrs={"eps": b.eps})
    picked = b.node("select", [NEXT, "rows"], "select")
    head = {"weight": b.weight("head", Recipe(tuple(_head(model, ids))))}
    b.node("linear", [picked], "head", output="logits", weights=head)
    inputs = [Value(name, ("T", b.width)) for name in (FEATURES, HIDDEN, EMBEDDING)]
    outputs = (Value("logits", ("R", len(ids))), Value(NEXT, ("T", b.width)))
    graph = Graph(
        "draft", (*inputs, Value("rows", ("R",), "int32")), outputs, tuple(b.nodes), b.weights,
        b.states, b.context,
    )  # fmt: skip
    return FamilyModel(graph, b.recipes, {})


def tap(model: FamilyModel) -> str:
    """The value of a model's graph that the layer reads."""
    return next(node.inputs[0] for node in model.graph.nodes if node.op == "select")


def _head(model: FamilyModel, ids: Sequence[int]) -> Iterable[Part]:
    """The rows of the model's own head that give logits of some tokens."""
    (whole,) = model.tensors[model.graph.nodes[-1].weights["weight"]].parts
    for _, run in groupby(enumerate(ids), lambda pair: pair[1] - pair[0]):
        found = [token for _, token in run]
        yield whole._replace(rows=(found[0], found[-1] + 1))
