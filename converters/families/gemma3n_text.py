"""gemma3n_text: Gemma 3n's text, streams of which a layer computes one, sparse gates, shared keys.

Rows are several streams side by side. A layer predicts all of them from all, computes with the
active one, and corrects all by what came of it (AltUp, arXiv 2301.13310); beside attention stands a
product of low rank (LAuReL, arXiv 2411.07501); the gates of some layers keep what is far above
their mean (arXiv 2506.06644). With R(x) = tanh(W norm(x) / C), and z what a layer makes of P_a:

    P_i  = x_i + sum_j (A R(x_a))_ij x_j
    c_i  = P_i + (1 + (B R(z))_i) (z - P_a)
    x_i <- c_i + r                           for i > 0, r what `per_layer` makes of c_a; x_0 <- c_0
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from ... import limits
from . import blocks, layers, per_layer, sliding
from .config import Decoder, Schema, read_config, size_faults
from .recipe import F32, FamilyModel, Part, Recipe

GLOBAL_THETA, LOCAL_THETA = 1e6, 1e4
FLOOR, TINY = 1e-5, 1e-12  # mean squares that rows are taken to have at least
STREAMS = 16
CAPS = {"intermediate_size": 1 << 20, "laurel_rank": limits.TENSOR_DIM - 1}


class Config(Decoder, frozen=True, kw_only=True):
    """config.json of a Gemma 3n text model; lists by layer are read before."""

    head_dim: int = 256
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    sliding_window: int | None = 512
    layer_types: list[str] | None = None
    rope_local_base_freq: float | None = None
    final_logit_softcapping: float | None = 30.0
    vocab_size_per_layer_input: int = 262_144
    hidden_size_per_layer_input: int = 256
    num_kv_shared_layers: int = 15
    altup_num_inputs: int = 4
    altup_active_idx: int = 0
    laurel_rank: int = 64

    @property
    def attention_k_eq_v(self) -> bool:
        """Whether keys are values, too, as in Gemma 4."""
        return False


SCHEMA = Schema(
    "Gemma3nForCausalLM",
    fixed={
        "hidden_activation": ("gelu_pytorch_tanh",), "hidden_act": (None, "gelu_pytorch_tanh"),
        "altup_correct_scale": (True,), "use_bidirectional_attention": (None, False),
    },
    ignored=frozenset({"altup_coef_clip", "altup_lr_multiplier"}),
)  # fmt: skip


def build(raw: Mapping[str, Any], faults: list[str]) -> FamilyModel:
    """Graph and recipes of a config; what cannot be converted goes into `faults`."""
    raw, widths, sparse = _by_layer(raw, faults)
    c = read_config(raw, Config, SCHEMA, faults)
    b = blocks.Builder(c, head_dim=c.head_dim)
    kinds = list(c.layer_types or sliding.pattern(5, b.layers, faults))
    windows = sliding.typed_windows(kinds, c.sliding_window, b.layers, faults)
    kinds = [sliding.kind_of(window) for window in windows]
    shared = _shared(c, kinds, faults)
    wide, local = (
        own if own is not None else default
        for own, default in ((c.rope_theta, GLOBAL_THETA), (c.rope_local_base_freq, LOCAL_THETA))
    )
    turns = layers.typed_turning(b, c, windows, faults, theta=(wide, local))
    found = [
        per_layer.Kind(b.kv_heads, b.head_dim, window, turns[sliding.kind_of(window)])
        for window in windows
    ]
    count = _streams(c, faults)
    x = blocks.embedding(b, tied=c.tie_word_embeddings, scale=b.width**0.5)
    each = per_layer.inputs(b, c, x, faults)
    if not each or not count:
        return blocks.head(b, x, tied=c.tie_word_embeddings)  # faults say why
    x = _spread(b, x, count)
    first = b.layers - shared
    for index in range(b.layers):
        owner = index if index < first else first - 1 - kinds[:first][::-1].index(kinds[index])
        b.ff = widths[index % len(widths)] if widths else c.intermediate_size
        share = sparse[index % len(sparse)]
        x = _layer(b, c, index, x, found[index], owner, each, share)
    x = _joined(b, x, count)
    cap = blocks.softcap(c.final_logit_softcapping, "final_logit_softcapping", faults)
    b.eps *= count * count  # of the norm of a sum in place of a mean
    return blocks.head(b, x, tied=c.tie_word_embeddings, softcap=cap)


def _by_layer(
    raw: Mapping[str, Any], faults: list[str]
) -> tuple[dict[str, Any], list[int], list[float]]:
    """The config with one width, and what each layer has: widths (none where all have that one),
    and the share of gates that is cut."""
    config = dict(raw)
    widths = config.get("intermediate_size")
    shares = config.pop("activation_sparsity_pattern", None)
    count = config.get("num_hidden_layers")
    count = count if type(count) is int and 0 < count <= limits.LAYERS else 1
    if isinstance(widths, list):
        good = all(type(n) is int and 0 < n < limits.TENSOR_DIM for n in widths)
        if not good or len(widths) != count:
            faults.append(f"config 'intermediate_size' has {len(widths)} sizes, expected {count}")
            widths = [1] * count
        config["intermediate_size"] = max(widths)
    if shares is None:
        sparse = 10 if count > 10 else 0
        shares = [0.95] * sparse + [0.0] * (count - sparse)
    shares = shares if isinstance(shares, list) else [shares] * count
    if len(shares) != count or not all(type(p) in (int, float) and 0 <= p < 1 for p in shares):
        faults.append(
            f"config 'activation_sparsity_pattern' is {str(shares)[:60]}, expected {count} numbers "
            "from 0 to 1"
        )
        shares = [0.0] * count
    return config, widths if isinstance(widths, list) else [], [float(p) for p in shares]


def _shared(c: Config, kinds: list[str], faults: list[str]) -> int:
    """Layers at the end that have no keys of their own."""
    shared, count = c.num_kv_shared_layers, c.num_hidden_layers
    if not 0 <= shared < count or set(kinds[: count - shared]) != set(kinds):
        faults.append(
            f"config 'num_kv_shared_layers' is {shared}, expected fewer than {count} layers, "
            "behind one of each type that they have"
        )
        return 0
    return shared


def _streams(c: Config, faults: list[str]) -> int:
    """How many streams there are, 0 where faults say what is wrong."""
    count = c.altup_num_inputs
    if not 1 < count <= STREAMS or not 0 <= c.altup_active_idx < count or c.hidden_size % 16:
        faults.append(
            f"config 'altup_num_inputs' is {count}, 'altup_active_idx' {c.altup_active_idx} and "
            f"'hidden_size' {c.hidden_size}, expected 2 to {STREAMS} streams of which one is "
            "active, of a multiple of 16 channels"
        )
        return 0
    broken = size_faults(c, CAPS)
    faults += broken
    return 0 if broken else count


def _matched(b: blocks.Builder, x: str, like: str, label: str) -> str:
    """Rows in the size of others."""
    own = b.node("row_rms", [x], f"{label}_inverse", attrs={"floor": FLOOR, "inverse": True})
    return _sized(b, _gated(b, x, own, f"{label}_unit"), like, label)


def _sized(b: blocks.Builder, x: str, like: str, label: str, *, centred: bool = False) -> str:
    """Rows times the size of others, or times their deviation."""
    attrs = {"floor": TINY, "centred": centred}
    size = b.node("row_rms", [like], f"{label}_size", attrs=attrs)
    return _gated(b, x, size, label)


def _gated(b: blocks.Builder, x: str, by: str, label: str) -> str:
    return b.node("gate", [x, by], label, attrs={"act": "identity"})


def _stream(b: blocks.Builder, x: str, index: int, label: str) -> str:
    """One of the streams."""
    return b.node("columns", [x], label, attrs={"start": index * b.width, "count": b.width})


def _projected(b: blocks.Builder, x: str, like: str, kind: str, index: int) -> str:
    """A stream through a matrix of its own, in the size of another."""
    part = Part(f"model.altup_{kind}.{index - 1}.weight", (b.width, b.width))
    rows = b.linear(x, f"{kind}{index}", [part])
    return _matched(b, rows, like, f"{kind}{index}_matched")


def _spread(b: blocks.Builder, x: str, count: int) -> str:
    """Rows [T, A * C] of the embeddings [T, C]."""
    rows = x
    for index in range(1, count):
        made = _projected(b, x, x, "projections", index)
        rows = b.node("concat", [rows, made], f"streams{index}")
    return rows


def _joined(b: blocks.Builder, x: str, count: int) -> str:
    """The sum [T, C] of the streams, each through its own matrix but the first."""
    first = total = _stream(b, x, 0, "last0")
    for index in range(1, count):
        own = _stream(b, x, index, f"last{index}")
        made = _projected(b, own, first, "unembed_projections", index)
        total = b.add(total, made, f"joined{index}")
    return total


def _routed(b: blocks.Builder, index: int, x: str, count: int, label: str) -> str:
    """R(x) [T, A] of rows [T, C]."""
    at = f"layers.{index}.{label}"
    name = b.at(index, "altup.router_norm.weight")
    h = b.norm(x, f"{at}_norm", name, scale=1 / b.width)
    part = Part(b.at(index, "altup.modality_router.weight"), (count, b.width))
    rows = b.linear(h, f"{at}_router", [part])
    return b.node("softcap", [rows], f"{at}_routed", attrs={"cap": 1.0})


def _mixed(b: blocks.Builder, x: str, by: str, label: str, parts: list[Part], constant: F32) -> str:
    """Streams mixed by coefficients [I, J]: a product of `by`, and a constant."""
    weights = {
        "weight": b.weight(f"{label}_coefficients", Recipe(tuple(parts))),
        "bias": b.weight(f"{label}_constant", Recipe(values=constant.reshape(-1))),
    }
    rows = b.node("linear", [by], f"{label}_coefficients", weights=weights)
    return b.node("mix_streams", [x, rows], label, attrs={"streams": constant.shape[1]})


def _predicted(b: blocks.Builder, c: Config, index: int, x: str, count: int) -> str:
    """P: all streams from all, by the active one."""
    at = f"layers.{index}"
    by = _routed(b, index, _stream(b, x, c.altup_active_idx, f"{at}.active"), count, "predict")
    name = b.at(index, "altup.prediction_coefs.weight")
    parts = [Part(name, (count * count, count))]
    return _mixed(b, x, by, f"{at}.predicted", parts, np.eye(count, dtype=np.float32))


def _corrected(
    b: blocks.Builder, c: Config, index: int, x: str, by: str, label: str, made: Sequence[int],
    *, more: bool,
) -> str:  # fmt: skip
    """The streams `made` of rows [P | z]: c, or with `more` of rows [P | z | r] the next x."""
    count, active = c.altup_num_inputs, c.altup_active_idx
    step = np.zeros(count + 1 + more, np.float32)  # z - P_a
    step[[active, count]] = -1, 1
    constant = np.tile(step, (len(made), 1))
    for row, stream in enumerate(made):
        constant[row, stream] += 1
        constant[row, count + 1 :] = stream > 0
    whole = Part(b.at(index, "altup.correction_coefs.weight"), (count, count))
    parts = [whole._replace(rows=(i, i + 1), scale=float(sign)) for i in made for sign in step]
    return _mixed(b, x, by, f"layers.{index}.{label}", parts, constant)


def _layer(
    b: blocks.Builder, c: Config, index: int, x: str, kind: per_layer.Kind, owner: int, each: str,
    sparse: float,
) -> str:  # fmt: skip
    """sparse: the share of gates that is cut."""
    at, count, active = f"layers.{index}", c.altup_num_inputs, c.altup_active_idx
    x = _predicted(b, c, index, x, count)
    z = _answer(b, c, index, _stream(b, x, active, f"{at}.own"), kind, owner, sparse)
    by = _routed(b, index, z, count, "correct")
    x = b.node("concat", [x, z], f"{at}.answered")
    rows = _corrected(b, c, index, x, by, "corrected", [active], more=False)
    rows = _scaled(b, rows, f"{at}.scaled", b.at(index, "altup.correct_output_scale"))
    rows = per_layer.taken_in(b, index, rows, each, c.hidden_size_per_layer_input)
    x = b.node("concat", [x, rows], f"{at}.taken_in")
    return _corrected(b, c, index, x, by, "streams", range(count), more=True)


def _scaled(b: blocks.Builder, x: str, label: str, tensor: str) -> str:
    """Rows times a vector of the checkpoint: normed by it, then in their own size again."""
    weights = {"weight": b.vector(label, tensor, b.width)}
    unit = b.node("rms_norm", [x], f"{label}_unit", weights=weights, attrs={"eps": TINY})
    return _sized(b, unit, x, label)


def _answer(
    b: blocks.Builder, c: Config, index: int, x: str, kind: per_layer.Kind, owner: int,
    sparse: float,
) -> str:  # fmt: skip
    """z: what a layer makes of the active stream."""
    at = f"layers.{index}"
    normed = blocks.layer_norm(b, index, x, "norm1", "input_layernorm")
    rank = c.laurel_rank
    h = b.linear(normed, f"{at}.laurel_left",
                 [b.matrix(index, "laurel.linear_left.weight", rank, b.width)])  # fmt: skip
    h = b.linear(h, f"{at}.laurel_right",
                 [b.matrix(index, "laurel.linear_right.weight", b.width, rank)])  # fmt: skip
    h = blocks.layer_norm(b, index, h, "norm_laurel", "laurel.post_laurel_norm")
    beside = b.add(normed, h, f"{at}.laurel")
    h = per_layer.attended(b, c, index, normed, kind, owner)
    h = blocks.output_projection(b, index, h, bias=c.attention_bias)
    h = blocks.layer_norm(b, index, h, "norm1_after", "post_attention_layernorm")
    x = b.add(b.add(x, h, f"{at}.add1"), beside, f"{at}.add1_laurel")
    half = b.weight("half", Recipe(values=np.full(1, 2.0**-0.5, np.float32)))
    whole = {"every": max(1, b.context), "width": b.width}
    x = b.node("scale_by_position", [x], f"{at}.halved", weights={"weight": half}, attrs=whole)
    h = blocks.layer_norm(b, index, x, "norm2", "pre_feedforward_layernorm")
    h = _sparse_mlp(b, index, h, sparse) if sparse else blocks.mlp(b, index, h, "gelu_tanh")
    h = blocks.layer_norm(b, index, h, "norm2_after", "post_feedforward_layernorm")
    return b.add(x, h, f"{at}.add2")


def _sparse_mlp(b: blocks.Builder, index: int, x: str, sparse: float) -> str:
    """Gated feed-forward whose gates are what is above their mean by so many deviations that of a
    normal distribution `sparse` are not."""
    at, cut = f"layers.{index}", NormalDist().inv_cdf(sparse)
    gate, up = (
        b.linear(x, f"{at}.{key}", [b.matrix(index, f"mlp.{key}_proj.weight", b.ff, b.width)])
        for key in ("gate", "up")
    )
    weights = {
        "weight": b.weight(f"ones_{b.ff}", Recipe(values=np.ones(b.ff, np.float32))),
        "bias": b.weight(f"cut_{sparse}_{b.ff}", Recipe(values=np.full(b.ff, -cut, np.float32))),
    }
    rows = b.node("layer_norm", [gate], f"{at}.gate_unit", weights=weights, attrs={"eps": TINY})
    rows = b.activation(rows, f"{at}.gate_above", "relu")
    rows = _sized(b, rows, gate, f"{at}.gate_sparse", centred=True)
    rows = b.node("concat", [rows, up], f"{at}.gate_up")
    rows = b.node("glu", [rows], f"{at}.glu", attrs={"act": "gelu_tanh"})
    return b.linear(rows, f"{at}.down", [b.matrix(index, "mlp.down_proj.weight", b.width, b.ff)])
