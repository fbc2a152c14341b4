"""Small ops: glu (gated activations), activation, xielu, add, select (rows), softcap.

glu         y = act(x[:, :F]) * x[:, F:]       act: silu | gelu | gelu_tanh (arXiv 2002.05202)
activation  y = act(x)                         besides: relu | quick_gelu, x sigmoid(1.702 x)
                                               | relu2, relu(x)^2 (arXiv 2109.08668)
xielu       y = a x^2 + beta x                       for x > 0                (arXiv 2411.13010)
                b (expm1(min(x, eps)) - x) + beta x  otherwise
            with a = softplus(w_0), b = beta + softplus(w_1); w, beta, eps are the weight [4]
add         y = a + b
select      y[r] = x[rows[r]]
softcap     y = cap * tanh(x / cap)            (Gemma 2, arXiv 2408.00118)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .cpu.layout import ACTS
from .lowering import Builder, Lower, Word, only_quantized, weight
from .onnx_tools import Body, Call, EmitContext, NodeList, Signature
from .operands import operands
from .quant import F32

GLU = operands("x", "x_stride", "width", "act", "y", "y_stride", "scratch", "scratch_bytes")
ACTIVATION = operands("x", "y", "stride", "act")
XIELU = operands("x", "y", "stride", "weight")
ADD = operands("a", "b", "y", "stride", "width")
COPY = operands("x", "x_stride", "y", "y_stride", "width")
SELECT = operands("x", "stride", "rows", "y", "row_bytes")
SOFTCAP = operands("x", "x_stride", "y", "y_stride", "width", "cap")

_erf = np.vectorize(math.erf, otypes=[np.float32])


def activate(x: F32, act: str) -> F32:
    """One of `ops.POINTWISE`, elementwise float32."""
    if act == "relu":
        return np.maximum(x, np.float32(0))
    if act == "relu2":
        return np.square(np.maximum(x, np.float32(0)))
    if act in ("silu", "quick_gelu"):
        slope = np.float32(1.702 if act == "quick_gelu" else 1.0)
        with np.errstate(over="ignore"):
            out: F32 = x / (1 + np.exp(-slope * x))
            return out
    if act == "gelu":
        out = (x * 0.5 * (1 + _erf(x * math.sqrt(0.5)))).astype(np.float32)
        return out
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    out = (0.5 * x * (1 + np.tanh(inner))).astype(np.float32)
    return out


def glu(inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any]) -> F32:
    """x float32 [T, 2F], gate columns first -> float32 [T, F]."""
    gate, up = np.split(inputs[0], 2, axis=-1)
    return activate(gate, attrs["act"]) * up


def activation(inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any]) -> F32:
    """x float32 of any shape."""
    return activate(inputs[0], attrs["act"])


def xielu(inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any]) -> F32:
    """x float32 of any shape, weight float32 [4] -> the same shape."""
    (x,), (first, second, beta, eps) = inputs, np.asarray(weights["weight"], np.float32)
    zero = np.float32(0)
    rise, fall = np.logaddexp(zero, first), beta + np.logaddexp(zero, second)
    below = fall * (np.expm1(np.minimum(x, eps)) - x)
    out: F32 = np.where(x > 0, rise * np.square(np.maximum(x, zero)), below) + beta * x
    return out


def add(inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any]) -> F32:
    """Two float32 arrays of one shape."""
    return inputs[0] + inputs[1]


def select(inputs: Sequence[Any], weights: Mapping[str, Any], attrs: Mapping[str, Any]) -> F32:
    """x float32 [T, C], rows int32 [R] -> float32 [R, C]."""
    picked: F32 = inputs[0][inputs[1]]
    return picked


def softcap(inputs: Sequence[F32], weights: Mapping[str, Any], attrs: Mapping[str, Any]) -> F32:
    """x float32 of any shape."""
    cap = np.float32(attrs["cap"])
    out: F32 = cap * np.tanh(inputs[0] / cap)
    return out


def lower_glu(b: Builder, node: Any) -> None:
    """glu, where the product before it did not take it in."""
    x, y = node.inputs[0], b.floats(node.output)
    words = {
        "x": x, "x_stride": b.stride(x), "width": b.width(y), "act": ACTS[b.attrs(node)["act"]],
        "y": y, "y_stride": b.stride(y), "scratch": "@scratch", "scratch_bytes": "@scratch_bytes",
    }  # fmt: skip
    b.scratch(256)
    b.step("glu", GLU, y, [x], words)


def lower_activation(b: Builder, node: Any) -> None:
    """activation, in place where nothing else reads its input, unless products take it in."""
    if only_quantized(b, node.output):
        return
    x, y = node.inputs[0], b.floats(node.output)
    words: dict[str, Word] = {
        "x": x, "y": y, "stride": b.stride(y), "act": ACTS[b.attrs(node)["act"]],
    }  # fmt: skip
    in_place = x if b.is_last_use(x, y) else ""
    b.step("activation", ACTIVATION, y, [x], words, in_place=in_place)


def lower_xielu(b: Builder, node: Any) -> None:
    """xielu, in place where nothing else reads its input."""
    x, y = node.inputs[0], b.floats(node.output)
    words = {"x": x, "y": y, "stride": b.stride(y), "weight": weight(node, "weight")}
    in_place = x if b.is_last_use(x, y) else ""
    b.step("xielu", XIELU, y, [x], words, in_place=in_place)


def lower_add(b: Builder, node: Any) -> None:
    """add_rows: both summands have the sum's stride."""
    (left, right), y = node.inputs, b.floats(node.output)
    words = {"a": left, "b": right, "y": y, "stride": b.stride(y), "width": b.width(y)}
    b.step("add_rows", ADD, y, [left, right], words)


def lower_select(b: Builder, node: Any) -> None:
    """select: as many rows as the selection has."""
    (x, rows), y = node.inputs, b.floats(node.output)
    stride = b.stride(y)
    words = {"x": x, "stride": stride, "rows": rows, "y": y, "row_bytes": stride}
    b.step("select", SELECT, y, [x], words)


def lower_softcap(b: Builder, node: Any) -> None:
    """softcap by rows."""
    x, y = node.inputs[0], b.floats(node.output)
    words = {
        "x": x, "x_stride": b.stride(x), "y": y, "y_stride": b.stride(y), "width": b.width(y),
        "cap": b.attrs(node)["cap"],
    }  # fmt: skip
    b.step("softcap", SOFTCAP, y, [x], words)


LOWER: dict[str, Lower] = {
    "glu": lower_glu, "activation": lower_activation, "xielu": lower_xielu, "add": lower_add,
    "select": lower_select, "softcap": lower_softcap,
}  # fmt: skip
REFERENCE = {
    "glu": glu, "activation": activation, "xielu": xielu, "add": add, "select": select,
    "softcap": softcap,
}  # fmt: skip


def active(nodes: NodeList, x: str, act: str, slope: str = "", out: str | None = None) -> str:
    """act(x) in standard ops; slope: the scalar 1.702, for quick_gelu."""
    if act == "relu":
        return nodes.op("Relu", [x], out)
    if act == "relu2":
        above = nodes.op("Relu", [x])
        return nodes.op("Mul", [above, above], out)
    if act in ("silu", "quick_gelu"):
        inner = nodes.op("Mul", [x, slope]) if slope else x
        return nodes.op("Mul", [x, nodes.op("Sigmoid", [inner])], out)
    return nodes.op("Gelu", [x], out, approximate="tanh" if act == "gelu_tanh" else "none")


def _glu_body(act: str) -> Callable[[Body], None]:
    def define(body: Body) -> None:
        gate, up = body.ops("Split", ["x"], [None, None], axis=-1, num_outputs=2)
        body.op("Mul", [active(body, gate, act), up], "y")

    return define


def emit_activation(ctx: EmitContext, call: Call) -> None:
    """Relu (and its square), Gelu, or Sigmoid and Mul."""
    act = call.attrs["act"]
    slope = ctx.scalar(1.702) if act == "quick_gelu" else ""
    active(ctx, call.inputs[0], act, slope, call.output)


def _xielu_body(body: Body) -> None:
    """x of any shape, weight [4], both in the activations' dtype."""
    first, second, beta, eps = (
        body.op("Slice", ["weight", body.const([at]), body.const([at + 1])]) for at in range(4)
    )
    low = body.op("Exp", [body.op("Min", ["x", eps])])
    low = body.op("Sub", [body.op("Sub", [low, body.activation(body.const(1.0))]), "x"])
    above = body.op("Relu", ["x"])
    high = body.op("Mul", [body.op("Softplus", [first]), body.op("Mul", [above, above])])
    over = body.op("Greater", ["x", body.activation(body.const(0.0))])
    fall = body.op("Mul", [body.op("Softplus", [second]), low])
    fall = body.op("Add", [fall, body.op("Mul", [beta, low])])
    bent = body.op("Where", [over, high, fall])
    body.op("Add", [bent, body.op("Mul", [beta, "x"])], "y")


def emit_xielu(ctx: EmitContext, call: Call) -> None:
    """Function Xielu."""
    weight = ctx.floats(call.weights["weight"].name)
    signature: Signature = (["x", "weight"], [])
    ctx.call("Xielu", [call.inputs[0], weight], call.output, _xielu_body, signature)


def emit_glu(ctx: EmitContext, call: Call) -> None:
    """Function Glu_<act>: Split, then Sigmoid and Mul or Gelu, then Mul."""
    act = call.attrs["act"]
    ctx.call(f"Glu_{act}", call.inputs, call.output, _glu_body(act), (["x"], []))


def emit_add(ctx: EmitContext, call: Call) -> None:
    """Add (the driver merges it with a following rms_norm, see `norm.emit_add_norm`)."""
    ctx.op("Add", call.inputs, call.output)


def emit_select(ctx: EmitContext, call: Call) -> None:
    """Gather over the rows of all sequences: [B, S, C] seen as [B * S, C]."""
    flat = ctx.op("Reshape", [call.inputs[0], ctx.ints(-1, int(call.shapes[0][-1]))])
    ctx.op("Gather", [flat, call.inputs[1]], call.output, axis=0)


def softcap_body(body: Body) -> None:
    """y = cap * tanh(x / cap)."""
    cap = body.activation(body.attribute("cap"))
    body.op("Mul", [body.op("Tanh", [body.op("Div", ["x", cap])]), cap], "y")


def emit_softcap(ctx: EmitContext, call: Call) -> None:
    """Function Softcap: Div, Tanh, Mul."""
    ctx.call(
        "Softcap", call.inputs, call.output, softcap_body, (["x"], ["cap"]), cap=call.attrs["cap"]
    )


ONNX = {
    "glu": emit_glu, "activation": emit_activation, "xielu": emit_xielu, "add": emit_add,
    "select": emit_select, "softcap": emit_softcap,
}  # fmt: skip
