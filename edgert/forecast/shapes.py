"""Graphs of decoders that only have sizes: what a probe runs, and what is said of a model that is
not there."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..graph import Graph, Node, Scalar, Value, Weight
from ..kernels.states import KVState, StateSpec


class Shape(NamedTuple):
    """Sizes of a Llama-like decoder. encoding: of its matrices; ends: of the embedding, which is
    the head as well."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ff: int
    vocabulary: int = 512
    encoding: str = "int4-g32"
    ends: str = "int8-g32"
    context: int = 8192


class Block(NamedTuple):
    """Sizes of what pictures are made of besides products, on a square grid: attention without a
    cache where there are heads, else convolutions of `kernel` cells a side, `layers` times; norms
    and sums alone where `kernel` is 0."""

    side: int
    width: int
    layers: int
    heads: int = 0
    kernel: int = 3
    encoding: str = "f16"


def graph_of(shape: Shape | Block) -> Graph:
    """The graph of either."""
    return decoder(shape) if isinstance(shape, Shape) else block(shape)


def block(shape: Block) -> Graph:
    """The graph of a block, from rows `x` to rows of the same width."""
    rows, width = shape.side**2, shape.width
    weights: dict[str, Weight] = {}
    nodes = []
    for i in range(shape.layers):
        x, y = f"x{i}" if i else "x", f"x{i + 1}"
        if shape.heads:
            size = width // shape.heads
            attrs: dict[str, Scalar] = {
                "heads": shape.heads, "head_dim": size, "scale": size**-0.5,
            }  # fmt: skip
            nodes.append(Node("dot_attention", (x, x, x), y, {}, attrs))
            continue
        if not shape.kernel:
            weights["norm"] = Weight((width,))
            nodes.append(Node("rms_norm", (x,), f"n{i}", {"weight": "norm"}, {"eps": 1e-5}))
            nodes.append(Node("add", (x, f"n{i}"), y))
            continue
        weights[f"w{i}"] = Weight((width, shape.kernel**2 * width), shape.encoding)
        grid: dict[str, Scalar] = {
            "height": shape.side, "width": shape.side, "kernel": shape.kernel,
            "pad_before": shape.kernel // 2, "pad_after": shape.kernel // 2,
        }  # fmt: skip
        nodes.append(Node("conv2d", (x,), y, {"weight": f"w{i}"}, grid))
    value = Value("x", (rows, width)), Value(f"x{shape.layers}", (rows, width))
    return Graph("block", value[:1], value[1:], tuple(nodes), weights, {}, 0)


def decoder(shape: Shape) -> Graph:
    """The graph of a decoder: RMS norms, rotary attention with grouped queries, a gated network."""
    width, size = shape.width, shape.head_dim
    weights = {
        "embed": Weight((shape.vocabulary, width), shape.ends),
        "norm": Weight((width,)),
        "inv_freq": Weight((size // 2,)),
    }
    nodes = [Node("embed", ("tokens",), "x0", {"weight": "embed"})]
    states: dict[str, StateSpec] = {}
    attrs = {
        "heads": shape.heads, "kv_heads": shape.kv_heads, "head_dim": size, "scale": size**-0.5,
    }  # fmt: skip
    for i in range(shape.layers):
        states[f"kv{i}"] = KVState(shape.kv_heads, size)
        rows = {
            "qkv": ((shape.heads + 2 * shape.kv_heads) * size, width),
            "o": (width, shape.heads * size),
            "gate_up": (2 * shape.ff, width),
            "down": (width, shape.ff),
        }
        weights |= {f"l{i}.{name}": Weight(dims, shape.encoding) for name, dims in rows.items()}
        weights |= {f"l{i}.norm{k}": Weight((width,)) for k in (1, 2)}
        nodes += _layer(i, attrs)
    nodes += [
        Node("select", (f"x{shape.layers}", "rows"), "picked"),
        Node("rms_norm", ("picked",), "normed", {"weight": "norm"}, {"eps": 1e-5}),
        Node("linear", ("normed",), "logits", {"weight": "embed"}),
    ]
    inputs = Value("tokens", ("T",), "int32"), Value("rows", ("R",), "int32")
    outputs = (Value("logits", ("R", shape.vocabulary)),)
    return Graph("model", inputs, outputs, tuple(nodes), weights, states, shape.context)


def _layer(i: int, attrs: dict[str, Any]) -> list[Node]:
    at = f"l{i}"
    eps: dict[str, Scalar] = {"eps": 1e-5}
    return [
        Node("rms_norm", (f"x{i}",), f"{at}.n1", {"weight": f"{at}.norm1"}, eps),
        Node("linear", (f"{at}.n1",), f"{at}.rows", {"weight": f"{at}.qkv"}),
        Node("attention", (f"{at}.rows",), f"{at}.a", {"inv_freq": "inv_freq"}, attrs, f"kv{i}"),
        Node("linear", (f"{at}.a",), f"{at}.ao", {"weight": f"{at}.o"}),
        Node("add", (f"x{i}", f"{at}.ao"), f"{at}.mid"),
        Node("rms_norm", (f"{at}.mid",), f"{at}.n2", {"weight": f"{at}.norm2"}, eps),
        Node("linear", (f"{at}.n2",), f"{at}.gu", {"weight": f"{at}.gate_up"}),
        Node("glu", (f"{at}.gu",), f"{at}.g", {}, {"act": "silu"}),
        Node("linear", (f"{at}.g",), f"{at}.d", {"weight": f"{at}.down"}),
        Node("add", (f"{at}.mid", f"{at}.d"), f"x{i + 1}"),
    ]
