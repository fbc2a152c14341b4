"""Pictures on the CPU session: what is folded into a convolution, and that threads, bands and the
number of rows change no bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from edgert.kernels import conv_lower
from edgert.kernels.encodings import quantize
from edgert.kernels.quant import Matrix

from edgert.graph import Graph, Node, Value, Weight
from edgert.session.cpu import CpuSession
from edgert.session.reference import ReferenceSession

from ..closeness import assert_close

RMS = 2e-5


class Picture:
    """A graph over a grid of 8 channels, made node by node."""

    def __init__(self, height: int, width: int, encoding: str = "f32", channels: int = 8) -> None:
        self.grid, self.channels, self.encoding = (height, width), channels, encoding
        self.nodes: list[Node] = []
        self.weights: dict[str, Matrix] = {}
        self.specs: dict[str, Weight] = {}
        self.rng = np.random.default_rng(11)

    def weight(self, name: str, shape: tuple[int, ...], encoding: str = "f32") -> str:
        dense = (self.rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
        self.weights[name] = quantize(dense, encoding)
        self.specs[name] = Weight(shape, encoding)
        return name

    def node(self, op: str, inputs: list[str], **attrs: Any) -> str:
        output = f"{op}{len(self.nodes)}"
        self.nodes.append(Node(op, tuple(inputs), output, {}, attrs))
        return output

    def conv(self, x: str, **attrs: Any) -> str:
        height, width = self.grid
        output, c = self.node("conv2d", [x], height=height, width=width, **attrs), self.channels
        taps = attrs.get("kernel", 3) ** 2
        slots = {
            "weight": self.weight(f"{output}w", (c, taps * c), self.encoding),
            "bias": self.weight(f"{output}b", (c,)),
        }
        self.nodes[-1] = Node("conv2d", (x,), output, slots, self.nodes[-1].attrs)
        return output

    def norm(self, x: str, groups: int) -> str:
        output, c = self.node("group_norm", [x], groups=groups, eps=1e-6), self.channels
        slots = {"weight": self.weight(f"{output}w", (c,)), "bias": self.weight(f"{output}b", (c,))}
        self.nodes[-1] = Node("group_norm", (x,), output, slots, self.nodes[-1].attrs)
        return output

    def graph(self, height: int, width: int, *outputs: str) -> Graph:
        given = (Value("x", (height * width, self.channels)),)
        found = Graph("picture", given, (), tuple(self.nodes), self.specs)
        shapes = found.shapes()
        return found.replace(outputs=tuple(Value(name, shapes[name]) for name in outputs))


def answers(graph: Graph, weights: Any, threads: int = 2) -> tuple[list[np.ndarray], list[str]]:
    """Every output, and the kernels that made them."""
    rows, width = graph.inputs[0].shape
    x = np.random.default_rng(5).standard_normal((int(rows), int(width))).astype(np.float32)
    session = CpuSession(graph, weights, threads=threads)
    found = session.run({"x": x})
    kernels = list(session._programs.values())[-1].lowering.kernels
    expected = ReferenceSession(graph, weights).run({"x": x})
    session.close()
    for name, array in found.items():
        assert_close(name, expected[name], array, rms=RMS)
    return [found[value.name] for value in graph.outputs], kernels


def block(side: int, encoding: str = "f32") -> tuple[Graph, Any]:
    """A decoder's levels: norm, silu, conv, conv + skip, relu, upsampling, conv, relu."""
    b = Picture(side, side + 1, encoding)
    h = b.node("activation", [b.norm("x", 4)], act="silu")
    h = b.node("activation", [b.conv(h)], act="silu")
    h = b.node("add", ["x", b.conv(h)])
    h = b.node("activation", [h], act="relu")
    h = b.node("upsample", [h], height=side, width=side + 1, factor=2)
    b.grid = 2 * side, 2 * side + 2
    y = b.node("activation", [b.conv(h)], act="relu")
    return b.graph(side, side + 1, y), b.weights


def test_what_follows_a_convolution_or_norm_is_a_part_of_it() -> None:
    _, kernels = answers(*block(9))
    assert kernels == ["conv_f32", "group_factors", "group_moments", "scale_rows"]


def test_an_upsampled_picture_that_others_read_is_made() -> None:
    b = Picture(5, 4)
    h = b.node("upsample", ["x"], height=5, width=4, factor=3)
    b.grid = 15, 12
    y = b.conv(h, kernel=1, pad_before=0, pad_after=0)
    _, kernels = answers(b.graph(5, 4, y, h), b.weights)
    assert kernels == ["conv_f32", "upsample"]


def test_a_summand_that_is_read_later_is_not_overwritten() -> None:
    b = Picture(6, 6)
    skip = b.conv("x")
    total = b.node("add", [b.conv(skip), skip])
    last = b.node("add", [b.conv(total), skip])
    _, kernels = answers(b.graph(6, 6, last), b.weights)  # which compares with the reference
    assert kernels == ["conv_f32"]


def test_a_large_grid_goes_by_transforms() -> None:
    b = Picture(33, 35, channels=32)
    h = b.node("activation", [b.node("add", [b.conv("x"), "x"])], act="silu")
    h = b.node("upsample", [h], height=33, width=35, factor=2)
    b.grid = 66, 70
    _, kernels = answers(b.graph(33, 35, b.conv(h, pad_before=2, pad_after=0)), b.weights)
    assert kernels == ["conv_winograd", "winograd_f32"]


@pytest.mark.parametrize("encoding", ["f32", "f16", "int8-g32", "int4-g32"])
@pytest.mark.parametrize("channels", [8, 32])
def test_threads_and_bands_change_no_bit(
    encoding: str, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = Picture(40, 31, encoding, channels)
    h = b.conv(b.norm("x", 4))
    y = b.node("add", [b.conv(h), h])
    graph, weights = b.graph(40, 31, y), b.weights
    x = np.random.default_rng(5).standard_normal((40 * 31, channels)).astype(np.float32)
    found = []
    for threads, nbytes in ((1, 4 << 20), (2, 1 << 15), (3, 1 << 12)):
        monkeypatch.setattr(conv_lower, "BAND_BYTES", nbytes)
        session = CpuSession(graph, weights, threads=threads)
        found.append(session.run({"x": x})[y])
        session.close()
    assert found[0].tobytes() == found[1].tobytes() == found[2].tobytes()


@pytest.mark.parametrize("encoding", ["f32", "f16"])
@pytest.mark.parametrize(("outputs", "inputs"), [(70, 33), (16, 4100), (200, 64)])
def test_a_float_product_gives_a_row_the_same_bits_in_any_company(
    encoding: str, outputs: int, inputs: int
) -> None:
    rng = np.random.default_rng(2)
    weights = {
        "w": quantize(rng.standard_normal((outputs, inputs)).astype(np.float32), encoding),
        "b": rng.standard_normal(outputs).astype(np.float32),
    }
    nodes = (Node("linear", ("x",), "y", {"weight": "w", "bias": "b"}),)
    specs = {"w": Weight((outputs, inputs), encoding), "b": Weight((outputs,))}
    graph = Graph("g", (Value("x", ("T", inputs)),), (Value("y", ("T", outputs)),), nodes, specs)
    x = rng.standard_normal((200, inputs)).astype(np.float32)
    session = CpuSession(graph, weights, threads=2)
    whole = session.run({"x": x})["y"]
    for count in (1, 2, 5, 7, 97):
        part = session.run({"x": x[200 - count :]})["y"]
        assert part.tobytes() == whole[200 - count :].tobytes(), count
    session.close()
    assert_close("rows", ReferenceSession(graph, weights).run({"x": x})["y"], whole, rms=RMS)


def test_a_norm_of_far_values_keeps_its_digits() -> None:
    """Squares of values around 1000 would lose what differs."""
    b = Picture(64, 60)
    graph, weights = b.graph(64, 60, b.norm("x", 2)), b.weights
    x = 1000 + np.random.default_rng(1).standard_normal((3840, 8)).astype(np.float32)
    session = CpuSession(graph, weights, threads=2)
    got = session.run({"x": x})
    session.close()
    expected = ReferenceSession(graph, weights).run({"x": x})
    for name, array in got.items():
        assert_close(name, expected[name], array, rms=1e-4)
