"""Lowering: from a graph to the program table that the CPU team runs.

Four passes: fuse (a walk over the nodes that folds norms into activation quantization, residual
additions and gated activations into the product before them), liveness, arena placement, and the
emission of rows. Values that only ever exist inside a fused step get no memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ..graph import Graph, Node
from ..kernels.cpu import activation, append, attention, linear, linear_float, vm  # noqa: F401
from ..kernels.cpu.pack import ENCODINGS, groups_of
from ..kernels.ops import CATALOGUE
from ..kernels.quant import blocks_of
from .pages import page_bytes
from .program import Layout, Memory, Step, float_bits, place, stride_of

QUANTIZED = ("int8-g32", "int4-g32")
OFFSETS = {"int8-g32": activation.INT8_OFFSET, "int4-g32": activation.INT4_OFFSET}
ELEMENTS = {4: "f32", 2: "f16", 1: "int8"}  # bytes of a cached value -> its kernel's name
SHORT = {"f32": "f32", "f16": "f16", "int8-g32": "int8", "int4-g32": "int4"}


class Lowering:
    """Turns one graph into steps; `paired_weights` and `scratch_bytes` are known afterwards."""

    def __init__(self, graph: Graph, *, max_rows: int, threads: int, kv_bytes: int) -> None:
        self.graph, self.max_rows, self.threads, self.wide = graph, max_rows, threads, kv_bytes
        self.shapes = graph.shapes()
        self.uses = Counter(name for node in graph.nodes for name in node.inputs)
        self.uses.update(value.name for value in graph.outputs)
        self.consumers: dict[str, list[Node]] = {}
        for node in graph.nodes:
            for name in node.inputs:
                self.consumers.setdefault(name, []).append(node)
        self.producers = {node.output: node for node in graph.nodes}
        self.steps: list[Step] = []
        self.layout = Layout()
        self.quantized: dict[tuple[str, int], str] = {}
        self.ropes: dict[tuple[str, str, float, float], str] = {}
        self.skipped: set[str] = set()
        self.memory: Memory | None = None
        self.addresses: Mapping[str, int] = {}
        self.scratch_bytes = 4096 + 2 * linear.TILE * 64
        self.partial_bytes = 0
        self._lower()

    # --- what the session asks --------------------------------------------------------------

    @property
    def output(self) -> str:
        return self.graph.outputs[0].name

    @property
    def kernels(self) -> list[str]:
        """Kernels the program uses, without repeats."""
        return sorted({step.kernel for step in self.steps})

    def arena(self) -> tuple[dict[str, int], int]:
        """Offset of every value but the output, and the arena's bytes."""
        return place(self.steps, self.layout.sizes, self.output)

    def emit(
        self, memory: Memory, addresses: Mapping[str, int], code: Mapping[str, int]
    ) -> NDArray[np.int64]:
        """The program, int64 [steps, ROW]. addresses: values and weights; code: kernel entries."""
        self.memory = memory
        table = np.zeros((len(self.steps), vm.ROW), np.int64)
        for row, step in zip(table, self.steps, strict=True):
            count = memory.count_t if step.rows == "T" else memory.count_r
            words = [code[step.kernel], step.barrier, count, *step.operands(addresses)]
            if len(words) > vm.ROW:
                raise ValueError(f"{step.kernel} has {len(words)} words, a row holds {vm.ROW}")
            row[: len(words)] = words
        return table

    # --- passes -----------------------------------------------------------------------------

    def _lower(self) -> None:
        for node in self.graph.nodes:
            if node.output not in self.skipped:
                getattr(self, f"_{node.op}")(node, CATALOGUE[node.op].check_attrs(node.attrs))

    def _rows(self, name: str) -> str:
        return str(self.shapes[name][0])

    def _width(self, name: str) -> int:
        return int(self.shapes[name][-1])

    def _buffer(self, name: str) -> str:
        """Declare a float32 [max_rows, width] buffer for a value."""
        self.layout.strides[name] = stride_of(self._width(name))
        self.layout.sizes[name] = self.max_rows * self.layout.strides[name]
        return name

    def _only_use(self, name: str) -> Node | None:
        """The single node that reads a value, or None."""
        if self.uses[name] != 1:
            return None
        return (self.consumers.get(name) or [None])[0]  # type: ignore[list-item]

    def _encoding(self, node: Node) -> str:
        return self.graph.weights[node.weights["weight"]].encoding

    @property
    def _m(self) -> Memory:
        if self.memory is None:
            raise ValueError("operands are filled by emit")
        return self.memory

    def _embed(self, node: Node, attrs: Mapping[str, object]) -> None:
        out, weight = self._buffer(node.output), node.weights["weight"]
        encoding, width = ENCODINGS[self._encoding(node)], self._width(out)
        scale, stride = float_bits(float(attrs["scale"])), self.layout.strides[out]  # type: ignore[arg-type]
        self.steps.append(
            Step(
                "embed",
                self._rows(out),
                [],
                out,
                lambda at: [
                    at[weight],
                    width,
                    encoding,
                    self._m.tokens,
                    at[out],
                    stride,
                    scale,
                ],
            )
        )

    def _rms_norm(self, node: Node, attrs: Mapping[str, object]) -> None:
        readers = self.consumers.get(node.output, [])
        folds = readers and all(
            reader.op == "linear" and self._encoding(reader) in QUANTIZED for reader in readers
        )
        if folds and self.uses[node.output] == len(readers):
            return  # `_activations` norms and quantizes in one go
        x, out = node.inputs[0], self._buffer(node.output)
        weight, eps = node.weights["weight"], float_bits(float(attrs["eps"]))  # type: ignore[arg-type]
        strides, width = self.layout.strides, self._width(out)
        self.steps.append(
            Step(
                "rms_norm",
                self._rows(out),
                [x],
                out,
                lambda at: [
                    at[x],
                    strides[x],
                    width,
                    at[weight],
                    eps,
                    at[out],
                    strides[out],
                ],
            )
        )

    def _activations(self, name: str, encoding: str) -> str:
        """The int8 tiles of a value, made once for each correction offset."""
        key = (name, OFFSETS[encoding])
        if key in self.quantized:
            return self.quantized[key]
        tiles = f"{name}#{OFFSETS[encoding]}"
        producer = self.producers.get(name)
        norm, eps, source = "", 0, name
        if producer is not None and producer.op == "rms_norm" and name not in self.layout.sizes:
            norm, source = producer.weights["weight"], producer.inputs[0]
            eps = float_bits(float(CATALOGUE["rms_norm"].check_attrs(producer.attrs)["eps"]))
        width = self._width(name)
        blocks = blocks_of(width)
        private = -(-blocks * linear.TOKEN_BLOCK // 64) * 64
        self.layout.strides[tiles] = private
        self.layout.sizes[tiles] = max(
            self.max_rows * blocks * linear.TOKEN_BLOCK, self.threads * private
        )
        self.scratch_bytes = max(self.scratch_bytes, 256 + stride_of(width))
        stride, offset = self.layout.strides[source], OFFSETS[encoding]
        self.steps.append(
            Step(
                "quantize",
                self._rows(name),
                [source],
                tiles,
                lambda at: [
                    at[source],
                    stride,
                    width,
                    blocks,
                    at[tiles],
                    private,
                    offset,
                    at[norm] if norm else 0,
                    eps,
                    self._m.scratch,
                    self.scratch_bytes,
                ],
                barrier=2,
            )
        )
        self.quantized[key] = tiles
        return tiles

    def _linear(self, node: Node, attrs: Mapping[str, object]) -> None:
        reader = self._only_use(node.output)
        if reader is not None and reader.op == "glu" and self._pairs(node, reader):
            return self._product(node, reader.output, gated=str(reader.attrs["act"]))
        if reader is not None and reader.op == "add":
            other = next((n for n in reader.inputs if n != node.output), "")
            if other in self.layout.sizes and self.layout.strides.get(other) == stride_of(
                self._width(node.output)
            ):
                return self._product(node, reader.output, residual=other)
        return self._product(node, node.output)

    def _pairs(self, node: Node, reader: Node) -> bool:
        weight = self.graph.weights[node.weights["weight"]]
        owners = [n for n in self.graph.nodes if node.weights["weight"] in n.weights.values()]
        return (
            "bias" not in node.weights
            and reader.attrs["act"] != "gelu"
            and weight.shape[0] % 32 == 0
            and len(owners) == 1
        )

    @property
    def paired_weights(self) -> frozenset[str]:
        """Matrices whose halves alternate in the packed twin."""
        return frozenset(
            node.weights["weight"]
            for node in self.graph.nodes
            if node.op == "linear"
            and (reader := self._only_use(node.output)) is not None
            and reader.op == "glu"
            and self._pairs(node, reader)
        )

    def _product(self, node: Node, out: str, *, gated: str = "", residual: str = "") -> None:
        encoding, weight = self._encoding(node), node.weights["weight"]
        n, k = self.graph.weights[weight].shape
        bias = node.weights.get("bias", "")
        groups = groups_of(n // 2) if gated else groups_of(n)
        if encoding in QUANTIZED:
            x = self._activations(node.inputs[0], encoding)
            depth = blocks_of(k)
        else:
            x, depth = node.inputs[0], k
        if out != node.output:
            self.skipped.add(out)
        self._buffer(out)
        reads = [x, *([residual] if residual else [])]
        strides = self.layout.strides
        act = activation.ACTS[gated] if gated else 0
        in_place = residual if residual and self._last_use(residual, out) else ""
        self.steps.append(
            Step(
                f"{'gated' if gated else 'linear'}_{SHORT[encoding]}",
                self._rows(out),
                reads,
                out,
                lambda at: [
                    at[weight],
                    groups,
                    depth,
                    at[x],
                    strides[x],
                    at[out],
                    strides[out],
                    at[bias] if bias else 0,
                    at[residual] if residual else 0,
                    act,
                    self._m.scratch,
                    self.scratch_bytes,
                    self._m.ctrl,
                ],
                in_place=in_place,
            )
        )

    def _last_use(self, name: str, by: str) -> bool:
        """Whether nothing after the node that makes `by` reads `name`."""
        order = {node.output: index for index, node in enumerate(self.graph.nodes)}
        readers = self.consumers.get(name, [])
        return name != self.output and all(order[r.output] <= order[by] for r in readers)

    def _rope(self, node: Node, attrs: Mapping[str, object]) -> tuple[str, int]:
        short, far = node.weights.get("inv_freq", ""), node.weights.get("inv_freq_long", "")
        if not short:
            return "", 0
        scales = (float(attrs["rope_scale"]), float(attrs["rope_long_scale"]))  # type: ignore[arg-type]
        key = (short, far, *scales)
        half = self.graph.weights[short].shape[0]
        if key not in self.ropes:
            name = self.ropes[key] = f"#rope{len(self.ropes)}"
            self.layout.sizes[name] = self.max_rows * half * 8
            bits = [float_bits(scale) for scale in scales]
            self.steps.append(
                Step(
                    "rope_table",
                    "T",
                    [],
                    name,
                    lambda at: [
                        self._m.positions,
                        at[short],
                        at[far] if far else 0,
                        half,
                        self._m.long_flags,
                        at[name],
                        *bits,
                    ],
                )
            )
        return self.ropes[key], half

    def _attention(self, node: Node, attrs: Mapping[str, object]) -> None:
        qkv, out = node.inputs[0], self._buffer(node.output)
        heads, groups, size = (int(attrs[k]) for k in ("heads", "kv_heads", "head_dim"))  # type: ignore[call-overload]
        rope, half = self._rope(node, attrs)
        eps, scale, cap = (float_bits(float(attrs[k])) for k in ("qk_eps", "scale", "softcap"))  # type: ignore[arg-type]
        window, strides, wide = int(attrs["window"]), self.layout.strides, self.wide  # type: ignore[call-overload]
        q_norm, k_norm = node.weights.get("q_norm", ""), node.weights.get("k_norm", "")
        keys, values = f"#k:{node.state}", f"#v:{node.state}"
        k_page, v_page = page_bytes(self.graph.states[node.state], wide)
        turned = f"{qkv}#turned"
        self.layout.strides[turned] = strides[qkv]
        self.layout.sizes[turned] = self.layout.sizes[qkv]
        self.steps.append(
            Step(
                "append",
                "T",
                [qkv, *([rope] if rope else [])],
                turned,
                lambda at: [
                    at[qkv],
                    strides[qkv],
                    heads,
                    groups,
                    size,
                    at[rope] if rope else 0,
                    half,
                    at[q_norm] if q_norm else 0,
                    at[k_norm] if k_norm else 0,
                    eps,
                    scale,
                    self._m.positions,
                    self._m.tables,
                    at[keys],
                    at[values],
                    k_page,
                    v_page,
                    wide,
                ],
                in_place=qkv,
            )
        )
        share = heads // groups
        step = 64 + 4 * (-(-size // 16) * 16)
        rows = attention.TILE_TOKENS * share + 3
        tile = rows * step
        self.scratch_bytes = max(self.scratch_bytes, 2048 + rows * size * 4 + 2 * tile)
        self.partial_bytes = max(self.partial_bytes, groups * tile)
        self.steps.append(
            Step(
                f"attend_{ELEMENTS[wide]}",
                "T",
                [turned],
                out,
                lambda at: [
                    at[turned],
                    strides[qkv],
                    heads,
                    groups,
                    size,
                    window,
                    cap,
                    self._m.positions,
                    self._m.tables,
                    at[keys],
                    at[values],
                    k_page,
                    v_page,
                    at[out],
                    strides[out],
                    self._m.tiles,
                    self._m.partials,
                    self._m.counters,
                    self._m.scratch,
                    self._m.ctrl,
                ],
            )
        )

    def _glu(self, node: Node, attrs: Mapping[str, object]) -> None:
        x, out = node.inputs[0], self._buffer(node.output)
        act, width, strides = (
            activation.ACTS[str(attrs["act"])],
            self._width(out),
            self.layout.strides,
        )
        self.steps.append(
            Step(
                "glu",
                self._rows(out),
                [x],
                out,
                lambda at: [
                    at[x],
                    strides[x],
                    width,
                    act,
                    at[out],
                    strides[out],
                    self._m.scratch,
                    self.scratch_bytes,
                ],
            )
        )

    def _add(self, node: Node, attrs: Mapping[str, object]) -> None:
        (a, b), out = node.inputs, self._buffer(node.output)
        stride, width = self.layout.strides[out], self._width(out)
        self.steps.append(
            Step(
                "add_rows",
                self._rows(out),
                [a, b],
                out,
                lambda at: [
                    at[a],
                    at[b],
                    at[out],
                    stride,
                    width,
                ],
            )
        )

    def _select(self, node: Node, attrs: Mapping[str, object]) -> None:
        x, out = node.inputs[0], self._buffer(node.output)
        stride = self.layout.strides[out]
        self.steps.append(
            Step(
                "select",
                "R",
                [x],
                out,
                lambda at: [
                    at[x],
                    stride,
                    self._m.rows,
                    at[out],
                    stride,
                ],
            )
        )

    def _softcap(self, node: Node, attrs: Mapping[str, object]) -> None:
        x, out = node.inputs[0], self._buffer(node.output)
        strides, width = self.layout.strides, self._width(out)
        cap = float_bits(float(attrs["cap"]))  # type: ignore[arg-type]
        self.steps.append(
            Step(
                "softcap",
                self._rows(out),
                [x],
                out,
                lambda at: [
                    at[x],
                    strides[x],
                    at[out],
                    strides[out],
                    width,
                    cap,
                ],
            )
        )
