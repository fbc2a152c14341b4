"""How timesteps act on rows: their embedding, and adaptive layer norm's shifts, scales and gates.

timestep   y = [cos(t f), sin(t f)],  f_i = 10000^(-i / (dim/2 - freq_shift))     (arXiv 2006.11239)
modulate   y = x (1 + scale) + shift                                              (arXiv 2212.09748)
gated_add  y = residual + gate x
add_row    y = x + row

A modulation row m [1, k C] has k chunks of C, which attributes name by number. With a table [k, C]
chunk i is m's chunk i (or m itself, if that has one) plus row i of the table (PixArt's
scale_shift_table, arXiv 2310.00426).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .lowering import Builder, Lower, Word, only_quantized, rows_of, stride_of, weight
from .onnx_tools import FLOAT, Call, EmitContext
from .operands import operands
from .quant import F32

# Of layer norms and modulations (`cpu/rows.py`). weight, bias, m, table: 0 for none. shift, scale:
# bytes to these chunks in m; shift_row, scale_row: bytes to these rows of the table.
PARTS = ("weight", "bias", "m", "table", "shift", "shift_row", "scale", "scale_row")
AFFINE = operands(
    "x", "x_stride", "y", "y_stride", "width", "eps", *PARTS, "scratch", "scratch_bytes",
)  # fmt: skip
GATED_ADD = operands(
    "residual", "x", "y", "stride", "width", "m", "table", "gate", "gate_row",
    "scratch", "scratch_bytes",
)  # fmt: skip
ADD_ROW = operands("x", "row", "y", "stride", "width")
TIMESTEP = operands("t", "t_stride", "y", "y_stride", "half", "frequencies")


def chunk(m: F32, weights: Mapping[str, Any], index: int, width: int) -> F32:
    """Chunk `index` of a modulation row, float32 [C]."""
    row = m[0] if m.shape[1] == width else m[0, index * width : (index + 1) * width]
    out: F32 = row + weights["table"][index] if "table" in weights else row
    return out


def frequencies(size: int, freq_shift: float) -> F32:
    """The size / 2 frequencies of a timestep's embedding."""
    half = size // 2
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # of absurd shifts
        exponent = np.arange(half, dtype=np.float32) / np.float32(half - freq_shift)
        out: F32 = np.exp(np.float32(-np.log(10000.0)) * exponent)
    return out


def timestep(inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any]) -> F32:
    """t float32 [N, 1] -> float32 [N, dim], cosines first."""
    angle = inputs[0] * frequencies(attrs["dim"], attrs["freq_shift"])
    return np.concatenate([np.cos(angle), np.sin(angle)], axis=-1)


def modulate(inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any]) -> F32:
    """x float32 [N, C], m float32 [1, k C] -> float32 [N, C]."""
    x, m = inputs
    shift = chunk(m, weights, attrs["shift"], x.shape[1])
    out: F32 = x * (1 + chunk(m, weights, attrs["scale"], x.shape[1])) + shift
    return out


def gated_add(inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any]) -> F32:
    """residual, x float32 [N, C], m float32 [1, k C] -> float32 [N, C]."""
    residual, x, m = inputs
    out: F32 = residual + chunk(m, weights, attrs["gate"], x.shape[1]) * x
    return out


def add_row(inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any]) -> F32:
    """x float32 [N, C], row float32 [1, C] -> float32 [N, C]."""
    return inputs[0] + inputs[1]


def _chunk_words(b: Builder, node: Any, name: str) -> dict[str, Word]:
    """Where the chunk that an attribute names lies, in m and in the table."""
    width, index = b.width(node.output), b.attrs(node)[name]
    whole = b.width(node.inputs[-1]) == width
    return {
        name: 0 if whole else 4 * index * width,
        f"{name}_row": index * stride_of(width) if "table" in node.weights else 0,
    }


def affine_words(b: Builder, norm: Any, modulated: Any) -> dict[str, Word]:
    """The operands `PARTS`, and eps, of a layer norm and a modulation; either may be None."""
    words: dict[str, Word] = {
        "weight": weight(norm, "weight") if norm else "",
        "bias": weight(norm, "bias") if norm else "",
        "eps": b.attrs(norm)["eps"] if norm else 0.0,
        "m": "", "table": "", "shift": 0, "shift_row": 0, "scale": 0, "scale_row": 0,
    }  # fmt: skip
    if modulated:
        words |= {"m": modulated.inputs[1], "table": rows_of(modulated, "table")}
        words |= _chunk_words(b, modulated, "shift") | _chunk_words(b, modulated, "scale")
    return words


def lower_affine(
    b: Builder, kernel: str, x: str, y: str, *, norm: Any = None, modulated: Any = None
) -> None:
    """A layer norm of rows, their modulation, or both in one pass."""
    y = b.floats(y)
    words: dict[str, Word] = {
        "x": x, "x_stride": b.stride(x), "y": y, "y_stride": b.stride(y), "width": b.width(y),
        "scratch": "@scratch", "scratch_bytes": "@scratch_bytes",
    }  # fmt: skip
    words |= affine_words(b, norm, modulated)
    b.scratch(2 * stride_of(b.width(y)))
    reads = [x, *([modulated.inputs[1]] if modulated else [])]
    in_place = x if b.is_last_use(x, y) else ""
    b.step(kernel, AFFINE, y, reads, words, in_place=in_place)


def norm_before(b: Builder, node: Any) -> Any:
    """The layer norm that a modulation takes in, None for none."""
    producer = b.producer(node.inputs[0])
    taken = producer is not None and producer.op == "layer_norm" and not b.exists(node.inputs[0])
    return producer if taken else None


def lower_modulate(b: Builder, node: Any) -> None:
    """modulate with the layer norm before it, unless products take both in."""
    if only_quantized(b, node.output):
        return
    norm = norm_before(b, node)
    x, kernel = (norm.inputs[0], "layer_norm") if norm else (node.inputs[0], "modulate")
    lower_affine(b, kernel, x, node.output, norm=norm, modulated=node)


def lower_gated_add(b: Builder, node: Any) -> None:
    """gated_add in one pass, into the residual's memory where nothing else reads that."""
    (residual, x, m), y = node.inputs, b.floats(node.output)
    words: dict[str, Word] = {
        "residual": residual, "x": x, "y": y, "stride": b.stride(y), "width": b.width(y),
        "m": m, "table": rows_of(node, "table"), **_chunk_words(b, node, "gate"),
        "scratch": "@scratch", "scratch_bytes": "@scratch_bytes",
    }  # fmt: skip
    b.scratch(stride_of(b.width(y)))
    in_place = residual if b.is_last_use(residual, y) else ""
    b.step("gated_add", GATED_ADD, y, [residual, x, m], words, in_place=in_place)


def lower_add_row(b: Builder, node: Any) -> None:
    """add_row, in place where nothing else reads the rows."""
    (x, row), y = node.inputs, b.floats(node.output)
    words: dict[str, Word] = {
        "x": x, "row": row, "y": y, "stride": b.stride(y), "width": b.width(y),
    }  # fmt: skip
    b.step("add_row", ADD_ROW, y, [x, row], words, in_place=x if b.is_last_use(x, y) else "")


def lower_timestep(b: Builder, node: Any) -> None:
    """timestep over constant frequencies."""
    t, y, attrs = node.inputs[0], b.floats(node.output), b.attrs(node)
    words: dict[str, Word] = {
        "t": t, "t_stride": b.stride(t), "y": y, "y_stride": b.stride(y), "half": attrs["dim"] // 2,
        "frequencies": b.constant(frequencies(attrs["dim"], attrs["freq_shift"])),
    }  # fmt: skip
    b.step("timestep", TIMESTEP, y, [t], words)


LOWER: dict[str, Lower] = {
    "timestep": lower_timestep, "modulate": lower_modulate, "gated_add": lower_gated_add,
    "add_row": lower_add_row,
}  # fmt: skip
REFERENCE = {
    "timestep": timestep, "modulate": modulate, "gated_add": gated_add, "add_row": add_row,
}  # fmt: skip


def table_of(call: Call) -> str:
    """The name of a node's table, "" for none."""
    return call.weights["table"].name if "table" in call.weights else ""


def scales_of(calls: Sequence[Call]) -> dict[tuple[str, str], frozenset[int]]:
    """Of the nodes that are modulated: by row and table, the chunks that only scales read."""
    found: dict[tuple[str, str], tuple[set[int], set[int]]] = {}
    for call in calls:
        scales, others = found.setdefault((call.inputs[-1], table_of(call)), (set(), set()))
        for name in {"shift", "scale", "gate"} & set(call.attrs):
            (scales if name == "scale" else others).add(call.attrs[name])
    return {key: frozenset(scales - others) for key, (scales, others) in found.items()}


def _split(ctx: EmitContext, call: Call, scales: frozenset[int]) -> None:
    """All chunks at once, with their rows of the table, and 1 added to those of `scales`."""
    row, width, table = call.inputs[-1], int(call.shapes[0][-1]), table_of(call)
    held = int(call.shapes[-1][-1]) // width
    count = call.weights["table"].shape[0] if table else held
    if held > 1:
        row = ctx.op("Reshape", [row, ctx.ints(*[0] * ctx.batch, held, width)])
    if table:
        row = ctx.op("Add", [row, ctx.floats(table)])
    if scales:
        ones = np.array([[index in scales] for index in range(count)], np.float32)
        row = ctx.op("Add", [row, ctx.reals(ones)])
    parts = [row]
    if count > 1:
        parts = ctx.ops("Split", [row], [None] * count, axis=-2, num_outputs=count)
    for index, part in enumerate(parts):
        ctx.made["chunk", call.inputs[-1], table, index] = part


def _chunk_of(ctx: EmitContext, call: Call, name: str) -> str:
    """A chunk of the modulation row, with its row of the table: [1, C]. Of nodes that are fused a
    chunk that only scales read is 1 larger."""
    index, width = call.attrs[name], int(call.shapes[0][-1])
    if ctx.fused:
        key = "chunk", call.inputs[-1], table_of(call), index
        if key not in ctx.made:
            _split(ctx, call, ctx.scales[call.inputs[-1], table_of(call)])
        return ctx.made[key]
    row = call.inputs[-1]
    if int(call.shapes[-1][-1]) != width:
        first, stop = ctx.ints(index * width), ctx.ints((index + 1) * width)
        row = ctx.op("Slice", [row, first, stop, ctx.ints(-1)])
    if "table" not in call.weights:
        return row
    table = ctx.floats(call.weights["table"].name)
    entry = ctx.op("Slice", [table, ctx.ints(index), ctx.ints(index + 1), ctx.ints(0)])
    return ctx.op("Add", [row, entry])


def _factor(ctx: EmitContext, call: Call) -> str:
    """1 + scale, [1, C]."""
    scale = _chunk_of(ctx, call, "scale")
    if ctx.fused and call.attrs["scale"] in ctx.scales[call.inputs[-1], table_of(call)]:
        return scale
    return ctx.op("Add", [scale, ctx.scalar(1.0)])


def emit_modulated_norm(ctx: EmitContext, norm: Call, call: Call) -> None:
    """A layer_norm without weights and its modulation: LayerNormalization whose weights are values,
    one a picture in batches, which onnxruntime computes from version 1.21 on."""
    weights = [_factor(ctx, call), _chunk_of(ctx, call, "shift")]
    ctx.op(
        "LayerNormalization", [norm.inputs[0], *weights], call.output,
        axis=-1, epsilon=norm.attrs["eps"], stash_type=FLOAT,
    )  # fmt: skip


def emit_modulate(ctx: EmitContext, call: Call) -> None:
    """Slices of the modulation row, Add, Mul, Add."""
    factor = _factor(ctx, call)
    scaled = ctx.op("Mul", [call.inputs[0], factor])
    ctx.op("Add", [scaled, _chunk_of(ctx, call, "shift")], call.output)


def emit_gated_add(ctx: EmitContext, call: Call) -> None:
    """A slice of the modulation row, Mul, Add."""
    gated = ctx.op("Mul", [call.inputs[1], _chunk_of(ctx, call, "gate")])
    ctx.op("Add", [call.inputs[0], gated], call.output)


def emit_add_row(ctx: EmitContext, call: Call) -> None:
    """Add, which repeats the row."""
    ctx.op("Add", call.inputs, call.output)


def emit_timestep(ctx: EmitContext, call: Call) -> None:
    """Mul, Cos, Sin, Concat in float32: angles go up to 1000, whose cosines float16 cannot tell."""
    row = frequencies(call.attrs["dim"], call.attrs["freq_shift"])
    t = ctx.cast(call.inputs[0], ctx.float_type, FLOAT)
    angle = ctx.op("Mul", [t, ctx.table(row)])
    waves = [ctx.op(kind, [angle]) for kind in ("Cos", "Sin")]
    if not ctx.half:
        ctx.op("Concat", waves, call.output, axis=-1)
        return
    ctx.op("Cast", [ctx.op("Concat", waves, axis=-1)], call.output, to=ctx.float_type)


ONNX = {
    "timestep": emit_timestep, "modulate": emit_modulate, "gated_add": emit_gated_add,
    "add_row": emit_add_row,
}  # fmt: skip
