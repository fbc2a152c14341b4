"""manifest.json: what a bundle holds, who made it, and what it must answer.

Unknown fields are refused, except those whose name begins with "x-" in the manifest itself, in a
section or in `provenance`, which are ignored. A new meaning needs a new `format`. Format 1 knew one
part, called "model", and no roles; it is read as what it means in format 2, which is written.
`docs/bundle-format.md` is the specification.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any

import msgspec

from ..errors import BundleError
from ..roles import KINDS, ROLES
from ..storage import strict_json
from ..storage.folder import check_names
from ..storage.typed import Reader
from .picture_faults import image_faults

FORMAT = 2  # what is written
FORMATS = (1, 2)  # what is read
MANIFEST_NAME = "manifest.json"

_AGAIN = "the bundle is damaged or was made by another edgert; convert the model again"
_SECTIONS = ("text", "image", "vision", "draft")
_EXTENSIBLE = (*_SECTIONS, "provenance")


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One graph and the safetensors file that holds its weights (file names). role: what it is
    for, one of `edgert.roles.ROLES`; it decides which interface is checked."""

    graph: str
    weights: str
    role: str = "text"


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file must be: SHA-256 in lower-case hex and size in bytes."""

    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    size: Annotated[int, msgspec.Meta(ge=0, le=1 << 50)]


class TextSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How text becomes tokens and when an answer ends.

    vocab_size: width of the logits. tokenizer, chat_template, tool_template: file names; the last
    renders chats with tools, where there is one. special: the strings a template may use
    (bos_token, eos_token, ...). generation: defaults of sampling.
    """

    eos_token_ids: tuple[int, ...]
    vocab_size: int
    bos_token_id: int | None = None
    add_bos: bool = False
    tokenizer: str = "tokenizer.json"
    chat_template: str | None = None
    tool_template: str | None = None
    special: dict[str, str] = {}
    generation: dict[str, float | int] = {}


class CaptionSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a caption becomes the tokens that a text encoder reads.

    max_tokens: with start and end token; longer captions are cut in front of the end. pad_id: what
    shorter ones are filled up with to max_tokens; None: they are not filled up. lower: captions are
    stripped and made lower-case first.
    """

    max_tokens: int
    end_id: int
    start_id: int | None = None
    pad_id: int | None = None
    lower: bool = False


class LatentSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What lies between denoiser and decoder: `channels`, and pixels of a side per latent.

    The decoder takes latents / scaling + shift, the encoder gives what becomes latents by
    (y - shift) * scaling. low, high: the decoder's values of black and white, the encoder's too.
    """

    channels: int
    downscale: int
    scaling: float = 1.0
    shift: float = 0.0
    low: float = -1.0
    high: float = 1.0


class ImageSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a picture is sampled.

    scheduler: diffusers' settings of the noise schedule, with `_class_name`. conditioning: what a
    picture is asked for by: a word, or nothing. tokenizers, captions: file name, and how it is
    used, by text-encoder part. labels: class by name; null_label: the class of no label. defaults:
    sampling (steps, guidance), and width and height in pixels, which the graphs were made for.
    """

    scheduler: dict[str, str | float | int | bool] = {}
    tokenizers: dict[str, str] = {}
    defaults: dict[str, float | int] = {}
    conditioning: str = ""
    captions: dict[str, CaptionSpec] = {}
    labels: dict[str, int] = {}
    null_label: int | None = None
    latents: LatentSpec | None = None


class VisionSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a picture becomes rows of a vision encoder. processor: sizes, means and deviations."""

    processor: dict[str, str | float | int | bool] = {}
    image_token_id: int | None = None


class DraftSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the part with the role `draft` reads and guesses (`edgert.bundle.draft`).

    taps: values of the text part, whose rows it reads side by side. ids: file name of the tokens
    that its logits are of, little-endian int32, rising. measured: what its guesses were worth when
    it was made, by name.
    """

    taps: tuple[str, ...]
    ids: str = "draft.ids.bin"
    measured: dict[str, float] = {}


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
    text: TextSpec | None = None
    image: ImageSpec | None = None
    vision: VisionSpec | None = None
    draft: DraftSpec | None = None
    files: dict[str, FileEntry] = {}
    provenance: Provenance = Provenance()
    golden: tuple[Golden, ...] = ()
    report: dict[str, Any] = {}

    def part_of(self, role: str) -> str:
        """Name of the part with a role; BundleError where there is none or several."""
        if role == "text":
            _ = self.text_spec  # says more of a model that draws
        names = [name for name, part in self.parts.items() if part.role == role]
        if len(names) != 1:
            found = {name: part.role for name, part in self.parts.items()}
            raise BundleError(
                f"{self.name}: {len(names)} parts with the role {role!r}, expected one of {found}",
                code="bundle-part",
                hint="this model was not converted with that part",
            )
        return names[0]

    @property
    def text_spec(self) -> TextSpec:
        """The section `text`; BundleError for bundles that write no text."""
        if self.text is None:
            raise BundleError(
                f"{self.name} is of kind {self.kind!r}, expected a model that writes text",
                code="bundle-kind",
                hint="this model draws: `edgert image`"
                if self.kind == "image"
                else "`edgert inspect` says what is in it",
            )
        return self.text

    def replace(self, **changes: Any) -> Manifest:
        """A copy with fields exchanged."""
        return msgspec.structs.replace(self, **changes)

    def to_json(self) -> bytes:
        fields = msgspec.to_builtins(self)
        present = {k: v for k, v in fields.items() if v is not None or k not in _SECTIONS}
        if self.text is not None and self.text.tool_template is None:
            del present["text"]["tool_template"]  # so that edgerts without it read the rest
        return msgspec.json.format(msgspec.json.encode(present), indent=1)

    @staticmethod
    def from_json(data: bytes, *, where: str = MANIFEST_NAME) -> Manifest:
        """Parse and check; raises BundleError (manifest, manifest-duplicate, manifest-version,
        path, token-range)."""
        raw = strict_json.parse(data, where=where, code="manifest")
        if not isinstance(raw, dict):
            raise _fail(where, f"is a JSON {type(raw).__name__}, expected an object")
        _check_format(where, raw)
        try:
            manifest = _READER.convert(_in_format_2(where, _without_extensions(raw)))
        except msgspec.ValidationError as error:
            raise _fail(where, f"{error}, expected the fields of format {FORMAT}") from None
        _check_manifest(where, manifest)
        return manifest


_READER = Reader(Manifest)


def _fail(where: str, message: str, code: str = "manifest", hint: str = _AGAIN) -> BundleError:
    return BundleError(f"{where}: {message}", code=code, hint=hint)


def _check_format(where: str, raw: dict[str, Any]) -> None:
    found = raw.get("format")
    if type(found) is int and found in FORMATS:
        return
    known = f"formats {FORMATS[0]} to {FORMAT}"
    if type(found) is not int or found < FORMATS[0]:
        raise _fail(where, f"format is {str(found)[:32]!r}, this edgert reads {known}")
    raise _fail(
        where,
        f"format {found} is newer than this edgert, which reads {known}",
        "manifest-version",
        f"update edgert (pip install -U edgert); {_maker(raw)}",
    )


def _in_format_2(where: str, raw: dict[str, Any]) -> dict[str, Any]:
    """A manifest of format 1 as format 2 says the same: its only part is the text model."""
    if raw["format"] == FORMAT:
        return raw
    parts = raw.get("parts")
    newer = sorted({"image", "vision", "draft"} & set(raw))
    if isinstance(parts, dict):
        newer += [
            f"parts.{n}.role" for n, p in parts.items() if isinstance(p, dict) and "role" in p
        ]
    if newer:
        raise _fail(where, f"holds {newer[:4]}, which format {raw['format']} does not know")
    if raw.get("kind") != "text" or not isinstance(parts, dict) or "model" not in parts:
        raise _fail(where, "expected a format 1 manifest of kind 'text' with a part called 'model'")
    return {**raw, "format": FORMAT}


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
    if manifest.kind not in KINDS:
        raise _fail(where, f"kind is {manifest.kind[:32]!r}, this edgert reads {sorted(KINDS)}")
    roles = [part.role for part in manifest.parts.values()]
    if unknown := sorted(set(roles) - set(ROLES)):
        raise _fail(where, f"roles {unknown[:4]} are unknown, expected some of {ROLES}")
    if missing := [role for role in KINDS[manifest.kind] if roles.count(role) != 1]:
        raise _fail(
            where,
            f"kind is {manifest.kind!r}, which has one part of each role in "
            f"{KINDS[manifest.kind]}; found roles {sorted(roles)[:8]}",
        )
    if ("text" in roles) != (manifest.text is not None):
        raise _fail(where, "a part with the role 'text' and a section `text` go together")
    if manifest.draft is not None and (roles.count("draft"), roles.count("text")) != (1, 1):
        raise _fail(where, f"a section `draft` beside parts of roles {sorted(roles)[:8]}")
    if manifest.draft is not None and not all(map(math.isfinite, manifest.draft.measured.values())):
        raise _fail(where, "draft.measured holds numbers that are not finite")
    if manifest.image is not None and manifest.kind != "image":
        raise _fail(where, f"a section `image` in a bundle of kind {manifest.kind!r}")
    used = list(used_files(manifest))
    check_names([MANIFEST_NAME, *manifest.files], where)
    check_names(set(used), where)
    missing = sorted(set(used) - set(manifest.files))
    if missing:
        raise _fail(where, f"uses {missing[:8]}, which `files` does not list with size and hash")
    _check_ids(where, manifest)
    if manifest.image is not None:
        _check_image(where, manifest, manifest.image)


def used_files(manifest: Manifest) -> Iterable[str]:
    """Names of the files that loading needs."""
    for part in manifest.parts.values():
        yield part.graph
        yield part.weights
    if manifest.text is not None:
        yield manifest.text.tokenizer
        for template in (manifest.text.chat_template, manifest.text.tool_template):
            if template is not None:
                yield template
    if manifest.image is not None:
        yield from manifest.image.tokenizers.values()
    if manifest.draft is not None:
        yield manifest.draft.ids


def _check_ids(where: str, manifest: Manifest) -> None:
    text = manifest.text
    if text is None:
        if manifest.golden:
            raise _fail(where, "golden answers without a section `text`")
        return
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
    if text.tool_template is not None and text.chat_template is None:
        raise _fail(where, "text.tool_template without a chat_template, expected both or neither")
    if text.add_bos and text.bos_token_id is None:
        raise _fail(where, "text.add_bos is true without a bos_token_id, expected both or neither")


def _check_image(where: str, manifest: Manifest, image: ImageSpec) -> None:
    encoders = {name for name, part in manifest.parts.items() if part.role == "text-encoder"}
    for field, names in (("tokenizers", image.tokenizers), ("captions", image.captions)):
        if unknown := sorted(set(names) - encoders):
            raise _fail(
                where,
                f"image.{field} names {unknown[:4]}, expected parts with the role 'text-encoder': "
                f"{sorted(encoders)[:8]}",
            )
    for fault in image_faults(image):
        raise _fail(where, fault)
