"""What a draft head looks like: its graph, made after the model that it guesses for.

EAGLE-3 (arXiv 2503.01840) with one decoder layer. At place t of the text it reads the token behind
it and what the model thought at t, and guesses the token behind that one:

    g = fc [tap_1(t) | .. | tap_k(t)]                      rows of the model's layers
    u = [norm(e(x[t + 1])) | norm(g)]
    r = g + o attention(qkv u),  a = r + mlp(norm(r))      position t
    logits = head norm(a)                                  of the likeliest tokens only

A further guess reads (e(guess), a) in place of (e(x[t + 1]), g), one position on. So a row has
three inputs: `features` (the taps; zeros behind a guess), `hidden` (a; zeros at a token of the
text) and `embedding` (e, looked up in the model's own table); g is fc features + hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...bundle.draft import EMBEDDING, FEATURES, HIDDEN, NEXT, embedding_of
from ...errors import ConvertError
from ...graph import Graph, Node, Value, Weight
from ...kernels.states import KVState, RecurrentState
from ...roles import token_input
from ..segments import lone_values

ROWS, LOGITS, STATE = "rows", "logits", "kv0"
WINDOW = 1024  # tokens that the head looks back where the model's own memory has one size
EPS = 1e-5
SHARE = 4  # a vocabulary as small as this many times the usual one is cut to that part of it
USUAL = 16384  # tokens of the head's vocabulary


@dataclass(frozen=True)
class HeadShape:
    """Sizes of a head. width C, taps k: rows of k C are read. ff: of the feed-forward. vocabulary:
    tokens that it can guess. context: tokens of a text. window: that it looks back, 0 for all. act:
    of the feed-forward."""

    width: int
    taps: tuple[str, ...]
    heads: int
    kv_heads: int
    head_dim: int
    rotary: int
    ff: int
    vocabulary: int
    context: int
    window: int = 0
    act: str = "silu"


def usual_vocabulary(size: int) -> int:
    """Tokens of a head's vocabulary, of a model's `size`."""
    return min(USUAL, max(1, size // SHARE))


def layer_inputs(graph: Graph) -> list[str]:
    """The rows [T, C] that enter each layer of a text graph, the first layer's first. A layer
    begins where a state is read and one value alone carries on."""
    lone, found = set(lone_values(graph)), list[str]()
    last = ""
    for index, node in enumerate(graph.nodes):
        if node.state and last:
            found.append(last)
            last = ""
        if index in lone:
            last = node.output
    return found


def taps_of(graph: Graph) -> tuple[str, ...]:
    """What enters layer 2, the middle one and the last but two, as far as these differ. Raises
    ConvertError for graphs without layers."""
    inputs = layer_inputs(graph)
    if not token_input(graph) or not inputs:
        raise ConvertError(
            f"graph {graph.name!r} has {len(inputs)} layers that rows pass one after the other, "
            "expected a language model's",
            code="draft-target",
            hint="draft heads are trained for text models",
        )
    count = len(inputs)
    places = sorted({min(2, count - 1), count // 2, max(count - 3, 0)})
    return tuple(inputs[place] for place in places)


def shape_for(graph: Graph, vocabulary: int) -> HeadShape:
    """The head for a model: heads, feed-forward and activation of its own layers."""
    taps, width = taps_of(graph), int(graph.shapes()[embedding_node(graph).output][-1])
    attention = next((node for node in graph.nodes if node.op == "attention"), None)
    attrs: dict[str, Any] = {"heads": max(1, width // 64), "head_dim": min(64, width)}
    rotary = attrs["head_dim"] // 2
    if attention is not None:
        attrs = dict(attention.attrs)
        frequencies = attention.weights.get("inv_freq")
        rotary = graph.weights[frequencies].shape[0] if frequencies else attrs["head_dim"] // 2
    gates = [node for node in graph.nodes if node.op == "glu"]
    ff = int(graph.shapes()[gates[-1].output][-1]) if gates else 4 * width
    act = str(gates[-1].attrs["act"]) if gates else "silu"
    recurrent = any(isinstance(state, RecurrentState) for state in graph.states.values())
    return HeadShape(
        width, taps, int(attrs["heads"]), int(attrs.get("kv_heads", attrs["heads"])),
        int(attrs["head_dim"]), rotary, ff, vocabulary, graph.context,
        WINDOW if recurrent else 0, act,
    )  # fmt: skip


def embedding_node(graph: Graph) -> Node:
    """The node that looks tokens up. Raises ConvertError where there is not one."""
    found = embedding_of(graph)
    if found is None:
        raise ConvertError(
            f"graph {graph.name!r} looks tokens up in no table, or in several, expected one",
            code="draft-target",
            hint="draft heads are trained for text models",
        )
    return found


def head_graph(shape: HeadShape) -> Graph:
    """The graph of a head, all weights f32. Inputs as in this module's docstring; outputs: logits
    [R, vocabulary], and `next` [T, C], the rows a."""
    c, heads, groups = shape.width, shape.heads, shape.kv_heads
    attended = heads * shape.head_dim
    weights = {
        "fc": (c, len(shape.taps) * c), "norm_e": (c,), "norm_h": (c,),
        "qkv": (attended + 2 * groups * shape.head_dim, 2 * c), "inv_freq": (shape.rotary,),
        "o": (c, attended), "norm2": (c,), "gate_up": (2 * shape.ff, c), "down": (c, shape.ff),
        "norm": (c,), "head": (shape.vocabulary, c),
    }  # fmt: skip
    attrs: dict[str, Any] = {
        "heads": heads, "kv_heads": groups, "head_dim": shape.head_dim,
        "scale": shape.head_dim**-0.5,
    } | ({"window": shape.window} if shape.window else {})  # fmt: skip
    turns = {"inv_freq": "inv_freq"}
    nodes = (
        _linear("fused.y", FEATURES, "fc"),
        Node("add", ("fused.y", HIDDEN), "g.y"),
        _norm("e.y", EMBEDDING, "norm_e"),
        _norm("h.y", "g.y", "norm_h"),
        Node("concat", ("e.y", "h.y"), "u.y"),
        _linear("qkv.y", "u.y", "qkv"),
        Node("attention", ("qkv.y",), "attention.y", turns, attrs, STATE),
        _linear("o.y", "attention.y", "o"),
        Node("add", ("g.y", "o.y"), "r.y"),
        _norm("norm2.y", "r.y", "norm2"),
        _linear("gate_up.y", "norm2.y", "gate_up"),
        Node("glu", ("gate_up.y",), "glu.y", {}, {"act": shape.act}),
        _linear("down.y", "glu.y", "down"),
        Node("add", ("r.y", "down.y"), NEXT),
        Node("select", (NEXT, ROWS), "select.y"),
        _norm("norm.y", "select.y", "norm"),
        _linear(LOGITS, "norm.y", "head"),
    )
    inputs: Sequence[tuple[str, int]] = (
        (FEATURES, len(shape.taps) * c), (HIDDEN, c), (EMBEDDING, c),
    )  # fmt: skip
    return Graph(
        "draft",
        (*(Value(name, ("T", width)) for name, width in inputs), Value(ROWS, ("R",), "int32")),
        (Value(LOGITS, ("R", shape.vocabulary)), Value(NEXT, ("T", c))),
        nodes,
        {name: Weight(dims) for name, dims in weights.items()},
        {STATE: KVState(groups, shape.head_dim, shape.window)},
        shape.context,
    )


def _linear(output: str, x: str, weight: str) -> Node:
    return Node("linear", (x,), output, {"weight": weight})


def _norm(output: str, x: str, weight: str) -> Node:
    return Node("rms_norm", (x,), output, {"weight": weight}, {"eps": EPS})
