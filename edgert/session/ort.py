"""The onnxruntime session: one emitted .onnx model on one execution provider.

Every input, output and state is bound (IOBinding); keys and values stay on the device, and only the
logits rows that a feed asked for come back. Feeds run one after the other, each as a batch of one
sequence. Steps of one token reuse a prepared binding, and with `cuda_graph` a captured CUDA graph.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError, DeviceError, RequestError
from ..graph import Graph
from .base import Feed, Session
from .onnx_check import check_model
from .onnx_io import PLAIN, Variant, attentions, interface, rope_tables, ropes
from .options import SessionOptions
from .ort_state import BufferPool, OrtState
from .providers import Placement, Provider, create_session, find_provider, parse_device, placement
from .reference import needs_long_rope

if TYPE_CHECKING:
    from ..bundle.reader import Bundle

_WORDS = 64  # int32 values: inputs in one buffer begin at multiples of 256 bytes
_HIDDEN = {"float32": -1e30, "float16": -6e4}  # what a mask adds to a score nobody may see


class OrtSession(Session):
    """graph and its weights as emitted into the file `model`.

    weights: only rotary frequencies are read from it (the file's own weights are mapped by
    onnxruntime). provider: a device name of `providers.DEVICES`, or a Provider with options.
    threads: of the CPU provider (None: its default). allow_cpu_nodes: let single nodes run on the
    CPU when the provider cannot take them. cuda_graph: capture one-token steps (CUDA only).
    Raises BundleError for a file that is no emission of this graph, DeviceError for the provider.
    """

    def __init__(
        self,
        graph: Graph,
        weights: Mapping[str, Any],
        model: Path,
        *,
        variant: Variant = PLAIN,
        provider: str | Provider = "ort-cpu",
        context: int = 0,
        max_rows: int = 512,
        threads: int | None = None,
        allow_cpu_nodes: bool = False,
        cuda_graph: bool = False,
    ) -> None:
        self.graph, self.variant = graph, variant
        self.provider = find_provider(provider) if isinstance(provider, str) else provider
        self.device = self.provider.device
        check_model(model, graph, variant)
        if cuda_graph:
            self.provider = self.provider.with_options(enable_cuda_graph="1")
        self.cuda_graph = cuda_graph
        self.session = create_session(
            model, self.provider, threads=threads, allow_cpu_nodes=allow_cpu_nodes
        )
        self.max_rows = max_rows
        self.context = min(context or graph.context, variant.capacity or graph.context)
        self.attentions = attentions(graph, variant)
        self.inputs, self.outputs = interface(graph, variant)
        self._frequencies = {
            name: weights[name] for rope in ropes(graph).values()
            for name in (rope.short, rope.long) if name
        }  # fmt: skip
        self._tables: dict[tuple[str, bool], tuple[int, Any, Any]] = {}
        self._lock = threading.Lock()
        self._captures = 0
        self.buffer_pool = BufferPool()

    def new_state(self, expected: int = 0) -> OrtState:
        long = needs_long_rope(self.graph, expected)
        return OrtState(self, self.context, expected, long_rope=long)

    def ortvalue(self, array: NDArray[Any], *, host: bool = False) -> Any:
        """An array as onnxruntime holds it, on the device unless `host`."""
        from onnxruntime import OrtValue

        where = "cpu" if host else self.provider.memory
        return OrtValue.ortvalue_from_numpy(array, where, self.provider.index)

    def empty(self, shape: tuple[int, ...]) -> Any:
        """Uninitialised float32 on the device."""
        from onnxruntime import OrtValue

        place = self.provider.memory, self.provider.index
        return OrtValue.ortvalue_from_shape_and_type(shape, np.float32, *place)

    def tables(self, name: str, rows: int, *, long: bool) -> tuple[Any, Any]:
        """cos and sin of rotary table `name` on the device, for at least `rows` positions."""
        have = self._tables.get((name, long))
        if have is None or have[0] < rows:
            rope, half = ropes(self.graph)[name], self.variant.half
            pair = rope_tables(rope, self._frequencies, rows, long=long, half=half)
            have = (rows, *(self.ortvalue(table) for table in pair))
            self._tables[name, long] = have
        return have[1], have[2]

    def step(self, feeds: Sequence[Feed]) -> list[NDArray[np.float32]]:
        with self._lock:
            if self.session is None:
                raise RequestError("the session is closed", code="closed")
            self.check_feeds(feeds)
            return [self._feed(feed) for feed in feeds]

    def _feed(self, feed: Feed) -> NDArray[np.float32]:
        state, count = feed.state, len(feed.tokens)
        if not isinstance(state, OrtState) or state.session is not self:
            raise RequestError("a state of another session", code="step-states")
        if state.closed:
            raise RequestError("the state is closed, expected an open one", code="step-states")
        first = {"all": 0, "last": count - 1, "none": count}[feed.logits]
        piece = self.variant.rows or count
        parts = []
        for start in range(0, count, piece):
            tokens = np.asarray(feed.tokens[start : start + piece], np.int32)
            wanted = np.arange(max(first - start, 0), len(tokens), dtype=np.int32)
            parts.append(self._run(state, tokens, state.length + start, wanted))
        state.pending = count
        return np.concatenate(parts)

    def _run(
        self, state: OrtState, tokens: NDArray[np.int32], start: int, wanted: NDArray[np.int32]
    ) -> NDArray[np.float32]:
        """Tokens at positions start.. of one sequence; logits of the wanted ones, [R, V]."""
        count = len(tokens)
        if not self.variant.rows:
            state.reserve(start + count)
        rows = wanted if len(wanted) else np.zeros(1, np.int32)
        size = self.variant.rows or count
        key = (size, self.variant.rows or len(rows))
        binding = state.bindings.get(key) or _Binding(self, state, *key)
        if size == 1:
            state.bindings[key] = binding
        logits = binding.run(tokens, rows, start)
        return logits[: len(wanted)]

    def capture_id(self) -> int:
        """A fresh CUDA graph number; 0 is onnxruntime's default one and stays unused."""
        self._captures += 1
        return self._captures

    def close(self) -> None:
        with self._lock:
            self.session, self._tables = None, {}
            self.buffer_pool.close()


class _Binding:
    """Inputs, outputs and states of steps of S tokens and R logits rows of one sequence.

    The int32 inputs lie in one buffer: a step copies them to the device at once.
    """

    def __init__(self, session: OrtSession, state: OrtState, size: int, rows: int) -> None:
        from onnxruntime import RunOptions

        self.session, self.state, self.size, self.rows = session, state, size, rows
        self.io = session.session.io_binding()
        self.values: dict[str, Any] = {}
        self.windows: dict[str, int] = {}
        self.words: dict[str, NDArray[np.int32]] = {}
        self._bind_words()
        for port in session.inputs:
            if port.name not in self.words:
                self.io.bind_ortvalue_input(port.name, self._input(port.name, port.dtype))
        for port in session.outputs:
            self.io.bind_ortvalue_output(port.name, self._output(port.name))
        # only one-token steps are repeated with the same buffers, so only they are captured
        self.graph_id = session.capture_id() if session.cuda_graph and size == 1 else -1
        self.options = RunOptions()
        if session.cuda_graph:
            self.options.add_run_config_entry("gpu_graph_id", str(self.graph_id))

    def _bind_words(self) -> None:
        """Put the int32 inputs into one buffer, each at a multiple of 256 bytes."""
        sizes = {"tokens": self.size, "positions": self.size, "rows": self.rows, "seqlens_k": 1}
        ports = [p for p in self.session.inputs if p.name in sizes and p.dtype == "int32"]
        *starts, end = np.cumsum([0] + [-(-sizes[p.name] // _WORDS) * _WORDS for p in ports])
        self.host = np.zeros(end, np.int32)
        self.block = self.session.ortvalue(self.host)
        place, base = self.session.provider, self.block.data_ptr()
        for port, start in zip(ports, map(int, starts), strict=True):
            count = sizes[port.name]
            self.words[port.name] = self.host[start : start + count]
            shape = (1, count) if len(port.shape) == 2 else (count,)
            where = place.memory, place.index, np.int32, shape, base + 4 * start
            self.io.bind_input(port.name, *where)

    def _input(self, name: str, dtype: str) -> Any:
        kind, _, rest = name.partition(".")
        if name in self.state.buffers:
            return self.state.buffers[name]
        if kind in ("cos", "sin"):
            long, rows = self.state.long_rope, self.state.capacity
            return self.session.tables(rest, rows, long=long)[kind == "sin"]
        shape: tuple[int, ...] = {
            "positions": (1, self.size), "total_sequence_length": (1,),
        }.get(kind, (1, 1, self.size, self.state.capacity + self.size))  # fmt: skip
        if kind == "mask":
            self.windows[name] = int(rest)
        host = kind == "total_sequence_length"
        self.values[name] = self.session.ortvalue(np.zeros(shape, dtype), host=host)
        return self.values[name]

    def _output(self, name: str) -> Any:
        kind, _, rest = name.partition(".")
        if kind == "logits":
            value = self.session.empty((self.rows, self.session.graph.vocab_size))
        elif kind.startswith("present_"):
            return self.state.buffers[f"{kind.replace('present', 'past')}.{rest}"]
        else:
            past = self.state.buffers[f"{kind.replace('new', 'past')}.{rest}"].numpy()
            shape = (1, past.shape[1], self.size, past.shape[3])
            value = self.session.ortvalue(np.zeros(shape, past.dtype), host=True)
        self.values[name] = value
        return value

    def run(
        self, tokens: NDArray[np.int32], rows: NDArray[np.int32], start: int
    ) -> NDArray[np.float32]:
        self._feed(tokens, rows, start)
        try:
            self.session.session.run_with_iobinding(self.io, self.options)
        except Exception as error:  # onnxruntime raises its own types, which share no base
            raise DeviceError(
                f"{self.session.provider.name} failed on a step of {len(tokens)} tokens: {error}",
                code="device-run",
                hint="run the model with --device cpu, or see `edgert doctor`",
            ) from error
        for name, value in self.values.items():
            if name.startswith("new_"):
                fresh = value.numpy()[0, :, : len(tokens)]
                self.state.store(name.replace("new", "past", 1), fresh, start)
        logits: NDArray[np.float32] = self.values["logits"].numpy()[: len(rows)]
        # of host memory `numpy()` is a view that the next step overwrites
        return logits.copy() if self.session.provider.memory == "cpu" else logits

    def _feed(self, tokens: NDArray[np.int32], rows: NDArray[np.int32], start: int) -> None:
        end = start + self.size
        positions = np.minimum(np.arange(start, end), self.state.capacity - 1)
        for name, array in (
            ("tokens", tokens), ("positions", positions), ("rows", rows), ("seqlens_k", end - 1),
        ):  # fmt: skip
            if name in self.words:
                word = self.words[name]
                word[:], word[: np.size(array)] = 0, array
        self.block.update_inplace(self.host)
        # a captured graph replays the total it was captured with: the whole buffer
        total = self.state.capacity if self.graph_id >= 0 else end
        feeds: dict[str, NDArray[Any]] = {
            "total_sequence_length": np.array([total], np.int32),
            "positions": positions.astype(np.int64)[None],
        }
        dtype = "float16" if self.session.variant.half else "float32"
        for name, window in self.windows.items():
            feeds[name] = mask(start, self.size, self.state.capacity, window, dtype)
        for name, array in feeds.items():
            if name in self.values:
                self.values[name].update_inplace(array)


def mask(start: int, size: int, capacity: int, window: int, dtype: str) -> NDArray[Any]:
    """[1, 1, S, P + S] for `size` new rows at `start`: the cache's rows, then the new ones."""
    where = np.concatenate([np.arange(capacity), np.arange(start, start + size)])
    valid = np.concatenate([np.arange(capacity) < start, np.ones(size, bool)])
    query = np.arange(start, start + size)[:, None]
    seen = valid[None, :] & (where[None, :] <= query)
    if window:
        seen &= where[None, :] > query - window
    return np.where(seen, 0.0, _HIDDEN[dtype]).astype(dtype)[None, None]


def open_ort(bundle: Bundle, options: SessionOptions, *, part: str = "model") -> OrtSession:
    """A session of a bundle's part on the execution provider that the options name.

    Raises DeviceError (provider, nodes) and BundleError (no fitting .onnx, or one that is not this
    graph's).
    """
    choice = parse_device(options.device)
    _check_weights(bundle, part, choice.provider)
    variant = _choose(bundle, part, choice.provider)
    return OrtSession(
        bundle.graph(part),
        bundle.weights(part),
        bundle.path_of(f"{part}{variant.suffix}.onnx"),
        variant=variant,
        provider=choice.provider,
        context=options.ctx_size or 0,
        threads=options.threads,
        allow_cpu_nodes=choice.allow_cpu_nodes,
        cuda_graph=choice.graph,
    )


def place(bundle: Bundle, device: str, part: str = "model") -> list[Placement]:
    """Every node of a part and the provider it runs on, when left to onnxruntime's own choice."""
    device += ",allow-cpu-nodes" if ":" in device else ":allow-cpu-nodes"
    session = open_ort(bundle, SessionOptions(device), part=part)
    try:
        return placement(session.session)
    finally:
        session.close()


def emitted(bundle: Bundle, part: str = "model") -> list[Variant]:
    """The ONNX variants that a bundle holds."""
    found = (Variant.of_file(part, name) for name in bundle.manifest.files)
    return [variant for variant in found if variant is not None]


def _check_weights(bundle: Bundle, part: str, provider: Provider) -> None:
    """QNN leaves DequantizeLinear by blocks to the CPU, and what its simulator then computes from
    the codes is wrong: refused even where nodes on the CPU are allowed."""
    found = {weight.encoding for weight in bundle.graph(part).weights.values()} - {"f32", "f16"}
    if provider.float_weights and found:
        raise DeviceError(
            f"{provider.name} has no kernel for the {sorted(found)} weights of {bundle.path}, "
            "expected f16 or f32",
            code="device-weights",
            hint="convert the model with --quant f16 for this device",
        )


def _choose(bundle: Bundle, part: str, provider: Provider) -> Variant:
    """The variant in the provider's dialect, in its better precision if that was emitted."""
    variants = [
        v
        for v in emitted(bundle, part)
        if v.standard == provider.standard and (v.half or not provider.half_only)
    ]
    if not variants:
        precision = "f16" if provider.half else "f32"
        raise BundleError(
            f"{bundle.path} has no ONNX model that fits {provider.name}, found "
            f"{sorted(n for n in bundle.manifest.files if n.endswith('.onnx'))}",
            code="onnx-missing",
            hint=f"edgert export {bundle.path} --precision {precision}"
            + (" --standard" if provider.standard else ""),
        )
    return min(variants, key=lambda v: (v.half != provider.half, v.suffix))
