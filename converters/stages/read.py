"""read: from a source to its parts, with one error for everything that does not fit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import BundleError, ConvertError
from ..families.config import refused
from ..families.recipe import F32, Part, Recipe
from ..kept import encodings, is_kept, split, stored_rows
from ..match import match_tensors
from ..sources.base import Image, Source, SourceTensor, Text
from ..sources.packed_formats import check_order
from ..weights import spans_of
from .base import NativeDraft, PartInProgress
from .ends import ends_of

if TYPE_CHECKING:
    from ...text.template import ChatTemplate
    from ...text.tokenizer import Tokenizer


class Reading(NamedTuple):
    """What was found in a source. text, tokenizer: None for a model without text; image: for one
    without pictures. hashes: of the source's files, by name. draft: the layer that guesses for the
    text part, where the source brings one."""

    parts: tuple[PartInProgress, ...]
    text: Text | None
    tokenizer: Tokenizer | None
    hashes: dict[str, str]
    image: Image | None = None
    draft: NativeDraft | None = None

    def template(self) -> ChatTemplate | None:
        """The chat template, None where there is none. Raises BundleError."""
        from ...text.template import ChatTemplate

        if self.text is None or self.tokenizer is None or not self.text.spec.chat_template:
            return None
        return ChatTemplate(
            self.text.files[self.text.spec.chat_template].decode("utf-8"),
            self.text.spec.special,
            control=self.tokenizer.control,
            added=self.tokenizer.vocabulary.added,
        )


def read(source: Source, *, kept: bool = False, ends: str = "") -> Reading:
    """All parts of a source, none of their weights read yet. Raises ConvertError.

    kept: weights that the source has in codes stay in them; what the parts' reports say of `read`
    are the encodings that all weights are to have. ends: another encoding for embedding and head.
    """
    faults = list(source.faults)
    planned = source.parts(faults)
    text = source.text(planned, faults)
    image = source.image(planned, faults)
    faults += match_tensors(planned, source.tensors)
    if faults:
        raise refused(faults)
    tokenizer = None if text is None else build_tokenizer(text)
    if image is not None:
        for name in image.spec.tokenizers:
            check_captions(image, name)
    own_files = {**(text.files if text else {}), **(image.files if image else {})}
    files = {**own_files, **source.sidecars}  # they come with the first part
    parts: list[PartInProgress] = []
    draft: NativeDraft | None = None
    for part in planned:
        if part.ids:  # a head, which no other stage looks at
            part.graph.shapes()
            readers = {n: RecipeWeight(r, source.tensors) for n, r in part.weights.items()}
            draft = NativeDraft(part.graph, readers, part.taps, part.ids)
            continue
        if kept:
            check_order(source.tensors)
            part = split(part, source.tensors)
        part.graph.shapes()
        weights = {name: RecipeWeight(part.weights[name], source.tensors) for name in part.weights}
        own, reports = {} if parts else files, dict[str, Any]()
        if kept:
            chosen = encodings(part, source.tensors)
            chosen |= dict.fromkeys(ends_of(part.graph), ends) if ends else {}
            reports["read"] = {"encodings": chosen}
            weights |= {
                name: KeptWeight(part.weights[name], source.tensors, encoding)
                for name, encoding in encodings(part, source.tensors).items()
                if is_kept(part.weights[name], source.tensors, encoding)
            }
        parts.append(PartInProgress(part.name, part.role, part.graph, weights, own, reports))
    return Reading(tuple(parts), text, tokenizer, source.hashes(), image, draft)


def build_tokenizer(text: Text) -> Tokenizer:
    """The tokenizer, built once as loading will, before any work is done."""
    from ...text.tokenizer import Tokenizer

    spec = text.spec
    try:
        return Tokenizer(
            text.files[spec.tokenizer],
            vocab_size=spec.vocab_size,
            eos_token_ids=spec.eos_token_ids,
            bos_token_id=spec.bos_token_id,
            add_bos=spec.add_bos,
            special=spec.special.values(),
            where=text.tokenizer_path or spec.tokenizer,
        )
    except BundleError as error:
        raise ConvertError(
            error.message,
            code=error.code,
            hint="take the tokenizer files that belong to these weights",
        ) from None


def check_captions(image: Image, part: str) -> None:
    """The tokenizer of a text encoder is one that loading will take, its tokens have rows, and it
    says itself what the manifest says of start and end. Raises ConvertError."""
    from tokenizers import Tokenizer as Rust

    from ...text.tokenizer import Tokenizer

    file, caption, rows = image.spec.tokenizers[part], image.spec.captions[part], image.rows[part]
    ids = [n for n in (caption.end_id, caption.start_id, caption.pad_id) if n is not None]
    hint = "take the tokenizer files that belong to this text encoder"
    try:
        tokenizer = Tokenizer(image.files[file], vocab_size=rows, eos_token_ids=ids, where=file)
        wanted = tokenizer.encode("a picture")
    except BundleError as error:
        raise ConvertError(error.message, code=error.code, hint=hint) from None
    whole = Rust.from_buffer(image.files[file])
    if whole.post_processor is None:
        return
    whole.no_truncation()
    whole.no_padding()
    found = whole.encode("a picture").ids
    wanted = [n for n in (caption.start_id,) if n is not None] + wanted + [caption.end_id]
    if found != wanted:
        raise ConvertError(
            f"{file} makes {found[:12]} of 'a picture', expected {wanted[:12]}: the text encoder's "
            "kind has these around a caption",
            code="tokenizer",
            hint=hint,
        )


class RecipeWeight:
    """A `WeightReader` that makes a weight of a source's tensors as its recipe says.

    Rows that hold NaN or infinities raise ConvertError.
    """

    encoding = "f32"

    def __init__(self, recipe: Recipe, tensors: Mapping[str, SourceTensor]) -> None:
        self.recipe, self.shape = recipe, recipe.shape
        # part under its name here, its tensor, the first of its rows in this weight
        self.parts: list[tuple[Part, SourceTensor, int]] = []
        at = 0
        for part in recipe.parts:
            name = part.name if part.name in tensors else part.alias
            start, stop = part.span
            self.parts.append((part._replace(name=name), tensors[name], at))
            at += stop - start

    def spans(self) -> Iterator[tuple[int, int]]:
        """Spans of each tensor in turn; computed values in one piece."""
        if self.recipe.values is not None:
            yield 0, self.shape[0]
        for part, _, first in self.parts:
            begin, end = part.span
            for start, stop in spans_of((end - begin, *part.meant[1:])):
                yield first + start, first + stop

    def rows(self, start: int, stop: int) -> F32:
        if self.recipe.values is not None:
            return self.recipe.values[start:stop]
        pieces = [
            self._finite(part, tensor, begin, end)
            for part, tensor, begin, end in self._tensors(start, stop)
        ]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def stored(self, start: int, stop: int) -> dict[str, NDArray[Any]]:
        return {"": self.rows(start, stop)}

    def where(self, start: int, stop: int) -> str:
        found = self._tensors(start, stop)
        return ", ".join(f"tensor {part.name!r}, rows {a} to {b}" for part, _, a, b in found)

    def _tensors(self, start: int, stop: int) -> list[tuple[Part, SourceTensor, int, int]]:
        """Part, tensor and rows there of what makes up these rows."""
        found = []
        for part, tensor, first in self.parts:
            low, high = part.span
            begin, end = max(start - first, 0), min(stop - first, high - low)
            if begin < end:
                found.append((part, tensor, low + begin, low + end))
        return found

    def _finite(self, part: Part, tensor: SourceTensor, start: int, stop: int) -> F32:
        rows, scale = part.read(tensor.rows, start, stop), part.scale
        if not math.isfinite(np.vdot(rows, rows)):
            check_finite(part.name, tensor)
        rows, offset = self.recipe.arranged(rows), self.recipe.offset
        rows = rows + np.float32(offset) if offset else rows
        return rows * np.float32(scale) if scale != 1.0 else rows


class KeptWeight(RecipeWeight):
    """The same, of tensors that are in codes already, all in one encoding."""

    def __init__(self, recipe: Recipe, tensors: Mapping[str, SourceTensor], encoding: str) -> None:
        super().__init__(recipe, tensors)
        self.encoding = encoding

    def stored(self, start: int, stop: int) -> dict[str, NDArray[Any]]:
        return stored_rows(self.encoding, self._tensors(start, stop))


def check_finite(name: str, tensor: SourceTensor) -> None:
    """ConvertError with counts when a tensor holds NaN or infinities."""
    nan = infinite = 0
    for start, stop in spans_of(tensor.shape):
        rows = tensor.rows(start, stop)
        nan += int(np.count_nonzero(np.isnan(rows)))
        infinite += int(np.count_nonzero(np.isinf(rows)))
    if nan or infinite:
        raise ConvertError(
            f"tensor {name!r} holds {nan} NaN and {infinite} infinite values of "
            f"{math.prod(tensor.shape)}, expected finite numbers",
            code="weight-values",
            hint="the checkpoint is damaged or its training diverged; take another one",
            tensor=name,
            nan=nan,
            infinite=infinite,
        )
