"""What an emitted ONNX model takes and gives, derived from its graph.

The emission driver declares these inputs and outputs, the session feeds them, and the load check
compares a file's declarations with them (a foreign or edited .onnx is refused at load). Letters: B
sequences, S new tokens of each, P rows of cache capacity, R rows of logits, G key/value heads of
size D, V vocabulary. Styles of attention: see `kernels/attention_onnx.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..graph import Graph, Node
from ..kernels.attention_onnx import rope_name, style
from ..kernels.ops import CATALOGUE, Dim


@dataclass(frozen=True)
class Port:
    """One input or output: dtype is "int32", "int64", "float32" or "float16"."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]


@dataclass(frozen=True)
class Variant:
    """How a graph was emitted.

    half: float16 activations, caches and tables. standard: ai.onnx ops only.
    rows, capacity: fixed S and P with B = 1 and R = S (0: symbolic), for providers that want
    static shapes. A fixed S means that steps are padded to it.
    """

    half: bool = False
    standard: bool = False
    rows: int = 0
    capacity: int = 0

    @property
    def suffix(self) -> str:
        """File name part: `<part><suffix>.onnx`."""
        words = ["f16"] * self.half + ["std"] * self.standard
        words += [f"s{self.rows}-p{self.capacity}"] * bool(self.rows)
        return "".join(f".{word}" for word in words)

    @staticmethod
    def of_file(part: str, name: str) -> Variant | None:
        """The variant of a file name, None for files that are no .onnx of that part."""
        found = re.fullmatch(
            re.escape(part) + r"(\.f16)?(\.std)?(?:\.s(\d{1,7})-p(\d{1,7}))?\.onnx", name
        )
        if not found:
            return None
        return Variant(
            *(bool(g) for g in found.group(1, 2)), *(int(g or 0) for g in found.group(3, 4))
        )

    @property
    def dims(self) -> dict[str, Dim]:
        """Letters to sizes, or to themselves where symbolic."""
        if not self.rows:
            return {letter: letter for letter in ("B", "S", "P", "R", "K")}
        fixed = {"B": 1, "S": self.rows, "P": self.capacity, "R": self.rows}
        return {**fixed, "K": self.capacity + self.rows}

    def metadata(self) -> dict[str, str]:
        """What is written into the .onnx and compared when a session opens it."""
        values = {"half": self.half, "standard": self.standard, "rows": self.rows}
        return {f"edgert.{k}": str(int(v)) for k, v in values.items()} | {
            "edgert.capacity": str(self.capacity)
        }


PLAIN = Variant()  # float32, com.microsoft ops, symbolic shapes


@dataclass(frozen=True)
class Attention:
    """An attention node as the session must serve it."""

    state: str
    style: str
    rope: str
    window: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class Rope:
    """Rotary tables: weight names and scales, short and long ("" where there is no long one)."""

    short: str
    scale: float
    long: str = ""
    long_scale: float = 1.0


def attentions(graph: Graph, variant: Variant) -> list[Attention]:
    """Every attention node, in graph order."""
    found = []
    for node in graph.nodes:
        if node.op == "attention":
            attrs, rope = _attrs(node), node.weights.get("inv_freq", "")
            pairs = graph.weights[rope].shape[0] if rope else 0
            how = style(attrs, pairs, standard=variant.standard)
            name = rope_name(node.weights, attrs)
            sizes = attrs["kv_heads"], attrs["head_dim"]
            found.append(Attention(node.state, how, name, attrs["window"], *sizes))
    return found


def _attrs(node: Node) -> dict[str, Any]:
    return CATALOGUE[node.op].check_attrs(node.attrs)


def ropes(graph: Graph) -> dict[str, Rope]:
    """Rotary tables by name."""
    found = {}
    for node in graph.nodes:
        if node.op == "attention" and "inv_freq" in node.weights:
            attrs = _attrs(node)
            found[rope_name(node.weights, attrs)] = Rope(
                node.weights["inv_freq"],
                attrs["rope_scale"],
                node.weights.get("inv_freq_long", ""),
                attrs["rope_long_scale"],
            )
    return found


def rope_tables(
    rope: Rope, weights: Mapping[str, Any], rows: int, *, long: bool, half: bool
) -> tuple[NDArray[Any], NDArray[Any]]:
    """cos and sin [rows, R/2], scaled, in the activations' dtype."""
    name, scale = (rope.long, rope.long_scale) if long and rope.long else (rope.short, rope.scale)
    inverse = np.asarray(weights[name], np.float32)
    angle = np.arange(rows, dtype=np.float32)[:, None] * inverse[None, :]
    kind = np.float16 if half else np.float32
    return (
        (np.cos(angle) * np.float32(scale)).astype(kind),
        (np.sin(angle) * np.float32(scale)).astype(kind),
    )


def interface(graph: Graph, variant: Variant) -> tuple[list[Port], list[Port]]:
    """Inputs and outputs of the emitted model, in order."""
    d, real = variant.dims, "float16" if variant.half else "float32"
    b, s, p = d["B"], d["S"], d["P"]
    nodes = attentions(graph, variant)
    styles = {node.style for node in nodes}
    inputs = [Port("tokens", "int32", (b, s)), Port("rows", "int32", (d["R"],))]
    if styles & {"gqa", "rotary"}:
        inputs.append(Port("seqlens_k", "int32", (b,)))
        inputs.append(Port("total_sequence_length", "int32", (1,)))
    if "rotary" in styles or any(node.style == "plain" and node.rope for node in nodes):
        inputs.append(Port("positions", "int32" if variant.standard else "int64", (b, s)))
    for name, rope in ropes(graph).items():
        pairs = graph.weights[rope.short].shape[0]
        inputs += [Port(f"{table}.{name}", real, (p, pairs)) for table in ("cos", "sin")]
    for window in sorted({node.window for node in nodes if node.style == "plain"}):
        inputs.append(Port(f"mask.{window}", real, (b, 1, s, d["K"])))
    logits = graph.outputs[0]
    outputs = [Port("logits", "float32", (d["R"], int(logits.shape[-1])))]
    for node in nodes:
        past = (b, node.kv_heads, p, node.head_dim)
        inputs += [Port(f"past_{kv}.{node.state}", real, past) for kv in ("key", "value")]
        made, rows = ("new", s) if node.style == "plain" else ("present", p)
        shape = (b, node.kv_heads, rows, node.head_dim)
        outputs += [Port(f"{made}_{kv}.{node.state}", real, shape) for kv in ("key", "value")]
    return inputs, outputs
