"""tokenizer.json of a GGUF file's vocabulary, with the steps of the tokenizer it was made from.

Three kinds are read, by `tokenizer.ggml.model`:

    llama   SentencePiece's BPE: pieces with scores. The merge list is every way to join two pieces
            into a third, best result first.
    gemma4  the same pieces with their merges.
    gpt2    byte-level BPE with its merges. `tokenizer.ggml.pre` names how text is cut first, a row
            of CUTS each: the patterns of the tokenizers that llama.cpp knows by those names.

A file says less than a tokenizer.json does: whether a special token swallows the space behind it is
not told. Texts between special tokens are what is promised to be cut alike.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ... import limits
from ...errors import ConvertError
from ...storage.gguf_values import Metadata
from ...text.tokenizer_check import MERGES

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # gguf token types
SPACE = "\u2581"
KINDS = "'llama', 'gpt2' and 'gemma4'"
Step = dict[str, Any]

_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = (
    rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_REST}"
)
QWEN2 = rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_REST}"
_MARKED = r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+"
QWEN35 = rf"{_SHORT}|{_MARKED}|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_REST}"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_REST}"
)
GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SHORT}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SHORT}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_REST}"
)
_ASCII = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
DEEPSEEK3 = (
    rf"{_ASCII}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_REST}"
)
# Letters with case, but for those of which DeepSeek's list does not tell.
_UNLISTED = (
    "\u0560-\u0588\u10c6-\u10ff\u1c80-\u1c88\u2d00-\u2d2d\ua790-\ua7ff\uab30-\uab6f"
    "\U00010570-\U000105bf\U00016e40-\U00016e7f\U0001d400-\U0001dfff"
)
_LISTED = rf"(?:(?![{_UNLISTED}])[\p{{Lu}}\p{{Ll}}\p{{Lt}}])"
_MARKS = "[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]"
_EAST = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"


def _level(*, regex: bool) -> Step:
    return {
        "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": regex
    }  # fmt: skip


def _split(pattern: str) -> Step:
    return {
        "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False
    }  # fmt: skip


def _by(pattern: str) -> tuple[Step, ...]:
    return _split(pattern), _level(regex=False)


class Cut(NamedTuple):
    """How a text is cut. whole: a piece that is a token is not merged. nfc: it is composed first.
    begins: BOS comes first where the file does not say."""

    steps: tuple[Step, ...]
    whole: bool = False
    nfc: bool = False
    begins: bool = False


_GPT2 = Cut((_level(regex=True),))
_DIGITS: Step = {"type": "Digits", "individual_digits": True}
CUTS: Mapping[str, Cut] = {
    **dict.fromkeys(("gpt-2", "gpt2", "phi-2", "jina-en", "roberta-bpe", "exaone4"), _GPT2),
    **dict.fromkeys(("olmo", "mpt"), Cut(_GPT2.steps, nfc=True)),  # GPT-NeoX's and Pythia's
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"),
        Cut(_by(LLAMA3), whole=True, begins=True),
    ),
    **dict.fromkeys(
        ("qwen2", "deepseek-r1-qwen", "megrez", "stablelm2"), Cut(_by(QWEN2), nfc=True)
    ),
    **dict.fromkeys(("smollm", "starcoder", "refact"), Cut((_DIGITS, _level(regex=True)))),
    "command-r": Cut((_DIGITS, _level(regex=True)), nfc=True),
    "qwen35": Cut(_by(QWEN35)),
    "deepseek-coder": Cut((
        _split(r"[\r\n]"), _split(r"\s?\p{L}+"), _split(r"\s?\p{P}+"),
        _split(_EAST), _DIGITS, _level(regex=False),
    )),
    "deepseek-llm": Cut((
        _split(r"[\r\n]"), _split(rf"\s?{_LISTED}+"), _split(rf"\s?{_MARKS}+"), _split(r"\s+$"),
        _split(_EAST), _DIGITS, _level(regex=False),
    )),
    **dict.fromkeys(
        ("deepseek-v3", "hunyuan-dense"),
        Cut((
            _split(r"\p{N}{1,3}"), _split("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"),
            *_by(DEEPSEEK3),
        )),
    ),
    "tekken": Cut(_by(TEKKEN), whole=True, begins=True),
    **dict.fromkeys(("gpt-4o", "llama4"), Cut(_by(GPT4O), whole=True)),
    **dict.fromkeys(("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), Cut(_by(LLAMA3))),
    "falcon": Cut((
        {"type": "Punctuation", "behavior": "Contiguous"}, _level(regex=True),
        {"type": "Digits", "individual_digits": False}, _split("[0-9][0-9][0-9]"),
    )),
    **dict.fromkeys(("falcon-h1", "lfm2"), Cut(_by(LLAMA3), whole=True, begins=True)),
}  # fmt: skip
# Control tokens that end an answer in the formats of chats that use them, as llama.cpp has it.
ENDINGS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>",
    "<|end_of_text|>", "< EOT >", "_<EOT>", "<|return|>", "<|call|>", "<turn|>", "<|tool_response>",
)  # fmt: skip


class Vocabulary(NamedTuple):
    """Tokens of a file by id, their types, and what it says of special ones (None: nothing)."""

    tokens: Sequence[str]
    types: Sequence[int]
    ids: Mapping[str, int | None]

    def special(self) -> list[int]:
        """Tokens that are no ordinary text, and are part of the vocabulary."""
        return [i for i, kind in enumerate(self.types) if kind in (UNKNOWN, CONTROL, USER)]


ROLES = {
    "bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding",
    "sep_token": "seperator", "mask_token": "mask",
}  # fmt: skip


KEY = "tokenizer.ggml."
FIRST_BOS = 1  # SentencePiece's, where a file does not say


def vocabulary_of(meta: Metadata) -> Vocabulary:
    """The vocabulary of a file. Raises ConvertError, BundleError for what is none."""
    tokens = meta.texts("tokenizer.ggml.tokens")
    if not tokens:
        raise _fault(meta, "has no tokenizer.ggml.tokens")
    types = meta.numbers("tokenizer.ggml.token_type")
    if types is not None and len(types) != len(tokens):
        raise _fault(meta, f"has {len(tokens)} tokens and {len(types)} token types")
    seen = set[str]()
    for token in tokens:
        if token in seen:
            raise _fault(meta, f"has the token {token[:40]!r} twice")
        seen.add(token)
    ids = {name: _id(meta, name, len(tokens)) for name in (*ROLES.values(), "eot", "eom")}
    if meta.text("tokenizer.ggml.model", 64) == "llama" and f"{KEY}bos_token_id" not in meta:
        ids["bos"] = FIRST_BOS if len(tokens) > FIRST_BOS else None
    if types is not None and (types.dtype.kind not in "iu" or types.min() < 0 or types.max() > 6):
        raise _fault(meta, "has token types that are none", "whole numbers from 0 to 6")
    kinds = [NORMAL] * len(tokens) if types is None else [int(kind) for kind in types]
    return Vocabulary(tokens, kinds, ids)


def _id(meta: Metadata, name: str, count: int) -> int | None:
    """The id of a special token; None where there is none."""
    key = f"{KEY}{name}_token_id"
    found = meta.plain(key)
    if found is None and key not in meta:
        return None
    if type(found) is not int:
        raise _fault(meta, f"has {key} = {meta.shown(key)[:40]}", f"an id below {count}")
    return found if 0 <= found < count else None  # -1, as some have it, is none


def tokenizer_of(meta: Metadata, vocab: Vocabulary, pre: str = "") -> bytes:
    """tokenizer.json of a file. pre: the name of what cuts texts where the file does not say."""
    kind = meta.text("tokenizer.ggml.model", 64)
    if kind == "llama":
        found = _sentencepiece(meta, vocab)
    elif kind == "gpt2":
        found = _byte_level(meta, vocab, pre)
    elif kind == "gemma4":
        found = _merged(meta, vocab)
    else:
        raise _fault(meta, f"has a tokenizer of kind {kind!r}", f"of the kinds {KINDS}")
    return json.dumps(found, ensure_ascii=False).encode("utf-8")


def endings_of(vocab: Vocabulary) -> list[int]:
    """Tokens that end an answer: what the file names, then those of ENDINGS."""
    known = {vocab.tokens[i]: i for i in vocab.special()}
    named = [vocab.ids[name] for name in ("eos", "eot", "eom")]
    found = [i for i in (*named, *(known.get(text) for text in ENDINGS)) if i is not None]
    return list(dict.fromkeys(found))


def _begins(meta: Metadata, vocab: Vocabulary, default: bool) -> int | None:
    """The token in front of every text; None for none."""
    asked = meta.flag("tokenizer.ggml.add_bos_token")
    if asked and vocab.ids["bos"] is None:
        raise _fault(meta, "says add_bos_token", "a bos_token_id of the vocabulary beside it")
    return vocab.ids["bos"] if (default if asked is None else asked) else None


def _sentencepiece(meta: Metadata, vocab: Vocabulary) -> dict[str, Any]:
    scores = meta.numbers("tokenizer.ggml.scores")
    if scores is None or len(scores) != len(vocab.tokens):
        raise _fault(meta, f"has {len(vocab.tokens)} tokens and no scores for them")
    prefix = meta.flag("tokenizer.ggml.add_space_prefix") is not False
    bos, unknown = _begins(meta, vocab, True), vocab.ids["unknown"] or 0
    return tokenizer_json(
        vocab.tokens, scores.tolist(), vocab.types, bos=bos, prefix=prefix, unknown=unknown
    )


def _merged(meta: Metadata, vocab: Vocabulary) -> dict[str, Any]:
    """Pieces with merges. No space comes in front, BOS always."""
    bos, unknown = vocab.ids["bos"], vocab.ids["unknown"]
    if meta.flag("tokenizer.ggml.add_space_prefix"):
        raise _fault(meta, "says add_space_prefix", "none in a tokenizer of kind 'gemma4'")
    return _of_pieces(
        vocab.tokens, vocab.types, _pairs(meta), bos=bos, prefix=False, unknown=unknown or 0
    )


def _pairs(meta: Metadata) -> list[list[str]]:
    """The merges of a file."""
    pairs = [merge.split(" ", 1) for merge in meta.texts("tokenizer.ggml.merges") or ()]
    odd = next((pair for pair in pairs if len(pair) != 2), None)
    if odd is not None or not pairs:
        raise _fault(meta, f"has the merge {str(odd)[:40]}", "two tokens and a space between")
    return pairs


def _byte_level(meta: Metadata, vocab: Vocabulary, default: str) -> dict[str, Any]:
    name = meta.text("tokenizer.ggml.pre", 64)
    cut = CUTS.get(default if name is None else name)
    if cut is None:
        raise _fault(meta, f"cuts texts by {name!r} (tokenizer.ggml.pre)", f"one of {sorted(CUTS)}")
    pairs = _pairs(meta)
    ids = {token: i for i, token in enumerate(vocab.tokens) if vocab.types[i] != UNUSED}
    bos = _begins(meta, vocab, cut.begins)
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": _listed(vocab.tokens, vocab.types),
        "normalizer": {"type": "NFC"} if cut.nfc else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(cut.steps)},
        "post_processor": _level(regex=False) if bos is None else _front(vocab.tokens[bos], bos),
        "decoder": _level(regex=True),
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": cut.whole, "vocab": ids, "merges": pairs,
        },
    }  # fmt: skip


def tokenizer_json(
    pieces: Sequence[str],
    scores: Sequence[float],
    types: Sequence[int],
    *,
    bos: int | None,
    prefix: bool = True,
    unknown: int = 0,
) -> dict[str, Any]:
    """SentencePiece BPE as the `tokenizers` library writes Llama 2's.

    SentencePiece merges the pair whose result has the best score; the merge list is every way to
    join two pieces into a third, best result first. prefix: whether a space comes in front.
    unknown: the token that stands for what no piece has.
    """
    pairs = merges(pieces, scores, types)
    return _of_pieces(pieces, types, pairs, bos=bos, prefix=prefix, unknown=unknown)


def _of_pieces(
    pieces: Sequence[str],
    types: Sequence[int],
    pairs: list[list[str]],
    *,
    bos: int | None,
    prefix: bool,
    unknown: int = 0,
) -> dict[str, Any]:
    """The same of given merges. unknown: the token that stands for what no piece has."""
    vocab = {piece: i for i, piece in enumerate(pieces)}
    normalizers: list[Step] = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    strip: list[Step] = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _listed(pieces, types),
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                *normalizers,
                {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": None if bos is None else _front(pieces[bos], bos),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *strip,
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": pieces[unknown],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": pairs,
        },
    }


def merges(pieces: Sequence[str], scores: Sequence[float], types: Sequence[int]) -> list[list[str]]:
    """Pairs of pieces that join into a piece, by falling score of the result."""
    normal = {piece: i for i, piece in enumerate(pieces) if types[i] in (NORMAL, USER)}
    longest = max(map(len, normal), default=0)
    if longest > limits.TOKEN_CHARACTERS:
        raise _merging(f"a token of {longest} characters", f"{limits.TOKEN_CHARACTERS} at most")
    found: list[tuple[float, int, int, int, str, str]] = []
    for piece, i in normal.items():
        if len(found) > MERGES * len(pieces):
            raise _merging(f"over {MERGES} ways a token to join two", "fewer")
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in normal and right in normal:
                found.append((-float(scores[i]), i, normal[left], normal[right], left, right))
    if any(not math.isfinite(entry[0]) for entry in found):
        raise _merging("scores that are no numbers", "finite ones")
    return [[left, right] for *_, left, right in sorted(found)]


def _merging(found: str, expected: str) -> ConvertError:
    return ConvertError(
        f"the vocabulary has {found}, expected {expected}",
        code="gguf",
        hint="take another GGUF file of the model, or the repository that it was made from",
    )


def _listed(tokens: Sequence[str], types: Sequence[int]) -> list[dict[str, Any]]:
    """Added tokens: all that are matched in a text as a whole. Those of a user are plain text."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return [
        {"id": i, "content": tokens[i], **flags, "special": kind != USER}
        for i, kind in enumerate(types)
        if kind in (UNKNOWN, CONTROL, USER) and tokens[i]
    ]


def _front(text: str, token: int) -> dict[str, Any]:
    """The step that puts a token in front of a text."""
    begin = {"SpecialToken": {"id": text, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    again = {"SpecialToken": {"id": text, "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [begin, first],
        "pair": [begin, first, again, second],
        "special_tokens": {text: {"id": text, "ids": [token], "tokens": [text]}},
    }


def _fault(meta: Metadata, found: str, expected: str = "a tokenizer that is whole") -> ConvertError:
    return ConvertError(
        f"{meta.where} {found}, expected {expected}",
        code="tokenizer",
        hint="take another GGUF file of the model, or the repository that it was made from",
    )
