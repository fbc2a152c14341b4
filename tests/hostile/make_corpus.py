"""Every bad bundle, made from one good tiny bundle by one named mutation each.

`CORPUS` lists the mutations of rows H01-H08, H10 and H12 (H06 and H09 have tests of their own, because
they are not about one bad file). A change of the format changes `tests/tiny.py`, and with it all of
these. `python -m tests.hostile.make_corpus OUT` writes them all to look at.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.tiny import reseal, tiny_bundle

WEIGHTS, GRAPH, MANIFEST = "weights.safetensors", "model.graph.json", "manifest.json"


@dataclass(frozen=True)
class Mutation:
    """One way to spoil a bundle, and what opening it must answer.

    says: texts that the message must hold: the offending thing, the value found, the one expected.
    """

    row: str
    name: str
    apply: Callable[[Path], None]
    code: str
    says: tuple[str, ...]

    @property
    def id(self) -> str:
        return f"{self.row}-{self.name}"


CORPUS: list[Mutation] = []


def spoils(row: str, code: str, *says: str, name: str = "") -> Callable[..., Any]:
    """Register a mutation of the bundle folder it is given."""

    def register(apply: Callable[[Path], None]) -> Callable[[Path], None]:
        CORPUS.append(Mutation(row, name or apply.__name__.strip("_"), apply, code, says))
        return apply

    return register


def make(mutation: Mutation, good: Path, out: Path) -> Path:
    """A spoiled copy of `good` at `out`."""
    shutil.copytree(good, out)
    mutation.apply(out)
    return out


# --- helpers: read, change one thing, write, and give the manifest true hashes again ---


def header_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    """JSON header and data area of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def file_of(header: bytes | dict[str, Any], data: bytes, length: int | None = None) -> bytes:
    """A safetensors file; `length` overrides the header length field."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    if not isinstance(header, bytes):
        text += b" " * (-(8 + len(text)) % 64)
    size = len(text) if length is None else length
    return size.to_bytes(8, "little") + text + data


def set_weights(bundle: Path, content: bytes) -> None:
    (bundle / WEIGHTS).write_bytes(content)
    reseal(bundle)


def edit_header(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    header, data = header_of((bundle / WEIGHTS).read_bytes())
    change(header)
    set_weights(bundle, file_of(header, data))


def edit_json(bundle: Path, name: str, change: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads((bundle / name).read_bytes())
    change(value)
    (bundle / name).write_text(json.dumps(value), encoding="utf-8")
    if name != MANIFEST:
        reseal(bundle)


def node(graph: dict[str, Any], op: str) -> dict[str, Any]:
    found: dict[str, Any] = next(n for n in graph["nodes"] if n["op"] == op)
    return found


# --- H01: no tensor file at all ---


@spoils("H01", "tensor-header", WEIGHTS, "header", "0 bytes", "at least 10")
def empty(bundle: Path) -> None:
    set_weights(bundle, b"")


@spoils("H01", "tensor-header", WEIGHTS, "header", "7 bytes", "at least 10")
def seven_bytes(bundle: Path) -> None:
    set_weights(bundle, b"\x02\0\0\0\0\0\0")


@spoils("H01", "tensor-header", WEIGHTS, "header", "expected 2 to 992")
def random_bytes(bundle: Path) -> None:
    set_weights(bundle, random.Random(1).randbytes(1000))


@spoils("H01", "tensor-header", WEIGHTS, "begins with b'PK", "expected b'{'")
def another_format(bundle: Path) -> None:
    set_weights(bundle, file_of(b"PK\x03\x04" + bytes(60), b""))


@spoils("H01", "tensor-header", WEIGHTS, "not JSON", "expected one JSON object in UTF-8")
def header_not_utf8(bundle: Path) -> None:
    set_weights(bundle, file_of(b'{"\xff": 1}', b""))


# --- H02: absurd header lengths ---


@spoils("H02", "tensor-header", "9223372036854775808", "expected 2 to")
def length_two_to_63(bundle: Path) -> None:
    set_weights(bundle, file_of(b"{}" + bytes(62), b"", 1 << 63))


@spoils("H02", "tensor-header", "18446744073709551615", "expected 2 to")
def length_all_ones(bundle: Path) -> None:
    set_weights(bundle, file_of(b"{}" + bytes(62), b"", (1 << 64) - 1))


@spoils("H02", "tensor-header", "1073741824", "the file has 72")
def length_past_the_file(bundle: Path) -> None:
    set_weights(bundle, file_of(b"{}" + bytes(62), b"", 1 << 30))


@spoils("H02", "tensor-header", "17825792", "the limit is 16777216")
def length_over_our_limit(bundle: Path) -> None:
    (bundle / WEIGHTS).write_bytes((17 << 20).to_bytes(8, "little") + b"{}")
    with open(bundle / WEIGHTS, "r+b") as file:
        file.truncate(20 << 20)  # sparse
    reseal(bundle)


@spoils("H02", "tensor-header", "not JSON", "expected one JSON object")
def header_nested_deep(bundle: Path) -> None:
    set_weights(bundle, file_of(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b""))


# --- H03: truncated copies ---


@spoils("H03", "file-size", WEIGHTS, "bytes, the manifest expects", "bytes")
def truncated_copy(bundle: Path) -> None:
    data = (bundle / WEIGHTS).read_bytes()
    (bundle / WEIGHTS).write_bytes(data[:-1000])


@spoils("H03", "tensor-truncated", "tensor", "the file has", "1000 of", "expected bytes are missing")
def truncated_and_resealed(bundle: Path) -> None:
    set_weights(bundle, (bundle / WEIGHTS).read_bytes()[:-1000])


# --- H04: offsets and shapes ---


def _vector(header: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = header["norm"]  # F32 [64]
    return found


@spoils("H04", "tensor-offsets", "overlaps tensor", "begins at byte", "expected")
def overlap(bundle: Path) -> None:
    def change(header: dict[str, Any]) -> None:
        last = max(header.values(), key=lambda entry: entry["data_offsets"][1])
        last["data_offsets"] = [n - 16 for n in last["data_offsets"]]

    edit_header(bundle, change)


@spoils("H04", "tensor-offsets", "leaves a gap after", "expected")
def gap(bundle: Path) -> None:
    def change(header: dict[str, Any]) -> None:
        last = max(header.values(), key=lambda entry: entry["data_offsets"][1])
        last["data_offsets"] = [n + 16 for n in last["data_offsets"]]

    edit_header(bundle, change)


@spoils("H04", "tensor-offsets", "tensor 'norm'", "data_offsets", "expected [begin, end]")
def reversed_offsets(bundle: Path) -> None:
    edit_header(bundle, lambda header: _vector(header)["data_offsets"].reverse())


@spoils("H04", "tensor-offsets", "tensor 'norm'", "[-256, 0]", "0 <= begin")
def negative_offsets(bundle: Path) -> None:
    edit_header(bundle, lambda header: _vector(header).update(data_offsets=[-256, 0]))


@spoils("H04", "tensor-offsets", "tensor 'norm'", "[0.0, 256.0]", "expected [begin, end]")
def float_offsets(bundle: Path) -> None:
    edit_header(bundle, lambda header: _vector(header).update(data_offsets=[0.0, 256.0]))


@spoils("H04", "tensor-offsets", "64 bytes follow", "expected the file to end at byte")
def trailing_bytes(bundle: Path) -> None:
    set_weights(bundle, (bundle / WEIGHTS).read_bytes() + bytes(64))


@spoils("H04", "tensor-offsets", "follow the header", "expected the file to end at byte")
def no_tensors_but_data(bundle: Path) -> None:
    set_weights(bundle, file_of(b"{}", bytes(64)))


def _shape(name: str, shape: Any, code: str, *says: str) -> None:
    def apply(bundle: Path) -> None:
        edit_header(bundle, lambda header: _vector(header).update(shape=shape))

    spoils("H04", code, "tensor 'norm'", *says, name=name)(apply)


_shape("shape_overflow", [1 << 30] * 8, "tensor-shape", "takes", "bytes, its byte range holds 256")
_shape("shape_overflow_to_zero", [1 << 30, 1 << 30, 16], "tensor-shape", "its byte range holds 256")
_shape("negative_dim", [-64], "tensor-shape", "[-64]", "expected sizes 0 to 2147483647")
_shape("zero_dim", [64, 0], "tensor-shape", "takes 0 bytes", "holds 256")
_shape("huge_dim", [1 << 31], "tensor-shape", "[2147483648]", "expected sizes 0 to 2147483647")
_shape("rank_40", [1] * 39 + [64], "tensor-shape", "rank 40", "the limit is 8")
_shape("float_dim", [64.0], "tensor-shape", "[64.0]", "expected sizes")
_shape("bool_dim", [64, True], "tensor-shape", "[64, True]", "expected sizes")
_shape("shape_no_list", "64", "tensor-shape", "shape 64", "expected sizes")


@spoils("H04", "weights-names", "expected", "unexpected ['nothing']")
def empty_tensor_nobody_asked_for(bundle: Path) -> None:
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    edit_header(bundle, lambda header: header.update(nothing=entry))


@spoils("H04", "weights-alignment", "begins at byte", "expected a multiple of 2")
def misaligned(bundle: Path) -> None:
    header, data = header_of((bundle / WEIGHTS).read_bytes())
    text = json.dumps(header).encode()
    set_weights(bundle, file_of(text + b" " * (-(8 + len(text)) % 64 + 1), data))


# --- H05: quantized tensors that disagree ---


@spoils("H05", "weights-shape", "'l0.qkv' [128, 64]", "q U8 [128, 1, 32]", "scales F16 [128, 2]",
        "expected l0.qkv.q U8 [128, 2, 16]")  # fmt: skip
def int4_codes_of_other_groups(bundle: Path) -> None:
    edit_header(bundle, lambda header: header["l0.qkv.q"].update(shape=[128, 1, 32]))


@spoils("H05", "weights-shape", "'l0.qkv' [128, 64]", "q U8 [128, 2, 16]", "scales F16 [64, 4]",
        "l0.qkv.scales F16 [128, 2]")  # fmt: skip
def int4_scales_of_other_rows(bundle: Path) -> None:
    edit_header(bundle, lambda header: header["l0.qkv.scales"].update(shape=[64, 4]))


@spoils("H05", "weights-shape", "'embed' [260, 64] in int8-g32", "q U8 [260, 4, 16]",
        "scales F16 [260, 2]", "expected embed.q U8 [260, 2, 32]")  # fmt: skip
def int8_codes_of_other_groups(bundle: Path) -> None:
    edit_header(bundle, lambda header: header["embed.q"].update(shape=[260, 4, 16]))


@spoils("H05", "weights-shape", "scales BF16 [128, 2]", "scales F16 [128, 2]")
def scales_of_another_type(bundle: Path) -> None:
    edit_header(bundle, lambda header: header["l0.qkv.scales"].update(dtype="BF16"))


@spoils("H05", "weights-shape", "'l0.qkv' [128, 64]", "q U8 [128, 2, 16]", "scales F16 [256]",
        "l0.qkv.scales F16 [128, 2]")  # fmt: skip
def int4_scales_flat(bundle: Path) -> None:
    edit_header(bundle, lambda header: header["l0.qkv.scales"].update(shape=[256]))


@spoils("H05", "weights-shape", "'l0.qkv' [128, 64] in int8-g32", "q U8 [128, 2, 16]",
        "expected l0.qkv.q U8 [128, 2, 32]")  # fmt: skip
def int4_declared_int8(bundle: Path) -> None:
    edit_json(bundle, GRAPH, lambda g: g["weights"]["l0.qkv"].update(encoding="int8-g32"))


@spoils("H05", "weights-names", "missing ['l0.qkv.scales']", "unexpected ['l0.qkv.zero_points']")
def zero_points_instead_of_scales(bundle: Path) -> None:
    def change(header: dict[str, Any]) -> None:
        header["l0.qkv.zero_points"] = header.pop("l0.qkv.scales")

    edit_header(bundle, change)


def _encoding(name: str, encoding: str) -> None:
    def apply(bundle: Path) -> None:
        edit_json(
            bundle, GRAPH, lambda graph: graph["weights"]["l0.qkv"].update(encoding=encoding)
        )

    spoils("H05", "graph", "weight 'l0.qkv'", repr(encoding), "int4-g32", name=name)(apply)


_encoding("group_size_zero", "int4-g0")
_encoding("group_size_not_dividing", "int4-g48")


# --- H07: duplicates, unknown things, other versions ---


@spoils("H07", "manifest-duplicate", MANIFEST, "'kind' stands twice", "expected once")
def duplicate_key_in_manifest(bundle: Path) -> None:
    text = (bundle / MANIFEST).read_text(encoding="utf-8")
    (bundle / MANIFEST).write_text('{"kind": "text",' + text.lstrip()[1:], encoding="utf-8")


@spoils("H07", "tensor-header-duplicate", WEIGHTS, "'norm' stands twice", "expected once")
def duplicate_key_in_header(bundle: Path) -> None:
    header, data = header_of((bundle / WEIGHTS).read_bytes())
    twin = f'{{"norm": {json.dumps(header["norm"])}, {json.dumps(header)[1:]}'
    set_weights(bundle, file_of(twin.encode(), data))


@spoils("H07", "graph-duplicate", GRAPH, "'context' stands twice", "expected once")
def duplicate_key_in_graph(bundle: Path) -> None:
    text = (bundle / GRAPH).read_text(encoding="utf-8")
    (bundle / GRAPH).write_text('{"context": 128,' + text.lstrip()[1:], encoding="utf-8")
    reseal(bundle)


@spoils("H07", "tensor-dtype", "tensor 'norm'", "'F4_E2M1'", "'BF16'")
def unknown_dtype(bundle: Path) -> None:
    edit_header(bundle, lambda header: _vector(header).update(dtype="F4_E2M1"))


@spoils("H07", "tensor-header", "tensor 'norm'", "'strides'", "expected dtype, shape and data_offs")
def unknown_header_field(bundle: Path) -> None:
    edit_header(bundle, lambda header: _vector(header).update(strides=[1]))


@spoils("H07", "tensor-header", "__metadata__", "strings to strings")
def metadata_of_numbers(bundle: Path) -> None:
    edit_header(bundle, lambda header: header.update(__metadata__={"format": 1}))


@spoils("H07", "tensor-header", "tensor name", "513 bytes", "expected 1 to 512")
def long_tensor_name(bundle: Path) -> None:
    edit_header(bundle, lambda header: header.update({"n" * 513: header.pop("norm")}))


@spoils("H07", "manifest", "unknown field `speed`", "expected the fields of format 1")
def unknown_manifest_field(bundle: Path) -> None:
    edit_json(bundle, MANIFEST, lambda manifest: manifest.update(speed=11))


@spoils("H07", "manifest", "unknown field", "\\x1b[2J", "expected the fields of format 1")
def unknown_field_with_terminal_escapes(bundle: Path) -> None:
    edit_json(bundle, MANIFEST, lambda manifest: manifest.update({"\x1b[2J": 1}))


@spoils("H07", "manifest", "unknown field `merges`", "$.text")
def unknown_text_field(bundle: Path) -> None:
    edit_json(bundle, MANIFEST, lambda manifest: manifest["text"].update(merges=[]))


@spoils("H07", "manifest-version", "format 2", "reads format 1")
def future_version(bundle: Path) -> None:
    edit_json(bundle, MANIFEST, lambda m: m.update(format=2, everything="else may differ"))


@spoils("H07", "manifest", "format is 'None'", "reads format 1")
def no_version(bundle: Path) -> None:
    edit_json(bundle, MANIFEST, lambda manifest: manifest.pop("format"))


@spoils("H07", "manifest", "format is 'True'", "reads format 1")
def version_true(bundle: Path) -> None:
    edit_json(bundle, MANIFEST, lambda manifest: manifest.update(format=True))


@spoils("H07", "manifest", "kind is 'image'", "reads 'text'")
def unknown_kind(bundle: Path) -> None:
    edit_json(bundle, MANIFEST, lambda manifest: manifest.update(kind="image"))


@spoils("H07", "manifest", "not JSON", "NaN", "expected one JSON object")
def nan_in_manifest(bundle: Path) -> None:
    edit_json(bundle, MANIFEST, lambda m: m["report"].update(error=float("nan")))


@spoils("H07", "manifest", "JSON list", "expected an object")
def manifest_is_a_list(bundle: Path) -> None:
    (bundle / MANIFEST).write_text("[1]", encoding="utf-8")


@spoils("H07", "manifest", "not JSON", "expected one JSON object")
def manifest_nested_deep(bundle: Path) -> None:
    (bundle / MANIFEST).write_text("[" * 200_000, encoding="utf-8")


@spoils("H07", "file-size", MANIFEST, "1048577 bytes", "the limit is 1048576")
def manifest_too_large(bundle: Path) -> None:
    (bundle / MANIFEST).write_bytes(b" " * ((1 << 20) + 1))


@spoils("H07", "manifest", "^[0-9a-f]{64}$", "expected the fields of format 1")
def hash_of_another_length(bundle: Path) -> None:
    edit_json(bundle, MANIFEST, lambda m: m["files"][GRAPH].update(sha256="0"))


@spoils("H07", "graph", GRAPH, "unknown field `colour`")
def unknown_graph_field(bundle: Path) -> None:
    edit_json(bundle, GRAPH, lambda graph: graph.update(colour="blue"))


@spoils("H07", "graph", "unknown op 'exec'", "'linear'")
def unknown_op(bundle: Path) -> None:
    edit_json(bundle, GRAPH, lambda graph: node(graph, "glu").update(op="exec"))


# --- H08: file names ---

ENTRY = {"sha256": "0" * 64, "size": 1}
BAD_NAMES = {
    "parent": ("../x", "has a component '.' or '..'"),
    "parent_inside": ("a/../../x", "has a component '.' or '..'"),
    "dot": ("./x", "has a component '.' or '..'"),
    "absolute": ("/etc/passwd", "is absolute"),
    "double_slash": ("a//b", "empty component"),
    "folder": ("a/", "empty component"),
    "drive": ("C:/x", "one of \\ :"),
    "drive_relative": ("C:x", "one of \\ :"),
    "unc": ("\\\\host\\share", "one of \\ :"),
    "unc_slashes": ("//host/share", "is absolute"),
    "nul": ("a\0b", "control character"),
    "newline": ("a\nb", "control character"),
    "backslash": ("a\\b", "one of \\ :"),
    "stream": ("weights:ads", "one of \\ :"),
    "trailing_dot": ("x.", "ends with a dot or a space"),
    "trailing_space": ("x /y", "ends with a dot or a space"),
    "device": ("a/NUL.txt", "device on some systems"),
    "long": ("a" * 4000, "4000 characters, the limit is 255"),
    "not_nfc": ("e\u0301", "composed form (NFC)"),
    "surrogate": ("a\ud800", "composed form (NFC)"),
    "empty": ("", "is empty"),
}


def _listed(name: str, path: str, says: str) -> None:
    def apply(bundle: Path) -> None:
        edit_json(bundle, MANIFEST, lambda manifest: manifest["files"].update({path: ENTRY}))

    spoils("H08", "path", says, "expected a relative path", name=name)(apply)


for _name, (_path, _says) in BAD_NAMES.items():
    _listed(_name, _path, _says)


@spoils("H08", "path", "'../tokenizer.json'", "expected a relative path")
def used_name_leaves(bundle: Path) -> None:
    edit_json(bundle, MANIFEST, lambda m: m["text"].update(tokenizer="../tokenizer.json"))


@spoils("H08", "path", "'tokenizer.json' and 'TOKENIZER.json' are twins", "expected")
def case_twins(bundle: Path) -> None:
    edit_json(bundle, MANIFEST, lambda m: m["files"].update({"TOKENIZER.json": ENTRY}))


@spoils("H08", "path", "'manifest.json' and 'Manifest.json' are twins", "expected")
def manifest_lists_itself(bundle: Path) -> None:
    edit_json(bundle, MANIFEST, lambda m: m["files"].update({"Manifest.json": ENTRY}))


@spoils("H08", "path", "clash", "a file or a folder, not both")
def file_and_folder(bundle: Path) -> None:
    edit_json(bundle, MANIFEST, lambda m: m["files"].update({"tokenizer.json/x": ENTRY}))


@spoils("H08", "manifest", "uses ['secret.json']", "does not list")
def used_name_not_listed(bundle: Path) -> None:
    (bundle / "secret.json").write_text("{}", encoding="utf-8")
    edit_json(bundle, MANIFEST, lambda m: m["text"].update(tokenizer="secret.json"))


@spoils("H08", "file-missing", "more.bin", "no such file", "expected a regular file")
def listed_file_absent(bundle: Path) -> None:
    edit_json(bundle, MANIFEST, lambda m: m["files"].update({"more.bin": ENTRY}))


# --- H10: one bit ---


def _flip(name: str) -> None:
    def apply(bundle: Path) -> None:
        data = bytearray((bundle / name).read_bytes())
        data[len(data) // 2] ^= 1
        (bundle / name).write_bytes(data)

    spoils("H10", "file-hash", name, "SHA-256", "the manifest expects", name=f"bit_in_{name}")(apply)


for _name in (WEIGHTS, GRAPH, "tokenizer.json", "chat_template.jinja"):
    _flip(_name)


# --- H12: the graph's interface ---


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


def _inputs(op: str, *names: str) -> Callable[[dict[str, Any]], None]:
    return lambda graph: node(graph, op).update(inputs=list(names))


_graph("cache_heads", _set("states/kv0/kv_heads", 4), "graph", "kv_heads=4", "expects", "kv_heads=2")
_graph("cache_head_size", _set("states/kv1/head_dim", 32), "graph", "head_dim=32", "head_dim=16")
_graph("cache_window", _set("states/kv1/window", 7), "graph", "window=7", "expects", "window=0")
_graph("cache_missing", lambda g: g["states"].pop("kv1"), "graph", "declared state", "'kv1'")
_graph("cache_extra", lambda g: g["states"].update(kv9=g["states"]["kv0"]), "graph", "['kv9']")
_graph("heads", _attr("attention", "heads", 8), "graph", "rows of 128", "expected 192")
_graph("heads_no_multiple", _attr("attention", "heads", 3), "graph", "3 heads", "2 kv heads")
_graph("no_kv_heads", _attr("attention", "kv_heads", 0), "graph", "kv_heads=2", "kv_heads=0")
_graph("input_name", _set("inputs/0/name", "ids"), "graph", "['tokens']", "nothing has produced")
_graph("input_type", _set("inputs/0/dtype", "int64"), "graph-interface", "int64", "expected tokens: i")
_graph("output_type", _set("outputs/0/dtype", "f16"), "graph-interface", "f16", "logits: f32")
_graph("output_shape", _set("outputs/0/shape", ["R", 999]), "graph", "('R', 260)", "('R', 999)")
_graph("output_absent", _set("outputs/0/name", "answer"), "graph", "'answer' has shape None")
_graph("no_outputs", _set("outputs", []), "graph-interface", "outputs ()", "logits: f32")
_graph("weight_width", _set("weights/l0.o/shape", [64, 65]), "graph", "(64, 65)", "rows of 64")
_graph("weight_taller", _set("weights/inv_freq/shape", [4]), "weights-shape", "[8]", "[4]")
_graph("weight_type", _set("weights/l0.o/encoding", "f16"), "weights-shape", "F32", "F16")
_graph("weight_absent", lambda g: g["weights"].pop("l0.o"), "graph", "undeclared weight 'l0.o'")
_graph("context_zero", _set("context", 0), "graph-interface", "context of 0", "expected 1 to")
_graph("context_huge", _set("context", 1 << 40), "graph-interface", "1099511627776", "1 to 1048576")
_graph("embed_of_rows", _inputs("embed", "rows"), "graph-interface", "('rows',)", "('tokens',)")
_graph("select_by_tokens", _inputs("select", "x2", "tokens"), "graph", "'logits'", "('R', 260)")
_graph("add_of_tokens", _inputs("add", "tokens", "tokens"), "graph", "node")


@spoils("H12", "graph", "attention: heads 4/0", "head size 16")
def no_kv_heads_anywhere(bundle: Path) -> None:
    def change(graph: dict[str, Any]) -> None:
        graph["states"]["kv0"]["kv_heads"] = node(graph, "attention")["attrs"]["kv_heads"] = 0

    edit_json(bundle, GRAPH, change)


@spoils("H12", "graph-interface", "attention", "rows of R", "expected T")
def attention_after_select(bundle: Path) -> None:
    def change(graph: dict[str, Any]) -> None:
        first = {"op": "select", "inputs": ["x0", "rows"], "output": "early"}
        graph["nodes"].insert(1, first)
        graph["nodes"] = [n for n in graph["nodes"] if n["output"] != "picked"]
        for n in graph["nodes"][2:]:
            n["inputs"] = [{"x0": "early", "picked": "x2"}.get(i, i) for i in n["inputs"]]

    edit_json(bundle, GRAPH, change)


@spoils("H12", "graph-interface", "logits: f32 ['R', 260]", "['R', 259]")
def manifest_logits_width(bundle: Path) -> None:
    edit_json(bundle, MANIFEST, lambda manifest: manifest["text"].update(vocab_size=259))


@spoils("H12", "graph-interface", "has 250 rows", "expected 260")
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


@spoils("H12", "manifest", "parts are ['vision']", "expected one called 'model'")
def no_model_part(bundle: Path) -> None:
    edit_json(bundle, MANIFEST, lambda m: m["parts"].update(vision=m["parts"].pop("model")))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    original = tiny_bundle(folder / "good.edge")
    for item in CORPUS:
        make(item, original, folder / f"{item.id}.edge")
        print(item.id)
