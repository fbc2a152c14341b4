"""The ONNX face of attention, and the model inputs it asks for.

Three styles, decided a node (`style`):

    gqa     GroupQueryAttention over the packed rows, rotary inside
    rotary  RotaryEmbedding on q and k, then GroupQueryAttention (head sizes and rotary widths that
            the rotary of GroupQueryAttention refuses)
    plain   standard ops: the standard dialect, and head sizes that are no multiple of 8

Keys and values of the first two live in buffers [B, G, P, D] that are past and present at once (the
session binds one buffer to both). `plain` reads past buffers and a mask made by the session, and
hands out only the new rows [B, G, S, D]. B sequences of S new tokens each, P rows of capacity.

Inputs of the model besides tokens and rows, all made by the session:

    seqlens_k int32 [B]                   tokens after this step, minus one      (gqa, rotary)
    total_sequence_length int32 [1]       the largest of those, plus one         (gqa, rotary)
    positions int64 [B, S]                (int32 in the standard dialect)        (rotary, plain)
    cos.<rope>, sin.<rope> [P, R/2]       tables, scaled by rope_scale           (with rotary)
    mask.<window> [B, 1, S, P + S]        0 where seen, very negative elsewhere  (plain)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .elementwise import softcap_body
from .norm import emit_norm
from .onnx_tools import MICROSOFT, Body, Call, EmitContext, Signature


def style(attrs: Mapping[str, Any], pairs: int, *, standard: bool) -> str:
    """How a node with `pairs` rotary pairs a head is emitted: gqa, rotary or plain."""
    size = attrs["head_dim"]
    if standard or size % 8:
        return "plain"
    return "gqa" if not pairs or (size % 16 == 0 and pairs % 8 == 0) else "rotary"


def rope_name(weights: Mapping[str, str], attrs: Mapping[str, Any]) -> str:
    """Name of the rotary tables of a node, from its weight names and scales; "" for none."""
    if "inv_freq" not in weights:
        return ""
    parts = [weights["inv_freq"]]
    if attrs["rope_scale"] != 1.0 or "inv_freq_long" in weights:
        parts.append(f"{attrs['rope_scale']:g}")
    if "inv_freq_long" in weights:
        parts += [weights["inv_freq_long"], f"{attrs['rope_long_scale']:g}"]
    return "|".join(parts)


def emit_attention(ctx: EmitContext, call: Call) -> None:
    """Dispatch on `style`."""
    pairs = call.weights["inv_freq"].shape[0] if "inv_freq" in call.weights else 0
    how = style(call.attrs, pairs, standard=ctx.standard)
    rope = rope_name({slot: w.name for slot, w in call.weights.items()}, call.attrs)
    if how == "plain":
        _plain(ctx, call, rope)
    else:
        _grouped(ctx, call, rope, pairs, inside=how == "gqa")


def _grouped(ctx: EmitContext, call: Call, rope: str, pairs: int, *, inside: bool) -> None:
    attrs = call.attrs
    tables = [f"cos.{rope}", f"sin.{rope}"] if rope else []
    if "q_norm" in call.weights or not inside:
        q, k, v = _split(ctx, call)
        if "q_norm" in call.weights:
            q = _headwise_norm(ctx, call, q, "q_norm", attrs["heads"])
            k = _headwise_norm(ctx, call, k, "k_norm", attrs["kv_heads"])
        if not inside:
            q, k = (_rotary(ctx, call, x, n, tables, pairs) for x, n in _with_heads(call, q, k))
        rows = [q, k, v]
    else:
        rows = [call.inputs[0], "", ""]
    state = call.state
    past = [f"past_key.{state}", f"past_value.{state}", "seqlens_k", "total_sequence_length"]
    ctx.ops(
        "GroupQueryAttention",
        [*rows, *past, *(tables if inside else [])],
        [call.output, f"present_key.{state}", f"present_value.{state}"],
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
    """q, k, v as [B, S, heads * D]."""
    size, heads, groups = (call.attrs[key] for key in ("head_dim", "heads", "kv_heads"))
    widths = ctx.ints(heads * size, groups * size, groups * size)
    return ctx.ops("Split", [call.inputs[0], widths], [None, None, None], axis=-1)


def _headwise_norm(ctx: EmitContext, call: Call, x: str, slot: str, heads: int) -> str:
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


def _turned(ctx: EmitContext, call: Call, x: str, rope: str, pairs: int) -> str:
    """x [B, S, heads, D] rotated by standard ops."""
    if not rope:
        return x
    rows = [
        ctx.op("Unsqueeze", [ctx.op("Gather", [f"{t}.{rope}", "positions"]), ctx.ints(2)])
        for t in ("cos", "sin")
    ]
    rest = call.attrs["head_dim"] - 2 * pairs
    signature: Signature = (["x", "cos", "sin"], [])
    if not rest:
        return ctx.call("Rotate", [x, *rows], None, _rotate_body, signature)
    turning, still = ctx.ops("Split", [x, ctx.ints(2 * pairs, rest)], [None, None], axis=-1)
    turned = ctx.call("Rotate", [turning, *rows], None, _rotate_body, signature)
    return ctx.op("Concat", [turned, still], axis=-1)


def _plain(ctx: EmitContext, call: Call, rope: str) -> None:
    attrs, state = call.attrs, call.state
    size, heads, groups = (attrs[key] for key in ("head_dim", "heads", "kv_heads"))
    pairs = call.weights["inv_freq"].shape[0] if rope else 0
    parts = zip(_split(ctx, call), (heads, groups, groups), strict=True)
    q, k, v = (ctx.op("Reshape", [x, ctx.ints(0, 0, n, size)]) for x, n in parts)
    if "q_norm" in call.weights:
        q = emit_norm(ctx, q, call.weights["q_norm"], attrs["qk_eps"], None)
        k = emit_norm(ctx, k, call.weights["k_norm"], attrs["qk_eps"], None)
    q, k = _turned(ctx, call, q, rope, pairs), _turned(ctx, call, k, rope, pairs)
    swap = [0, 2, 1, 3]
    q = ctx.op("Transpose", [ctx.op("Mul", [q, ctx.scalar(attrs["scale"])])], perm=swap)
    q = ctx.op("Reshape", [q, ctx.ints(0, groups, -1, size)])  # [B, G, H / G * S, D]
    k = ctx.op("Transpose", [k], f"new_key.{state}", perm=swap)
    v = ctx.op("Transpose", [v], f"new_value.{state}", perm=swap)
    keys = ctx.op("Concat", [f"past_key.{state}", k], axis=2)  # [B, G, P + S, D]
    values = ctx.op("Concat", [f"past_value.{state}", v], axis=2)
    scores = ctx.op("MatMul", [q, ctx.op("Transpose", [keys], perm=[0, 1, 3, 2])])
    scores = ctx.op("Reshape", [scores, ctx.ints(0, heads, -1, 0)])  # [B, H, S, P + S]
    if attrs["softcap"]:
        signature = (["x"], ["cap"])
        scores = ctx.call("Softcap", [scores], None, softcap_body, signature, cap=attrs["softcap"])
    scores = ctx.op("Add", [scores, f"mask.{attrs['window']}"])
    shares = ctx.op("Softmax", [scores], axis=-1)
    shares = ctx.op("Reshape", [shares, ctx.ints(0, groups, -1, 0)])
    y = ctx.op("Reshape", [ctx.op("MatMul", [shares, values]), ctx.ints(0, heads, -1, size)])
    y = ctx.op("Transpose", [y], perm=swap)
    ctx.op("Reshape", [y, ctx.ints(0, 0, heads * size)], call.output)
