"""The text half of a checkpoint: tokenizer, chat template, special tokens, sampling defaults."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ... import limits
from ...bundle.manifest import TextSpec
from ...errors import ConvertError
from ...notices import notice
from .base import Text
from .templates import DEFAULT, FILES, TOOL_USE, chat_templates
from .tokenizer_class import DEFAULTS, as_llama, is_llama
from .tokenizer_file import Asked, TokenizerFile, flags_of, tokenizer_file

SPECIAL = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
# Tokenizer classes whose add_bos_token decides, whatever the post-processor says.
BOS_CLASSES = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer")
SAMPLING: Mapping[str, tuple[float, float]] = {  # name: lowest and highest value
    "temperature": (0.0, limits.TEMPERATURE),
    "top_k": (0, (1 << 31) - 1),
    "top_p": (1e-9, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (1e-9, limits.REPEAT_PENALTY),
}
OTHER_TOKENIZERS = ("tokenizer.model", "vocab.json", "merges.txt", "tekken.json", "spiece.model")
T = TypeVar("T")


class TextFiles(Protocol):
    """The text files of a checkpoint folder: contents by name, and those that are JSON, parsed."""

    path: Path
    texts: dict[str, bytes]
    config: dict[str, Any]
    generation: dict[str, Any]
    tokenizer: dict[str, Any]
    tokenizer_config: dict[str, Any]
    special_tokens: dict[str, Any]
    added_tokens: dict[str, Any]
    template_json: dict[str, Any]


def read_text(source: TextFiles, vocab_size: int, faults: list[str]) -> Text | None:
    """Everything the manifest says about text; None where `faults` got the reason."""
    if "tokenizer.json" not in source.texts:
        raise _no_tokenizer(source)
    before = len(faults)
    llama = is_llama(
        source.texts["tokenizer.json"], source.tokenizer, source.tokenizer_config, source.config
    )
    special = special_strings(source, DEFAULTS if llama else {})
    templates = chat_templates(source)
    tokenizer = _tokenizer(source, special, "".join(templates.values()), vocab_size, llama, faults)
    ids = tokenizer.ids
    eos = _eos_ids(source, special, ids, faults)
    bos = _bos_id(source, special, ids)
    for label, token in [("eos", token) for token in eos] + [("bos", bos)]:
        if token is not None and not 0 <= token < vocab_size:
            faults.append(f"{label}_token_id is {token}, expected 0 to {vocab_size - 1}")
    if not eos:
        faults.append(
            "no eos token in config.json, generation_config.json or tokenizer_config.json"
        )
    generation = sampling_defaults(source.generation, faults)
    if len(faults) > before:
        return None
    files = {FILES[name]: text.encode("utf-8") for name, text in templates.items()}
    spec = TextSpec(
        eos_token_ids=eos,
        vocab_size=vocab_size,
        bos_token_id=bos,
        add_bos=bos is not None and _adds_bos(source, bos, special),
        chat_template=FILES[DEFAULT] if DEFAULT in templates else None,
        tool_template=FILES[TOOL_USE] if TOOL_USE in templates else None,
        special=special,
        generation=generation,
    )
    path = str(source.path / spec.tokenizer)
    return Text(spec, {"tokenizer.json": tokenizer.data, **files}, tokenizer.left_out, path)


def _tokenizer(
    source: TextFiles,
    special: Mapping[str, str],
    template: str,
    width: int,
    llama: bool,
    faults: list[str],
) -> TokenizerFile:
    """The tokenizer of all files together. llama: with the steps of LlamaTokenizer."""
    config, parsed = source.tokenizer_config, source.tokenizer
    steps = as_llama(parsed, config, source.config) if llama else parsed
    roles, more = _further(source)
    tokens = [*roles.values(), *more, *(config.get(key) for key in SPECIAL)]
    asked = Asked(
        config=config,
        special={**special, **{k: text for k, v in roles.items() if (text := _text_of(v))}},
        more=[text for token in more if (text := _text_of(token))],
        flags={str(_text_of(t)): flags for t in tokens if (flags := flags_of(t)) is not None},
        added=source.added_tokens,
        template=template,
        width=width,
    )
    return tokenizer_file(
        source.texts["tokenizer.json"], steps, token_ids(parsed), asked, faults,
        changed=steps != parsed,
    )  # fmt: skip


def _further(source: TextFiles) -> tuple[dict[str, Any], list[Any]]:
    """Special tokens besides the usual ones: with a role (other keys in "_token", or an object of
    them), and without; in transformers' order, as texts or as objects with flags."""
    config, extra, old = (
        source.tokenizer_config,
        "extra_special_tokens",
        "additional_special_tokens",
    )
    other = {} if "added_tokens_decoder" in config else source.special_tokens
    named = {k: v for k, v in config.items() if k not in SPECIAL and k.endswith("_token")}
    listed: list[Any] = []
    for found in (config.get(extra) or config.get(old), other.get(extra)):
        if isinstance(found, dict):
            named |= found
            found = config.get(old)
        listed += _as(list, found)
    return named, listed or _as(list, other.get(old))


def _no_tokenizer(source: TextFiles) -> ConvertError:
    """The error for a checkpoint without the one form that is read."""
    others = [name for name in OTHER_TOKENIZERS if (source.path / name).is_file()]
    only = f" (only {', '.join(others)})" if others else ""
    return ConvertError(
        f"{source.path} has no tokenizer.json{only}, expected one",
        code="tokenizer-missing",
        hint='let transformers write one, once: python -c "from transformers import AutoTokenizer '
        f'as T; T.from_pretrained({source.path.name!r}).save_pretrained({source.path.name!r})" '
        "(pip install transformers sentencepiece tiktoken)",
    )


def token_ids(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Ids by token text from tokenizer.json, added tokens over the model's own."""
    vocab = _as(dict, tokenizer.get("model")).get("vocab")
    if isinstance(vocab, list):  # Unigram: [text, score] by id
        out = {str(e[0]): i for i, e in enumerate(vocab) if isinstance(e, list) and e}
    else:
        out = {text: i for text, i in _as(dict, vocab).items() if type(i) is int}
    for token in _as(list, tokenizer.get("added_tokens")):
        if isinstance(token, dict) and type(token.get("id")) is int:
            out[str(token.get("content"))] = token["id"]
    return out


def _as(kind: type[T], value: Any) -> T:
    """The value if it is of this kind, else an empty one; the tokenizer's own check comes later."""
    return value if isinstance(value, kind) else kind()


def special_strings(source: TextFiles, defaults: Mapping[str, str]) -> dict[str, str]:
    """bos_token, eos_token, ... as templates see them. defaults: those of the tokenizer's class."""
    out = {}
    for key in SPECIAL:
        value = source.tokenizer_config.get(key, source.special_tokens.get(key, defaults.get(key)))
        text = _text_of(value)
        if text is not None:
            out[key] = text
    return out


def _text_of(token: Any) -> str | None:
    """The text of a token that is given as such or as an object."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _id_list(value: Any, where: str, faults: list[str]) -> list[int]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    if any(type(v) is not int for v in values):
        faults.append(f"{where} is {str(value)[:60]!r}, expected an id or a list of ids")
        return []
    return values


def _eos_ids(
    source: TextFiles, special: Mapping[str, str], ids: Mapping[str, int], faults: list[str]
) -> tuple[int, ...]:
    """What ends an answer, as transformers resolves it: generation_config.json says so, failing
    that config.json; the tokenizer's eos_token where neither does."""
    named = ids.get(special.get("eos_token", ""))
    places = {"generation_config": source.generation, "config": _with_text(source.config)}
    for file, content in places.items():
        found = _id_list(content.get("eos_token_id"), f"{file} eos_token_id", faults)
        if found:
            if named is not None and named not in found:
                notice(
                    f"{source.path.name}: answers end at {found}, as {file}.json says; the "
                    f"tokenizer's eos_token {special['eos_token']!r} is {named}"
                )
            return tuple(dict.fromkeys(found))
    return () if named is None else (named,)


def _with_text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A config, with what the text part of a composite one says besides."""
    own = {key: value for key, value in config.items() if value is not None}
    return {**_as(dict, config.get("text_config")), **own}


def _bos_id(source: TextFiles, special: Mapping[str, str], ids: Mapping[str, int]) -> int | None:
    """The tokenizer's BOS; failing that, the config's."""
    if special.get("bos_token") in ids:
        return ids[special["bos_token"]]
    if source.tokenizer_config and "bos_token" in source.tokenizer_config:
        return None
    value = source.generation.get("bos_token_id", _with_text(source.config).get("bos_token_id"))
    return value if type(value) is int else None


def _adds_bos(source: TextFiles, bos: int, special: Mapping[str, str]) -> bool:
    """Whether encoding a text puts BOS in front, as transformers does it."""
    wanted = source.tokenizer_config.get("add_bos_token")
    kind = str(source.tokenizer_config.get("tokenizer_class", "")).removesuffix("Fast")
    if kind in BOS_CLASSES and type(wanted) is bool:
        return wanted
    processor = _as(dict, source.tokenizer.get("post_processor"))
    steps = [processor]
    if processor.get("type") == "Sequence":
        steps = _as(list, processor.get("processors"))
    return any(_starts_with_bos(step, bos, special.get("bos_token")) for step in steps)


def _starts_with_bos(step: Any, bos: int, text: str | None) -> bool:
    if _as(dict, step).get("type") != "TemplateProcessing":
        return False
    first = next(iter(_as(list, step.get("single"))), None)
    token = _as(dict, _as(dict, first).get("SpecialToken")).get("id")
    if not isinstance(token, str):
        return False
    entry = _as(dict, _as(dict, step.get("special_tokens")).get(token))
    return token == text or entry.get("ids") == [bos]


def sampling_defaults(generation: Mapping[str, Any], faults: list[str]) -> dict[str, float | int]:
    """What generation_config.json asks for; nothing but the penalty unless it says do_sample."""
    out: dict[str, float | int] = {}
    for key, (low, high) in SAMPLING.items():
        value = generation.get(key)
        if value is None:
            continue
        if key == "top_k" and value == -1 and type(value) is int:
            value = 0  # as other programs write "off"
        kinds = (int,) if key == "top_k" else (int, float)
        if type(value) in kinds and low <= value <= high:
            out[key] = value
        else:
            faults.append(
                f"generation_config {key!r} is {str(value)[:40]!r}, expected {low} to {high}"
            )
    if generation.get("do_sample") is not True:
        return {key: out[key] for key in ("repetition_penalty",) if key in out}
    return {"temperature": 1.0, "top_k": 50, "top_p": 1.0} | out
