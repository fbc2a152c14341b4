"""Rows H09, H10 and H12: links and devices, flipped bits, graphs that lie about themselves."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.hostile.spoil import (
    GRAPH,
    MANIFEST,
    WEIGHTS,
    edit_json,
    node,
    spoils,
)

# H09: what is no regular file


def _replace(bundle: Path, name: str) -> Path:
    path = bundle / name
    path.unlink()
    return path


@spoils("H09", "file-kind", WEIGHTS, "is a symbolic link", "expected a regular file")
def link_to_the_same(bundle: Path) -> None:
    os.rename(bundle / WEIGHTS, bundle / "real")
    (bundle / WEIGHTS).symlink_to("real")


@spoils("H09", "file-kind", "tokenizer.json", "is a symbolic link", "expected a regular file")
def link_outside(bundle: Path) -> None:
    _replace(bundle, "tokenizer.json").symlink_to(bundle.parent / "outside.txt")


@spoils("H09", "file-kind", MANIFEST, "is a symbolic link", "expected a regular file")
def link_as_manifest(bundle: Path) -> None:
    os.rename(bundle / MANIFEST, bundle / "real")
    (bundle / MANIFEST).symlink_to("real")


@spoils("H09", "file-kind", WEIGHTS, "is a symbolic link", "expected a regular file")
def link_to_a_device(bundle: Path) -> None:
    _replace(bundle, WEIGHTS).symlink_to("/dev/zero")


@spoils("H09", "file-kind", "behind 'sub', a link or a file", "expected a regular file")
def link_as_folder(bundle: Path) -> None:
    outside = bundle.parent / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "x").write_bytes(b"x")
    (bundle / "sub").symlink_to(outside)
    entry = {"sha256": hashlib.sha256(b"x").hexdigest(), "size": 1}
    edit_json(bundle, MANIFEST, lambda manifest: manifest["files"].update({"sub/x": entry}))


@spoils("H09", "file-kind", WEIGHTS, "is a FIFO", "expected a regular file")
def fifo(bundle: Path) -> None:
    os.mkfifo(_replace(bundle, WEIGHTS))


def _fifo(name: str) -> None:
    spoils(
        "H09", "file-kind", name, "is a FIFO", "expected a regular file", name=f"fifo_as_{name}"
    )(lambda bundle: os.mkfifo(_replace(bundle, name)))


for _name in (MANIFEST, GRAPH, "tokenizer.json", "chat_template.jinja"):
    _fifo(_name)


@spoils("H09", "file-kind", WEIGHTS, "is a directory", "expected a regular file")
def directory(bundle: Path) -> None:
    _replace(bundle, WEIGHTS).mkdir()


@spoils("H09", "file-missing", WEIGHTS, "no such file", "expected a regular file")
def absent(bundle: Path) -> None:
    _replace(bundle, WEIGHTS)


# H10: one bit


def _flip(name: str) -> None:
    def apply(bundle: Path) -> None:
        data = bytearray((bundle / name).read_bytes())
        data[len(data) // 2] ^= 1
        (bundle / name).write_bytes(data)

    spoils("H10", "file-hash", name, "SHA-256", "the manifest expects", name=f"bit_in_{name}")(
        apply
    )


for _name in (WEIGHTS, GRAPH, "tokenizer.json", "chat_template.jinja"):
    _flip(_name)


# H12: the graph's interface


def _graph(name: str, change: Callable[[dict[str, Any]], None], code: str, *says: str) -> None:
    def apply(bundle: Path) -> None:
        edit_json(bundle, GRAPH, change)

    spoils("H12", code, *says, name=name)(apply)


def _set(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """A change of one entry, `path` like "states/kv0/kv_heads"."""

    def change(graph: dict[str, Any]) -> None:
        *keys, last = path.split("/")
        at: Any = graph
        for key in keys:
            at = at[int(key) if isinstance(at, list) else key]
        at[int(last) if isinstance(at, list) else last] = value

    return change


def _attr(op: str, key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda graph: node(graph, op)["attrs"].update({key: value})


def _plus(op: str, *inputs: str, **attrs: float) -> Callable[[dict[str, Any]], None]:
    """One more node, whose output nobody reads."""
    new = {"op": op, "inputs": list(inputs), "output": "more", "attrs": attrs}
    return lambda graph: graph["nodes"].append(new)


def _inputs(op: str, *names: str) -> Callable[[dict[str, Any]], None]:
    return lambda graph: node(graph, op).update(inputs=list(names))


_graph(
    "cache_heads", _set("states/kv0/kv_heads", 4), "graph", "kv_heads=4", "expects", "kv_heads=2"
)
_graph("cache_head_size", _set("states/kv1/head_dim", 32), "graph", "head_dim=32", "head_dim=16")
_graph("cache_window", _set("states/kv1/window", 7), "graph", "window=7", "expects", "window=0")
_graph("cache_missing", lambda g: g["states"].pop("kv1"), "graph", "declared state", "'kv1'")
_graph("cache_extra", lambda g: g["states"].update(kv9=g["states"]["kv0"]), "graph", "['kv9']")
_graph("heads", _attr("attention", "heads", 8), "graph", "rows of 128", "expected 192")
_graph("heads_no_multiple", _attr("attention", "heads", 3), "graph", "3 heads", "2 kv heads")
_graph("no_kv_heads", _attr("attention", "kv_heads", 0), "graph", "kv_heads=2", "kv_heads=0")
_graph("input_name", _set("inputs/0/name", "ids"), "graph", "['tokens']", "nothing has produced")
_graph("input_type", _set("inputs/0/dtype", "int64"), "graph", "dtype 'int64'", "one of")
_graph("output_type", _set("outputs/0/dtype", "f16"), "graph", "'logits' is f16", "expected f32")
_graph("output_shape", _set("outputs/0/shape", ["R", 999]), "graph", "('R', 260)", "('R', 999)")
_graph("output_absent", _set("outputs/0/name", "answer"), "graph", "'answer' has shape None")
_graph("no_outputs", _set("outputs", []), "graph", "without outputs", "one or more")
_graph("weight_width", _set("weights/l0.o/shape", [64, 65]), "graph", "(64, 65)", "rows of 64")
_graph("weight_taller", _set("weights/inv_freq/shape", [4]), "weights-shape", "[8]", "[4]")
_graph("weight_type", _set("weights/l0.o/encoding", "f16"), "weights-shape", "F32", "F16")
_graph("weight_absent", lambda g: g["weights"].pop("l0.o"), "graph", "undeclared weight 'l0.o'")
_graph("context_zero", _set("context", 0), "graph-interface", "context of 0", "expected 1 to")
_graph("context_huge", _set("context", 1 << 40), "graph-interface", "1099511627776", "1 to 1048576")
_graph("embed_of_rows", _inputs("embed", "rows"), "graph", "R rows", "expected T")
_graph("select_by_tokens", _inputs("select", "x2", "tokens"), "graph", "'logits'", "('R', 260)")
_graph(
    "ids_as_floats", _plus("softcap", "tokens", cap=1.0), "graph", "is 'tokens'", "expected float"
)
_graph("rows_by_id", _plus("select", "x2", "tokens"), "graph-interface", "'tokens' of T", "'rows'")
_graph(
    "rows_of_rows", _plus("select", "picked", "rows"), "graph-interface", "of R rows", "of T rows"
)
_graph("add_of_tokens", _inputs("add", "tokens", "tokens"), "graph", "node")


@spoils("H12", "graph", "state 'kv0': kv_heads is 0", "expected 1 or more")
def no_kv_heads_anywhere(bundle: Path) -> None:
    def change(graph: dict[str, Any]) -> None:
        graph["states"]["kv0"]["kv_heads"] = node(graph, "attention")["attrs"]["kv_heads"] = 0

    edit_json(bundle, GRAPH, change)


@spoils("H12", "graph", "attention: R rows", "expected T")
def attention_after_select(bundle: Path) -> None:
    def change(graph: dict[str, Any]) -> None:
        first = {"op": "select", "inputs": ["x0", "rows"], "output": "early"}
        graph["nodes"].insert(1, first)
        graph["nodes"] = [n for n in graph["nodes"] if n["output"] != "picked"]
        for n in graph["nodes"][2:]:
            n["inputs"] = [{"x0": "early", "picked": "x2"}.get(i, i) for i in n["inputs"]]

    edit_json(bundle, GRAPH, change)


@spoils("H12", "graph-size", GRAPH, "15024 nodes", "the limit is 15000")
def nodes_without_end(bundle: Path) -> None:
    more = [{"op": "add", "inputs": ["x0", "x0"], "output": f"y{n}"} for n in range(15_000)]
    edit_json(bundle, GRAPH, lambda graph: graph["nodes"].extend(more))


@spoils("H12", "graph-interface", "logits of width 260", "expected 259")
def manifest_logits_width(bundle: Path) -> None:
    edit_json(bundle, MANIFEST, lambda manifest: manifest["text"].update(vocab_size=259))


@spoils("H12", "graph-interface", "have 250 embedding rows", "expected 260")
def embedding_too_short(bundle: Path) -> None:
    def change(graph: dict[str, Any]) -> None:
        graph["weights"]["short"] = {"shape": [250, 64]}
        node(graph, "embed")["weights"] = {"weight": "short"}

    edit_json(bundle, GRAPH, change)


@spoils("H12", "token-range", "eos_token_ids", "260", "expected 0 to 259")
def end_token_outside(bundle: Path) -> None:
    edit_json(bundle, MANIFEST, lambda manifest: manifest["text"].update(eos_token_ids=[260]))


@spoils("H12", "manifest", "eos_token_ids is empty", "expected one id or more")
def end_token_missing(bundle: Path) -> None:
    edit_json(bundle, MANIFEST, lambda manifest: manifest["text"].update(eos_token_ids=[]))


@spoils("H12", "token-range", "golden[0]", "-1", "expected 0 to 259")
def golden_outside(bundle: Path) -> None:
    golden = [{"prompt_ids": [-1], "output_ids": [5]}]
    edit_json(bundle, MANIFEST, lambda manifest: manifest.update(golden=golden))


@spoils("H12", "manifest", "kind is 'text'", "found roles ['reward']")
def no_text_part(bundle: Path) -> None:
    edit_json(bundle, MANIFEST, lambda m: m["parts"]["model"].update(role="reward"))


@spoils("H12", "manifest", "roles ['queen'] are unknown", "expected some of")
def unknown_role(bundle: Path) -> None:
    edit_json(bundle, MANIFEST, lambda m: m["parts"]["model"].update(role="queen"))


@spoils("H12", "manifest", "'text'", "section `text`")
def no_text_section(bundle: Path) -> None:
    edit_json(bundle, MANIFEST, lambda m: m.pop("text"))


@spoils("H12", "graph-interface", "as a part with the role 'reward'", "states", "expected none")
def a_function_that_remembers(bundle: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["parts"]["judge"] = {**manifest["parts"]["model"], "role": "reward"}

    edit_json(bundle, MANIFEST, change)


def _lend(bundle: Path, states: dict[str, Any], reads: str, *, first: bool = False) -> None:
    """A node that reads the keys and values of a borrowed state of the graph itself."""

    def change(graph: dict[str, Any]) -> None:
        attention = node(graph, "attention")
        size = attention["attrs"]["heads"] * attention["attrs"]["head_dim"]
        graph["states"] |= states
        graph["inputs"].append({"name": "q", "shape": ["T", size]})
        late = {"op": "shared_attention", "inputs": ["q"], "output": "late", "state": reads,
                "attrs": attention["attrs"]}  # fmt: skip
        graph["nodes"].insert(0 if first else len(graph["nodes"]), late)

    edit_json(bundle, GRAPH, change)


@spoils("H12", "graph", "state 'lent'", "owner 'kv9' is no kv state of this graph")
def a_cache_out_of_range(bundle: Path) -> None:
    _lend(bundle, {"lent": {"kind": "borrowed", "owner": "kv9"}}, "lent")


@spoils("H12", "graph", "state 'lent'", "owner 'middle' is no kv state of this graph")
def a_cache_by_a_chain(bundle: Path) -> None:
    middle = {"kind": "borrowed", "owner": "kv0"}
    _lend(bundle, {"middle": middle, "lent": {"kind": "borrowed", "owner": "middle"}}, "lent")


@spoils("H12", "graph", "state 'lent'", "is read before 'kv0' is written")
def a_cache_that_comes_later(bundle: Path) -> None:
    _lend(bundle, {"lent": {"kind": "borrowed", "owner": "kv0"}}, "lent", first=True)


@spoils("H12", "graph-interface", "borrows state 'kv9' of part 'other'", "found None")
def a_cache_of_nobody(bundle: Path) -> None:
    def change(graph: dict[str, Any]) -> None:
        attention = node(graph, "attention")
        size = attention["attrs"]["heads"] * attention["attrs"]["head_dim"]
        graph["states"]["lent"] = {"kind": "borrowed", "owner": "kv9", "part": "other"}
        graph["inputs"].append({"name": "q", "shape": ["T", size]})
        graph["nodes"].append(
            {"op": "shared_attention", "inputs": ["q"], "output": "late", "state": "lent",
             "attrs": attention["attrs"]}
        )  # fmt: skip

    edit_json(bundle, GRAPH, change)
