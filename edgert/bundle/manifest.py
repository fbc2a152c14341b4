"""manifest.json: what a bundle holds, who made it, and what it must answer.

Unknown fields are refused, except those whose name begins with "x-" in the manifest itself, in
`text` or in `provenance`, which are ignored. A new meaning needs a new `format`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import msgspec

from ..errors import BundleError
from ..storage import strict_json
from ..storage.folder import check_names

FORMAT = 1
MANIFEST_NAME = "manifest.json"

_AGAIN = "the bundle is damaged or was made by another edgert; convert the model again"
_EXTENSIBLE = ("text", "provenance")


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One graph and the safetensors file that holds its weights (file names)."""

    graph: str
    weights: str


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file must be: SHA-256 in lower-case hex and size in bytes."""

    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    size: Annotated[int, msgspec.Meta(ge=0, le=1 << 50)]


class TextSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How text becomes tokens and when an answer ends.

    vocab_size: width of the logits. tokenizer, chat_template: file names. special: the strings a
    template may use (bos_token, eos_token, ...). generation: defaults of sampling.
    """

    eos_token_ids: tuple[int, ...]
    vocab_size: int
    bos_token_id: int | None = None
    add_bos: bool = False
    tokenizer: str = "tokenizer.json"
    chat_template: str | None = None
    special: dict[str, str] = {}
    generation: dict[str, float | int] = {}


class Provenance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """command line, versions of what ran, SHA-256 of source files, ISO date."""

    command: str = ""
    versions: dict[str, str] = {}
    sources: dict[str, str] = {}
    created: str = ""


class Golden(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A prompt and the ids that greedy decoding answered when the bundle was made."""

    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole of manifest.json. `files` lists every file but the manifest itself."""

    format: int
    kind: str
    name: str
    parts: dict[str, Part]
    text: TextSpec
    files: dict[str, FileEntry] = {}
    provenance: Provenance = Provenance()
    golden: tuple[Golden, ...] = ()
    report: dict[str, Any] = {}

    def replace(self, **changes: Any) -> Manifest:
        """A copy with fields exchanged."""
        return msgspec.structs.replace(self, **changes)

    def to_json(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=1)

    @staticmethod
    def from_json(data: bytes, *, where: str = MANIFEST_NAME) -> Manifest:
        """Parse and check; raises BundleError (manifest, manifest-duplicate, manifest-version,
        path, token-range)."""
        raw = strict_json.parse(data, where=where, code="manifest")
        if not isinstance(raw, dict):
            raise _fail(where, f"is a JSON {type(raw).__name__}, expected an object")
        _check_format(where, raw)
        try:
            manifest = msgspec.convert(_without_extensions(raw), Manifest)
        except msgspec.ValidationError as error:
            raise _fail(where, f"{error}, expected the fields of format {FORMAT}") from None
        _check_manifest(where, manifest)
        return manifest


def _fail(where: str, message: str, code: str = "manifest", hint: str = _AGAIN) -> BundleError:
    return BundleError(f"{where}: {message}", code=code, hint=hint)


def _check_format(where: str, raw: dict[str, Any]) -> None:
    found = raw.get("format")
    if type(found) is int and found == FORMAT:
        return
    if type(found) is not int or found < FORMAT:
        raise _fail(where, f"format is {str(found)[:32]!r}, this edgert reads format {FORMAT}")
    raise _fail(
        where,
        f"format {found} is newer than this edgert, which reads format {FORMAT}",
        "manifest-version",
        f"update edgert (pip install -U edgert); {_maker(raw)}",
    )


def _maker(raw: dict[str, Any]) -> str:
    provenance = raw.get("provenance")
    versions = provenance.get("versions") if isinstance(provenance, dict) else None
    version = versions.get("edgert") if isinstance(versions, dict) else None
    known = isinstance(version, str) and len(version) <= 32 and version.isprintable()
    return f"edgert {version} wrote and reads it" if known else "it does not say which one wrote it"


def _without_extensions(raw: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in raw.items() if not key.startswith("x-")}
    for key in _EXTENSIBLE:
        if isinstance(inner := kept.get(key), dict):
            kept[key] = {k: v for k, v in inner.items() if not k.startswith("x-")}
    return kept


def _check_manifest(where: str, manifest: Manifest) -> None:
    if manifest.kind != "text":
        raise _fail(where, f"kind is {manifest.kind[:32]!r}, this edgert reads 'text'")
    if "model" not in manifest.parts:
        raise _fail(where, f"parts are {sorted(manifest.parts)[:8]}, expected one called 'model'")
    used = list(used_files(manifest))
    check_names([MANIFEST_NAME, *manifest.files], where)
    check_names(set(used), where)
    missing = sorted(set(used) - set(manifest.files))
    if missing:
        raise _fail(where, f"uses {missing[:8]}, which `files` does not list with size and hash")
    _check_ids(where, manifest)


def used_files(manifest: Manifest) -> Iterable[str]:
    """Names of the files that loading needs."""
    for part in manifest.parts.values():
        yield part.graph
        yield part.weights
    yield manifest.text.tokenizer
    if manifest.text.chat_template is not None:
        yield manifest.text.chat_template


def _check_ids(where: str, manifest: Manifest) -> None:
    text = manifest.text
    if text.vocab_size < 1:
        raise _fail(where, f"text.vocab_size is {text.vocab_size}, expected 1 or more")
    if not text.eos_token_ids:
        raise _fail(
            where, "text.eos_token_ids is empty, expected one id or more that ends an answer"
        )
    bos = () if text.bos_token_id is None else (text.bos_token_id,)
    groups = {"text.eos_token_ids": text.eos_token_ids, "text.bos_token_id": bos}
    for index, golden in enumerate(manifest.golden):
        groups[f"golden[{index}]"] = golden.prompt_ids + golden.output_ids
    for name, ids in groups.items():
        bad = [n for n in ids if not 0 <= n < text.vocab_size]
        if bad:
            raise _fail(
                where,
                f"{name} holds token id {bad[0]}, expected 0 to {text.vocab_size - 1}",
                "token-range",
            )
    if text.add_bos and text.bos_token_id is None:
        raise _fail(where, "text.add_bos is true without a bos_token_id, expected both or neither")
