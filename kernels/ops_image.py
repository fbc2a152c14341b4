"""Rows of the catalogue that encoders, diffusion transformers, UNets and image decoders add.

Pictures are rows too: [H·W, C], row y·W + x is the pixel (or latent, or token) at (x, y). Ops that
look at neighbours have the grid as attributes `height` and `width`, those of what they read. One
graph computes one picture; captions have as many rows as they have tokens, so nothing is padded
and nothing masked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .op import Attr, Attrs, Op, Shape, need
from .ops_text import ACTIVATIONS

POINTWISE = (*ACTIVATIONS, "relu", "relu2", "quick_gelu")  # what `activation` computes
SIDE = 1 << 15  # pixels that a side of a grid may have

Sizes = Mapping[str, tuple[int, ...]]


def _vector(op: str, slot: str, weights: Sizes, size: object) -> None:
    """A weight that may be absent is a vector of `size`."""
    if slot in weights:
        need(weights[slot] == (size,), f"{op}: {slot} {weights[slot]}, expected ({size},)")


def _width(op: str, x: Shape) -> int:
    need(len(x) == 2, f"{op}: shape {x}, expected rows [N, C]")
    return int(x[1])


def _layer_norm(inputs: Sequence[Shape], weights: Sizes, attrs: Attrs) -> Shape:
    (x,) = inputs
    width = _width("layer_norm", x)
    _vector("layer_norm", "weight", weights, width)
    _vector("layer_norm", "bias", weights, width)
    need("weight" in weights or "bias" not in weights, "layer_norm: a bias without a weight")
    need(attrs["eps"] > 0, f"layer_norm: eps is {attrs['eps']}, expected > 0")
    return x


def _group_norm(inputs: Sequence[Shape], weights: Sizes, attrs: Attrs) -> Shape:
    (x,), groups = inputs, attrs["groups"]
    width = _width("group_norm", x)
    need(0 < groups and width % groups == 0, f"group_norm: {groups} groups of {width} channels")
    _vector("group_norm", "weight", weights, width)
    _vector("group_norm", "bias", weights, width)
    need(attrs["eps"] > 0, f"group_norm: eps is {attrs['eps']}, expected > 0")
    return x


def _activation(inputs: Sequence[Shape], weights: Sizes, attrs: Attrs) -> Shape:
    act = attrs["act"]
    need(act in POINTWISE, f"activation: act is {act!r}, expected one of {POINTWISE}")
    return tuple(inputs[0])


def _xielu(inputs: Sequence[Shape], weights: Sizes, attrs: Attrs) -> Shape:
    need(weights["weight"] == (4,), f"xielu: weight {weights['weight']}, expected (4,)")
    return tuple(inputs[0])


def _chunks(
    op: str, x: Shape, m: Shape, weights: Sizes, attrs: Attrs, names: Sequence[str]
) -> None:
    """Whether the modulation rows `m` (and the table) have the chunks that attributes name."""
    width = _width(op, x)
    held = _width(op, m)
    need(m[0] == 1, f"{op}: modulation of {m[0]} rows, expected 1")
    need(held % width == 0, f"{op}: modulation of {held} values for rows of {width}")
    chunks = held // width
    if "table" in weights:
        table = weights["table"]
        need(
            len(table) == 2 and table[1] == width and chunks in (1, table[0]),
            f"{op}: table {table} for {chunks} chunks of {width}",
        )
        chunks = table[0]
    for name in names:
        need(0 <= attrs[name] < chunks, f"{op}: {name} is chunk {attrs[name]} of {chunks}")


def _modulate(inputs: Sequence[Shape], weights: Sizes, attrs: Attrs) -> Shape:
    x, m = inputs
    _chunks("modulate", x, m, weights, attrs, ("shift", "scale"))
    return x


def _gated_add(inputs: Sequence[Shape], weights: Sizes, attrs: Attrs) -> Shape:
    residual, x, m = inputs
    need(residual == x, f"gated_add: shapes {residual} and {x} differ")
    _chunks("gated_add", x, m, weights, attrs, ("gate",))
    return x


def _add_row(inputs: Sequence[Shape], weights: Sizes, attrs: Attrs) -> Shape:
    x, row = inputs
    width = _width("add_row", x)
    need(row == (1, width), f"add_row: row of shape {row}, expected (1, {width})")
    return x


def _timestep(inputs: Sequence[Shape], weights: Sizes, attrs: Attrs) -> Shape:
    (t,), size = inputs, attrs["dim"]
    need(len(t) == 2 and t[1] == 1, f"timestep: shape {t}, expected [N, 1]")
    need(size > 0 and size % 2 == 0, f"timestep: dim is {size}, expected an even number above 0")
    shift = attrs["freq_shift"]
    need(0 <= shift < size // 2, f"timestep: freq_shift is {shift}, expected 0 to {size // 2 - 1}")
    return (t[0], size)


def _dot_attention(inputs: Sequence[Shape], weights: Sizes, attrs: Attrs) -> Shape:
    (q, k, v), heads, size = inputs, attrs["heads"], attrs["head_dim"]
    need(min(heads, size) > 0, f"dot_attention: {heads} heads of {size}")
    need(
        _width("dot_attention", q) == heads * size and k == v and k[-1] == heads * size,
        f"dot_attention: rows {q}, {k}, {v}, expected {heads} heads of {size}, and as many keys "
        "as values",
    )
    need(attrs["causal"] is False or q == k, f"dot_attention: causal with rows {q} and {k}")
    if "relative_bias" in weights:
        table, distance = weights["relative_bias"], attrs["max_distance"]
        buckets = table[0] if attrs["causal"] else table[0] // 2
        need(
            len(table) == 2 and table[1] == heads and 2 <= buckets and buckets // 2 < distance,
            f"dot_attention: relative_bias {table} for {heads} heads and max_distance {distance}",
        )
    return q


def grid_rows(op: str, x: Shape, attrs: Attrs) -> tuple[int, int]:
    """Height and width of the grid whose rows `x` are."""
    height, width = attrs["height"], attrs["width"]
    need(
        0 < height <= SIDE and 0 < width <= SIDE,
        f"{op}: grid of {height} x {width}, expected sides of 1 to {SIDE}",
    )
    need(len(x) == 2 and x[0] == height * width, f"{op}: rows {x} of a grid {height} x {width}")
    return height, width


def _out_of_grid(op: str, height: int, width: int, channels: int) -> Shape:
    need(
        0 < height <= SIDE and 0 < width <= SIDE,
        f"{op}: makes a grid of {height} x {width}, expected sides of 1 to {SIDE}",
    )
    return (height * width, channels)


def _conv2d(inputs: Sequence[Shape], weights: Sizes, attrs: Attrs) -> Shape:
    (x,), w = inputs, weights["weight"]
    height, width = grid_rows("conv2d", x, attrs)
    kernel, stride = attrs["kernel"], attrs["stride"]
    before, after = attrs["pad_before"], attrs["pad_after"]
    need(
        0 < kernel <= 16 and 0 < stride <= 16 and 0 <= before < kernel and 0 <= after < kernel,
        f"conv2d: kernel {kernel}, stride {stride}, padding {before} and {after}",
    )
    taps = kernel * kernel * int(x[1])
    need(len(w) == 2 and w[1] == taps, f"conv2d: weight {w}, expected [outputs, {taps}]")
    _vector("conv2d", "bias", weights, w[0])
    sides = [(n + before + after - kernel) // stride + 1 for n in (height, width)]
    return _out_of_grid("conv2d", sides[0], sides[1], w[0])


def _upsample(inputs: Sequence[Shape], weights: Sizes, attrs: Attrs) -> Shape:
    (x,), factor = inputs, attrs["factor"]
    height, width = grid_rows("upsample", x, attrs)
    need(0 < factor <= 16, f"upsample: factor is {factor}, expected 1 to 16")
    return _out_of_grid("upsample", height * factor, width * factor, int(x[1]))


def _patchify(inputs: Sequence[Shape], weights: Sizes, attrs: Attrs) -> Shape:
    (x,), patch = inputs, attrs["patch"]
    height, width = grid_rows("patchify", x, attrs)
    need(
        patch > 0 and height % patch == 0 and width % patch == 0,
        f"patchify: patches of {patch} in a grid of {height} x {width}",
    )
    return (height * width // patch**2, patch * patch * int(x[1]))


def _unpatchify(inputs: Sequence[Shape], weights: Sizes, attrs: Attrs) -> Shape:
    (x,), patch = inputs, attrs["patch"]
    height, width = grid_rows("unpatchify", x, attrs)
    need(
        0 < patch <= SIDE and int(x[1]) % patch**2 == 0,
        f"unpatchify: rows of {x[1]} in patches of {patch}",
    )
    return _out_of_grid("unpatchify", height * patch, width * patch, int(x[1]) // patch**2)


def _grid_positions(inputs: Sequence[Shape], weights: Sizes, attrs: Attrs) -> Shape:
    (x,) = inputs
    grid_rows("add_grid_positions", x, attrs)
    need(int(x[1]) % 4 == 0, f"add_grid_positions: rows of {x[1]}, expected a multiple of 4")
    need(
        attrs["base"] > 0 and attrs["interpolation"] > 0,
        f"add_grid_positions: base {attrs['base']}, interpolation {attrs['interpolation']}",
    )
    return x


def _concat(inputs: Sequence[Shape], weights: Sizes, attrs: Attrs) -> Shape:
    a, b = inputs
    need(len(a) == len(b) == 2 and a[0] == b[0], f"concat: rows {a} and {b}")
    return (a[0], int(a[1]) + int(b[1]))


def _columns(inputs: Sequence[Shape], weights: Sizes, attrs: Attrs) -> Shape:
    (x,), start, count = inputs, attrs["start"], attrs["count"]
    width = _width("columns", x)
    need(
        0 <= start and start % 16 == 0 and 0 < count and start + count <= width,
        f"columns: {count} from {start} of rows of {width}, expected a part of them that begins "
        "at a multiple of 16",
    )
    return (x[0], count)


_GRID = {"height": Attr(int), "width": Attr(int)}
_AFFINE = {"weight": False, "bias": False}

IMAGE: tuple[Op, ...] = (
    Op("layer_norm", "norm", ("x",), _layer_norm, weights=_AFFINE, attrs={"eps": Attr(float)}),
    Op(
        "group_norm", "group_norm", ("x",), _group_norm,
        weights={"weight": True, "bias": True}, attrs={"groups": Attr(int), "eps": Attr(float)},
    ),
    Op("activation", "elementwise", ("x",), _activation, attrs={"act": Attr(str)}),
    Op("xielu", "elementwise", ("x",), _xielu, weights={"weight": True}),
    Op(
        "modulate", "modulation", ("x", "m"), _modulate,
        weights={"table": False}, attrs={"shift": Attr(int), "scale": Attr(int)},
    ),
    Op(
        "gated_add", "modulation", ("residual", "x", "m"), _gated_add,
        weights={"table": False}, attrs={"gate": Attr(int)},
    ),
    Op("add_row", "modulation", ("x", "row"), _add_row),
    Op(
        "timestep", "modulation", ("t",), _timestep,
        attrs={"dim": Attr(int), "freq_shift": Attr(float, 0.0)},
    ),
    Op(
        "dot_attention", "dot_attention", ("q", "k", "v"), _dot_attention,
        weights={"relative_bias": False},
        attrs={
            "heads": Attr(int), "head_dim": Attr(int), "scale": Attr(float),
            "causal": Attr(bool, False), "max_distance": Attr(int, 128),
        },
    ),
    Op(
        "conv2d", "conv", ("x",), _conv2d,
        weights={"weight": True, "bias": False}, matrix=("weight",),
        attrs={
            **_GRID, "kernel": Attr(int, 3), "stride": Attr(int, 1),
            "pad_before": Attr(int, 1), "pad_after": Attr(int, 1),
        },
    ),
    Op("upsample", "upsample", ("x",), _upsample, attrs={**_GRID, "factor": Attr(int, 2)}),
    Op("patchify", "spatial", ("x",), _patchify, attrs={**_GRID, "patch": Attr(int)}),
    Op("unpatchify", "spatial", ("x",), _unpatchify, attrs={**_GRID, "patch": Attr(int)}),
    Op(
        "add_grid_positions", "spatial", ("x",), _grid_positions,
        attrs={**_GRID, "base": Attr(int), "interpolation": Attr(float, 1.0)},
    ),
    Op("concat", "spatial", ("a", "b"), _concat),
    Op(
        "columns", "spatial", ("x",), _columns,
        attrs={"start": Attr(int), "count": Attr(int)},
    ),
)  # fmt: skip
