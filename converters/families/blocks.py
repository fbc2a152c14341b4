"""The building blocks of decoder families: small functions that add nodes to a graph.

Value names end in ".y", weight names do not, so that the two never meet in one name space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
FULL, SLIDING = KINDS = ("full_attention", "sliding_attention")


@dataclass(frozen=True)
class Rotary:
    """Rotary weights of an attention node: slot -> weight name, and its attributes."""

    slots: dict[str, str]
    attrs: dict[str, Any]


NO_ROPE = Rotary({}, {})


class Stacked(Nodes):
    """Nodes of a stack of layers of width C, `width`."""

    def __init__(self, config: Stack, *, eps: float, context: int) -> None:
        super().__init__()
        self.width, self.layers = config.hidden_size, config.num_hidden_layers
        self.vocab, self.eps, self.context = config.vocab_size, eps, context
        self.states: dict[str, StateSpec] = {}

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
                part._replace(name=_bias_of(part.name), shape=part.shape[:1], alias="")
                for part in parts
            )
            weights["bias"] = self.weight(f"{label}_bias", Recipe(rows))
        return self.node("linear", [x], label, weights=weights)

    def norm(
        self, x: str, label: str, tensor: str, *, offset: float = 0.0, scale: float = 1.0
    ) -> str:
        """rms_norm over rows of C; `offset` 1 for families that store w - 1."""
        weight = self.vector(label, tensor, self.width, offset=offset, scale=scale)
        return self.node(
            "rms_norm", [x], label, weights={"weight": weight}, attrs={"eps": self.eps}
        )


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


def _at(layer: int, rest: str) -> str:
    return f"model.layers.{layer}.{rest}"


def pattern(every: int, layers: int, faults: list[str]) -> list[str]:
    """Sliding layers with a full one at every `every`-th."""
    if every < 1:
        faults.append(f"config 'sliding_window_pattern' is {every}, expected 1 or more")
        return [FULL] * layers
    return [SLIDING if (i + 1) % every else FULL for i in range(layers)]


def kind_of(window: int) -> str:
    """Layer type of a window size (0: none)."""
    return SLIDING if window else FULL


def window_of(window: int | None, faults: list[str]) -> int:
    """A configured window in tokens; null means none (0)."""
    if window is not None and not 0 < window < 1 << 31:
        faults.append(f"config 'sliding_window' is {window}, expected 1 or more, or null")
        return 0
    return window or 0


def typed_windows(
    kinds: Sequence[str], window: int | None, layers: int, faults: list[str]
) -> list[int]:
    """Window of each layer (0: none) from its type."""
    if len(kinds) != layers or set(kinds) - set(KINDS):
        faults.append(
            f"config 'layer_types' has {len(kinds)} entries of {sorted(set(kinds))[:8]}, expected "
            f"{layers} of {list(KINDS)}"
        )
        return [0] * layers
    if SLIDING in kinds and window is None:
        faults.append("config 'sliding_window' is null, expected a size: some layers slide")
        return [0] * layers
    size = window_of(window, faults)
    return [size if kind == SLIDING else 0 for kind in kinds]


def upper_windows(config: Any, faults: list[str]) -> list[int]:
    """Qwen's rule: layers from max_window_layers on slide, where use_sliding_window says so."""
    layers = config.num_hidden_layers
    window = config.sliding_window if config.use_sliding_window else None
    kinds = config.layer_types or [
        SLIDING if window is not None and i >= config.max_window_layers else FULL
        for i in range(layers)
    ]
    return typed_windows(kinds, window, layers, faults)


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
    return Rotary(slots, attrs)


def qkv(
    b: Builder,
    layer: int,
    x: str,
    *,
    bias: bool = False,
    scales: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> str:
    """Rows [q | k | v] from three projections, times `scales`."""
    widths = {"q": b.heads, "k": b.kv_heads, "v": b.kv_heads}
    parts = [
        Part(_at(layer, f"self_attn.{key}_proj.weight"), (heads * b.head_dim, b.width), scale=scale)
        for (key, heads), scale in zip(widths.items(), scales, strict=True)
    ]
    return b.linear(x, f"layers.{layer}.qkv", parts, bias=bias)


def fused_qkv(b: Builder, layer: int, x: str) -> str:
    """Rows [q | k | v] from one projection."""
    rows = (b.heads + 2 * b.kv_heads) * b.head_dim
    part = Part(_at(layer, "self_attn.qkv_proj.weight"), (rows, b.width))
    return b.linear(x, f"layers.{layer}.qkv", [part])


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
) -> str:
    """Attention over a new state "kv<layer>" [T, H * D]. A window counts the token itself. norms:
    what the checkpoint calls them."""
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
        attrs["qk_eps"] = b.eps
        for key, name in zip(("q_norm", "k_norm"), norms, strict=True):
            tensor = _at(layer, f"self_attn.{name}.weight")
            weights[key] = b.vector(f"layers.{layer}.{key}", tensor, b.head_dim, offset=qk_offset)
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
    shape = (b.width, b.heads * b.head_dim)
    part = Part(_at(layer, f"self_attn.{name}.weight"), shape, scale=scale)
    return b.linear(x, f"layers.{layer}.o", [part], bias=bias)


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
) -> str:
    """Gated feed-forward from separate gate and up projections; names and scales: of gate, up and
    down."""
    parts = [
        Part(_at(layer, f"{name}.weight"), (b.ff, b.width), scale=scale)
        for name, scale in zip(names[:2], scales[:2], strict=True)
    ]
    rows = b.linear(x, f"layers.{layer}.gate_up", parts, bias=bias)
    return _down(b, layer, rows, act, names[2], bias=bias, scale=scales[2])


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
    part = Part(_at(layer, f"{names[0]}.weight"), (2 * b.ff, b.width))
    rows = b.linear(x, f"layers.{layer}.gate_up", [part])
    return _down(b, layer, rows, act, names[1], bias=False, scale=scale)


def _down(b: Builder, layer: int, x: str, act: str, name: str, *, bias: bool, scale: float) -> str:
    gated = b.node("glu", [x], f"layers.{layer}.glu", attrs={"act": act})
    part = Part(_at(layer, f"{name}.weight"), (b.width, b.ff), scale=scale)
    return b.linear(gated, f"layers.{layer}.down", [part], bias=bias)


def layer_norm(
    b: Builder, layer: int, x: str, name: str, tensor: str, *, offset: float = 0.0
) -> str:
    """A norm inside a layer, by the checkpoint's name for it."""
    return b.norm(x, f"layers.{layer}.{name}", _at(layer, f"{tensor}.weight"), offset=offset)


def head(
    b: Stacked,
    x: str,
    *,
    tied: bool,
    softcap: float | None = None,
    offset: float = 0.0,
    norm: str = "model.norm",
    scale: float = 1.0,
) -> FamilyModel:
    """Pick rows, final norm, logits; closes the graph. scale: of the logits, put into the norm."""
    picked = b.node("select", [x, "rows"], "select")
    normed = b.norm(picked, "norm", f"{norm}.weight", offset=offset, scale=scale)
    if tied:
        logits = b.node("linear", [normed], "head", weights={"weight": "embed"})
    else:
        logits = b.linear(normed, "head", [Part(HEAD, (b.vocab, b.width))])
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


def pre_norm_layer(
    b: Builder,
    layer: int,
    x: str,
    rope: Rotary,
    *,
    act: str,
    qkv_bias: bool = False,
    o_bias: bool = False,
    mlp_bias: bool = False,
    fused: bool = False,
    **options: Any,
) -> str:
    """x + attention(norm(x)), then x + mlp(norm(x)): the Llama layer. options go to `attention`."""
    at = f"layers.{layer}"
    h = layer_norm(b, layer, x, "norm1", "input_layernorm")
    rows = fused_qkv(b, layer, h) if fused else qkv(b, layer, h, bias=qkv_bias)
    h = attention(b, layer, rows, rope, **options)
    x = b.add(x, output_projection(b, layer, h, bias=o_bias), f"{at}.add1")
    h = layer_norm(b, layer, x, "norm2", "post_attention_layernorm")
    h = fused_mlp(b, layer, h, act) if fused else mlp(b, layer, h, act, bias=mlp_bias)
    return b.add(x, h, f"{at}.add2")


def sandwich_layer(
    b: Builder, layer: int, x: str, rope: Rotary, *, act: str, **options: Any
) -> str:
    """Gemma's layer: norms before and after each half, all stored as w - 1."""
    at = f"layers.{layer}"
    h = layer_norm(b, layer, x, "norm1", "input_layernorm", offset=1.0)
    h = attention(b, layer, qkv(b, layer, h), rope, **options)
    h = output_projection(b, layer, h)
    h = layer_norm(b, layer, h, "norm1_after", "post_attention_layernorm", offset=1.0)
    x = b.add(x, h, f"{at}.add1")
    h = layer_norm(b, layer, x, "norm2", "pre_feedforward_layernorm", offset=1.0)
    h = mlp(b, layer, h, act)
    h = layer_norm(b, layer, h, "norm2_after", "post_feedforward_layernorm", offset=1.0)
    return b.add(x, h, f"{at}.add2")
