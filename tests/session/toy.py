"""Small graphs that no family has: several inputs and outputs, shared caches, rotary axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from edgert.kernels.quant import Matrix
from edgert.kernels.states import (
    BorrowedState,
    ConvState,
    KVState,
    LatentState,
    RecurrentState,
)

from edgert.graph import Graph, Node, Value, Weight

from ..tiny import tiny_weights

WIDTH, HEADS, GROUPS, SIZE = 48, 4, 2, 16
VOCAB, CONTEXT = 90, 256
Made = tuple[Graph, dict[str, Matrix]]


def _made(graph: Graph) -> Made:
    graph.shapes()
    return graph, tiny_weights(graph, seed=5)


def function(rows: str, others: str, wide: int, narrow: int) -> Made:
    """Two float inputs of `rows` and `others` and an int32 one; two outputs; no state."""
    weights = {
        "a": Weight((narrow, wide)), "norm": Weight((narrow,)), "b": Weight((2 * narrow, narrow)),
        "table": Weight((70, narrow), "int4-g32"), "c": Weight((narrow, narrow), "int8-g32"),
    }  # fmt: skip
    nodes = (
        Node("linear", ("wide",), "left", {"weight": "a"}),
        Node("add", ("left", "narrow"), "sum"),
        Node("rms_norm", ("sum",), "normed", {"weight": "norm"}, {"eps": 1e-5}),
        Node("linear", ("normed",), "up", {"weight": "b"}),
        Node("glu", ("up",), "first", {}, {"act": "gelu"}),
        Node("embed", ("ids",), "looked", {"weight": "table"}, {"scale": 0.5}),
        Node("linear", ("looked",), "second", {"weight": "c"}),
    )
    inputs = (
        Value("wide", (rows, wide)),
        Value("narrow", (rows, narrow)),
        Value("ids", (others,), "int32"),
    )
    outputs = (Value("first", (rows, narrow)), Value("second", (others, narrow)))
    return _made(Graph("function", inputs, outputs, nodes, weights))


def shared(*, window: int = 0, head: int = SIZE, norm: bool = True, reads: int = 9) -> Made:
    """Two nodes over one KV state: attention, and shared_attention that looks `reads` back."""
    axes = {"heads": HEADS, "kv_heads": GROUPS, "head_dim": head, "scale": head**-0.5}
    weights = {
        "embed": Weight((VOCAB, WIDTH)),
        "qkv": Weight(((HEADS + 2 * GROUPS) * head, WIDTH)),
        "o": Weight((WIDTH, HEADS * head)),
        "q": Weight((HEADS * head, WIDTH)),
        "inv_freq": Weight((head // 2,)),
        "head": Weight((VOCAB, WIDTH)),
    }
    slots = {"inv_freq": "inv_freq"}
    if norm:
        weights["q_norm"] = Weight((head,))
    nodes = [
        Node("embed", ("tokens",), "x0", {"weight": "embed"}),
        Node("linear", ("x0",), "qkv0", {"weight": "qkv"}),
        Node("attention", ("qkv0",), "a0", slots, axes | {"window": window}, "kv"),
        Node("linear", ("a0",), "o0", {"weight": "o"}),
        Node("add", ("x0", "o0"), "layers.0"),
        Node("linear", ("layers.0",), "q1", {"weight": "q"}),
        Node(
            "shared_attention", ("q1",), "a1", slots | ({"q_norm": "q_norm"} if norm else {}),
            axes | {"window": reads, "softcap": 3.0}, "lent",
        ),
        Node("linear", ("a1",), "o1", {"weight": "o"}),
        Node("add", ("layers.0", "o1"), "layers.1"),
        Node("select", ("layers.1", "rows"), "picked"),
        Node("linear", ("picked",), "logits", {"weight": "head"}),
    ]  # fmt: skip
    states = {"kv": KVState(GROUPS, head, window), "lent": BorrowedState("kv")}
    return _made(_text("shared", nodes, weights, states))


def latents(shared: int = 16, rank: int = 32, heads: int = HEADS) -> Made:
    """Two nodes of attention over latents, and what stands around them."""
    width, value = shared + rank, 16
    weights = {
        "embed": Weight((VOCAB, WIDTH)), "turning": Weight((heads * shared, WIDTH)),
        "still": Weight((heads * 16, WIDTH)), "narrow": Weight((rank, WIDTH)),
        "key": Weight((shared, WIDTH)), "inv_freq": Weight((shared // 2,)),
        "keys": Weight((heads * rank, 16)), "values": Weight((heads * value, rank)),
        "o": Weight((WIDTH, heads * value)), "head": Weight((VOCAB, WIDTH)),
    }  # fmt: skip
    attrs = {"heads": heads, "kv_heads": 1, "head_dim": width, "values": rank, "scale": 0.3}
    nodes, x, each = [Node("embed", ("tokens",), "x0", {"weight": "embed"})], "x0", {"heads": heads}
    for i in range(2):
        at = {name: f"{name}{i}" for name in ("turning", "still", "key", "narrow", "keys")}
        nodes += [
            *(
                Node("linear", (x,), at[name], {"weight": name})
                for name in ("turning", "still", "key", "narrow")
            ),
            Node("head_linear", (at["still"],), at["keys"], {"weight": "keys"}, each),
            Node(
                "latent_rows", (at["turning"], at["keys"], at["key"], at["narrow"]), f"rows{i}", {},
                {**each, "shared": shared, "rank": rank},
            ),
            Node("attention", (f"rows{i}",), f"a{i}", {"inv_freq": "inv_freq"}, attrs, f"kv{i}"),
            Node("head_linear", (f"a{i}",), f"v{i}", {"weight": "values"}, each),
            Node("linear", (f"v{i}",), f"o{i}", {"weight": "o"}),
            Node("add", (x, f"o{i}"), f"layers.{i}"),
        ]  # fmt: skip
        x = f"layers.{i}"
    nodes += [
        Node("select", (x, "rows"), "picked"),
        Node("linear", ("picked",), "logits", {"weight": "head"}),
    ]
    states = {f"kv{i}": LatentState(width) for i in range(2)}
    return _made(_text("latents", nodes, weights, states))


def placed(every: int = 10) -> Made:
    """A learned table of positions, and queries with a factor for each `every` of them."""
    size = 20
    weights = {
        "embed": Weight((VOCAB, WIDTH)),
        "table": Weight((CONTEXT, WIDTH)),
        "qkv": Weight(((HEADS + 2 * GROUPS) * size, WIDTH)),
        "factors": Weight((-(-CONTEXT // every),)),
        "o": Weight((VOCAB, HEADS * size)),
    }
    attrs = {"heads": HEADS, "kv_heads": GROUPS, "head_dim": size, "scale": 0.25}
    scaled = {"every": every, "width": HEADS * size}
    nodes = [
        Node("embed", ("tokens",), "x0", {"weight": "embed"}),
        Node("add_learned_positions", ("x0",), "x1", {"weight": "table"}),
        Node("linear", ("x1",), "rows0", {"weight": "qkv"}),
        Node("scale_by_position", ("rows0",), "qkv0", {"weight": "factors"}, scaled),
        Node("attention", ("qkv0",), "a0", {}, attrs, "kv"),
        Node("select", ("a0", "rows"), "picked"),
        Node("linear", ("picked",), "logits", {"weight": "o"}),
    ]
    graph, held = _made(_text("placed", nodes, weights, {"kv": KVState(GROUPS, size)}))
    held["factors"] = np.linspace(0.5, 3.0, weights["factors"].shape[0], dtype=np.float32)
    return graph, held


def turning(axes: str, *, embeddings: bool = False) -> Made:
    """One attention whose frequencies turn by three axes; tokens or rows "embeddings" in."""
    weights = {
        "embed": Weight((VOCAB, WIDTH)),
        "qkv": Weight(((HEADS + 2 * GROUPS) * SIZE, WIDTH)),
        "o": Weight((VOCAB, HEADS * SIZE)),
        "inv_freq": Weight((SIZE // 2,)),
    }
    attrs = {"heads": HEADS, "kv_heads": GROUPS, "head_dim": SIZE, "scale": 0.25, "rope_axes": axes}
    nodes = [
        Node("embed", ("tokens",), "x0", {"weight": "embed"}),
        Node("linear", ("x0",), "qkv0", {"weight": "qkv"}),
        Node("attention", ("qkv0",), "a0", {"inv_freq": "inv_freq"}, attrs, "kv"),
        Node("select", ("a0", "rows"), "picked"),
        Node("linear", ("picked",), "logits", {"weight": "o"}),
    ]
    states = {"kv": KVState(GROUPS, SIZE)}
    graph = _text("turning", nodes, weights, states)
    if embeddings:
        del weights["embed"]
        nodes[1] = Node("linear", ("embeddings",), "qkv0", {"weight": "qkv"})
        inputs = (Value("embeddings", ("T", WIDTH)), *graph.inputs[1:])
        graph = graph.replace(inputs=inputs, nodes=tuple(nodes[1:]), weights=weights)
    return _made(graph)


def recurrent() -> Made:
    """A convolution, a state space, a delta rule and attention in one text graph."""
    heads, size, state = 3, 16, 8
    rows, delta = heads * size + 2 * state, 2 * state + heads * size
    weights = {
        "embed": Weight((VOCAB, WIDTH)), "in": Weight((rows, WIDTH)), "dt": Weight((heads, WIDTH)),
        "taps": Weight((rows, 4)), "a_log": Weight((heads,)), "dt_bias": Weight((heads,)),
        "d": Weight((heads,)), "o": Weight((WIDTH, heads * size)), "qkv": Weight((delta, WIDTH)),
        "gates": Weight((2 * heads, WIDTH)),
        "attended": Weight(((HEADS + 2 * GROUPS) * SIZE, WIDTH)),
        "inv_freq": Weight((SIZE // 2,)), "o2": Weight((WIDTH, HEADS * SIZE)),
        "head": Weight((VOCAB, WIDTH)),
    }  # fmt: skip
    axes = {"heads": HEADS, "kv_heads": GROUPS, "head_dim": SIZE, "scale": 0.25}
    own = {"a_log": "a_log", "dt_bias": "dt_bias"}
    nodes = [
        Node("embed", ("tokens",), "x0", {"weight": "embed"}),
        Node("linear", ("x0",), "in0", {"weight": "in"}),
        Node("linear", ("x0",), "dt0", {"weight": "dt"}),
        Node(
            "causal_conv", ("in0",), "c0", {"weight": "taps"},
            {"channels": rows, "width": 4, "act": "silu"}, "conv",
        ),
        Node(
            "ssd", ("c0", "dt0"), "s0", {**own, "d": "d"},
            {"heads": heads, "head_dim": size, "groups": 1, "state": state}, "space",
        ),
        Node("linear", ("s0",), "o0", {"weight": "o"}),
        Node("add", ("x0", "o0"), "x1"),
        Node("linear", ("x1",), "qkv1", {"weight": "qkv"}),
        Node("linear", ("x1",), "gates1", {"weight": "gates"}),
        Node(
            "gated_delta", ("qkv1", "gates1"), "d1", own,
            {"heads": heads, "head_dim": size, "key_heads": 1, "key_dim": state}, "delta",
        ),
        Node("linear", ("d1",), "o1", {"weight": "o"}),
        Node("add", ("x1", "o1"), "x2"),
        Node("linear", ("x2",), "qkv2", {"weight": "attended"}),
        Node("attention", ("qkv2",), "a2", {"inv_freq": "inv_freq"}, axes, "kv"),
        Node("linear", ("a2",), "y2", {"weight": "o2"}),
        Node("add", ("x2", "y2"), "x3"),
        Node("select", ("x3", "rows"), "picked"),
        Node("linear", ("picked",), "logits", {"weight": "head"}),
    ]  # fmt: skip
    states = {
        "conv": ConvState(rows, 4), "space": RecurrentState(heads, state, size),
        "delta": RecurrentState(heads, state, size), "kv": KVState(GROUPS, SIZE),
    }  # fmt: skip
    return _made(_text("recurrent", nodes, weights, states))


def _text(
    name: str, nodes: list[Node], weights: dict[str, Weight], states: Mapping[str, Any]
) -> Graph:
    inputs = (Value("tokens", ("T",), "int32"), Value("rows", ("R",), "int32"))
    logits = (Value("logits", ("R", VOCAB)),)
    return Graph(name, inputs, logits, tuple(nodes), weights, dict(states), CONTEXT)


def cut_weights(graph: Graph, weights: Mapping[str, Matrix]) -> dict[str, Matrix]:
    """The weights that a cut graph still has."""
    return {name: weights[name] for name in graph.weights}


def rows(count: int, width: int, seed: int = 1) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Random float32 [count, width]."""
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
