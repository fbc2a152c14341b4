"""Linear attention in place of attention: the layers of a decoder that `layer_types` names.

A checkpoint whose layers were converted, or that was trained so, keeps its family's config and
names with two keys more:

    "layer_types": ["linear_attention", "full_attention", ...]      one a layer
    "linear_attention": {"mode": "shifted", "features": 32, ...}    `LinearAttention`

and in each such layer, under model.layers.N.self_attn, besides the family's own tensors

    conv.weight [(H + 2G) * D, 1, width], conv.bias     behind the projections; not with conv 0
    decay_proj.weight [G, C], .bias [G]                 the bias with decay_bias; none without decay
    dt_proj.weight [G, C]                               mode mamba2s
    q_features.weight, k_features.weight [G * D, r]     with maps
    key_mean [G, D]                                     with key_mean
    beta, gamma [G]                                     mode shifted
    log_window [H]                                      with window

The layer's rotary embedding, head norms and scale stay (`kernels/linear_attention.py`); a window
and a soft cap of its logits do not mean anything any more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from ...graph import Graph, Node, Weight
from ...kernels.op import OpError
from ...kernels.ops import CATALOGUE
from ...kernels.ops_linear import MODES
from ...kernels.ops_recurrent import CONV_WIDTHS
from ...kernels.states import BorrowedState, ConvState, StateSpec
from .config import short, typed_values
from .recipe import FamilyModel, Part, Recipe

KEY, LINEAR, FULL = "linear_attention", "linear_attention", "full_attention"
EPS = {"square": 1e-6, "relu": 1e-6}  # added to the sum of weights, where nothing bounds it
_KEPT = (
    "heads", "kv_heads", "head_dim", "scale", "qk_eps", "rope_scale", "rope_long_scale",
    "rope_switch", "rope_axes", "rope_growth", "rope_length",
)  # fmt: skip


class LinearAttention(msgspec.Struct, frozen=True, kw_only=True):
    """The key "linear_attention" of a config.

    mode: `ops_linear.MODES`. features: r, of maps; null for the head's values themselves. chunk:
    tokens that are folded at once. conv: width of the convolution before it, 0 for none. window:
    softmax over the newest `chunk` to 2 `chunk` tokens beside the state.
    """

    mode: str = "square"
    features: int | None = None
    chunk: int = 64
    conv: int = 2
    decay: bool = True
    decay_bias: bool = True
    maps: bool = False
    key_mean: bool = False
    window: bool = False


def split(
    config: Mapping[str, Any], faults: list[str]
) -> tuple[Mapping[str, Any], list[int], LinearAttention]:
    """A config without linear layers, which layers these are, and what they are like."""
    kinds, given = config.get("layer_types"), config.get(KEY)
    rest = {key: value for key, value in config.items() if key != KEY}
    if not isinstance(kinds, list) or LINEAR not in kinds or not isinstance(given, dict):
        faults.append(
            f"config {KEY!r} is {short(given)} and 'layer_types' {short(kinds)}, expected an "
            f"object and a list of layers, some of them {LINEAR!r}"
        )
        return rest, [], LinearAttention()
    layers = [index for index, kind in enumerate(kinds) if kind == LINEAR]
    rest["layer_types"] = [FULL if kind == LINEAR else kind for kind in kinds]
    return rest, layers, read(given, faults)


def read(given: Mapping[str, Any], faults: list[str]) -> LinearAttention:
    """The typed key; what is wrong with it goes into `faults`."""
    fields = {field.name for field in msgspec.structs.fields(LinearAttention)}
    values, broken = typed_values(given, LinearAttention)
    faults += [f"{KEY}: {fault}" for fault in broken]
    faults += [f"{KEY}: key {key!r} is unknown" for key in sorted(set(given) - fields)]
    c = LinearAttention(**values)
    if c.mode not in MODES:
        faults.append(f"{KEY}: mode is {short(c.mode)}, expected one of {list(MODES)}")
        c = msgspec.structs.replace(c, mode="square")
    if c.conv and c.conv not in CONV_WIDTHS:
        faults.append(f"{KEY}: conv is {c.conv}, expected 0 or 2 to {CONV_WIDTHS[-1]}")
        c = msgspec.structs.replace(c, conv=0)
    if c.mode == "mamba2s" and c.decay_bias:
        faults.append(f"{KEY}: decay_bias with mode 'mamba2s', expected false")
    if c.features is not None and not c.maps:
        faults.append(f"{KEY}: features is {c.features} without maps, expected null or maps")
    return c


class _Layer:
    """The nodes, weights and states that come in place of one attention node."""

    def __init__(self, graph: Graph, node: Node, layer: int, c: LinearAttention) -> None:
        self.node, self.layer, self.c = node, layer, c
        self.nodes: list[Node] = []
        self.recipes: dict[str, Recipe] = {}
        self.states: dict[str, StateSpec] = {}
        self.attrs = CATALOGUE["attention"].check_attrs(node.attrs)
        self.groups, self.size = int(self.attrs["kv_heads"]), int(self.attrs["head_dim"])
        self.source = next(n for n in graph.nodes if n.output == node.inputs[0]).inputs[0]
        self.width = int(graph.shapes()[self.source][-1])

    def weight(self, label: str, tensor: str, *shape: int, flat: bool = False) -> str:
        name = f"layers.{self.layer}.{label}"
        part = Part(f"model.layers.{self.layer}.self_attn.{tensor}", shape)
        self.recipes[name] = Recipe((part,), flat=flat)
        return name

    def made(self, op: str, inputs: Sequence[str], label: str, **fields: Any) -> str:
        output = f"layers.{self.layer}.{label}.y"
        self.nodes.append(Node(op, tuple(inputs), output, **fields))
        return output

    def conv(self, x: str) -> str:
        """The convolution over the rows [q | k | v]."""
        width = self.c.conv
        if not width:
            return x
        channels = (int(self.attrs["heads"]) + 2 * self.groups) * self.size
        weights = {
            "weight": self.weight("conv", "conv.weight", channels, 1, width, flat=True),
            "bias": self.weight("conv_bias", "conv.bias", channels),
        }
        attrs = {"channels": channels, "width": width, "tail": self.c.chunk}
        state = f"conv{self.layer}"
        self.states[state] = ConvState(channels, width, self.c.chunk)
        return self.made("causal_conv", [x], "conv", weights=weights, attrs=attrs, state=state)

    def gates(self) -> str:
        """Rows of decays and steps; the layer's input where there are none."""
        names = ["decay"] * self.c.decay + ["dt"] * (self.c.mode == "mamba2s")
        if not names:
            return self.source
        at = f"model.layers.{self.layer}.self_attn."
        label = f"layers.{self.layer}.gates"
        parts = [Part(f"{at}{name}_proj.weight", (self.groups, self.width)) for name in names]
        self.recipes[label] = Recipe(tuple(parts))
        weights = {"weight": label}
        if self.c.decay and self.c.decay_bias and len(names) == 1:
            weights["bias"] = self.weight("gates_bias", "decay_proj.bias", self.groups)
        return self.made("linear", [self.source], "gates", weights=weights)

    def attention(self, x: str, gates: str) -> None:
        c, kept = self.c, dict(self.node.weights)
        features = c.features or self.size
        if c.maps:
            shape = (self.groups * self.size, features)
            for key in ("q", "k"):
                kept[f"{key}_map"] = self.weight(f"{key}_map", f"{key}_features.weight", *shape)
        if c.key_mean:
            kept["key_mean"] = self.weight("key_mean", "key_mean", self.groups, self.size)
        if c.mode == "shifted":
            for key in ("beta", "gamma"):
                kept[key] = self.weight(key, key, self.groups)
        attrs = {key: value for key, value in self.node.attrs.items() if key in _KEPT}
        attrs |= {"features": features, "mode": c.mode, "decay": c.decay, "chunk": c.chunk}
        if c.window:
            attrs["window"] = True
            kept["log_window"] = self.weight("log_window", "log_window", int(self.attrs["heads"]))
        if c.mode in EPS:
            attrs["eps"] = EPS[c.mode]
        op, state = CATALOGUE["linear_attention"], f"linear{self.layer}"
        made = Node(op.name, (x, gates), self.node.output, kept, attrs, state)
        if op.state_of is not None:
            self.states[state] = op.state_of(op.check_attrs(attrs))
        self.nodes.append(made)


def hybrid(
    model: FamilyModel, layers: Sequence[int], c: LinearAttention, faults: list[str]
) -> FamilyModel:
    """A model with linear attention in place of the attention of some layers (states "kv<N>"),
    whose keys and values no other layer reads."""
    graph, recipes = model.graph, dict(model.tensors)
    states, nodes = dict(graph.states), list[Node]()
    wanted = {f"kv{layer}": layer for layer in layers}
    lent = {s.owner: name for name, s in states.items() if isinstance(s, BorrowedState)}
    shared = sorted(set(wanted) & ({*lent, *lent.values()}))
    if shared:
        faults.append(f"{KEY}: layers {[wanted[name] for name in shared]} share keys and values")
        return model
    for node in graph.nodes:
        if node.op != "attention" or node.state not in wanted:
            nodes.append(node)
            continue
        if node.attrs.get("norm_last"):
            faults.append("attention norms behind the rotation, expected before it or none")
        if "sinks" in node.weights:
            faults.append(f"{KEY}: layer {wanted[node.state]} has sinks, expected none there")
        layer = _Layer(graph, node, wanted[node.state], c)
        layer.attention(layer.conv(node.inputs[0]), layer.gates())
        nodes += layer.nodes
        recipes |= layer.recipes
        del states[node.state]
        states |= layer.states
    used = {name for node in nodes for name in node.weights.values()}
    recipes = {name: recipe for name, recipe in recipes.items() if name in used}
    weights = {name: Weight(recipe.shape) for name, recipe in recipes.items()}
    made = graph.replace(nodes=tuple(nodes), weights=weights, states=states)
    try:
        _check(made)
    except OpError as error:
        faults.append(f"{KEY}: {error}")
        return model
    return replace(model, graph=made, tensors=recipes)


def _check(graph: Graph) -> None:
    """Raises OpError where a linear layer's sizes do not fit; the graph itself is checked later."""
    for node in graph.nodes:
        if node.op == LINEAR:
            op = CATALOGUE[node.op]
            attrs = op.check_attrs(node.attrs)
            weights = {slot: graph.weights[name].shape for slot, name in node.weights.items()}
            rows = (attrs["heads"] + 2 * attrs["kv_heads"]) * attrs["head_dim"]
            gates = attrs["kv_heads"] * (attrs["decay"] + (attrs["mode"] == "mamba2s"))
            op.infer([("T", rows), ("T", gates)], weights, attrs)
