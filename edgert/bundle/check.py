"""What a graph and a weights file must agree on before anything runs.

Kernels index by token ids, row numbers and declared sizes without checking them, so everything
they rely on is checked here, at load.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from numpy.typing import NDArray

from .. import limits
from ..errors import BundleError
from ..graph import Graph, Weight
from ..kernels.encodings import ENCODINGS
from ..kernels.ops import Shape
from ..kernels.quant import Matrix
from ..kernels.states import BorrowedState, KVState
from ..roles import STEPPED, role_faults, token_input
from ..storage.safetensors import DTYPES, TensorFile
from .image_spec import ImageSpec
from .manifest import Manifest, TextSpec

_AGAIN = "the bundle is damaged or was made by another edgert; convert the model again"


def check_part(role: str, graph: Graph, text: TextSpec | None, *, where: str) -> None:
    """The interface of a part: what its role asks, and logits of the manifest's width."""
    for fault in role_faults(role, graph):
        _fail(where, f"as a part with the role {role!r}: {fault}")
    if role not in STEPPED:
        return
    if not 0 < graph.context <= limits.CONTEXT_TOKENS:
        _fail(where, f"context of {graph.context} tokens, expected 1 to {limits.CONTEXT_TOKENS}")
    width = int(graph.outputs[0].shape[-1])
    if role == "text" and text is not None and width != text.vocab_size:
        _fail(where, f"logits of width {width}, expected {text.vocab_size} as text.vocab_size says")
    rows = min((int(n) for n in graph.index_bounds().get(token_input(graph), ())), default=width)
    if role == "text" and rows < width:
        _fail(where, f"tokens have {rows} embedding rows, expected {width}, as many as logits")


def check_image(manifest: Manifest, graphs: Mapping[str, Graph], *, where: str) -> None:
    """What a picture section says fits the graphs: latents and their size, what the denoiser is
    asked by, and rows of captions, tokens and labels."""
    image = manifest.image
    if image is None:
        return
    roles = {part.role: name for name, part in manifest.parts.items()}
    shapes = {value.name: value.shape for value in graphs[roles["denoiser"]].inputs}
    given = {"label": "labels", "caption": "captions"}
    asked = next((way for name, way in given.items() if name in shapes), "")
    if image.conditioning and asked != image.conditioning:
        _fail(where, f"image.conditioning is {image.conditioning!r}, the denoiser asks {asked!r}")
    bounds = graphs[roles["denoiser"]].index_bounds().get("label", set())
    rows = min((n for n in bounds if isinstance(n, int)), default=0)
    worst = max([*image.labels.values(), image.null_label or 0], default=0)
    if (image.labels or image.null_label) and worst >= rows:
        _fail(where, f"image.labels holds class {worst}, the denoiser has {rows}")
    _check_latents(image, shapes, graphs, roles, where=where)
    for part, caption in image.captions.items():
        graph = graphs[part]
        tokens = graph.index_bounds().get(token_input(graph), set())
        count = min((n for n in tokens if isinstance(n, int)), default=0)
        ids = (caption.end_id, caption.start_id or 0, caption.pad_id or 0)
        if max(ids) >= count:
            _fail(where, f"image.captions.{part} holds id {max(ids)}, the part has {count} rows")


def _check_latents(
    image: ImageSpec,
    inputs: Mapping[str, Shape],
    graphs: Mapping[str, Graph],
    roles: Mapping[str, str],
    *,
    where: str,
) -> None:
    """The denoiser and the decoder take the latents that `image.latents` describes."""
    if image.latents is None:
        return
    scale, sides = image.latents.downscale, [image.defaults.get(n) for n in ("height", "width")]
    first = next(iter(graphs[roles["decoder"]].inputs), None)
    taken = {"denoiser": inputs.get("x"), "decoder": None if first is None else first.shape}
    for role, shape in taken.items():
        if shape is None or shape[-1] != image.latents.channels:
            _fail(
                where,
                f"the {role} takes {shape}, expected latents of {image.latents.channels} channels",
            )
        if None in sides:
            continue
        rows = math.prod(int(n or 0) // scale for n in sides)
        if any(int(n or 0) % scale for n in sides) or shape[0] != rows:
            _fail(
                where,
                f"the {role} takes {shape[0]} latents, pictures of {sides} pixels have {rows}",
            )


def check_borrowed(part: str, graphs: Mapping[str, Graph], *, where: str) -> None:
    """States that a part borrows from another one are kv states of that part, in heads of the same
    number and size as the borrowing node's."""
    graph = graphs[part]
    for node in graph.nodes:
        spec = graph.states.get(node.state)
        if not isinstance(spec, BorrowedState) or not spec.part:
            continue
        owner = graphs[spec.part].states.get(spec.owner) if spec.part in graphs else None
        sizes = node.attrs.get("kv_heads"), node.attrs.get("head_dim")
        if not isinstance(owner, KVState) or (owner.kv_heads, owner.head_dim) != sizes:
            _fail(
                where,
                f"part {part!r} borrows state {spec.owner!r} of part {spec.part!r}, found {owner}, "
                f"expected keys and values of {sizes[0]} heads of size {sizes[1]}",
            )


def _fail(where: str, message: str, code: str = "graph-interface") -> NoReturn:
    raise BundleError(f"{where}: {message}", code=code, hint=_AGAIN)


def tensors_of(name: str, weight: Weight) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The tensors {name: (dtype, shape)} that store a declared weight."""
    return ENCODINGS[weight.encoding].specs(name, weight.shape)


def check_weights(graphs: Iterable[Graph], file: TensorFile) -> None:
    """The file holds exactly what the graphs that use it declare, aligned, in type and shape."""
    where = str(file.path)
    expected: set[str] = set()
    for graph in graphs:
        for name, weight in graph.weights.items():
            tensors = tensors_of(name, weight)
            expected |= set(tensors)
            if all(tensor in file for tensor in tensors):
                _check_weight(where, name, weight, file)
    missing, extra = sorted(expected - set(file)), sorted(set(file) - expected)
    if missing or extra:
        _fail(
            where,
            f"found {len(file)} tensors, expected {len(expected)}: missing {_few(missing)}, "
            f"unexpected {_few(extra)}",
            "weights-names",
        )


def _few(names: list[str]) -> str:
    return str(names[:8])[:-1] + (f", … {len(names) - 8} more]" if len(names) > 8 else "]")


def _check_weight(where: str, name: str, weight: Weight, file: TensorFile) -> None:
    tensors = tensors_of(name, weight)
    found = {tensor: file.info(tensor) for tensor in tensors}
    if any((info.dtype, info.shape) != tensors[t] for t, info in found.items()):
        have = ", ".join(f"{t} {info.dtype} {list(info.shape)}" for t, info in found.items())
        want = ", ".join(f"{t} {dtype} {list(shape)}" for t, (dtype, shape) in tensors.items())
        _fail(
            where,
            f"weight {name!r} {list(weight.shape)} in {weight.encoding}: found {have}, "
            f"expected {want}",
            "weights-shape",
        )
    for tensor, info in found.items():
        size = DTYPES[info.dtype].itemsize
        if info.begin % size:
            _fail(
                where,
                f"tensor {tensor!r} begins at byte {info.begin}, expected a multiple of {size}",
                "weights-alignment",
            )
    row = ENCODINGS[weight.encoding]
    if row.check is None:
        return
    stored = {t.key: file[f"{name}{t.suffix}"] for t in row.tensors}
    if wrong := row.check(stored, weight.shape):
        what = f"weight {name!r} {list(weight.shape)} in {weight.encoding}"
        _fail(where, f"{what}: {wrong}", "weights-values")


def load_weights(graph: Graph, file: TensorFile) -> dict[str, Matrix | NDArray[Any]]:
    """Graph-weight name -> view of the mapped file (ndarray or Quantized), after check_weights."""
    return {name: load_weight(name, weight, file) for name, weight in graph.weights.items()}


def load_weight(name: str, weight: Weight, file: TensorFile) -> Matrix:
    """One weight as a view of the mapped file, after check_weights."""
    row = ENCODINGS[weight.encoding]
    return row.load({t.key: file[f"{name}{t.suffix}"] for t in row.tensors}, weight.shape)
