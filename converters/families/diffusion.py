"""Blocks of diffusion transformers: patches, timesteps, captions, attention, heads.

Names of values that samplers use are those of `edgert.image.pieces`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import ConvertError
from ...graph import Value
from ...image import pieces
from .nodes import Nodes
from .recipe import FamilyModel, Part, Recipe

FREQUENCIES = 256  # of every timestep embedding


@dataclass(frozen=True)
class Grid:
    """The latents that a graph is made for, and the patches they are read in."""

    height: int
    width: int
    channels: int
    patch: int

    @property
    def rows(self) -> tuple[int, int]:
        """Height and width in patches."""
        return self.height // self.patch, self.width // self.patch

    @property
    def tokens(self) -> int:
        return self.rows[0] * self.rows[1]


def grid_of(height: int, width: int, channels: int, patch: int) -> Grid:
    """The grid; ConvertError for sides that patches do not divide."""
    if height < patch or width < patch or height % patch or width % patch:
        raise ConvertError(
            f"latents of {height} x {width}, expected multiples of the patch size {patch}",
            code="image-size",
            hint="take a height and width that divide",
        )
    return Grid(height, width, channels, patch)


def patches(b: Nodes, grid: Grid, width: int, *, base: int, interpolation: float) -> str:
    """Latents as rows of tokens with their places: `embed.x`."""
    size, (height, columns) = grid.patch, grid.rows
    x = b.node(
        "patchify", [pieces.X], "patchify",
        attrs={"height": grid.height, "width": grid.width, "patch": size},
    )  # fmt: skip
    shape = (width, grid.channels, size, size)
    x = b.product(x, "patch", "pos_embed.proj", shape, flat=True)
    attrs = {"height": height, "width": columns, "base": base, "interpolation": interpolation}
    return b.node("add_grid_positions", [x], "positions", attrs=attrs, output=pieces.EMBEDDED)


def unpatched(b: Nodes, x: str, grid: Grid, tensor: str, width: int, channels: int) -> str:
    """Rows of tokens as rows of predictions: `out`."""
    shape = (grid.patch**2 * channels, width)
    x = b.product(x, "head", tensor, shape)
    height, columns = grid.rows
    attrs = {"height": height, "width": columns, "patch": grid.patch}
    return b.node("unpatchify", [x], "unpatchify", attrs=attrs, output=pieces.OUT)


def sinusoid(
    b: Nodes,
    t: str,
    label: str,
    tensor: str,
    width: int,
    *,
    freq_shift: float = 0.0,
    weights: str = "",
    output: str = "",
) -> str:
    """A number [1, 1] as an embedding [1, width]: frequencies, then two products, whose weights
    are called `weights` (`label` by default)."""
    held, attrs = weights or label, {"dim": FREQUENCIES, "freq_shift": freq_shift}
    x = b.node("timestep", [t], label, attrs=attrs)
    shape = (width, FREQUENCIES)
    x = b.product(x, f"{label}.1", f"{tensor}.linear_1", shape, weights=f"{held}.1")
    x = b.activation(x, f"{label}.act", "silu")
    shape = (width, width)
    return b.product(
        x, f"{label}.2", f"{tensor}.linear_2", shape, weights=f"{held}.2", output=output
    )


def modulate(b: Nodes, x: str, m: str, label: str, chunks: tuple[int, int], *, table: str = "",
             output: str = "") -> str:  # fmt: skip
    """x (1 + scale) + shift; chunks: those of shift and scale."""
    slots = {"table": table} if table else {}
    attrs = {"shift": chunks[0], "scale": chunks[1]}
    return b.node("modulate", [x, m], label, weights=slots, attrs=attrs, output=output)


def gated_add(b: Nodes, x: str, h: str, m: str, label: str, chunk: int, *, table: str = "",
              output: str = "") -> str:  # fmt: skip
    """x + gate h; chunk: that of the gate."""
    slots = {"table": table} if table else {}
    inputs, attrs = [x, h, m], {"gate": chunk}
    return b.node("gated_add", inputs, label, weights=slots, attrs=attrs, output=output)


def behind(layer: int, count: int) -> str:
    """The name of the rows behind a block, "" where it has none."""
    if layer == count - 1:
        return pieces.BODY
    return pieces.FIRST if layer == 0 else ""


@dataclass(frozen=True)
class Heads:
    """Sizes of attention: `count` heads of `size` channels, and rows of `width` outside."""

    count: int
    size: int
    width: int
    bias: bool

    @property
    def inner(self) -> int:
        return self.count * self.size


def attention(
    b: Nodes, x: str, seen: str, label: str, tensor: str, heads: Heads, *, seen_width: int = 0
) -> str:
    """diffusers' Attention: rows of `x` over rows of `seen` (of `seen_width` channels, those of
    `x` by default), without a mask."""
    rows = {}
    for key, value, width in (
        ("q", x, heads.width),
        ("k", seen, seen_width or heads.width),
        ("v", seen, seen_width or heads.width),
    ):
        shape = (heads.inner, width)
        rows[key] = b.product(value, f"{label}.{key}", f"{tensor}.to_{key}", shape, bias=heads.bias)
    attrs = {"heads": heads.count, "head_dim": heads.size, "scale": heads.size**-0.5}
    y = b.node("dot_attention", list(rows.values()), label, attrs=attrs)
    return b.product(y, f"{label}.out", f"{tensor}.to_out.0", (heads.width, heads.inner))


def feed_forward(b: Nodes, x: str, label: str, tensor: str, width: int, act: str) -> str:
    """diffusers' FeedForward without gates: four times as wide inside."""
    x = b.product(x, f"{label}.up", f"{tensor}.net.0.proj", (4 * width, width))
    x = b.activation(x, f"{label}.act", act)
    return b.product(x, f"{label}.down", f"{tensor}.net.2", (width, 4 * width))


def table(b: Nodes, label: str, tensor: str, shape: tuple[int, int]) -> str:
    """A scale_shift_table."""
    return b.weight(label, Recipe((Part(tensor, shape),)))


def denoiser(b: Nodes, grid: Grid, inputs: list[Value], channels: int) -> FamilyModel:
    """Closes the graph. inputs: those besides latents and timestep."""
    rows = grid.height * grid.width
    known = [Value(pieces.X, (rows, grid.channels)), Value(pieces.TIMESTEP, (1, 1))]
    return b.model("denoiser", [*known, *inputs], [Value(pieces.OUT, (rows, channels))])
