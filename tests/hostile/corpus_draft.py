"""Rows H05, H07 and H12 of draft heads: a part `draft` that does not fit its model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.hostile.spoil import MANIFEST, edit_json, file_of, header_of, node, spoils
from tests.text.speculative.heads import IDS, random_head
from tests.tiny import VOCAB, reseal, tiny_graph, tiny_weights, write_weights

HEAD, HEAD_WEIGHTS, HEAD_IDS = "draft.graph.json", "draft.weights.safetensors", "draft.ids.bin"
WIDTH = 64


def add_head(bundle: Path) -> None:
    """Give a copy of the good bundle a draft head that fits."""
    from edgert.converters.draft.shape import taps_of

    graph = tiny_graph()
    made, held = random_head(graph, tiny_weights(graph))
    (bundle / HEAD).write_bytes(made.to_json())
    write_weights(bundle / HEAD_WEIGHTS, made, held)
    (bundle / HEAD_IDS).write_bytes(IDS.astype("<i4").tobytes())
    manifest = json.loads((bundle / MANIFEST).read_bytes())
    parts = manifest["parts"] | {"draft": {"graph": HEAD, "weights": HEAD_WEIGHTS, "role": "draft"}}
    for name in (HEAD, HEAD_WEIGHTS, HEAD_IDS):
        manifest["files"][name] = {"sha256": "0" * 64, "size": 0}
    (bundle / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    reseal(bundle, parts=parts, draft={"taps": list(taps_of(graph)), "ids": HEAD_IDS})


def headed(row: str, code: str, *says: str) -> Callable[..., Any]:
    """`spoils` of a bundle that has a draft head."""

    def register(apply: Callable[[Path], None]) -> Callable[[Path], None]:
        def spoil(bundle: Path) -> None:
            add_head(bundle)
            apply(bundle)

        spoils(row, code, *says, name=f"head_{apply.__name__}")(spoil)
        return apply

    return register


def edit_section(bundle: Path, **changes: Any) -> None:
    edit_json(bundle, MANIFEST, lambda manifest: manifest["draft"].update(changes))


def edit_tensors(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    header, data = header_of((bundle / HEAD_WEIGHTS).read_bytes())
    change(header)
    (bundle / HEAD_WEIGHTS).write_bytes(file_of(header, data))
    reseal(bundle)


def bytes_of(entry: dict[str, Any]) -> int:
    begin, end = entry["data_offsets"]
    return int(end - begin)


def set_ids(bundle: Path, ids: Any) -> None:
    (bundle / HEAD_IDS).write_bytes(np.asarray(ids, "<i4").tobytes())
    reseal(bundle)


# H05: tensors and the map of its vocabulary


@headed("H05", "weights-names", HEAD_WEIGHTS, "missing ['fc.scales']", "unexpected ['fc.scalez']")
def a_missing_tensor(bundle: Path) -> None:
    edit_tensors(bundle, lambda header: header.update({"fc.scalez": header.pop("fc.scales")}))


@headed("H05", "weights-shape", "weight 'head'", f"[{len(IDS)}, {WIDTH}]", "found")
def codes_of_another_shape(bundle: Path) -> None:
    def change(header: dict[str, Any]) -> None:
        codes = max((n for n in header if n.startswith("head")), key=lambda n: bytes_of(header[n]))
        header[codes]["shape"] = header[codes]["shape"][::-1]

    edit_tensors(bundle, change)


@headed("H05", "weights-shape", "weight 'norm'", "F16 [128]", "F32 [64]")
def a_vector_of_another_type(bundle: Path) -> None:
    edit_tensors(bundle, lambda header: header["norm"].update(dtype="F16", shape=[128]))


@headed("H05", "draft-head", HEAD_IDS, "[0, 0, ", "rising ones below 260")
def ids_that_stand_twice(bundle: Path) -> None:
    set_ids(bundle, np.zeros(len(IDS)))


@headed("H05", "draft-head", HEAD_IDS, "rising ones below 260")
def ids_that_fall(bundle: Path) -> None:
    set_ids(bundle, IDS[::-1])


@headed("H05", "draft-head", HEAD_IDS, "[-7, ", "rising ones below 260")
def a_negative_id(bundle: Path) -> None:
    set_ids(bundle, [-7, *IDS[1:]])


@headed("H05", "draft-head", HEAD_IDS, "rising ones below 260")
def an_id_past_the_vocabulary(bundle: Path) -> None:
    set_ids(bundle, [*IDS[:-1], VOCAB])


@headed("H05", "draft-head", HEAD_IDS, f"{4 * len(IDS) - 4} bytes", f"expected {4 * len(IDS)}")
def fewer_ids_than_columns(bundle: Path) -> None:
    set_ids(bundle, IDS[:-1])


@headed("H05", "draft-head", HEAD_IDS, f"{8 * len(IDS)} bytes", f"{len(IDS)} ids")
def offsets_of_eight_bytes(bundle: Path) -> None:
    """The map d2t of other projects: int64, what is to be added to an id."""
    (bundle / HEAD_IDS).write_bytes((IDS - np.arange(len(IDS))).astype("<i8").tobytes())
    reseal(bundle)


# H07: what the section may hold


@headed("H07", "manifest", "draft", "d2t")
def an_unknown_field_of_the_section(bundle: Path) -> None:
    edit_section(bundle, d2t="d2t.bin")


@headed("H07", "manifest", "draft.measured", "not finite")
def an_infinite_measure(bundle: Path) -> None:
    edit_section(bundle, measured={"tau_greedy": 1})
    text = (bundle / MANIFEST).read_text(encoding="utf-8")
    (bundle / MANIFEST).write_text(text.replace('"tau_greedy": 1', '"tau_greedy": 1e999'), "utf-8")


# H12: a graph that is not this model's head


@headed("H12", "draft-head", "draft.taps are ['x7'", "different rows T of the text part")
def a_tap_that_is_not_there(bundle: Path) -> None:
    edit_section(bundle, taps=["x7"])


@headed("H12", "draft-head", "draft.taps are []")
def no_taps(bundle: Path) -> None:
    edit_section(bundle, taps=[])


@headed("H12", "draft-head", "takes rows", "'features': 192", "no tokens")
def more_taps_than_it_reads(bundle: Path) -> None:
    edit_section(bundle, taps=["x0", "x1", "x2"])


@headed("H12", "draft-head", "gives no rows 'next' of 64")
def no_rows_to_go_on_from(bundle: Path) -> None:
    edit_json(bundle, HEAD, lambda graph: graph["outputs"].pop())


@headed("H12", "graph", "graph 'draft': node", "reads ['nowhere']")
def a_node_that_reads_nothing(bundle: Path) -> None:
    edit_json(bundle, HEAD, lambda graph: node(graph, "rms_norm").update(inputs=["nowhere"]))


@headed("H12", "manifest", "a section `draft` beside parts")
def a_section_without_a_part(bundle: Path) -> None:
    edit_json(bundle, MANIFEST, lambda manifest: manifest["parts"].pop("draft"))


@headed("H12", "manifest", "a section `draft` beside parts")
def two_heads(bundle: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["parts"]["other"] = manifest["parts"]["draft"]

    edit_json(bundle, MANIFEST, change)


@headed("H12", "draft-head", "guesses more tokens than the text part knows")
def a_larger_vocabulary(bundle: Path) -> None:
    graph = tiny_graph()
    made, held = random_head(graph, tiny_weights(graph))
    count = VOCAB + 1
    weights = made.weights | {"head": type(made.weights["head"])((count, WIDTH), "f32")}
    (logits, *more) = made.outputs
    made = made.replace(weights=weights, outputs=(type(logits)("logits", ("R", count)), *more))
    held["head"] = np.zeros((count, WIDTH), np.float32)
    (bundle / HEAD).write_bytes(made.to_json())
    (bundle / HEAD_WEIGHTS).unlink()
    write_weights(bundle / HEAD_WEIGHTS, made, held)
    set_ids(bundle, np.arange(count))
