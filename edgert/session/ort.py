"""The onnxruntime session: one emitted .onnx model on one execution provider.

Every input, output and state of a step is bound (IOBinding); keys and values stay on the device,
and only the logits rows and taps that a feed asked for come back. Feeds run one after the other,
each as a batch of one sequence. Steps of one token reuse a prepared binding, and with `cuda_graph`
a captured CUDA graph.
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
from ..kernels.ops import CATALOGUE
from ..kernels.slot_rows import CHUNK
from ..kernels.states import ConvState, RecurrentState
from ..roles import BATCHED, FUNCTIONS, row_input
from .base import F32, Feed, Session, State, StepResult
from .feeds import FeedChecker, Rows, check_arrays, lay_out
from .longrope import Switching
from .onnx_io import PLAIN, Variant, embedded
from .onnx_names import Emission
from .options import SessionOptions
from .ort_batch import BatchModel, checked_sizes
from .ort_binding import Binding
from .ort_choice import check_weights, choose, files_of
from .ort_feed import Piece, pieces
from .ort_graphs import Files, OrtGraphs, one_ahead, one_behind, run_model
from .ort_model import OrtModel
from .ort_state import OrtState
from .providers import Placement, Provider, find_provider, parse_device, placement
from .replay import Replaying
from .room import inputs_that_fit

if TYPE_CHECKING:
    from ..bundle.reader import Bundle


class _Lookup:
    """The graph's embed node on the host: ids of `tokens` to rows of `output`."""

    def __init__(self, graph: Graph, weights: Mapping[str, Any]) -> None:
        node = embedded(graph)
        if node is None:
            raise BundleError(f"graph {graph.name!r} looks no tokens up", code="onnx-embeddings")
        self.tokens, self.output = node.inputs[0], node.output
        self._op, self._attrs = CATALOGUE[node.op], CATALOGUE[node.op].check_attrs(node.attrs)
        self._weights = {slot: weights[name] for slot, name in node.weights.items()}

    def __call__(self, tokens: NDArray[Any]) -> F32:
        rows: F32 = self._op.reference([tokens], self._weights, self._attrs)
        return rows


class OrtSession(Session):
    """graph and its weights as emitted into the file `model`.

    weights: only rotary frequencies are read from it, and the token table of a model that takes
    embeddings (the file's own weights are mapped by onnxruntime). provider: a device name of
    `providers.DEVICES`, or a Provider with options. threads: of the CPU provider (None: its
    default). allow_cpu_nodes: let single nodes run on the CPU when the provider cannot take them.
    cuda_graph: capture one-token steps (CUDA only). files: of a graph without states, emissions of
    its cuts and other sizes too; they and `model`, if it is one of them, are opened when they are
    first run. Raises BundleError for a file that is no emission of its graph, DeviceError for the
    provider.
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
        files: Files | None = None,
    ) -> None:
        self.graph, self.variant, self.halves = graph, variant, variant.half
        self.provider = find_provider(provider) if isinstance(provider, str) else provider
        self.device = self.provider.device

        def open_file(graph: Graph, file: Path) -> OrtModel:
            return (BatchModel if variant.batch else OrtModel)(
                graph, weights, file, variant, self.provider, alternates=files is not None,
                threads=threads, allow_cpu_nodes=allow_cpu_nodes, cuda_graph=cuda_graph,
            )  # fmt: skip

        self.graphs = OrtGraphs(graph, model, files, open_file)
        if files is None:
            self.graphs.model_of(graph)
        self.max_rows = max_rows
        context = context or graph.context
        self.context = min(context, variant.capacity or context)
        self.checker = FeedChecker(self)
        self.chunked = any(isinstance(s, RecurrentState) for s in graph.states.values())
        whole = self.chunked or any(isinstance(s, ConvState) for s in graph.states.values())
        self.replaying = Replaying(self.checker, max_rows, self._step, whole=whole)
        self.switching = Switching(graph, self.checker, max_rows, self.replaying.step)
        self.rows = row_input(graph)
        self.lookup = _Lookup(graph, weights) if variant.embeddings else None
        self._lock = threading.Lock()

    @property
    def model(self) -> OrtModel:
        """The opened file of the session's own graph."""
        return self.graphs.model_of(self.graph)

    def new_state(self, expected: int = 0) -> OrtState:
        long = 0 < self.switching.switch < expected
        state = OrtState(self.model, self.context, expected, long_rope=long)
        self.switching.begin(state, expected)
        self.replaying.begin(state)
        return state

    def step(self, feeds: Sequence[Feed]) -> list[StepResult]:
        return self.switching.step(feeds)

    def _step(self, feeds: Sequence[Feed]) -> list[StepResult]:
        with self._lock:
            self._check_open()
            self.checker.check(feeds)
            laid = [lay_out([feed]) for feed in feeds]
            for feed, rows in zip(feeds, laid, strict=True):
                self._check(feed, rows)
            return [self._feed(feed, rows) for feed, rows in zip(feeds, laid, strict=True)]

    def run(self, arrays: Mapping[str, Any], graph: Graph | None = None) -> dict[str, F32]:
        return self._computed(arrays, graph, keep=False)

    def run_held(self, arrays: Mapping[str, Any], graph: Graph | None = None) -> dict[str, Any]:
        return self._computed(arrays, graph, keep=True)

    def _computed(
        self, arrays: Mapping[str, Any], graph: Graph | None, *, keep: bool
    ) -> dict[str, Any]:
        graph = graph or self.graph
        if self.variant.batch:
            ahead = {name: one_ahead(array) for name, array in arrays.items()}
            found = self.run_batch(ahead, graph, keep=keep)
            return {name: one_behind(value) for name, value in found.items()}
        with self._lock:
            self._check_open()
            sizes = check_arrays(graph, arrays)
            if self.variant.rows and sizes.get("T", self.variant.rows) != self.variant.rows:
                raise RequestError(
                    f"{sizes['T']} rows, expected {self.variant.rows}, the fixed number of this "
                    "ONNX model",
                    code="run-inputs",
                    hint="export it without --rows for any number",
                )
            given = dict(arrays)
            if self.lookup is not None and self.lookup.tokens in given:
                given[self.lookup.output] = self.lookup(given[self.lookup.tokens])
            return run_model(self.graphs.model_of(graph), given, sizes, keep=keep)

    def most(self, graph: Graph, sizes: Mapping[str, int]) -> int:
        if not self.variant.batch:
            return 0
        return inputs_that_fit(graph, sizes, device=self.provider.memory != "cpu")

    def run_batch(
        self, arrays: Mapping[str, Any], graph: Graph | None = None, *,
        lengths: Mapping[str, Sequence[int]] | None = None, keep: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        if not self.variant.batch:
            return super().run_batch(arrays, graph)
        graph = graph or self.graph
        with self._lock:
            self._check_open()
            sizes = checked_sizes(graph, arrays)
            model = self.graphs.model_of(graph)
            if not isinstance(model, BatchModel):
                raise TypeError("a batch for a model without that axis")
            return model.run_batch(arrays, lengths or {}, sizes, keep=keep)

    def require(self, graph: Graph) -> None:
        with self._lock:
            self._check_open()
            self.graphs.find(graph)

    def placements(self, graph: Graph | None = None) -> list[Placement]:
        """Every node of a graph's file, its own by default, and the provider it runs on."""
        return placement(self.graphs.model_of(graph or self.graph).runtime)

    def _check_open(self) -> None:
        if self.graphs.closed:
            raise RequestError("the session is closed", code="closed")

    def _check(self, feed: Feed, rows: Rows) -> None:
        """What this model cannot take, though another emission of the graph could."""
        self._own(feed.state)
        if feed.embeddings is not None and self.checker.tokens and self.lookup is None:
            raise DeviceError(
                "this ONNX model takes token ids, a feed brings embeddings",
                code="device-inputs",
                hint="`edgert export BUNDLE --embeddings` emits one that takes both",
            )
        if feed.taps:
            self._check_taps(feed)
        self._check_order(feed, rows)

    def _check_taps(self, feed: Feed) -> None:
        outputs = {v.name for v in self.model.graph.outputs if v.shape[0] == "T"}
        if unknown := sorted(set(feed.taps) - outputs):
            raise DeviceError(
                f"this ONNX model gives no rows of {unknown}, expected some of {sorted(outputs)}",
                code="device-taps",
                hint=f"`edgert export BUNDLE --tap {unknown[0]}` emits one that does",
            )

    def _own(self, state: State) -> OrtState:
        if not isinstance(state, OrtState) or state.host is not self.model:
            raise RequestError("a state of another session", code="step-states")
        state.check_open()
        return state

    def _check_order(self, feed: Feed, rows: Rows) -> None:
        """Trees and positions, where attention counts them by itself; tables end somewhere."""
        if feed.positions is None and feed.parents is None:
            return
        moved = bool((rows.position[0] != rows.slot).any())
        if not self.model.takes_trees and (rows.place != rows.slot).any():
            raise self._counts_itself("a feed is a tree, this ONNX model takes rows in a chain")
        if not self.model.takes_positions and moved:
            raise self._counts_itself(
                f"a feed has positions {rows.position[0][:8].tolist()}, this ONNX model takes "
                f"{rows.slot[:8].tolist()}"
            )
        farthest = int(rows.position[0].max())
        indexed = any(port.name == "positions" for port in self.model.inputs)
        if indexed and farthest >= self.context:
            raise RequestError(
                f"position {farthest}, the rotary tables of this ONNX model end at {self.context}",
                code="step-positions",
            )
        if indexed and moved:
            self._own(feed.state).reserve(farthest + 1)

    def _counts_itself(self, message: str) -> DeviceError:
        return DeviceError(
            message + " (its attention counts positions by itself)",
            code="device-order",
            hint="`edgert export BUNDLE --standard` emits one that takes them; or use --device cpu",
        )

    def _feed(self, feed: Feed, rows: Rows) -> StepResult:
        state = self._own(feed.state)
        first, taps = self.graph.outputs[0].name, dict.fromkeys(feed.taps)
        parts: dict[str, list[F32]] = {name: [] for name in (first, *taps)}
        most = CHUNK if self.chunked else 0
        for piece in pieces(rows, state.length, self.variant.rows, most):
            for name, part in self._run(feed, state, piece, rows, list(parts)).items():
                parts[name].append(part)
        state.pending = feed.rows
        found = {n: p[0] if len(p) == 1 else np.concatenate(p) for n, p in parts.items()}
        whole = self.graph.outputs[0].shape[0] == "T"
        logits = found[first][rows.picked] if whole else found[first]
        return StepResult(logits, {name: found[name] for name in taps})

    def _run(
        self, feed: Feed, state: OrtState, piece: Piece, rows: Rows, names: list[str]
    ) -> dict[str, F32]:
        """One piece of a feed; its rows of the outputs `names`."""
        if not self.variant.rows:
            state.reserve(piece.end)
        stop = piece.first + piece.count
        wanted = rows.picked
        if piece.count < rows.total:
            wanted = wanted[(wanted >= piece.first) & (wanted < stop)] - piece.first
        given = self._inputs(feed, slice(piece.first, stop))
        if self.rows:
            given[self.rows] = wanted if len(wanted) else np.zeros(1, np.int32)
        count = self.variant.rows or len(given.get(self.rows, ())) or 1
        binding = state.bindings.get((piece.size, count))
        if binding is None:
            binding = Binding(self.model, state, piece.size, count)
        if piece.size == 1:
            state.bindings[1, count] = binding
        found: dict[str, F32] = binding.run(piece, given, names)
        first = self.graph.outputs[0]
        if first.shape[0] != "T":
            found[first.name] = found[first.name][: len(wanted)]
        return found

    def _inputs(self, feed: Feed, rows: slice) -> dict[str, NDArray[Any]]:
        """The model's own inputs, but for the numbers of selected rows."""
        given: dict[str, NDArray[Any]] = {}
        for name in self.checker.floats:
            array = feed.inputs[name] if name in feed.inputs else feed.embeddings
            given[name] = np.asarray(array, np.float32)[rows]
        if feed.tokens is not None:
            tokens = np.asarray(feed.tokens, np.int32)[rows]
            if self.lookup is None:
                given[self.checker.tokens] = tokens
            else:
                given[self.lookup.output] = self.lookup(tokens)
        elif self.lookup is not None:
            given[self.lookup.output] = np.asarray(feed.embeddings, np.float32)[rows]
        return given

    def close(self) -> None:
        with self._lock:
            self.graphs.close()


def open_ort(bundle: Bundle, options: SessionOptions, *, part: str = "") -> OrtSession:
    """A session of a bundle's part (the text part by default) on the execution provider that the
    options name.

    Raises DeviceError (provider, nodes) and BundleError (no fitting .onnx, or one that is not this
    graph's).
    """
    part, choice = bundle.part(part), parse_device(options.device)
    check_weights(bundle, part, choice.provider)
    variant = choose(bundle, part, choice.provider)
    function = bundle.manifest.parts[part].role in FUNCTIONS
    captured = choice.graph and (variant.batch or not function)
    beside = bundle.manifest.kind == "image" and bundle.manifest.parts[part].role not in BATCHED
    if choice.graph and not captured and not beside:
        raise DeviceError(
            f"device {options.device!r} captures steps of tokens and batches of pictures, the part "
            f"{part!r} has none",
            code="device-options",
            hint=f"`edgert export {bundle.path} --batch` writes files that compute batches; or "
            "leave the word graph out",
        )
    return OrtSession(
        bundle.graph(part),
        bundle.weights(part),
        bundle.path_of(Emission(part, variant).name),
        variant=variant,
        provider=choice.provider,
        context=options.ctx_size or 0,
        threads=options.threads,
        allow_cpu_nodes=choice.allow_cpu_nodes,
        cuda_graph=captured,
        files=files_of(bundle, part, variant) if function else None,
    )


def place(
    bundle: Bundle, device: str, part: str = "", graphs: Sequence[Graph] = ()
) -> list[Placement]:
    """Every node of a part and the provider it runs on, when left to onnxruntime's own choice.

    graphs: those of the part's graphs that the bundle has files of; by default its own.
    """
    device += ",allow-cpu-nodes" if ":" in device else ":allow-cpu-nodes"
    session = open_ort(bundle, SessionOptions(device), part=part)
    try:
        wanted = graphs or [session.graph]
        return [node for graph in wanted for node in session.placements(graph)]
    finally:
        session.close()
