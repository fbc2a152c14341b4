"""The ONNX faces of attention and shared_attention, and the model inputs they ask for.

Three styles, decided a node (`style`):

    gqa     GroupQueryAttention over the packed rows, rotary inside (norms come before it)
    rotary  RotaryEmbedding on q and k, then GroupQueryAttention (head sizes and rotary widths that
            the rotary of GroupQueryAttention refuses)
    plain   standard ops: the standard dialect, head sizes that are no multiple of 8, rotary axes,
            sinks, values inside keys, and shared_attention everywhere (GroupQueryAttention wants
            new keys)

Keys and values of the first two live in buffers [B, G, P, D] that are past and present at once (the
session binds one buffer to both). `plain` reads past buffers and a mask made by the session, and
hands out only the new rows [B, G, S, D]; shared_attention reads both, or the present buffers where
their owner is of the other styles. B sequences of S new tokens each, P rows of capacity.

Inputs of the model besides the graph's own, all made by the session:

    seqlens_k int32 [B]                   tokens after this step, minus one      (gqa, rotary)
    total_sequence_length int32 [1]       the largest of those, plus one         (gqa, rotary)
    positions int64 [B, S]                (int32 in the standard dialect)        (rotary, plain)
    cos.<rope>, sin.<rope> [P, R/2]       tables, scaled by rope_scale           (with rotary)
    cos_at.<rope>, sin_at.<rope> [B, S, R/2]   their values at the rows' positions (rotary axes)
    mask.<window> [B, 1, S, P + S]        0 where seen, very negative elsewhere  (plain)
    mask_present.<window> [B, 1, S, P]    the same over present buffers          (plain)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .elementwise import softcap_body
from .norm import emit_norm
from .onnx_ports import Dialect, Memory, NodePorts, Port
from .onnx_tools import MICROSOFT, Body, Call, EmitContext, Signature


def style(attrs: Mapping[str, Any], pairs: int, *, standard: bool) -> str:
    """How an attention with `pairs` rotary pairs a head is emitted: gqa, rotary or plain."""
    size = attrs["head_dim"]
    if standard or size % 8 or attrs["rope_axes"] or attrs.get("values"):
        return "plain"
    inside = size % 16 == 0 and pairs % 8 == 0 and not attrs["norm_last"]
    return "gqa" if not pairs or inside else "rotary"


def _pairs(call: Call) -> int:
    return call.weights["inv_freq"].shape[0] if "inv_freq" in call.weights else 0


def _style(call: Call, *, standard: bool) -> str:
    return style(call.attrs, _pairs(call), standard=standard or "sinks" in call.weights)


def rope_name(weights: Mapping[str, str], attrs: Mapping[str, Any]) -> str:
    """Name of the rotary tables of a node, from its weight names and scales; "" for none."""
    if "inv_freq" not in weights:
        return ""
    parts = [weights["inv_freq"]]
    if attrs["rope_scale"] != 1.0 or "inv_freq_long" in weights:
        parts.append(f"{attrs['rope_scale']:g}")
    if "inv_freq_long" in weights:
        parts += [weights["inv_freq_long"], f"{attrs['rope_long_scale']:g}"]
    if attrs["rope_axes"]:
        parts.append(f"axes-{attrs['rope_axes']}")
    if attrs["rope_growth"]:
        parts.append(f"grows-{attrs['rope_growth']:g}-{attrs['rope_length']}")
    return "|".join(parts)


def _rope(call: Call) -> str:
    return rope_name({slot: weight.name for slot, weight in call.weights.items()}, call.attrs)


def ports(call: Call, dialect: Dialect) -> NodePorts:
    """What an attention node adds to the model's interface."""
    how, sizes = _style(call, standard=dialect.standard), call.attrs
    inputs = turning_ports(call, dialect, apart=how != "gqa")
    if how == "plain":
        inputs.append(_mask_port(call, dialect, "mask"))
    else:
        inputs.append(Port("seqlens_k", "int32", ("B",)))
        inputs.append(Port("total_sequence_length", "int32", (1,)))
    made, rows = ("new", "S") if how == "plain" else ("present", "P")
    memory = tuple(
        Memory(
            call.state,
            _cache_port(f"past_{kv}.{call.state}", "P", sizes, dialect),
            _cache_port(f"{made}_{kv}.{call.state}", rows, sizes, dialect),
            how != "plain",
        )
        for kv in ("key", "value")[: 1 if sizes.get("values") else 2]
    )
    turned_inside = how == "gqa" and _pairs(call) > 0
    return NodePorts(tuple(inputs), memory, positions=not turned_inside, trees=how == "plain")


def shared_ports(call: Call, dialect: Dialect) -> NodePorts:
    """What a shared_attention node adds: nothing that remembers."""
    mask = _mask_port(call, dialect, _shared_mask(call, standard=dialect.standard))
    return NodePorts((*turning_ports(call, dialect, apart=True), mask))


def _cache_port(name: str, rows: str, sizes: Mapping[str, Any], dialect: Dialect) -> Port:
    return Port(name, dialect.real, ("B", sizes["kv_heads"], rows, sizes["head_dim"]))


def turning_ports(call: Call, dialect: Dialect, *, apart: bool) -> list[Port]:
    """Rotary inputs; apart: rotated outside GroupQueryAttention, which counts positions itself."""
    rope, pairs, real = _rope(call), _pairs(call), dialect.real
    if not rope:
        return []
    if call.attrs["rope_axes"]:
        return [Port(f"{table}_at.{rope}", real, ("B", "S", pairs)) for table in ("cos", "sin")]
    tables = [Port(f"{table}.{rope}", real, ("P", pairs)) for table in ("cos", "sin")]
    return [Port("positions", _index(dialect), ("B", "S"))] * apart + tables


def _index(dialect: Dialect) -> str:
    return "int32" if dialect.standard else "int64"


def _mask_port(call: Call, dialect: Dialect, kind: str) -> Port:
    seen = "K" if kind == "mask" else "P"
    return Port(f"{kind}.{call.attrs['window']}", dialect.real, ("B", 1, "S", seen))


def _shared_mask(call: Call, *, standard: bool) -> str:
    """Kind of mask: over past and new rows where the owner is plain, over present ones else."""
    lender = call.lender or call
    return "mask" if _style(lender, standard=standard) == "plain" else "mask_present"


def emit_attention(ctx: EmitContext, call: Call) -> None:
    """Dispatch on `style`."""
    how = _style(call, standard=ctx.standard)
    if how == "plain":
        _plain(ctx, call)
    else:
        _grouped(ctx, call, _rope(call), _pairs(call), inside=how == "gqa")


def _grouped(ctx: EmitContext, call: Call, rope: str, pairs: int, *, inside: bool) -> None:
    attrs = call.attrs
    tables = [f"cos.{rope}", f"sin.{rope}"] if rope else []
    if "q_norm" in call.weights or not inside:
        q, k, v = _split(ctx, call)
        if not attrs["norm_last"]:
            q, k = _headwise_norms(ctx, call, q, k)
        if not inside:
            q, k = (_rotary(ctx, call, x, n, tables, pairs) for x, n in _with_heads(call, q, k))
        if attrs["norm_last"]:
            q, k = _headwise_norms(ctx, call, q, k)
        rows = [q, k, v]
    else:
        rows = [call.inputs[0], "", ""]
    state = call.state
    ctx.caches[state] = f"present_key.{state}", f"present_value.{state}"
    past = [f"past_key.{state}", f"past_value.{state}", "seqlens_k", "total_sequence_length"]
    ctx.ops(
        "GroupQueryAttention",
        [*rows, *past, *(tables if inside else [])],
        [call.output, *ctx.caches[state]],
        domain=MICROSOFT,
        num_heads=attrs["heads"],
        kv_num_heads=attrs["kv_heads"],
        scale=attrs["scale"],
        do_rotary=int(inside and bool(rope)),
        local_window_size=attrs["window"] or -1,
        softcap=attrs["softcap"],
    )


def _with_heads(call: Call, q: str, k: str) -> tuple[tuple[str, int], tuple[str, int]]:
    return (q, call.attrs["heads"]), (k, call.attrs["kv_heads"])


def _split(ctx: EmitContext, call: Call) -> list[str]:
    """q, k, v as [B, S, heads * D]; q and k alone where values are inside keys."""
    size, heads, groups = (call.attrs[key] for key in ("head_dim", "heads", "kv_heads"))
    if call.attrs["values"]:
        widths = ctx.ints(heads * size, size)
        return ctx.ops("Split", [call.inputs[0], widths], [None, None], axis=-1)
    widths = ctx.ints(heads * size, groups * size, groups * size)
    return ctx.ops("Split", [call.inputs[0], widths], [None, None, None], axis=-1)


def _headwise_norms(ctx: EmitContext, call: Call, q: str, k: str) -> tuple[str, str]:
    return (
        _headwise_norm(ctx, call, q, "q_norm", call.attrs["heads"]),
        _headwise_norm(ctx, call, k, "k_norm", call.attrs["kv_heads"]),
    )


def _headwise_norm(ctx: EmitContext, call: Call, x: str, slot: str, heads: int) -> str:
    if slot not in call.weights:
        return x
    size = call.attrs["head_dim"]
    apart = ctx.op("Reshape", [x, ctx.ints(0, 0, heads, size)])
    unit = emit_norm(ctx, apart, call.weights[slot], call.attrs["qk_eps"], None)
    return ctx.op("Reshape", [unit, ctx.ints(0, 0, heads * size)])


def _rotary(ctx: EmitContext, call: Call, x: str, heads: int, tables: list[str], pairs: int) -> str:
    partial = 2 * pairs if 2 * pairs < call.attrs["head_dim"] else 0
    return ctx.op(
        "RotaryEmbedding", [x, "positions", *tables],
        domain=MICROSOFT, num_heads=heads, rotary_embedding_dim=partial,
    )  # fmt: skip


def _rotate_body(body: Body) -> None:
    """x [B, S, H, R], cos and sin [B, S, 1, R / 2] -> [B, S, H, R]."""
    a, b = body.ops("Split", ["x"], [None, None], axis=-1, num_outputs=2)
    left = body.op("Sub", [body.op("Mul", [a, "cos"]), body.op("Mul", [b, "sin"])])
    right = body.op("Add", [body.op("Mul", [b, "cos"]), body.op("Mul", [a, "sin"])])
    body.op("Concat", [left, right], "y", axis=-1)


def _turned(ctx: EmitContext, call: Call, x: str, tables: list[str]) -> str:
    """x [B, S, heads, D] rotated by standard ops; tables: cos and sin [B, S, 1, R / 2]."""
    if not tables:
        return x
    pairs = _pairs(call)
    rest = call.attrs["head_dim"] - 2 * pairs
    signature: Signature = (["x", "cos", "sin"], [])
    if not rest:
        return ctx.call("Rotate", [x, *tables], None, _rotate_body, signature)
    rotary, still = ctx.ops("Split", [x, ctx.ints(2 * pairs, rest)], [None, None], axis=-1)
    rotated = ctx.call("Rotate", [rotary, *tables], None, _rotate_body, signature)
    return ctx.op("Concat", [rotated, still], axis=-1)


def rope_inputs(ctx: EmitContext, call: Call) -> list[str]:
    """cos and sin of the rows as [B, S, 1, R / 2], none without rotary."""
    rope = _rope(call)
    if not rope:
        return []
    if call.attrs["rope_axes"]:
        rows = [f"{table}_at.{rope}" for table in ("cos", "sin")]
    else:
        rows = [ctx.op("Gather", [f"{t}.{rope}", "positions"]) for t in ("cos", "sin")]
    return [ctx.op("Unsqueeze", [row, ctx.ints(2)]) for row in rows]


def heads_apart(
    ctx: EmitContext, call: Call, x: str, heads: int, norm: str, tables: list[str]
) -> str:
    """x [B, S, heads * D] as [B, S, heads, D], normalised and rotated."""
    apart = ctx.op("Reshape", [x, ctx.ints(0, 0, heads, call.attrs["head_dim"])])
    if norm not in call.weights:
        return _turned(ctx, call, apart, tables)
    last = call.attrs.get("norm_last", False)
    apart = _turned(ctx, call, apart, tables) if last else apart
    apart = emit_norm(ctx, apart, call.weights[norm], call.attrs["qk_eps"], None)
    return apart if last else _turned(ctx, call, apart, tables)


def _plain(ctx: EmitContext, call: Call) -> None:
    groups, state = call.attrs["kv_heads"], call.state
    q, k, *v = _split(ctx, call)
    tables = rope_inputs(ctx, call)
    q = heads_apart(ctx, call, q, call.attrs["heads"], "q_norm", tables)
    k = heads_apart(ctx, call, k, groups, "k_norm", tables)
    k = ctx.op("Transpose", [k], f"new_key.{state}", perm=[0, 2, 1, 3])
    keys = ctx.op("Concat", [f"past_key.{state}", k], axis=2)  # [B, G, P + S, D]
    if v:
        rows = ctx.op("Reshape", [v[0], ctx.ints(0, 0, groups, call.attrs["head_dim"])])
        rows = ctx.op("Transpose", [rows], f"new_value.{state}", perm=[0, 2, 1, 3])
        values = ctx.op("Concat", [f"past_value.{state}", rows], axis=2)
    else:
        size, inside = call.attrs["head_dim"], call.attrs["values"]
        ends = ctx.ints(size - inside), ctx.ints(size), ctx.ints(3)
        values = ctx.op("Slice", [keys, *ends])
    ctx.caches[state] = keys, values
    _attended(ctx, call, q, "mask")


def emit_shared_attention(ctx: EmitContext, call: Call) -> None:
    """Standard ops over what the owner of the state has written, its new rows included."""
    q = heads_apart(
        ctx, call, call.inputs[0], call.attrs["heads"], "q_norm", rope_inputs(ctx, call)
    )
    _attended(ctx, call, q, _shared_mask(call, standard=ctx.standard))


def _attended(ctx: EmitContext, call: Call, q: str, mask: str) -> None:
    """q [B, S, H, D] over the cache of the node's state, or of its lender's."""
    attrs = call.attrs
    size, heads, groups = (attrs[key] for key in ("head_dim", "heads", "kv_heads"))
    width = attrs.get("values") or size
    keys, values = ctx.caches[(call.lender or call).state]
    swap = [0, 2, 1, 3]
    q = ctx.op("Transpose", [ctx.op("Mul", [q, ctx.scalar(attrs["scale"])])], perm=swap)
    q = ctx.op("Reshape", [q, ctx.ints(0, groups, -1, size)])  # [B, G, H / G * S, D]
    scores = ctx.op("MatMul", [q, ctx.op("Transpose", [keys], perm=[0, 1, 3, 2])])
    scores = ctx.op("Reshape", [scores, ctx.ints(0, heads, -1, 0)])  # [B, H, S, P + S]
    if attrs["softcap"]:
        signature = (["x"], ["cap"])
        scores = ctx.call("Softcap", [scores], None, softcap_body, signature, cap=attrs["softcap"])
    scores = ctx.op("Add", [scores, f"{mask}.{attrs['window']}"])
    shares = _shares(ctx, call, scores)
    shares = ctx.op("Reshape", [shares, ctx.ints(0, groups, -1, 0)])
    y = ctx.op("Reshape", [ctx.op("MatMul", [shares, values]), ctx.ints(0, heads, -1, width)])
    y = ctx.op("Transpose", [y], perm=swap)
    ctx.op("Reshape", [y, ctx.ints(0, 0, heads * width)], call.output)


def _shares(ctx: EmitContext, call: Call, scores: str) -> str:
    """Softmax of scores [B, H, S, n], beside the heads' sinks where there are some."""
    if "sinks" not in call.weights:
        return ctx.op("Softmax", [scores], axis=-1)
    name = call.weights["sinks"].name
    sinks = ctx.tensor(name, dims=(call.attrs["heads"], 1, 1))
    sinks = ctx.cast(sinks, ctx.placed(name).dtype, ctx.float_type)
    first = ctx.op("Slice", [scores, ctx.ints(0), ctx.ints(1), ctx.ints(-1)])
    column = ctx.op("Add", [ctx.op("Mul", [first, ctx.scalar(0.0)]), sinks])
    both = ctx.op("Softmax", [ctx.op("Concat", [scores, column], axis=-1)], axis=-1)
    return ctx.op("Slice", [both, ctx.ints(0), ctx.ints(-1), ctx.ints(-1)])


ONNX = {"attention": emit_attention, "shared_attention": emit_shared_attention}
PORTS = {"attention": ports, "shared_attention": shared_ports}
