"""Rows H07 and H08: duplicate, unknown and future things, and hostile file names."""

from __future__ import annotations

import json
from pathlib import Path

from tests.hostile.spoil import (
    GRAPH,
    MANIFEST,
    WEIGHTS,
    edit_header,
    edit_json,
    file_of,
    header_of,
    node,
    set_weights,
    spoils,
    vector,
)
from tests.tiny import reseal

# H07: duplicates, unknown things, other versions


@spoils("H07", "manifest-duplicate", MANIFEST, "'kind' stands twice", "expected once")
def duplicate_key_in_manifest(bundle: Path) -> None:
    text = (bundle / MANIFEST).read_text(encoding="utf-8")
    (bundle / MANIFEST).write_text('{"kind": "text",' + text.lstrip()[1:], encoding="utf-8")


@spoils("H07", "tensor-header-duplicate", WEIGHTS, "'norm' stands twice", "expected once")
def duplicate_key_in_header(bundle: Path) -> None:
    header, data = header_of((bundle / WEIGHTS).read_bytes())
    duplicate = f'{{"norm": {json.dumps(header["norm"])}, {json.dumps(header)[1:]}'
    set_weights(bundle, file_of(duplicate.encode(), data))


@spoils("H07", "graph-duplicate", GRAPH, "'context' stands twice", "expected once")
def duplicate_key_in_graph(bundle: Path) -> None:
    text = (bundle / GRAPH).read_text(encoding="utf-8")
    (bundle / GRAPH).write_text('{"context": 128,' + text.lstrip()[1:], encoding="utf-8")
    reseal(bundle)


@spoils("H07", "tensor-header-duplicate", WEIGHTS, "'dtype' stands twice", "expected once")
def duplicate_key_in_a_tensor(bundle: Path) -> None:
    header, data = header_of((bundle / WEIGHTS).read_bytes())
    text = json.dumps(header).replace('"dtype": "F32"', '"dtype": "F16", "dtype": "F32"', 1)
    set_weights(bundle, file_of(text.encode(), data))


@spoils("H07", "manifest-duplicate", MANIFEST, "'size' stands twice", "expected once")
def duplicate_key_in_a_file_entry(bundle: Path) -> None:
    text = (bundle / MANIFEST).read_text(encoding="utf-8")
    (bundle / MANIFEST).write_text(text.replace('"size":', '"size": 1, "size":', 1), "utf-8")


@spoils("H07", "manifest-duplicate", MANIFEST, "'kind' stands twice", "expected once")
def duplicate_key_spelt_with_an_escape(bundle: Path) -> None:
    text = (bundle / MANIFEST).read_text(encoding="utf-8")
    (bundle / MANIFEST).write_text('{"k\\u0069nd": "text",' + text.lstrip()[1:], "utf-8")


@spoils("H07", "tensor-dtype", "tensor 'norm'", "'F4_E2M1'", "'BF16'")
def unknown_dtype(bundle: Path) -> None:
    edit_header(bundle, lambda header: vector(header).update(dtype="F4_E2M1"))


@spoils("H07", "tensor-header", "tensor 'norm'", "'strides'", "expected dtype, shape and data_offs")
def unknown_header_field(bundle: Path) -> None:
    edit_header(bundle, lambda header: vector(header).update(strides=[1]))


@spoils("H07", "tensor-header", "__metadata__", "strings to strings")
def metadata_of_numbers(bundle: Path) -> None:
    edit_header(bundle, lambda header: header.update(__metadata__={"format": 1}))


@spoils("H07", "tensor-header", "tensor name", "513 bytes", "expected 1 to 512")
def long_tensor_name(bundle: Path) -> None:
    edit_header(bundle, lambda header: header.update({"n" * 513: header.pop("norm")}))


@spoils("H07", "manifest", "unknown field `speed`", "expected the fields of format 2")
def unknown_manifest_field(bundle: Path) -> None:
    edit_json(bundle, MANIFEST, lambda manifest: manifest.update(speed=11))


@spoils("H07", "manifest", "unknown field", "\\x1b[2J", "expected the fields of format 2")
def unknown_field_with_terminal_escapes(bundle: Path) -> None:
    edit_json(bundle, MANIFEST, lambda manifest: manifest.update({"\x1b[2J": 1}))


@spoils("H07", "manifest", "unknown field `merges`", "$.text")
def unknown_text_field(bundle: Path) -> None:
    edit_json(bundle, MANIFEST, lambda manifest: manifest["text"].update(merges=[]))


@spoils("H07", "manifest-version", "format 3", "reads formats 1 to 2")
def future_version(bundle: Path) -> None:
    edit_json(bundle, MANIFEST, lambda m: m.update(format=3, everything="else may differ"))


@spoils("H07", "manifest", "format is 'None'", "reads formats 1 to 2")
def no_version(bundle: Path) -> None:
    edit_json(bundle, MANIFEST, lambda manifest: manifest.pop("format"))


@spoils("H07", "manifest", "format is 'True'", "reads formats 1 to 2")
def version_true(bundle: Path) -> None:
    edit_json(bundle, MANIFEST, lambda manifest: manifest.update(format=True))


@spoils("H07", "manifest", "kind is 'film'", "'text'")
def unknown_kind(bundle: Path) -> None:
    edit_json(bundle, MANIFEST, lambda manifest: manifest.update(kind="film"))


@spoils("H07", "manifest", "kind is 'image'", "found roles ['text']")
def kind_without_its_parts(bundle: Path) -> None:
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


@spoils("H07", "manifest", "^[0-9a-f]{64}$", "expected the fields of format 2")
def hash_of_another_length(bundle: Path) -> None:
    edit_json(bundle, MANIFEST, lambda m: m["files"][GRAPH].update(sha256="0"))


@spoils("H07", "graph", GRAPH, "unknown field `colour`")
def unknown_graph_field(bundle: Path) -> None:
    edit_json(bundle, GRAPH, lambda graph: graph.update(colour="blue"))


@spoils("H07", "graph", "unknown op 'exec'", "'linear'")
def unknown_op(bundle: Path) -> None:
    edit_json(bundle, GRAPH, lambda graph: node(graph, "glu").update(op="exec"))


# H08: file names

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
    "empty": ("", "is empty"),
}


def _listed(name: str, path: str, says: str, code: str = "path") -> None:
    def apply(bundle: Path) -> None:
        edit_json(bundle, MANIFEST, lambda manifest: manifest["files"].update({path: ENTRY}))

    spoils("H08", code, says, "expected", name=name)(apply)


for _name, (_path, _says) in BAD_NAMES.items():
    _listed(_name, _path, _says)
_listed("surrogate", "a\ud800", "lone surrogate", "manifest")


@spoils("H08", "path", "'../tokenizer.json'", "expected a relative path")
def used_name_leaves(bundle: Path) -> None:
    edit_json(bundle, MANIFEST, lambda m: m["text"].update(tokenizer="../tokenizer.json"))


@spoils("H08", "path", "'tokenizer.json' and 'TOKENIZER.json' may be the same file", "expected")
def case_twins(bundle: Path) -> None:
    edit_json(bundle, MANIFEST, lambda m: m["files"].update({"TOKENIZER.json": ENTRY}))


@spoils("H08", "path", "'caf\u00e9' and 'CAF\u00c9' may be the same file", "expected")
def case_twins_with_accents(bundle: Path) -> None:
    edit_json(
        bundle, MANIFEST, lambda m: m["files"].update({"caf\u00e9": ENTRY, "CAF\u00c9": ENTRY})
    )


@spoils("H08", "path", "'cafe\\u0301' is not Unicode in composed form (NFC)", "expected")
def twins_but_for_composition(bundle: Path) -> None:
    edit_json(
        bundle, MANIFEST, lambda m: m["files"].update({"caf\u00e9": ENTRY, "cafe\u0301": ENTRY})
    )


@spoils("H08", "path", "'manifest.json' and 'Manifest.json' may be the same file", "expected")
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
