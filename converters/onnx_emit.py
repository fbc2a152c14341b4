"""ONNX emission: a graph becomes `<part>.onnx` beside `weights.safetensors`.

The model's initializers name the safetensors file as their external data by byte offset, so there
is no second copy of any weight. The nodes come from the ops' ONNX faces; this driver orders them,
merges an add with the norm that follows it, and declares inputs and outputs as
`edgert.session.onnx_io.interface` says.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bundle.manifest import MANIFEST_NAME, Manifest
from ..bundle.reader import Bundle
from ..errors import ConvertError
from ..graph import Graph, Node
from ..kernels import onnx_tools as tools
from ..kernels.encodings import ENCODINGS
from ..kernels.norm import emit_add_norm
from ..kernels.ops import CATALOGUE, Shape
from ..session.onnx_check import check_model
from ..session.onnx_io import PLAIN, Port, Variant, interface
from ..storage.folder import open_regular, sha256_fd
from ..storage.lock import FileLock
from ..storage.safetensors import TensorInfo, read_header

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
    graph: Graph, tensors: Mapping[str, TensorInfo], variant: Variant, *, location: str
) -> ModelProto:
    """The graph as an ONNX model whose weights are bytes of the file `location`.

    tensors: header of that file. Raises ConvertError for an op or encoding without ONNX face.
    """
    _check_encodings(graph)
    ctx = tools.EmitContext(place_in(tensors), location, variant.half, variant.standard)
    _Walk(graph, variant, ctx).run()
    return _model(graph, variant, ctx)


def _check_encodings(graph: Graph) -> None:
    rows = {name: ENCODINGS[weight.encoding] for name, weight in graph.weights.items()}
    bad = {name: row.name for name, row in rows.items() if not row.plain and not row.onnx_bits}
    if bad:
        known = sorted(row.name for row in ENCODINGS.values() if row.plain or row.onnx_bits)
        name, found = next(iter(bad.items()))
        raise ConvertError(
            f"{len(bad)} weights are in encodings without ONNX emission, the first {name!r} in "
            f"{found}, expected some of {known}",
            code="onnx-weights",
            hint="convert the model with another --quant",
        )


class _Walk:
    """Emits the nodes of a graph in order."""

    def __init__(self, graph: Graph, variant: Variant, ctx: tools.EmitContext) -> None:
        self.graph, self.ctx = graph, ctx
        self.shapes = graph.shapes()
        self.merged: set[str] = set()
        self.final = graph.outputs[0].name
        self.merge = not variant.standard

    def run(self) -> None:
        for node in self.graph.nodes:
            if node.output in self.merged:
                continue
            norm = self._following_norm(node)
            if norm is not None:
                emit_add_norm(self.ctx, self.call(node), self.call(norm))
                self.merged.add(norm.output)
            else:
                self._emit(node)
        last = "logits.raw" if self.ctx.half else "logits"
        if self.ctx.half:
            self.ctx.op("Cast", [last], "logits", to=tools.FLOAT)

    def _emit(self, node: Node) -> None:
        face = CATALOGUE[node.op].onnx
        if face is None:
            raise ConvertError(f"op {node.op!r} has no ONNX emission", code="onnx-op")
        face(self.ctx, self.call(node))

    def _following_norm(self, node: Node) -> Node | None:
        """The rms_norm that reads an add's sum, if there is one."""
        if node.op != "add" or not self.merge or node.output == self.final:
            return None
        readers = [n for n in self.graph.nodes if node.output in n.inputs and n.op == "rms_norm"]
        return readers[0] if readers else None

    def name(self, value: str) -> str:
        if value == self.final:
            return "logits.raw" if self.ctx.half else "logits"
        return value

    def call(self, node: Node) -> tools.Call:
        stored = {}
        for slot, name in node.weights.items():
            weight = self.graph.weights[name]
            stored[slot] = tools.StoredWeight(name, weight.shape, weight.encoding)
        return tools.Call(
            tuple(self.name(n) for n in node.inputs),
            self.name(node.output),
            stored,
            CATALOGUE[node.op].check_attrs(node.attrs),
            tuple(self.shapes[n] for n in node.inputs),
            node.state,
        )


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
    digest = hashlib.sha256(graph.to_json()).hexdigest()
    helper.set_model_props(model, {**variant.metadata(), "edgert.graph": digest})
    return model


def _port(port: Port) -> Any:
    from onnx import helper

    return helper.make_tensor_value_info(port.name, _PORTS[port.dtype], port.shape)


def _value_info(graph: Graph, variant: Variant, ctx: tools.EmitContext) -> list[Any]:
    """Types of the graph's values: what com.microsoft ops yield is unknown to `onnx` otherwise."""
    from onnx import helper

    made = {out for node in ctx.nodes for out in node.output}
    dims = variant.dims
    infos = []
    for name, shape in graph.shapes().items():
        if name in made and name != "logits":
            infos.append(helper.make_tensor_value_info(name, ctx.float_type, _dims(shape, dims)))
    return infos


def _dims(shape: Shape, dims: Mapping[str, Any]) -> list[Any]:
    """A graph shape as ONNX has it: [T, ..] is [B, S, ..]."""
    head = {"T": [dims["B"], dims["S"]], "R": [dims["R"]]}[str(shape[0])]
    return [*head, *shape[1:]]


def write(graph: Graph, weights_file: Path, target: Path, variant: Variant = PLAIN) -> Path:
    """Emit into `target` (in the folder of `weights_file`), aside first, then renamed."""
    if target.parent.resolve() != weights_file.parent.resolve():
        raise ConvertError(
            f"{target} is not beside {weights_file}, expected one folder for both",
            code="onnx-place",
            hint="onnxruntime only reads external data beside the .onnx file",
        )
    model = emit(graph, read_header(weights_file), variant, location=weights_file.name)
    _replace(target, model.SerializeToString(deterministic=True))
    return target


def _replace(target: Path, data: bytes) -> None:
    """A file's new content: written aside, flushed, renamed."""
    aside = target.with_name(f"{target.name}.partial-{os.getpid()}")
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)


def export(
    bundle_path: str | os.PathLike[str],
    *,
    precision: str = "f32",
    standard: bool = False,
    rows: int = 0,
    capacity: int = 0,
) -> list[Path]:
    """Add `<part><variant>.onnx` of every part to a bundle in place; returns the files.

    precision: "f32" or "f16" activations. standard: ai.onnx ops only (QNN, CoreML). rows, capacity:
    fixed step and cache sizes for providers without dynamic shapes (standard only). The weights are
    not touched. The manifest is replaced last: until then the bundle is what it was. Raises
    BundleError, ConvertError, or ResourceError while another process writes this bundle.
    """
    variant = variant_of(precision, standard=standard, rows=rows, capacity=capacity)
    path = Path(bundle_path)
    lock = FileLock(path.with_name(f"{path.name}.lock"), str(path))
    try:
        with Bundle.open(path) as bundle:
            made = emit_parts(bundle, variant)
            _list_in_manifest(bundle, made)
        with Bundle.open(path) as bundle:
            for part, target in zip(sorted(bundle.manifest.parts), made, strict=True):
                check_model(target, bundle.graph(part), variant)
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


def emit_parts(bundle: Bundle, variant: Variant) -> list[Path]:
    """Write the .onnx of every part (in the order of their names) into the bundle's folder."""
    return [
        write(
            bundle.graph(name),
            bundle.path_of(part.weights),
            bundle.path_of(f"{name}{variant.suffix}.onnx"),
            variant,
        )
        for name, part in sorted(bundle.manifest.parts.items())
    ]


def _list_in_manifest(bundle: Bundle, made: list[Path]) -> None:
    """Size and hash of the new files, put in with the manifest's other bytes kept as they mean."""
    target = bundle.path_of(MANIFEST_NAME)
    manifest = json.loads(target.read_bytes())
    for path in made:
        fd = open_regular(path)
        try:
            sha256, size = sha256_fd(fd)
        finally:
            os.close(fd)
        manifest["files"][path.name] = {"sha256": sha256, "size": size}
    data = json.dumps(manifest, indent=1, ensure_ascii=False).encode("utf-8")
    Manifest.from_json(data, where=str(target))
    _replace(target, data)
