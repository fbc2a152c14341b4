"""The part of a bundle that guesses: a draft head, which reads rows of the text part.

Its graph takes a row for each token of a text: `features`, the taps side by side, `hidden`, and
`embedding`, the text part's own row of the token behind; it gives logits of its own, smaller
vocabulary and the rows `next`. At a token of the text `hidden` is zero; behind a guess `features`
are, and `hidden` is the `next` of the row before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError
from ..graph import Graph, Node
from ..roles import row_input, step_inputs, token_input
from .manifest import DraftSpec, Manifest

FEATURES, HIDDEN, EMBEDDING, NEXT = "features", "hidden", "embedding", "next"
ROLE = "draft"
ID_BYTES = 4


def embedding_of(graph: Graph) -> Node | None:
    """The node that looks tokens up; None where there is none, or several."""
    tokens = token_input(graph)
    found = [n for n in graph.nodes if n.op == "embed" and n.inputs[0] == tokens]
    return found[0] if tokens and len(found) == 1 else None


def check_draft(
    manifest: Manifest, graphs: Mapping[str, Graph], read: Callable[[str], bytes], *, where: str
) -> None:
    """A draft section fits the graphs and names a file of ids, which read(name) gives. Raises
    BundleError."""
    spec = manifest.draft
    if spec is None:
        return
    graph, text = (graphs[manifest.part_of(role)] for role in (ROLE, "text"))
    for fault in _faults(spec, graph, text):
        _fail(where, fault)
    size = manifest.files[spec.ids].size
    count = int(graph.outputs[0].shape[-1])
    if size != ID_BYTES * count:
        _fail(where, f"{spec.ids} has {size} bytes, expected {ID_BYTES * count}: {count} ids")
    draft_ids(read(spec.ids), manifest.text_spec.vocab_size, where=f"{where}: {spec.ids}")


def _faults(spec: DraftSpec, graph: Graph, text: Graph) -> list[str]:
    shapes, faults = text.shapes(), list[str]()
    node = embedding_of(text)
    if node is None:
        return ["a draft head for a text part that looks tokens up in no table, or in several"]
    width = int(shapes[node.output][-1])
    made = {node.output for node in text.nodes}
    odd = [name for name in spec.taps if name not in made or shapes[name][0] != "T"]
    if odd or not spec.taps or len(set(spec.taps)) < len(spec.taps):
        return [f"draft.taps are {list(spec.taps)[:8]}, expected different rows T of the text part"]
    wanted = {
        FEATURES: sum(int(shapes[name][-1]) for name in spec.taps), HIDDEN: width, EMBEDDING: width,
    }  # fmt: skip
    found = {name: int(value.shape[-1]) for name, value in step_inputs(graph).items()}
    if found != wanted or token_input(graph) or not row_input(graph):
        faults.append(f"the draft part takes rows {found}, expected {wanted} and no tokens")
    if {v.name: v.shape for v in graph.outputs[1:]} != {NEXT: ("T", width)}:
        faults.append(f"the draft part gives no rows {NEXT!r} of {width} besides its logits")
    if any(node.attrs.get("rope_switch") for node in graph.nodes):
        faults.append("the draft part has two sets of rotary factors, expected one")
    if int(graph.outputs[0].shape[-1]) > int(text.outputs[0].shape[-1]):
        faults.append("the draft part guesses more tokens than the text part knows")
    return faults


def draft_ids(data: bytes, vocabulary: int, *, where: str) -> NDArray[np.int64]:
    """What the columns of the head's logits are: ids [V_d], rising, below `vocabulary`. data:
    little-endian int32. Raises BundleError."""
    ids = np.frombuffer(data, "<i4").astype(np.int64)
    if len(ids) and (ids[0] < 0 or ids[-1] >= vocabulary or (np.diff(ids) < 1).any()):
        _fail(where, f"ids {ids[:4].tolist()} ..., expected rising ones below {vocabulary}")
    return ids


def _fail(where: str, message: str) -> NoReturn:
    raise BundleError(
        f"{where}: {message}",
        code="draft-head",
        hint="the bundle is damaged or was made by another edgert; make the draft head again",
    )
