"""One matrix product as a CPU session: table rows -> linear (-> glu) -> all rows back.

Needs NumPy, msgspec, tqdm and Numba only, so that it runs on an emulated ARM board as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from edgert.kernels.cpu.layout import blocks_of
from edgert.kernels.elementwise import glu
from edgert.kernels.encodings import encoding_of
from edgert.kernels.linear import product
from edgert.kernels.quant import Matrix, Quantized
from numpy.typing import NDArray

from edgert.graph import Graph, Node, Value, Weight
from edgert.session.base import Feed
from edgert.session.cpu import CpuSession

F32 = NDArray[np.float32]
ROWS = 65  # of the table, and the most that one step takes
SCALES = ("mixed", "negative", "zero", "denormal", "wide")
ENCODINGS: dict[int | str, str] = {4: "int4-g32", 8: "int8-g32", "channel": "int8-channel"}


def random_weight(
    kind: int | str, n: int, k: int, scales: str = "mixed", seed: int = 0
) -> Quantized:
    """Codes over their whole range, the lowest included, and float16 scales of a kind; of bits with
    a scale a block, or by channels."""
    channels, bits = kind == "channel", 8 if isinstance(kind, str) else kind
    rng = np.random.default_rng([seed, bits, n, k])
    blocks = blocks_of(k)
    q = rng.integers(0, 256, (n, blocks, 4 * bits)).astype(np.uint8)
    size = (0.5 + rng.random((n, 1 if channels else blocks))) / np.sqrt(k)
    tiny = rng.integers(0, 1024, size.shape) * 2.0**-24  # float16 subnormals, zero included
    sign = rng.choice([-1.0, 1.0], size.shape)
    kinds = {
        "negative": -size,
        "zero": sign * 0.0,
        "denormal": sign * tiny,
        "wide": sign * 65504.0,
        "mixed": sign * np.where(rng.random(size.shape) < 0.2, tiny, size),
    }
    half = kinds[scales].astype(np.float16)
    tensors = {"q": q, "scales": half.astype(np.float32) if channels else half}
    return Quantized(ENCODINGS[kind], (n, k), tensors)


def exact_table(k: int, seed: int = 0, *, kind: int | str = 8) -> F32:
    """[ROWS, k] whose quantization is not a matter of rounding: integers up to 127 times a power of
    two a block (by channels: a row), 127 itself among them; a few blocks are zero."""
    rng = np.random.default_rng([seed, k])
    codes = rng.integers(-127, 128, (ROWS, blocks_of(k), 32)).astype(np.float32)
    codes[:, :, 0] = rng.choice([-127, 127], codes.shape[:2])
    steps = rng.integers(-12, -4, (ROWS, 1 if kind == "channel" else blocks_of(k), 1))
    codes *= np.exp2(steps).astype(np.float32)
    if kind != "channel":
        codes[rng.random(codes.shape[:2]) < 0.05] = 0.0
    elif k > 1:
        codes[::16] = 0.0
    return np.ascontiguousarray(codes.reshape(ROWS, -1)[:, :k])


def expected(table: F32, weight: Matrix, *, act: str = "", bias: F32 | None = None) -> F32:
    """What the NumPy reference makes of every table row."""
    y = product(table, weight)
    if bias is not None:
        y = y + bias
    return glu([y], {}, {"act": act}) if act else y


def product_graph(
    table: F32, weight: Matrix, *, act: str = "", bias: F32 | None = None
) -> tuple[Graph, dict[str, Any]]:
    """The graph and its weights."""
    weights: dict[str, Weight] = {
        "table": Weight(tuple(table.shape)), "w": Weight(weight.shape, encoding_of(weight).name)
    }  # fmt: skip
    stored: dict[str, Any] = {"table": table, "w": weight}
    slots = {"weight": "w"}
    if bias is not None:
        weights["bias"], stored["bias"] = Weight(bias.shape), bias
        slots["bias"] = "bias"
    nodes = [
        Node("embed", ("tokens",), "x", {"weight": "table"}),
        Node("linear", ("x",), "y", slots),
    ]
    if act:
        nodes.append(Node("glu", ("y",), "g", {}, {"act": act}))
    nodes.append(Node("select", ("g" if act else "y", "rows"), "out"))
    inputs = (Value("tokens", ("T",), "int32"), Value("rows", ("R",), "int32"))
    graph = Graph("op", inputs, (), tuple(nodes), weights, {}, 256)
    return graph.replace(outputs=(Value("out", graph.shapes()["out"]),)), stored


class ProductSession(CpuSession):
    """Its tokens are table rows, which may be more than the output has columns."""

    def __init__(
        self,
        graph: Graph,
        weights: dict[str, Any],
        *,
        threads: int = 1,
        cache: Path | None = None,
    ) -> None:
        super().__init__(graph, weights, threads=threads, max_rows=ROWS, cache=cache)

    def _check_feed(self, feed: Feed) -> None:
        return None

    def rows(self, tokens: Sequence[int]) -> F32:
        """Output rows of these table rows, as one step."""
        state = self.new_state()
        out = self.step([Feed(state, np.asarray(tokens, np.int32), "all")])[0].logits
        state.close()
        return out
