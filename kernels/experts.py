"""experts: each row goes through the few gated feed-forwards that its router picks.

    p = softmax(logits)                     over all E experts, float32
    A = the `active` experts of largest logit; of equal ones the first
    r_e = scale * p_e / (sum_{A} p if normalised else 1)
    y = sum_{e in A} r_e (down_e h_e + down_bias_e),  h_e = act(gate_e x) * (up_e x + shift)

With normalised weights this is also a softmax over the picked logits alone (arXiv 2101.03961,
2401.04088). limit > 0 clamps gate_e x to at most `limit` and up_e x to [-limit, limit], biases
included (gpt-oss).

gate_up [2EF, C] holds the gates of all experts in turn, then all ups; down [EC, F] the experts in
turn. Their products are those of `linear`, so with weights in codes x and h are quantized.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import isa
from .cpu.layout import (
    ACTS,
    EXPERT_HEAD,
    EXPERT_SUMS,
    GROUP,
    ROWS,
    TILE,
    TOKEN_BLOCK,
    blocks_of,
)
from .elementwise import activate
from .encodings import rows_of
from .experts_onnx import ONNX
from .linear import product, product_scratch
from .lowering import Builder, Lower, Word, kernel_at, stride_of, weight
from .op import OpError
from .operands import operands
from .quant import F32

# choices: for each row the picked experts, int64 [active], and their weights, float32 [active].
ROUTE = operands("logits", "stride", "experts", "active", "normalised", "scale", "choices",
                 "choice_stride", "scratch", "scratch_bytes")  # fmt: skip
# plan: int64, see `cpu/routing.py`.
PLAN = operands("choices", "choice_stride", "experts", "active", "plan")
# each: how many rows stand for a row of the step.
EACH = operands("x", "x_stride", "width", "blocks", "each", "offset", "y", "y_stride", "scratch",
                "scratch_bytes")  # fmt: skip
# groups: of 16 outputs of an expert, pairs of them where gated; group_bytes: of 16 packed rows.
# each: picks that read one row of x: `active`, or 1. coded: whether rows of x are int8 tiles.
# product: the kernel that multiplies; depth, past, every and kept are its own, see `LINEAR`.
EXPERTS = operands(
    "weights", "groups", "group_bytes", "experts", "x", "x_stride", "each", "coded", "y",
    "y_stride", "bias", "act", "limit", "shift", "plan", "scratch", "scratch_bytes", "ctrl",
    "product", "depth", "past", "every", "kept",
)  # fmt: skip
MIX = operands("parts", "stride", "active", "choices", "choice_stride", "y", "residual")

__all__ = ["EACH", "EXPERTS", "LOWER", "MIX", "ONNX", "PLAN", "REFERENCE", "ROUTE", "picked",
           "planned", "stacked_product"]  # fmt: skip


def picked(logits: F32, attrs: Mapping[str, Any]) -> tuple[NDArray[np.int64], F32]:
    """Router logits float32 [N, E] -> the picked experts [N, active], largest first, and what
    their answers are multiplied by, float32 [N, active]."""
    order = np.argsort(-logits, axis=1, kind="stable")[:, : attrs["active"]]
    top = np.take_along_axis(logits, order, axis=1)
    shares = np.exp(top - top[:, :1])
    among = shares if attrs["normalised"] else np.exp(logits - top[:, :1])
    total = among.sum(axis=1, keepdims=True, dtype=np.float32)
    out: F32 = np.float32(attrs["scale"]) * (shares / total)
    return order, out


def fed(x: F32, expert: int, weights: Mapping[str, Any], attrs: Mapping[str, Any]) -> F32:
    """Rows float32 [n, C] through one expert -> float32 [n, C]."""
    (_, width), count = weights["down"].shape, attrs["experts"]
    gates, ups = (slice(i * width, (i + 1) * width) for i in (expert, count + expert))
    outs = slice(expert * x.shape[1], (expert + 1) * x.shape[1])
    gate, up = (product(x, rows_of(weights["gate_up"], rows)) for rows in (gates, ups))
    if "gate_up_bias" in weights:
        gate, up = (gate + weights["gate_up_bias"][gates], up + weights["gate_up_bias"][ups])
    if limit := np.float32(attrs["limit"]):
        gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    hidden = activate(gate, attrs["act"]) * (up + np.float32(attrs["shift"]))
    y = product(hidden, rows_of(weights["down"], outs))
    return y + weights["down_bias"][outs] if "down_bias" in weights else y


def experts(inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any]) -> F32:
    """x float32 [N, C], logits float32 [N, E] -> float32 [N, C]."""
    x, logits = inputs
    chosen, shares = picked(logits, attrs)
    y = np.zeros_like(x)
    for expert in np.unique(chosen):
        rows, ranks = np.nonzero(chosen == expert)
        y[rows] += shares[rows, ranks, None] * fed(x[rows], int(expert), weights, attrs)
    return y


def lower_experts(b: Builder, node: Any) -> None:
    """Router, rows by expert, both products, and the sum of the answers; a residual sum right after
    it becomes part of that."""
    attrs, (x, logits) = b.attrs(node), node.inputs
    for slot in ("gate_up", "down"):
        name = node.weights[slot]
        if b.shared(name):
            raise OpError(f"experts: {slot} {name!r} is used by others")
    b.pair(node.weights["gate_up"])
    choices, plan = _routed(b, node, logits, attrs)
    count, active, rows = attrs["experts"], attrs["active"], b.rows(x)
    width = b.weight_shape(node.weights["down"])[1]
    hidden, parts = f"{node.output}#hidden", f"{node.output}#parts"
    b.buffer(hidden, rows, active * stride_of(width))
    b.buffer(parts, rows, active * stride_of(b.width(x)))
    words: dict[str, Word] = {
        "experts": count, "plan": plan, "scratch": "@scratch", "scratch_bytes": "@scratch_bytes",
        "ctrl": "@ctrl", "past": int(isa.reads_past_caches()), "act": ACTS[attrs["act"]],
        "limit": attrs["limit"], "shift": attrs["shift"],
    }  # fmt: skip
    stacked_product(b, node, "gate_up", x, b.stride(x), active, hidden, words)
    stacked_product(b, node, "down", hidden, stride_of(width), 1, parts, words)
    reader = b.only_reader(node.output)
    y, residual = node.output, ""
    if reader is not None and reader.op == "add":
        other = next((name for name in reader.inputs if name != node.output), "")
        if b.exists(other):
            y, residual = reader.output, other
            b.skip(y)
    b.floats(y)
    mixed: dict[str, Word] = {
        "parts": parts, "stride": b.stride(y), "active": active, "choices": choices,
        "choice_stride": b.stride(choices), "y": y, "residual": residual,
    }  # fmt: skip
    b.step(
        "mix_experts", MIX, y, [parts, choices, *filter(None, [residual])], mixed,
        in_place=residual if residual and b.is_last_use(residual, y) else "",
    )  # fmt: skip


def _routed(b: Builder, node: Any, logits: str, attrs: Mapping[str, Any]) -> tuple[str, str]:
    """The picks of each row, and which rows go to which expert."""
    by: dict[str, Word] = {"experts": attrs["experts"], "normalised": int(attrs["normalised"])}
    by |= {"active": attrs["active"], "scale": attrs["scale"]}
    where = logits, b.stride(logits)
    return planned(b, node.output, b.rows(logits), where, by)


def planned(
    b: Builder, name: str, rows: str, logits: tuple[str, int], by: Mapping[str, Word]
) -> tuple[str, str]:
    """`_routed` of logits that lie so many bytes apart, 0 for one row of a constant. by: experts,
    active, normalised, scale."""
    choices, plan = f"{name}#choices", f"{name}#plan"
    count, active = int(by["experts"]), int(by["active"])
    b.buffer(choices, rows, -(-12 * active // 64) * 64)
    b.buffer(plan, rows, 8 * active, more=8 * (2 * count + 2))
    b.scratch(8 * count)
    words: dict[str, Word] = {
        **by, "logits": logits[0], "stride": logits[1], "choices": choices,
        "choice_stride": b.stride(choices), "scratch": "@scratch",
        "scratch_bytes": "@scratch_bytes",
    }  # fmt: skip
    b.step("route", ROUTE, choices, [logits[0]] if logits[1] else [], words, rows=rows)
    keep = ("choices", "choice_stride", "experts", "active")
    words = {**{name: words[name] for name in keep}, "plan": plan}
    b.step("plan_experts", PLAN, plan, [choices], words, rows=rows)
    return choices, plan


def stacked_product(
    b: Builder, node: Any, slot: str, x: str, stride: int, each: int, y: str,
    words: Mapping[str, Word],
) -> None:  # fmt: skip
    """gate_up with its activation, or another matrix, for every pick. x: float rows, `stride` bytes
    apart."""
    matrix, gated, rows = node.weights[slot], slot == "gate_up", b.rows(node.inputs[0])
    encoding, (n, depth) = b.encoding(matrix), b.weight_shape(matrix)
    outputs, coded = n // int(words["experts"]), encoding.offset is not None
    if encoding.offset is not None:
        x, stride = _tiles(b, x, stride, depth, encoding.offset, node.inputs[0])
    b.scratch(EXPERT_HEAD + EXPERT_SUMS + TILE * stride + product_scratch(encoding, depth))
    b.step(
        "experts_gated" if gated else "experts_down", EXPERTS, y, [x, str(words["plan"])],
        {
            **words, "weights": weight(node, slot), "group_bytes": encoding.group_bytes(depth),
            "groups": outputs // (2 * ROWS if gated else ROWS), "x": x, "x_stride": stride,
            "each": each, "coded": int(coded), "y": y, "bias": weight(node, f"{slot}_bias"),
            "y_stride": stride_of(outputs // (2 if gated else 1)),
            "product": kernel_at(f"linear_{encoding.kernel}"),
            "depth": blocks_of(depth) if coded else depth, "every": encoding.every,
            "kept": encoding.kept,
        },
        rows=rows,
    )  # fmt: skip


def _tiles(
    b: Builder, x: str, stride: int, width: int, offset: int, source: str
) -> tuple[str, int]:
    """Every row quantized on its own: the buffer, and the bytes of a row in it."""
    blocks, rows = blocks_of(width), b.rows(source)
    size, count = -(-blocks * TOKEN_BLOCK // 64) * 64, b.stride(x) // stride
    tiles = b.buffer(f"{x}#each{offset}", rows, count * size)
    b.scratch(128 + 4 * GROUP)
    words: dict[str, Word] = {
        "x": x, "x_stride": stride, "width": width, "blocks": blocks, "each": count,
        "offset": offset, "y": tiles, "y_stride": size, "scratch": "@scratch",
        "scratch_bytes": "@scratch_bytes",
    }  # fmt: skip
    b.step("quantize_each", EACH, tiles, [x], words, rows=rows)
    return tiles, size


LOWER: dict[str, Lower] = {"experts": lower_experts}
REFERENCE = {"experts": experts}
