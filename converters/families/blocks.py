"""The building blocks of decoder families: small functions that add nodes to a graph.

Value names end in ".y", weight names do not, so that the two never meet in one name space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ... import limits
from ...graph import Graph, Node, Value
from ...kernels.states import KVState, StateSpec
from .config import Decoder, Stack
from .nodes import Nodes
from .recipe import FamilyModel, Part, Recipe
from .rope import Rope

EMBED = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Rotary:
    """Rotary weights of an attention node: slot -> weight name, and its attributes."""

    slots: dict[str, str]
    attrs: dict[str, Any]


NO_ROPE = Rotary({}, {})


class Stacked(Nodes):
    """Nodes of a stack of layers of width C, `width`.

    prefix: of the checkpoint's layers. names: what it calls their parts, by Llama's names. affine:
    "" for rms_norm, "weight" or "bias" for layer_norm with weights, or with biases too. transposed:
    whether it has the layers' matrices as [K, N].
    """

    prefix = "model.layers"
    names: Mapping[str, str] = MappingProxyType({})
    affine = ""
    transposed = False

    def __init__(self, config: Stack, *, eps: float, context: int) -> None:
        super().__init__()
        self.width, self.layers = config.hidden_size, config.num_hidden_layers
        self.vocab, self.eps, self.context = config.vocab_size, eps, context
        self.states: dict[str, StateSpec] = {}

    def at(self, layer: int, rest: str) -> str:
        """The checkpoint's name of a tensor of a layer, by Llama's name."""
        stem, _, leaf = rest.rpartition(".")
        return f"{self.prefix}.{layer}.{self.names.get(stem, stem)}.{leaf}"

    def matrix(self, layer: int, rest: str, n: int, k: int, **fields: Any) -> Part:
        """A layer's matrix [N, K], by Llama's name; fields: of `Part`."""
        shape = (k, n) if self.transposed else (n, k)
        return Part(self.at(layer, rest), shape, transposed=self.transposed, **fields)

    def vector(
        self, name: str, tensor: str, size: int, *, offset: float = 0.0, scale: float = 1.0
    ) -> str:
        """A one-dimensional weight of the checkpoint."""
        return self.weight(name, Recipe((Part(tensor, (size,), scale=scale),), offset))

    def linear(self, x: str, label: str, parts: Sequence[Part], *, bias: bool = False) -> str:
        """Matrices [N, K] stacked by rows, with their biases where there are any."""
        weights = {"weight": self.weight(label, Recipe(tuple(parts)))}
        if bias:
            rows = tuple(
                part._replace(
                    name=_bias_of(part.name), shape=part.meant[:1], alias="", transposed=False
                )
                for part in parts
            )
            weights["bias"] = self.weight(f"{label}_bias", Recipe(rows))
        return self.node("linear", [x], label, weights=weights)

    def norm(
        self, x: str, label: str, tensor: str, *, offset: float = 0.0, scale: float = 1.0
    ) -> str:
        """The family's kind of norm over rows of C; `offset` 1 for families that store w - 1."""
        weights = {"weight": self.vector(label, tensor, self.width, offset=offset, scale=scale)}
        if self.affine == "bias":
            name = _bias_of(tensor)
            weights["bias"] = self.vector(f"{label}_bias", name, self.width, scale=scale)
        op = "layer_norm" if self.affine else "rms_norm"
        return self.node(op, [x], label, weights=weights, attrs={"eps": self.eps})


class Builder(Stacked):
    """Nodes of a decoder. `heads` H, `kv_heads` G, `head_dim` D."""

    def __init__(self, config: Decoder, *, head_dim: int | None = None) -> None:
        context = config.max_position_embeddings
        super().__init__(config, eps=config.rms_norm_eps, context=context)
        self.heads, self.kv_heads = config.num_attention_heads, config.kv_heads
        self.head_dim = head_dim or config.hidden_size // config.num_attention_heads
        self.ff = config.intermediate_size


def _bias_of(tensor: str) -> str:
    return f"{tensor.removesuffix('.weight')}.bias"


def attention_scale(scalar: float, faults: list[str]) -> float:
    """Gemma's query_pre_attn_scalar as a factor of q . k."""
    if not 0 < scalar < 1e9:
        faults.append(f"config 'query_pre_attn_scalar' is {scalar}, expected a positive number")
        return 1.0
    return float(scalar**-0.5)


def multipliers(config: Any, names: Sequence[str], faults: list[str]) -> list[float]:
    """Configured factors, by name, of what parts of a layer give or take."""
    found = {name: getattr(config, name) for name in names}
    for name, value in found.items():
        if not 1e-9 < value < 1e9:
            faults.append(f"config {name!r} is {value}, expected a positive number")
    return [float(value) if 1e-9 < value < 1e9 else 1.0 for value in found.values()]


def softcap(value: float | None, name: str, faults: list[str]) -> float | None:
    """A configured soft cap of logits; null means none."""
    if value is not None and not 0 < value < 1e9:
        faults.append(f"config {name!r} is {value}, expected a positive number, or null")
        return None
    return value


def epsilon(value: float, name: str, faults: list[str]) -> float:
    """A configured epsilon of norms."""
    if not 0 < value < 1:
        faults.append(f"config {name!r} is {value}, expected 0 to 1")
        return 1e-5
    return value


def act_of(name: str, known: Mapping[str, str], faults: list[str]) -> str:
    """What a configured activation is called here."""
    if name not in known:
        faults.append(f"config 'hidden_act' is {name[:40]!r}, expected one of {sorted(known)}")
        return next(iter(known.values()))
    return known[name]


def embedding(b: Stacked, *, tied: bool, scale: float = 1.0, table: str = EMBED) -> str:
    """Token rows [T, C]. A tied checkpoint may store the table under either name, or both."""
    part = Part(table, (b.vocab, b.width), HEAD if tied else "")
    if tied:
        b.tied[HEAD] = table
    weights = {"weight": b.weight("embed", Recipe((part,)))}
    attrs = {"scale": scale} if scale != 1.0 else {}
    return b.node("embed", ["tokens"], "embed", weights=weights, attrs=attrs)


def rotary(b: Builder, rope: Rope, name: str = "inv_freq") -> Rotary:
    """Weights and attributes of a rotary embedding; the context grows to what it is made for."""
    b.context = max(b.context, min(rope.length, limits.CONTEXT_TOKENS))
    slots = {"inv_freq": b.weight(name, Recipe(values=rope.inv_freq))}
    attrs: dict[str, Any] = {} if rope.scale == 1.0 else {"rope_scale": rope.scale}
    if rope.long is not None:
        slots["inv_freq_long"] = b.weight(f"{name}_long", Recipe(values=rope.long))
        attrs |= {"rope_long_scale": rope.scale, "rope_switch": rope.switch}
    if rope.growth:
        attrs |= {"rope_growth": rope.growth, "rope_length": rope.grows_from}
    return Rotary(slots, attrs)


def turned_channels(b: Builder, rope: Rotary) -> int:
    """How many channels of a head turn."""
    return 2 * b.weights[rope.slots["inv_freq"]].shape[0]


def qkv(
    b: Builder,
    layer: int,
    x: str,
    *,
    bias: bool = False,
    scales: tuple[float, float, float] = (1.0, 1.0, 1.0),
    pairs: int = 0,
) -> str:
    """Rows [q | k | v] from three projections, times `scales`. pairs: rotary channels of a head
    whose pairs are neighbours (0: none, they are half a head apart)."""
    widths = {"q": b.heads, "k": b.kv_heads, "v": b.kv_heads}
    parts = [
        b.matrix(
            layer, f"self_attn.{key}_proj.weight", heads * b.head_dim, b.width, scale=scale,
            pairs=(b.head_dim, pairs) if pairs and key != "v" else None,
        )
        for (key, heads), scale in zip(widths.items(), scales, strict=True)
    ]  # fmt: skip
    return b.linear(x, f"layers.{layer}.qkv", parts, bias=bias)


def fused_qkv(b: Builder, layer: int, x: str, *, bias: bool = False) -> str:
    """Rows [q | k | v] from one projection."""
    rows = (b.heads + 2 * b.kv_heads) * b.head_dim
    part = b.matrix(layer, "self_attn.qkv_proj.weight", rows, b.width)
    return b.linear(x, f"layers.{layer}.qkv", [part], bias=bias)


def attention(
    b: Builder,
    layer: int,
    rows: str,
    rope: Rotary,
    *,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    qk_norm: bool = False,
    qk_offset: float = 0.0,
    norms: tuple[str, str] = ("q_norm", "k_norm"),
    norm_last: bool = False,
    sinks: bool = False,
) -> str:
    """Attention over a new state "kv<layer>" [T, H * D]. A window counts the token itself. norms:
    what the checkpoint calls them. norm_last: whether they come behind the rotation. sinks: heads
    have one each, a vector of the checkpoint."""
    weights, own = dict(rope.slots), window or 0
    attrs: dict[str, Any] = {
        "heads": b.heads,
        "kv_heads": b.kv_heads,
        "head_dim": b.head_dim,
        "scale": scale if scale is not None else b.head_dim**-0.5,
        **rope.attrs,
    }
    if own:
        attrs["window"] = own
    if softcap:
        attrs["softcap"] = float(softcap)
    if qk_norm:
        attrs |= {"qk_eps": b.eps, **({"norm_last": True} if norm_last else {})}
        for key, name in zip(("q_norm", "k_norm"), norms, strict=True):
            tensor = b.at(layer, f"self_attn.{name}.weight")
            weights[key] = b.vector(f"layers.{layer}.{key}", tensor, b.head_dim, offset=qk_offset)
    if sinks:
        name = b.at(layer, "self_attn.sinks")
        weights["sinks"] = b.vector(f"layers.{layer}.sinks", name, b.heads)
    state = f"kv{layer}"
    b.states[state] = KVState(b.kv_heads, b.head_dim, own)
    return b.node(
        "attention", [rows], f"layers.{layer}.attention", weights=weights, attrs=attrs, state=state
    )


def output_projection(
    b: Builder,
    layer: int,
    x: str,
    *,
    bias: bool = False,
    name: str = "o_proj",
    scale: float = 1.0,
) -> str:
    """Attention output back to the model width."""
    inner = b.heads * b.head_dim
    part = b.matrix(layer, f"self_attn.{name}.weight", b.width, inner, scale=scale)
    return b.linear(x, f"layers.{layer}.o", [part], bias=bias)


def qkv_by_head(b: Builder, layer: int, x: str, *, bias: bool = False) -> str:
    """Rows [q | k | v] from one projection that gives q, k and v of each head in turn."""
    size, name = b.head_dim, b.at(layer, "self_attn.qkv_proj.weight")
    shape = (3 * b.heads * size, b.width)
    starts = [(3 * head + kind) * size for kind in range(3) for head in range(b.heads)]
    parts = [Part(name, shape, rows=(start, start + size)) for start in starts]
    return b.linear(x, f"layers.{layer}.qkv", parts, bias=bias)


def normed_qkv(b: Builder, layer: int, x: str) -> str:
    """Rows [q | k | v], q and k normalised over all of their heads at once (OLMo 2)."""
    at, rows = f"layers.{layer}", ""
    for key, heads in (("q", b.heads), ("k", b.kv_heads), ("v", b.kv_heads)):
        width, tensor = heads * b.head_dim, b.at(layer, f"self_attn.{key}_proj.weight")
        part = b.linear(x, f"{at}.{key}", [Part(tensor, (width, b.width))])
        if key != "v":
            name = b.at(layer, f"self_attn.{key}_norm.weight")
            weights = {"weight": b.vector(f"{at}.{key}_norm", name, width)}
            part = b.node(
                "rms_norm", [part], f"{at}.{key}_normed", weights=weights, attrs={"eps": b.eps}
            )
        rows = b.node("concat", [rows, part], f"{at}.q{key}") if rows else part
    return rows


MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def mlp(
    b: Builder,
    layer: int,
    x: str,
    act: str,
    *,
    bias: bool = False,
    names: tuple[str, str, str] = MLP,
    scales: tuple[float, float, float] = (1.0, 1.0, 1.0),
    width: int = 0,
) -> str:
    """Gated feed-forward from separate gate and up projections; names and scales: of gate, up and
    down. width: its own F."""
    parts = [
        b.matrix(layer, f"{name}.weight", width or b.ff, b.width, scale=scale)
        for name, scale in zip(names[:2], scales[:2], strict=True)
    ]
    rows = b.linear(x, f"layers.{layer}.gate_up", parts, bias=bias)
    return _down(b, layer, rows, act, names[2], bias=bias, scale=scales[2], width=width)


def fused_mlp(
    b: Builder,
    layer: int,
    x: str,
    act: str,
    *,
    names: tuple[str, str] = ("mlp.gate_up_proj", "mlp.down_proj"),
    scale: float = 1.0,
) -> str:
    """Gated feed-forward from one gate-and-up projection; scale: of what it gives."""
    part = b.matrix(layer, f"{names[0]}.weight", 2 * b.ff, b.width)
    rows = b.linear(x, f"layers.{layer}.gate_up", [part])
    return _down(b, layer, rows, act, names[1], bias=False, scale=scale)


def _down(
    b: Builder, layer: int, x: str, act: str, name: str, *, bias: bool, scale: float, width: int = 0
) -> str:
    gated = b.node("glu", [x], f"layers.{layer}.glu", attrs={"act": act})
    part = b.matrix(layer, f"{name}.weight", b.width, width or b.ff, scale=scale)
    return b.linear(gated, f"layers.{layer}.down", [part], bias=bias)


def layer_norm(
    b: Builder, layer: int, x: str, name: str, tensor: str, *, offset: float = 0.0
) -> str:
    """A norm inside a layer, by the checkpoint's name for it."""
    return b.norm(x, f"layers.{layer}.{name}", b.at(layer, f"{tensor}.weight"), offset=offset)


def head(
    b: Stacked,
    x: str,
    *,
    tied: bool,
    softcap: float | None = None,
    offset: float = 0.0,
    norm: str = "model.norm",
    scale: float = 1.0,
    bias: bool = False,
    alias: str = "",
) -> FamilyModel:
    """Pick rows, final norm, logits; closes the graph. scale: of the logits, put into the norm.
    bias: of a head of its own. alias: another name of that head."""
    picked = b.node("select", [x, "rows"], "select")
    normed = b.norm(picked, "norm", f"{norm}.weight", offset=offset, scale=scale)
    if tied:
        logits = b.node("linear", [normed], "head", weights={"weight": "embed"})
    else:
        logits = b.linear(normed, "head", [Part(HEAD, (b.vocab, b.width), alias)], bias=bias)
    if softcap:
        logits = b.node("softcap", [logits], "softcap", attrs={"cap": float(softcap)})
    b.nodes[-1] = _renamed(b.nodes[-1], "logits")
    graph = Graph(
        "model",
        (Value("tokens", ("T",), "int32"), Value("rows", ("R",), "int32")),
        (Value("logits", ("R", b.vocab)),),
        tuple(b.nodes),
        b.weights,
        b.states,
        b.context,
    )
    return FamilyModel(graph, b.recipes, b.tied)


def _renamed(node: Node, output: str) -> Node:
    return Node(node.op, node.inputs, output, node.weights, node.attrs, node.state)
