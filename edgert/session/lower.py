"""Lowering: from a graph to the program table that the CPU team runs.

Four passes: fuse (a walk over the nodes that folds norms into activation quantization, residual
additions and gated activations into the product before them), liveness, arena placement, and the
emission of rows. Values that only ever exist inside a fused step get no memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..graph import Graph, Node
from ..kernels.cpu import activation, append, attention, linear, linear_float, vm  # noqa: F401
from ..kernels.cpu.layout import ACTS, TILE, TILE_TOKENS, TOKEN_BLOCK, blocks_of, groups_of
from ..kernels.encodings import Cpu, on_cpu
from ..kernels.ops import CATALOGUE
from .pages import page_bytes
from .program import Layout, Memory, Operands, Step, float_bits, place, stride_of

ELEMENTS = {4: "f32", 2: "f16", 1: "int8"}  # bytes of a cached value -> its kernel's name


class Lowering:
    """Turns one graph into steps; `paired_weights` and `scratch_bytes` are known afterwards.

    A step's operands are a function of `at`, the address of every value, weight and buffer by name:
    graph names, names with a # for what lowering makes, `Memory`'s fields, and "" for none (0).
    """

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
        self.scratch_bytes = 4096 + 2 * TILE * 64
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

    def arena(self) -> tuple[dict[str, int], int]:
        """Offset of every value but the output, and the arena's bytes."""
        return place(self.steps, self.layout.sizes, self.output)

    def emit(
        self, memory: Memory, addresses: Mapping[str, int], code: Mapping[str, int]
    ) -> NDArray[np.int64]:
        """The program, int64 [steps, ROW]. addresses: values and weights; code: kernel entries."""
        at = {**addresses, **memory.named(), "": 0}
        table = np.zeros((len(self.steps), vm.ROW), np.int64)
        for row, step in zip(table, self.steps, strict=True):
            count = memory.count_t if step.rows == "T" else memory.count_r
            words = [code[step.kernel], step.barrier, count, *step.operands(at)]
            if len(words) > vm.ROW:
                raise ValueError(f"{step.kernel} has {len(words)} words, a row holds {vm.ROW}")
            row[: len(words)] = words
        return table

    # --- passes -----------------------------------------------------------------------------

    def _lower(self) -> None:
        for node in self.graph.nodes:
            if node.output not in self.skipped:
                getattr(self, f"_{node.op}")(node, CATALOGUE[node.op].check_attrs(node.attrs))

    def _step(
        self, kernel: str, writes: str, reads: list[str], operands: Operands, *,
        rows: str = "", barrier: int = 1, in_place: str = "",
    ) -> None:  # fmt: skip
        """Append an instruction; it works on as many rows as the value it writes has."""
        rows = rows or str(self.shapes[writes][0])
        self.steps.append(Step(kernel, rows, reads, writes, operands, barrier, in_place))

    def _width(self, name: str) -> int:
        return int(self.shapes[name][-1])

    def _buffer(self, name: str) -> str:
        """Declare a float32 [max_rows, width] buffer for a value."""
        self.layout.strides[name] = stride_of(self._width(name))
        self.layout.sizes[name] = self.max_rows * self.layout.strides[name]
        return name

    def _only_use(self, name: str) -> Node | None:
        """The single node that reads a value, or None."""
        readers = self.consumers.get(name, [])
        return readers[0] if self.uses[name] == 1 and readers else None

    def _encoding(self, node: Node) -> Cpu:
        return on_cpu(self.graph.weights[node.weights["weight"]].encoding)

    # --- rows of float32 --------------------------------------------------------------------

    def _embed(self, node: Node, attrs: Mapping[str, Any]) -> None:
        y, table = self._buffer(node.output), node.weights["weight"]
        encoding, width = self._encoding(node).code, self._width(y)
        scale, stride = float_bits(attrs["scale"]), self.layout.strides[y]
        self._step(
            "embed", y, [],
            lambda at: [at[table], width, encoding, at["@tokens"], at[y], stride, scale],
        )  # fmt: skip

    def _rms_norm(self, node: Node, attrs: Mapping[str, Any]) -> None:
        readers = self.consumers.get(node.output, [])
        folds = readers and all(
            reader.op == "linear" and self._encoding(reader).offset is not None
            for reader in readers
        )
        if folds and self.uses[node.output] == len(readers):
            return  # `_activations` norms and quantizes in one go
        x, y, weight = node.inputs[0], self._buffer(node.output), node.weights["weight"]
        strides, width, eps = self.layout.strides, self._width(y), float_bits(attrs["eps"])
        self._step(
            "rms_norm", y, [x],
            lambda at: [at[x], strides[x], width, at[weight], eps, at[y], strides[y]],
        )  # fmt: skip

    def _glu(self, node: Node, attrs: Mapping[str, Any]) -> None:
        x, y, act = node.inputs[0], self._buffer(node.output), ACTS[attrs["act"]]
        width, strides = self._width(y), self.layout.strides
        self._step(
            "glu", y, [x],
            lambda at: [
                at[x], strides[x], width, act, at[y], strides[y], at["@scratch"],
                self.scratch_bytes,
            ],
        )  # fmt: skip

    def _add(self, node: Node, attrs: Mapping[str, Any]) -> None:
        (a, b), y = node.inputs, self._buffer(node.output)
        stride, width = self.layout.strides[y], self._width(y)
        self._step("add_rows", y, [a, b], lambda at: [at[a], at[b], at[y], stride, width])

    def _select(self, node: Node, attrs: Mapping[str, Any]) -> None:
        x, y = node.inputs[0], self._buffer(node.output)
        stride = self.layout.strides[y]
        self._step(
            "select", y, [x], lambda at: [at[x], stride, at["@rows"], at[y], stride], rows="R"
        )

    def _softcap(self, node: Node, attrs: Mapping[str, Any]) -> None:
        x, y, cap = node.inputs[0], self._buffer(node.output), float_bits(attrs["cap"])
        strides, width = self.layout.strides, self._width(y)
        self._step("softcap", y, [x], lambda at: [at[x], strides[x], at[y], strides[y], width, cap])

    # --- products ---------------------------------------------------------------------------

    def _activations(self, name: str, offset: int) -> str:
        """The int8 tiles of a value, made once for each correction offset."""
        key = (name, offset)
        if key in self.quantized:
            return self.quantized[key]
        tiles = self.quantized[key] = f"{name}#{offset}"
        producer = self.producers.get(name)
        norm, eps, x = "", 0, name
        if producer is not None and producer.op == "rms_norm" and name not in self.layout.sizes:
            norm, x = producer.weights["weight"], producer.inputs[0]
            eps = float_bits(CATALOGUE["rms_norm"].check_attrs(producer.attrs)["eps"])
        width = self._width(name)
        blocks = blocks_of(width)
        private = -(-blocks * TOKEN_BLOCK // 64) * 64
        self.layout.strides[tiles] = private
        self.layout.sizes[tiles] = max(self.max_rows * blocks * TOKEN_BLOCK, self.threads * private)
        self.scratch_bytes = max(self.scratch_bytes, 256 + stride_of(width))
        stride = self.layout.strides[x]
        self._step(
            "quantize", tiles, [x],
            lambda at: [
                at[x], stride, width, blocks, at[tiles], private, offset, at[norm], eps,
                at["@scratch"], self.scratch_bytes,
            ],
            rows=str(self.shapes[name][0]), barrier=2,
        )  # fmt: skip
        return tiles

    def _linear(self, node: Node, attrs: Mapping[str, Any]) -> None:
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
        """Whether a product and the gate after it can be one instruction."""
        weight = self.graph.weights[node.weights["weight"]]
        owners = [n for n in self.graph.nodes if node.weights["weight"] in n.weights.values()]
        return (
            "bias" not in node.weights
            and reader.attrs["act"] != "gelu"
            and weight.shape[0] % 32 == 0
            and len(owners) == 1
        )

    def _product(self, node: Node, y: str, *, gated: str = "", residual: str = "") -> None:
        encoding, weight = self._encoding(node), node.weights["weight"]
        n, depth = self.graph.weights[weight].shape
        bias, x = node.weights.get("bias", ""), node.inputs[0]
        groups = groups_of(n // 2) if gated else groups_of(n)
        if encoding.offset is not None:
            x, depth = self._activations(x, encoding.offset), blocks_of(depth)
        if y != node.output:
            self.skipped.add(y)
        self._buffer(y)
        strides, act = self.layout.strides, ACTS[gated] if gated else 0
        self._step(
            f"{'gated' if gated else 'linear'}_{encoding.kernel}",
            y, [x, *filter(None, [residual])],
            lambda at: [
                at[weight], groups, depth, at[x], strides[x], at[y], strides[y], at[bias],
                at[residual], act, at["@scratch"], self.scratch_bytes, at["@ctrl"],
            ],
            in_place=residual if residual and self._last_use(residual, y) else "",
        )  # fmt: skip

    def _last_use(self, name: str, by: str) -> bool:
        """Whether nothing after the node that makes `by` reads `name`."""
        order = {node.output: index for index, node in enumerate(self.graph.nodes)}
        readers = self.consumers.get(name, [])
        return name != self.output and all(order[r.output] <= order[by] for r in readers)

    # --- attention --------------------------------------------------------------------------

    def _rope(self, node: Node, attrs: Mapping[str, Any]) -> tuple[str, int]:
        """Name and half width of the rotary table for a node, made once for equal ones."""
        short, far = node.weights.get("inv_freq", ""), node.weights.get("inv_freq_long", "")
        if not short:
            return "", 0
        key = (short, far, attrs["rope_scale"], attrs["rope_long_scale"])
        half = self.graph.weights[short].shape[0]
        if key not in self.ropes:
            name = self.ropes[key] = f"#rope{len(self.ropes)}"
            self.layout.sizes[name] = self.max_rows * half * 8
            scales = [float_bits(scale) for scale in key[2:]]
            self._step(
                "rope_table", name, [],
                lambda at: [
                    at["@positions"], at[short], at[far], half, at["@long_flags"], at[name],
                    *scales,
                ],
                rows="T",
            )  # fmt: skip
        return self.ropes[key], half

    def _attention(self, node: Node, attrs: Mapping[str, Any]) -> None:
        turned = self._append(node, attrs)
        y, state, strides = self._buffer(node.output), node.state, self.layout.strides
        heads, groups, size = attrs["heads"], attrs["kv_heads"], attrs["head_dim"]
        window, cap = attrs["window"], float_bits(attrs["softcap"])
        k_page, v_page = page_bytes(self.graph.states[state], self.wide)
        rows = TILE_TOKENS * (heads // groups) + 3
        tile = rows * (64 + 4 * (-(-size // 16) * 16))
        self.scratch_bytes = max(self.scratch_bytes, 2048 + rows * size * 4 + 2 * tile)
        self.partial_bytes = max(self.partial_bytes, groups * tile)
        self._step(
            f"attend_{ELEMENTS[self.wide]}", y, [turned],
            lambda at: [
                at[turned], strides[turned], heads, groups, size, window, cap, at["@positions"],
                at["@tables"], at[f"#k:{state}"], at[f"#v:{state}"], k_page, v_page, at[y],
                strides[y], at["@tiles"], at["@partials"], at["@counters"], at["@scratch"],
                at["@ctrl"],
            ],
        )  # fmt: skip

    def _append(self, node: Node, attrs: Mapping[str, Any]) -> str:
        """Queries normed, turned and scaled in place, keys and values to their pages: the name of
        the queries."""
        qkv, state, wide = node.inputs[0], node.state, self.wide
        turned, stride = f"{qkv}#turned", self.layout.strides[qkv]
        self.layout.strides[turned] = stride
        self.layout.sizes[turned] = self.layout.sizes[qkv]
        rope, half = self._rope(node, attrs)
        heads, groups, size = attrs["heads"], attrs["kv_heads"], attrs["head_dim"]
        eps, scale = float_bits(attrs["qk_eps"]), float_bits(attrs["scale"])
        q_norm, k_norm = node.weights.get("q_norm", ""), node.weights.get("k_norm", "")
        k_page, v_page = page_bytes(self.graph.states[state], wide)
        self._step(
            "append", turned, [qkv, *filter(None, [rope])],
            lambda at: [
                at[qkv], stride, heads, groups, size, at[rope], half, at[q_norm], at[k_norm], eps,
                scale, at["@positions"], at["@tables"], at[f"#k:{state}"], at[f"#v:{state}"],
                k_page, v_page, wide,
            ],
            rows="T", in_place=qkv,
        )  # fmt: skip
        return turned
