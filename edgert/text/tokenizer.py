"""Text to token ids and back, by the `tokenizers` library, behind checks and a time limit.

tokenizer.json is foreign input: it is checked before the library sees it, Rust panics (pyo3's
PanicException, a BaseException) become errors of ours, and encoding runs under a time limit.
Special-token text counts as such only where the caller says so (template output); everywhere else
it is encoded as plain text.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import index
from typing import TYPE_CHECKING, Any, TypeVar

from .. import limits
from ..errors import BundleError, EdgertError, RequestError, ResourceError
from ..process import give_back_heap, start_thread
from .decoder_traits import Traits, is_byte, traits_of
from .segments import Segment, pattern_of, split_control
from .tokenizer_check import Vocabulary, check_tokenizer, without_added_tokens

if TYPE_CHECKING:
    from ..bundle.reader import Bundle

T = TypeVar("T")


class Tokenizer:
    """One tokenizer.json with what the bundle says about it. Safe to share between threads.

    size: ids at or past it do not exist (logits may be wider: padding). holes: ids below it that
    do not exist either. eos_token_ids: ids that end an answer. control: token texts that steer a
    model, which plain text must never turn into.
    """

    def __init__(
        self,
        data: bytes,
        *,
        vocab_size: int,
        eos_token_ids: Sequence[int],
        bos_token_id: int | None = None,
        add_bos: bool = False,
        special: Iterable[str] = (),
        where: str = "tokenizer.json",
    ) -> None:
        """data: the file's bytes; vocab_size: width of the logits. Raises BundleError."""
        self._where = where
        self.vocabulary: Vocabulary = check_tokenizer(data, vocab_size, eos_token_ids, where=where)
        self.size, self.holes = self.vocabulary.size, self.vocabulary.holes
        self.eos_token_ids = tuple(eos_token_ids)
        # One prompt at a time: the pool would only cost a warning after a fork.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._data, self._plain_tokenizer = data, None
        self._traits: Traits | None = None
        self._tokenizer = self._build(data)
        give_back_heap()  # half of what the library took to read the file
        self._hidden = frozenset(self.id_of(text) for text in self.vocabulary.special)
        steering = {*self.vocabulary.special, *special, *self.vocabulary.endings}
        self.control = frozenset(text for text in steering if text)
        self._control_re = pattern_of(self.control)
        try:
            self.prefix = self._prefix(bos_token_id if add_bos else None)
            self._newline = self._ids(self._tokenizer, "\n")
        except RequestError as error:
            raise self._broken(f"it encodes no text: {error.message}") from None

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> Tokenizer:
        """The tokenizer of an open bundle; raises BundleError."""
        text = bundle.manifest.text_spec
        return cls(
            bundle.read(text.tokenizer),
            vocab_size=text.vocab_size,
            eos_token_ids=text.eos_token_ids,
            bos_token_id=text.bos_token_id,
            add_bos=text.add_bos,
            special=text.special.values(),
            where=str(bundle.path_of(text.tokenizer)),
        )

    def encode(self, text: str, *, special: bool = False, bos: bool = False) -> list[int]:
        """Token ids of `text`, without truncation or padding.

        special: text of special tokens becomes those tokens (a rendered template). Otherwise it
        stays text. bos: put in front what the model wants there (nothing, for many models).
        Raises RequestError for text that cannot be encoded, ResourceError when it takes too long.
        """
        if not isinstance(text, str):
            raise RequestError(
                f"the text is of type {type(text).__name__}, expected str",
                code="parameter-type",
                hint="decode bytes first, for example with .decode('utf-8')",
            )
        front = list(self.prefix) if bos else []
        if special or not self._control_re.search(text):
            return front + self._ids(self._tokenizer, text)
        return front + self.encode_segments(split_control(text, self._control_re))

    def encode_segments(self, segments: Sequence[Segment]) -> list[int]:
        """Token ids of a rendered template: plain segments stay text, the rest may be special."""
        ids: list[int] = []
        for text, plain in segments:
            if text:
                ids += self._piece(text, plain=plain, first=not ids)
        return ids

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Text of token ids; special: show special tokens too. Raises RequestError."""
        kept = self.check_ids(ids)
        return self.decode_checked(kept) if not special else self._decoded(kept)

    def decode_checked(self, ids: Sequence[int]) -> str:
        """Text of ids that `check_ids` has seen, without special tokens."""
        # the library does not know all of its own (`normalized: true`)
        return self._decoded([token for token in ids if token not in self._hidden])

    def _decoded(self, ids: list[int]) -> str:
        return _guarded(lambda: str(self._tokenizer.decode(ids, skip_special_tokens=False)))

    def stream(self, before: Sequence[int] = ()) -> TextStream:
        """A decoder that takes one id at a time. before: ids whose text the stream goes on from,
        so that a word keeps the space in front of it."""
        return TextStream(self, before)

    def text_of(self, token: int) -> str | None:
        """A token's text as the vocabulary has it, or None."""
        found: str | None = _guarded(lambda: self._tokenizer.id_to_token(token))
        return found

    def decoder_traits(self) -> Traits:
        """What later tokens may do to the text of earlier ones."""
        if self._traits is None:
            self._traits = traits_of(self._tokenizer.decoder)
        return self._traits

    def id_of(self, text: str) -> int | None:
        """The id of a token's exact text, or None."""
        found: int | None = _guarded(lambda: self._tokenizer.token_to_id(text))
        return found

    def piece_of(self, token: int) -> str:
        """The name of a token in tokenizer.json; "" where no token has the id."""
        found: str | None = _guarded(lambda: self._tokenizer.id_to_token(token))
        return found or ""

    def decode_each(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Texts of many lists of existing ids, special tokens shown."""
        run = lambda: list(self._tokenizer.decode_batch(rows, skip_special_tokens=False))
        return _guarded(run)

    def check_ids(self, ids: Sequence[int], size: int = 0) -> list[int]:
        """The ids as Python's own numbers; RequestError for others than exist. size: how many
        there are, where not the tokenizer decides."""
        whole, size = whole_numbers(ids), size or self.size
        bad = [token for token in whole if not 0 <= token < size]
        if bad:
            raise RequestError(
                f"token id {bad[0]}, expected 0 to {size - 1}",
                code="token-range",
                hint="take ids from this model's own tokenize",
            )
        return whole

    def _build(self, data: bytes) -> Any:
        from tokenizers import Tokenizer as Rust

        def build() -> Any:
            tokenizer = Rust.from_buffer(data)
            tokenizer.no_truncation()
            tokenizer.no_padding()
            return tokenizer

        try:
            tokenizer = _guarded(build)
        except EdgertError as error:
            raise self._broken(f"the tokenizer cannot be built: {error.message}") from None
        size = tokenizer.get_vocab_size(with_added_tokens=True)
        if size != self.vocabulary.count:
            raise self._broken(
                f"the library sees {size} tokens, the file lists {self.vocabulary.count}; "
                "some are duplicate or renumbered"
            )
        for text, token in zip(self.vocabulary.added, self.vocabulary.added_ids, strict=True):
            if tokenizer.token_to_id(text) != token:
                raise self._broken(f"the library renumbers token {text[:40]!r}, which is {token}")
        return tokenizer

    def _broken(self, why: str) -> BundleError:
        return BundleError(
            f"{self._where}: {why}",
            code="tokenizer",
            hint="the tokenizer is damaged or belongs to another model; convert the model again",
        )

    def _prefix(self, bos: int | None) -> tuple[int, ...]:
        """Ids that stand before any text: the post-processor's own, else the bundle's BOS."""

        def front(text: str) -> list[int]:
            encoded = self._tokenizer.encode(text, add_special_tokens=True)
            mask = list(encoded.special_tokens_mask)
            count = mask.index(0) if 0 in mask else 0
            return list(encoded.ids[:count])

        found = _guarded(lambda: front("a"))
        absent = [token for token in found if token >= self.size or token in self.holes]
        if absent:
            raise self._broken(
                f"the post-processor begins every text with id {absent[0]}, which no token has; "
                f"ids run from 0 to {self.size - 1}"
            )
        return tuple(found) if found or bos is None else (bos,)

    def _piece(self, text: str, *, plain: bool, first: bool) -> list[int]:
        """Ids of a piece; past the first, encoded after a newline, which is cut off again, so that
        no prefix space appears in the middle (what transformers does in encode_marked_chat)."""
        tokenizer = self._plain() if plain else self._tokenizer
        ids, newline = self._ids(tokenizer, text), self._newline
        if not first:
            after = self._ids(tokenizer, "\n" + text)
            if newline and after[: len(newline)] == newline:
                ids = after[len(newline) :]
        token = self.id_of(text)
        if plain and token in ids and len(text) > 1:
            # The model's own vocabulary holds this text: it is plain only letter by letter.
            return [t for c in text for t in self._piece(c, plain=True, first=False)]
        return ids

    def _plain(self) -> Any:
        """The tokenizer without its added tokens, built when somebody first needs it."""
        if self._plain_tokenizer is None:
            self._plain_tokenizer = self._build_plain()
        return self._plain_tokenizer

    def _build_plain(self) -> Any:
        from tokenizers import Tokenizer as Rust

        return _guarded(lambda: Rust.from_buffer(without_added_tokens(self._data)))

    def _ids(self, tokenizer: Any, text: str) -> list[int]:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RequestError(
                f"the text holds a lone surrogate, {text[error.start]!a} at character "
                f"{error.start}, expected Unicode text",
                code="text-surrogate",
                hint="decode the input with errors='replace'",
            ) from None
        # encode_batch releases the GIL, encode does not.
        run = lambda: list(tokenizer.encode_batch([text], add_special_tokens=False)[0].ids)
        return _limited(run, limits.TOKENIZE_SECONDS, f"tokenizing {len(text)} characters")


class TextStream:
    """Text from ids, one at a time; text that a later id may change is held back.

    The pieces together are what `Tokenizer.decode` gives for all ids, less what it gives for those
    before. Ids that come out as U+FFFD do so in the pieces as well, once it is clear that they
    stay broken (`decoder_traits`).
    """

    WINDOW = 8  # ids that are decoded again with every new one, or as many as it takes

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()) -> None:
        self._tokenizer, self._traits = tokenizer, tokenizer.decoder_traits()
        self._ids = self._context([int(token) for token in before])
        self._shown = len(tokenizer.decode(self._ids))  # characters of their text
        self._cut = 0  # where the window may begin: the text before it is certain
        self._in_bytes = False  # whether the last ids are bytes of a run that may go on

    def push(self, token: int) -> str:
        """Text that became certain with this id (possibly none)."""
        token = int(token)
        if not 0 <= token < self._tokenizer.size:
            self._tokenizer.check_ids((token,))
        self._ids.append(token)
        if self._traits.rewrites:
            return ""
        if self._is_byte(token):
            self._in_bytes = True
            return ""
        if self._in_bytes and self._adds_nothing():
            return ""  # a special token, which decoding leaves out: bytes go on behind it
        self._in_bytes = False
        return self._show(self._tokenizer.decode_checked(self._ids))

    def flush(self) -> str:
        """Whatever is still held back."""
        text = self._tokenizer.decode(self._ids)
        piece, self._shown = text[self._shown :], max(self._shown, len(text))
        return piece

    def _show(self, text: str) -> str:
        """Text that was not shown yet, but for an unfinished character at its end."""
        unfinished = self._traits.byte_level and text.endswith("\ufffd")
        end = len(text) - unfinished
        piece, self._shown = text[self._shown : end], max(self._shown, end)
        if piece and not unfinished:
            self._move_window()
        return piece

    def _move_window(self) -> None:
        """Drop ids that the text of later ones does not depend on. What a decoder strips from the
        beginning must have met other text."""
        if len(self._ids) > self.WINDOW:
            kept = self._ids[self._cut :]
            text = self._tokenizer.decode(kept)
            if text.strip():
                self._ids, self._shown = kept, len(text)
        self._cut = len(self._ids)

    def _context(self, before: list[int]) -> list[int]:
        """The last ids, as many as the text of later ones depends on."""
        size = 8
        while size < len(before):
            kept = before[-size:]
            if self._tokenizer.decode(kept).strip() and not self._is_byte(kept[0]):
                return kept
            size *= 2
        return before

    def _is_byte(self, token: int) -> bool:
        return self._traits.byte_fallback and is_byte(self._tokenizer.text_of(token))

    def _adds_nothing(self) -> bool:
        decode = self._tokenizer.decode
        return decode(self._ids) == decode(self._ids[:-1])


def whole_numbers(values: Iterable[Any]) -> list[int]:
    """A list of ints from any iterable of whole numbers (NumPy's too); RequestError otherwise."""
    try:
        if not isinstance(values, (str, bytes, Mapping)):
            return [index(value) for value in values]
    except TypeError:
        pass
    raise RequestError(
        f"found {repr(values)[:40]} of type {type(values).__name__}, expected a list of token ids, "
        "which are whole numbers",
        code="parameter-type",
        hint="tokenize turns text into token ids",
    )


def _guarded(run: Callable[[], T]) -> T:
    """run(), with the library's exceptions and Rust panics as RequestError."""
    try:
        return run()
    except (EdgertError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:  # pyo3's PanicException is not an Exception
        raise RequestError(
            f"the tokenizer failed: {type(error).__name__}: {str(error)[:200]}",
            code="tokenizer-failed",
            hint="its tokenizer.json may hold a pattern that never ends",
        ) from None


def _limited(run: Callable[[], T], seconds: float, what: str) -> T:
    """run() in a daemon thread; past the limit ResourceError (the thread is left running)."""
    result: list[T] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            result.append(_guarded(run))
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=work, daemon=True, name="edgert-tokenize")
    start_thread(thread, "a thread for the tokenizer")
    thread.join(seconds)
    if failure:
        raise failure[0]
    if not result:
        raise ResourceError(
            f"{what} took more than {seconds:g} s",
            code="tokenize-time",
            hint="shorten the text; if short texts do this too, the tokenizer's pattern is bad",
        )
    return result[0]
