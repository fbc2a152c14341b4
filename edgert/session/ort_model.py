"""An emitted .onnx file, checked and opened on one execution provider."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DeviceError
from ..graph import Graph
from . import ort_mode
from .onnx_check import check_model
from .onnx_io import Variant, emitted_graph, interface, memories, node_ports, rope_tables, ropes
from .ort_state import BufferPool
from .providers import Provider, create_session


class OrtModel:
    """What sessions, states and bindings share of an opened file.

    graph: as it was emitted, embeddings and further outputs included. runtime: onnxruntime's
    session, None once closed. weights: only rotary frequencies are read. captures: whether
    one-token steps are captured as CUDA graphs. alternates: runs in turn with others.
    """

    def __init__(
        self,
        graph: Graph,
        weights: Mapping[str, Any],
        file: Path,
        variant: Variant,
        provider: Provider,
        *,
        threads: int | None,
        allow_cpu_nodes: bool,
        cuda_graph: bool,
        alternates: bool = False,
    ) -> None:
        self.variant = variant
        self.taps = check_model(file, graph, variant)
        self.provider = provider.with_options(enable_cuda_graph="1") if cuda_graph else provider
        self.captures = cuda_graph
        self.flushes = self.provider.options.get(ort_mode.OPTION) == "1"
        # threads of one that wait for more work, busily, would keep the cores from the next one
        waits = {"session.force_spinning_stop": "1"} if alternates else {}
        self.runtime: Any = create_session(
            file, self.provider.with_options(**{**waits, **self.provider.options}),
            threads=threads, allow_cpu_nodes=allow_cpu_nodes,
        )  # fmt: skip
        self.graph = emitted_graph(graph, variant, self.taps)
        self.memories = memories(self.graph, variant)
        self.whole = any(memory.whole for memory in self.memories)
        if self.whole and cuda_graph:
            raise DeviceError(
                "captured steps keep the buffers that they were captured with, this model's "
                "recurrent states change theirs",
                code="device-options",
                hint="leave the word graph out of the device",
            )
        self.inputs, self.outputs = interface(self.graph, variant)
        ports = node_ports(self.graph, variant)
        self.takes_positions = all(node.positions for node in ports)
        self.takes_trees = all(node.trees for node in ports)
        self.fixed_capacity = variant.capacity
        self.ropes = ropes(self.graph)
        self.frequencies = {
            name: weights[name] for rope in self.ropes.values()
            for name in (rope.short, rope.long) if name
        }  # fmt: skip
        self.buffer_pool = BufferPool()
        self._tables: dict[tuple[str, bool], tuple[int, Any, Any]] = {}
        self._captured = 0

    def ortvalue(self, array: NDArray[Any], *, host: bool = False) -> Any:
        """An array as onnxruntime holds it, on the device unless `host`."""
        from onnxruntime import OrtValue

        where = "cpu" if host else self.provider.memory
        return OrtValue.ortvalue_from_numpy(array, where, self.provider.index)

    def empty(self, shape: tuple[int, ...], dtype: str = "float32") -> Any:
        """Uninitialised numbers on the device."""
        from onnxruntime import OrtValue

        place = self.provider.memory, self.provider.index
        return OrtValue.ortvalue_from_shape_and_type(shape, np.dtype(dtype).type, *place)

    def tables(self, name: str, rows: int, *, long: bool) -> tuple[Any, Any]:
        """cos and sin of rotary table `name` on the device, for at least `rows` positions."""
        have = self._tables.get((name, long))
        if have is None or have[0] < rows:
            pair = self.turns(name, np.arange(rows), long=long)
            have = (rows, *(self.ortvalue(table) for table in pair))
            self._tables[name, long] = have
        return have[1], have[2]

    def turns(
        self, name: str, positions: NDArray[np.int64], *, long: bool
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """cos and sin of rotary table `name` at positions [n] or, by axis, [3, n]: [n, R / 2]."""
        half = self.variant.half
        return rope_tables(self.ropes[name], self.frequencies, positions, long=long, half=half)

    def capture_id(self) -> int:
        """A fresh CUDA graph number; 0 is onnxruntime's default one and stays unused."""
        self._captured += 1
        return self._captured

    def close(self) -> None:
        """Free everything."""
        self.runtime, self._tables = None, {}
        self.buffer_pool.close()


def failed(provider: Provider, what: str, error: Exception) -> DeviceError:
    """The error for a run that the provider gave up."""
    full = "allocate memory" in str(error) or "out of memory" in str(error).lower()
    return DeviceError(
        f"{provider.name} failed on {what}: {error}",
        code="device-memory" if full else "device-run",
        hint="run the model with --device cpu, or see `edgert doctor`",
    )
