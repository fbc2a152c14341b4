"""ONNX emission: a graph becomes `<part>.onnx` beside `weights.safetensors`.

The model's initializers name the safetensors file as their external data by byte offset, so there
is no second copy of any weight. The nodes come from the ops' ONNX faces; this driver orders them,
merges an add with the norm that follows it, and declares inputs and outputs as
`edgert.session.onnx_io.interface` says. Outputs are float32 in half precision, too.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import limits
from ..bundle.amend import list_files
from ..bundle.check import load_weight
from ..bundle.reader import Bundle
from ..errors import BundleError, ConvertError
from ..extras import require
from ..graph import Graph, Node
from ..kernels import onnx_tools as tools
from ..kernels.grids_onnx import emit_on_grid, make_rows
from ..kernels.modulation import emit_modulated_norm, scales_of
from ..kernels.norm import emit_add_norm
from ..kernels.ops import CATALOGUE
from ..kernels.quant import Matrix
from ..kernels.slot_rows import CHUNK
from ..kernels.states import RecurrentState
from ..session.onnx_check import check_model, metadata
from ..session.onnx_io import (
    PLAIN,
    Port,
    Variant,
    calls,
    dims,
    emitted_graph,
    interface,
    row_symbols,
)  # fmt: skip
from ..storage.aside import remove_leftovers, replace_file
from ..storage.lock import FileLock
from ..storage.safetensors import TensorFile, TensorInfo
from .onnx_encodings import check_encodings
from .onnx_fusion import MODULATED, modulated_norms
from .onnx_tables import check_inline
from .onnx_targets import Target, targets_of

if TYPE_CHECKING:
    from onnx import ModelProto

_PLACES = {"F32": tools.FLOAT, "F16": tools.FLOAT16, "U8": tools.UINT8}
_PORTS = {
    "float32": tools.FLOAT, "float16": tools.FLOAT16, "int32": tools.INT32, "int64": tools.INT64,
}  # fmt: skip


def place_in(tensors: Mapping[str, TensorInfo]) -> Callable[[str], tools.Placed]:
    """Where the tensors of a safetensors header lie, as emission wants to know it."""

    def place(name: str) -> tools.Placed:
        info = tensors[name]
        if info.dtype not in _PLACES:
            raise ConvertError(f"tensor {name!r} is {info.dtype}, expected one of {list(_PLACES)}")
        length = info.end - info.begin
        return tools.Placed(_PLACES[info.dtype], tuple(info.shape), info.begin, length)

    return place


def emit(
    graph: Graph,
    tensors: Mapping[str, TensorInfo],
    variant: Variant,
    *,
    location: str,
    taps: Sequence[str] = (),
    stored: Callable[[str], Matrix] | None = None,
) -> ModelProto:
    """The graph as an ONNX model whose weights are bytes of the file `location`.

    tensors: header of that file. taps: values that the model gives besides the graph's outputs.
    stored: values of weights, for graphs with sparse ones, whose dense forms stand in the model.
    Raises ConvertError for what cannot be emitted so.
    """
    check_encodings(graph, variant)
    check_inline(graph)
    given = {value.name for value in graph.outputs}
    taps = tuple(name for name in dict.fromkeys(taps) if name not in given)
    ctx = tools.EmitContext(
        place_in(tensors),
        location,
        variant.half,
        variant.standard,
        variant.batch,
        variant.fused,
        stored=stored,
    )
    try:
        emitted = emitted_graph(graph, variant, taps)
        _check_symbols(emitted, variant)
        _Walk(emitted, ctx).run()
    except BundleError as error:
        raise ConvertError(error.message, code=error.code, hint=error.hint) from None
    model = _model(emitted, variant, ctx)
    _check_names(model)
    from onnx import helper

    texts = metadata(graph, variant, taps)
    if (longest := max(len(text.encode()) for text in texts.values())) > limits.ONNX_TEXT_BYTES:
        raise ConvertError(
            f"{len(taps)} taps take {longest} bytes to list, the limit is {limits.ONNX_TEXT_BYTES}",
            code="onnx-options",
            hint="export fewer of them",
        )
    helper.set_model_props(model, texts)
    return model


def _check_symbols(graph: Graph, variant: Variant) -> None:
    """Fixed shapes have numbers for tokens and selected rows only; outputs are made by nodes."""
    symbols = {value.shape[0] for value in graph.inputs if isinstance(value.shape[0], str)}
    if variant.rows and (symbols - row_symbols(graph) or not symbols <= {"T", "R"}):
        raise ConvertError(
            f"graph {graph.name!r} has inputs of {sorted(map(str, symbols))} rows, expected only "
            "tokens T and selected rows R for fixed shapes",
            code="onnx-options",
            hint="export it without --rows and --capacity",
        )
    chunked = any(isinstance(spec, RecurrentState) for spec in graph.states.values())
    if variant.rows > CHUNK and chunked:
        raise ConvertError(
            f"{variant.rows} rows of a graph with recurrent states, expected at most {CHUNK}",
            code="onnx-options",
            hint="export it with fewer --rows",
        )
    both = {value.name for value in graph.inputs} & {value.name for value in graph.outputs}
    if both:
        raise ConvertError(
            f"graph {graph.name!r} gives its inputs {sorted(both)} back, expected outputs of nodes",
            code="onnx-graph",
        )


def _check_names(model: ModelProto) -> None:
    """Values of a graph must not be called as what the ops' faces and ports are."""
    graph = model.graph
    names = [value.name for value in (*graph.input, *graph.initializer)]
    names += [out for node in graph.node for out in node.output if out]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ConvertError(
            f"values {twice[:8]} would be there twice, expected other names in the graph",
            code="onnx-graph",
            hint="rename these values of the graph",
        )


class _Walk:
    """Emits the nodes of a graph in order."""

    def __init__(self, graph: Graph, ctx: tools.EmitContext) -> None:
        self.graph, self.ctx = graph, ctx
        self.merged: set[str] = set()
        self.outputs = {value.name for value in graph.outputs}
        # Graphs without states take float32; nodes that compute in it read the input itself.
        self.narrowed = set[str]()
        if ctx.half and not graph.states:
            self.narrowed = {v.name for v in graph.inputs if v.dtype == "f32"}
        self.calls = {call.output: self.named(call) for call in calls(graph)}
        self.norms = modulated_norms(graph) if ctx.fused else {}
        self.merged.update(self.norms.values())
        modulated = [n.output for n in graph.nodes if n.op in MODULATED]
        ctx.scales = scales_of([self.calls[name] for name in modulated]) if ctx.fused else {}

    def run(self) -> None:
        for name in sorted(self.narrowed):
            half = self.ctx.op("Cast", [name], self.name(name), to=tools.FLOAT16)
            self.ctx.casts[half, tools.FLOAT] = name
        for node in self.graph.nodes:
            if node.output in self.merged:
                continue
            norm = self._following_norm(node)
            if norm is not None:
                emit_add_norm(self.ctx, self.calls[node.output], self.calls[norm.output])
                self.merged.add(norm.output)
            else:
                self._emit(node)
        for output in self.graph.outputs:
            make_rows(self.ctx, self.name(output.name))
            if self.ctx.half:
                self.ctx.op("Cast", [self.name(output.name)], output.name, to=tools.FLOAT)

    def _emit(self, node: Node) -> None:
        if node.output in self.norms:
            norm = self.calls[self.norms[node.output]]
            make_rows(self.ctx, norm.inputs[0])
            emit_modulated_norm(self.ctx, norm, self.calls[node.output])
            return
        if emit_on_grid(self.ctx, node.op, self.calls[node.output]):
            return
        face = CATALOGUE[node.op].onnx
        if face is None:
            raise ConvertError(f"op {node.op!r} has no ONNX emission", code="onnx-op")
        face(self.ctx, self.calls[node.output])

    def _following_norm(self, node: Node) -> Node | None:
        """The rms_norm that reads an add's sum, if there is one."""
        if node.op != "add" or self.ctx.standard or self.ctx.fused:
            return None
        readers = [n for n in self.graph.nodes if node.output in n.inputs and n.op == "rms_norm"]
        return readers[0] if readers else None

    def name(self, value: str) -> str:
        """What a value is called before it is an output, and an input once it is float16."""
        if value in self.narrowed:
            return f"{value}.half"
        return f"{value}.raw" if self.ctx.half and value in self.outputs else value

    def named(self, call: tools.Call) -> tools.Call:
        inputs = tuple(self.name(value) for value in call.inputs)
        return replace(call, inputs=inputs, output=self.name(call.output))


def _model(graph: Graph, variant: Variant, ctx: tools.EmitContext) -> ModelProto:
    from onnx import helper

    inputs, outputs = interface(graph, variant)
    onnx_graph = helper.make_graph(
        ctx.nodes,
        graph.name,
        [_port(port) for port in inputs],
        [_port(port) for port in outputs],
        list(ctx.initializers.values()),
        value_info=_value_info(graph, variant, ctx),
    )
    model: ModelProto = helper.make_model(
        onnx_graph,
        producer_name="edgert",
        ir_version=tools.IR_VERSION,
        opset_imports=tools.opsets(ctx.nodes),
        functions=list(ctx.functions.values()),
    )
    return model


def _port(port: Port) -> Any:
    from onnx import helper

    return helper.make_tensor_value_info(port.name, _PORTS[port.dtype], port.shape)


def _value_info(graph: Graph, variant: Variant, ctx: tools.EmitContext) -> list[Any]:
    """Types of the graph's values: what com.microsoft ops yield is unknown to `onnx` otherwise."""
    from onnx import helper

    made = {out for node in ctx.nodes for out in node.output}
    given = {value.name for value in graph.outputs}
    return [
        helper.make_tensor_value_info(name, ctx.float_type, dims(shape, variant))
        for name, shape in graph.shapes().items()
        if name in made and name not in given
    ]


def write(
    graph: Graph,
    weights_file: Path,
    target: Path,
    variant: Variant = PLAIN,
    taps: Sequence[str] = (),
) -> Path:
    """Emit into `target` (in the folder of `weights_file`), aside first, then renamed."""
    if target.parent.resolve() != weights_file.parent.resolve():
        raise ConvertError(
            f"{target} is not beside {weights_file}, expected one folder for both",
            code="onnx-place",
            hint="onnxruntime only reads external data beside the .onnx file",
        )
    with TensorFile(weights_file) as file:
        tensors = {name: file.info(name) for name in file}
        model = emit(
            graph, tensors, variant, location=weights_file.name, taps=taps,
            stored=lambda name: load_weight(name, graph.weights[name], file),
        )  # fmt: skip
    replace_file(target, model.SerializeToString(deterministic=True))
    return target


def export(
    bundle_path: str | os.PathLike[str],
    *,
    precision: str = "f32",
    standard: bool = False,
    rows: int = 0,
    capacity: int = 0,
    taps: Sequence[str] = (),
    embeddings: bool = False,
    size: tuple[int, int] | None = None,
    batch: bool = False,
    fused: bool = False,
) -> list[Path]:
    """Add `<part><variant>.onnx` of every part to a bundle in place, and of the pieces that its
    denoiser is run in; returns the files.

    precision: "f32" or "f16" activations. standard: ai.onnx ops only (QNN, CoreML). rows, capacity:
    fixed step and cache sizes for providers without dynamic shapes (standard only). taps: values
    that steps may ask for besides the graph's outputs, from the parts that compute them.
    embeddings: take embedding rows, too; tokens are then looked up on the host. size: width and
    height in pixels, of bundles that draw; by default their own. batch: of those, compute pictures
    of a batch, and branches of guidance, in one call. fused: in fewer nodes. The weights are not
    touched. The manifest is replaced last: until then the bundle is what it was. Raises
    BundleError, ConvertError, or ResourceError while another process writes this bundle.
    """
    require("onnx", "writing an ONNX model", ConvertError)
    variant = variant_of(precision, standard=standard, rows=rows, capacity=capacity)
    variant = replace(variant, embeddings=embeddings, batch=batch, fused=fused)
    path = Path(bundle_path)
    lock = FileLock(path.with_name(f"{path.name}.lock"), str(path))
    try:
        remove_leftovers(path)
        with Bundle.open(path) as bundle:
            targets = targets_of(bundle, variant, taps, size)
            made = emit_parts(bundle, targets)
            list_files(bundle, made)
        with Bundle.open(path):
            for target, file in zip(targets, made, strict=True):
                check_model(file, target.graph, target.emission.variant)
    finally:
        lock.close()
    return made


def variant_of(
    precision: str, *, standard: bool = False, rows: int = 0, capacity: int = 0
) -> Variant:
    """The Variant of export options; ConvertError where they contradict each other."""
    if precision not in ("f32", "f16"):
        raise ConvertError(f"precision is {precision!r}, expected f32 or f16", code="onnx-options")
    if (rows or capacity) and not (standard and 0 < rows <= capacity):
        raise ConvertError(
            f"rows {rows} and capacity {capacity} with standard={standard}, expected "
            "0 < rows <= capacity and the standard dialect",
            code="onnx-options",
            hint="fixed shapes exist for the standard dialect only; add --standard",
        )
    return Variant(precision == "f16", standard, rows, capacity)


def emit_parts(bundle: Bundle, targets: Sequence[Target]) -> list[Path]:
    """Write files of a bundle's parts into its folder."""
    made = []
    for target in targets:
        part = bundle.manifest.parts[target.emission.part]
        file, weights = bundle.path_of(target.emission.name), bundle.path_of(part.weights)
        made.append(write(target.graph, weights, file, target.emission.variant, target.taps))
    return made
