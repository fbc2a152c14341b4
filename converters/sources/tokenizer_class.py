"""Which class transformers makes of a tokenizer, and what that changes in its tokenizer.json.

transformers 5 takes a tokenizer.json as it stands, except where the checkpoint names a class that
builds its steps itself. Of those LlamaTokenizer matters: its files often hold a Prepend normalizer,
which puts a space behind every special token, while the class puts one only in front of the text
(`legacy: false`, its default), or in front of every stretch between special tokens
(`legacy: true`), or nowhere (`add_prefix_space: false`). CodeLlamaTokenizer does the same, always
as `legacy: false`, and puts BOS in front of a text whatever the file's post-processor says. The
classes also have default names for their special tokens.

The named class is not used where transformers distrusts it: for model types in `DISTRUSTED`, and
for byte-level files (Llama 3 and its kin call themselves LlamaTokenizer too).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LLAMA, CODE = CLASSES = ("LlamaTokenizer", "CodeLlamaTokenizer")
DISTRUSTED = ("mistral", "phi3", "qwen2")
ALWAYS_BOS = (CODE,)  # whatever the file's post-processor and add_bos_token say
USUAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
INFILL = {
    "prefix_token": "\u2581<PRE>",
    "middle_token": "\u2581<MID>",
    "suffix_token": "\u2581<SUF>",
    "eot_token": "\u2581<EOT>",
    "fill_token": "<FILL_ME>",
}
DEFAULTS: Mapping[str, Mapping[str, str]] = {LLAMA: USUAL, CODE: {**USUAL, **INFILL}}
SPACE = "\u2581"  # what SentencePiece writes for a space


def is_llama(
    data: bytes, parsed: Mapping[str, Any], tokenizer_config: Mapping[str, Any],
    config: Mapping[str, Any],
) -> bool:  # fmt: skip
    """Whether transformers loads these files with one of CLASSES. data, parsed: tokenizer.json."""
    return (
        class_of(tokenizer_config, config) in CLASSES
        and config.get("model_type") not in DISTRUSTED
        and b'"ByteLevel"' not in data
        and _is_bpe(parsed.get("model"))
    )


def class_of(tokenizer_config: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    named = tokenizer_config.get("tokenizer_class") or config.get("tokenizer_class")
    return str(named).removesuffix("Fast")


def _is_bpe(model: Any) -> bool:
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        return False
    return bool(model.get("type", "BPE") == "BPE") and "merges" in model


def as_llama(
    parsed: Mapping[str, Any], tokenizer_config: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any]:
    """tokenizer.json with the steps of the class; vocabulary, merges, added tokens and
    post-processor stay."""
    code = class_of(tokenizer_config, config) == CODE
    prefixed = tokenizer_config.get("add_prefix_space") is not False
    scheme = "never"
    if prefixed:
        scheme = "always" if tokenizer_config.get("legacy") is True and not code else "first"
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefixed or code:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": parsed["model"]["vocab"],
        "merges": parsed["model"]["merges"],
    }
    metaspace = {
        "type": "Metaspace",
        "replacement": SPACE,
        "prepend_scheme": scheme,
        "split": False,
    }
    return {
        **parsed,
        "normalizer": None,
        "pre_tokenizer": metaspace,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
    }
