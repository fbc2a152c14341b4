"""How much the steps of a tokenizer.json may lengthen a text.

The Rust library ends the whole process when memory runs out, so what could make it run out is
refused beforehand: replacements that multiply a text, decoders that do the same to an answer,
post-processors that add thousands of ids, and a character map with false sizes.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import BundleError

GROWTH = 1024  # bytes that one byte of text may become
ADDED_BYTES = 1024  # that one step may put in front of a text or make of one character
ADDED_IDS = 64  # that a post-processor may put around a text
STEPS = 64
_INNER = ("normalizers", "pretokenizers", "decoders", "processors")


def check_steps(raw: Mapping[str, Any], where: str) -> None:
    """Raises BundleError for steps that would lengthen a text or an answer too much."""
    for parts in (("normalizer", "pre_tokenizer"), ("decoder",)):
        steps = [step for part in parts for step in steps_of(raw.get(part))]
        name = " and ".join(parts)
        if len(steps) > STEPS:
            raise _fail(where, f"{name} have {len(steps)} steps, the limit is {STEPS}")
        growth = 1
        for step in steps:
            growth *= _growth(step, where)
        if growth > GROWTH:
            raise _fail(
                where, f"{name} may make a text {growth} times as long, the limit is {GROWTH}"
            )
    for step in steps_of(raw.get("post_processor")):
        _check_template(step, where)


def _fail(where: str, message: str) -> BundleError:
    return BundleError(
        f"{where}: {message}",
        code="tokenizer",
        hint="the tokenizer is damaged or hostile; convert the model again from a sound one",
    )


def steps_of(part: Any) -> Iterator[Mapping[str, Any]]:
    """The steps of a part, sequences within sequences unrolled."""
    open_parts = [part]
    while open_parts:
        step = open_parts.pop()
        if not isinstance(step, dict):
            continue  # the library refuses it
        inner = next((step[key] for key in _INNER if isinstance(step.get(key), list)), None)
        if inner is None:
            yield step
        else:
            open_parts += reversed(inner)


def _growth(step: Mapping[str, Any], where: str) -> int:
    """Bytes that one byte may become in a step."""
    kind = step.get("type")
    if kind == "Replace":
        pattern, content = step.get("pattern"), _size(step.get("content"))
        text = pattern.get("String") if isinstance(pattern, dict) else None
        return max(1, content) if text else 1 + content  # other patterns may match the empty text
    if kind == "Prepend" and _size(step.get("prepend")) > ADDED_BYTES:
        size = _size(step.get("prepend"))
        raise _fail(where, f"a step prepends {size} bytes, the limit is {ADDED_BYTES}")
    if kind == "Precompiled":
        return _longest(step.get("precompiled_charsmap"), where)
    return 2 if kind in ("ByteLevel", "Metaspace") else 1


def _size(text: Any) -> int:
    return len(text.encode("utf-8", "surrogatepass")) if isinstance(text, str) else 0


def _longest(charsmap: Any, where: str) -> int:
    """The longest replacement in a SentencePiece character map: u32 size of its search tree, the
    tree (u32 units), then UTF-8 texts that end with NUL."""
    try:
        data = base64.b64decode(charsmap, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise _fail(where, "precompiled_charsmap is not base64") from None
    size = int.from_bytes(data[:4], "little")
    if not 4 <= size <= len(data) - 4 or size % 4:
        raise _fail(
            where,
            f"precompiled_charsmap of {len(data)} bytes names a tree of {size}, expected a "
            f"multiple of 4 from 4 to {len(data) - 4}",
        )
    texts = data[4 + size :]
    longest = max(map(len, texts.split(b"\0")))
    try:
        texts.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _fail(where, f"precompiled_charsmap: {error}, expected UTF-8 texts") from None
    if longest > ADDED_BYTES:
        raise _fail(
            where,
            f"precompiled_charsmap replaces a character by {longest} bytes, the limit is "
            f"{ADDED_BYTES}",
        )
    return max(1, longest)


def _check_template(step: Mapping[str, Any], where: str) -> None:
    """TemplateProcessing, which is all that can add more than two ids."""
    special, single = step.get("special_tokens"), step.get("single")
    if not isinstance(special, dict) or not isinstance(single, list):
        return
    added = 0
    for piece in single:
        named = piece.get("SpecialToken") if isinstance(piece, dict) else None
        name = named.get("id") if isinstance(named, dict) else None
        entry = special.get(name) if isinstance(name, str) else None
        ids = entry.get("ids") if isinstance(entry, dict) else None
        added += len(ids) if isinstance(ids, list) else 0
    if added > ADDED_IDS:
        raise _fail(where, f"the post-processor adds {added} ids, the limit is {ADDED_IDS}")
