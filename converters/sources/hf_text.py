"""The text half of a checkpoint: tokenizer, chat template, special tokens, sampling defaults."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ...bundle.manifest import TextSpec
from ...errors import ConvertError
from ...notices import notice
from .base import Text
from .generation import sampling_defaults
from .special_tokens import Named, named_tokens, text_of
from .templates import DEFAULT, FILES, TOOL_USE, chat_templates
from .tokenizer_class import ALWAYS_BOS, DEFAULTS, as_llama, class_of, is_llama
from .tokenizer_file import Asked, TokenizerFile, flags_of, tokenizer_file

OTHER_TOKENIZERS = ("tokenizer.model", "vocab.json", "merges.txt", "tekken.json", "spiece.model")
T = TypeVar("T")


class TextFiles(Protocol):
    """The text files of a checkpoint folder: contents by name, and those that are JSON, parsed.
    advice: what `generation` is called in messages about sampling."""

    advice: str
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
    kind = class_of(source.tokenizer_config, source.config) if llama else ""
    named = named_tokens(source.tokenizer_config, source.special_tokens, DEFAULTS.get(kind, {}))
    special = named.texts()
    templates = chat_templates(source)
    tokenizer = _tokenizer(source, named, "".join(templates.values()), vocab_size, llama, faults)
    ids = tokenizer.ids
    eos = _eos_ids(source, special, ids, vocab_size, faults)
    start = None if kind in ALWAYS_BOS else _starting_id(source, ids)
    bos = _bos_id(source, special, ids, vocab_size) if start is None else start
    if bos is not None and not 0 <= bos < vocab_size:
        faults.append(f"bos_token_id is {bos}, expected 0 to {vocab_size - 1}")
    if not eos:
        faults.append(
            "no eos token in config.json, generation_config.json or tokenizer_config.json"
        )
    file, asked = generation_of(source)
    generation = sampling_defaults(asked, file, faults)
    if len(faults) > before:
        return None
    files = {FILES[name]: text.encode("utf-8") for name, text in templates.items()}
    spec = TextSpec(
        eos_token_ids=eos,
        vocab_size=vocab_size,
        bos_token_id=bos,
        add_bos=bos is not None and (kind in ALWAYS_BOS or start is not None),
        chat_template=FILES[DEFAULT] if DEFAULT in templates else None,
        tool_template=FILES[TOOL_USE] if TOOL_USE in templates else None,
        special=special,
        generation=generation,
    )
    path = str(source.path / spec.tokenizer)
    return Text(spec, {"tokenizer.json": tokenizer.data, **files}, tokenizer.left_out, path)


def _tokenizer(
    source: TextFiles,
    named: Named,
    template: str,
    width: int,
    llama: bool,
    faults: list[str],
) -> TokenizerFile:
    """The tokenizer of all files together. llama: with the steps of LlamaTokenizer."""
    config, parsed = source.tokenizer_config, source.tokenizer
    steps = as_llama(parsed, config, source.config) if llama else parsed
    roles = named.texts()
    objects = [(token, text_of(token) in roles.values()) for token in named.listed]
    objects += [(token, True) for token in named.roles.values()]
    asked = Asked(
        config=config,
        special=roles,
        more=[text for token in named.listed if (text := text_of(token))],
        flags={
            str(text_of(token)): flags
            for token, role in objects
            if (flags := flags_of(token, special=role)) is not None
        },
        added=source.added_tokens,
        template=template,
        width=width,
    )
    return tokenizer_file(
        source.texts["tokenizer.json"], steps, token_ids(parsed), asked, faults,
        changed=steps != parsed,
    )  # fmt: skip


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


def _id_list(value: Any, where: str, faults: list[str]) -> list[int]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    if any(type(v) is not int for v in values):
        faults.append(f"{where} is {str(value)[:60]!r}, expected an id or a list of ids")
        return []
    return values


def _eos_ids(
    source: TextFiles,
    special: Mapping[str, str],
    ids: Mapping[str, int],
    width: int,
    faults: list[str],
) -> tuple[int, ...]:
    """What ends an answer, as transformers resolves it: generation_config.json says so, failing
    that config.json; the tokenizer's eos_token where neither does. Ids that no logits stand for
    say nothing."""
    named = ids.get(special.get("eos_token", ""))
    places = {"generation_config": source.generation, "config": _with_text(source.config)}
    for file, content in places.items():
        found = _id_list(content.get("eos_token_id"), f"{file} eos_token_id", faults)
        kept = [token for token in found if 0 <= token < width]
        if kept != found:
            lost = [token for token in found if token not in kept]
            notice(
                f"{source.path.name}: {file}.json ends answers at {lost[:8]}, the logits have 0 "
                f"to {width - 1}: ignored, such tokens never come"
            )
        if kept:
            if named is not None and named not in kept:
                notice(
                    f"{source.path.name}: answers end at {kept}, as {file}.json says; the "
                    f"tokenizer's eos_token {special['eos_token']!r} is {named}"
                )
            return tuple(dict.fromkeys(kept))
    return () if named is None or named >= width else (named,)


def generation_of(source: TextFiles) -> tuple[str, Mapping[str, Any]]:
    """The file that says how to decode, and its content."""
    if "generation_config.json" in source.texts:
        return source.advice, source.generation
    return "config", _with_text(source.config)


def _with_text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A config, with what the text part of a composite one says besides."""
    own = {key: value for key, value in config.items() if value is not None}
    return {**_as(dict, config.get("text_config")), **own}


def _bos_id(
    source: TextFiles, special: Mapping[str, str], ids: Mapping[str, int], width: int
) -> int | None:
    """The tokenizer's BOS; failing that, the config's, where there are logits for it."""
    if special.get("bos_token") in ids:
        return ids[special["bos_token"]]
    if source.tokenizer_config and "bos_token" in source.tokenizer_config:
        return None
    value = source.generation.get("bos_token_id", _with_text(source.config).get("bos_token_id"))
    return value if type(value) is int and 0 <= value < width else None


def _starting_id(source: TextFiles, ids: Mapping[str, int]) -> int | None:
    """The token that the file's post-processor puts in front of a text. add_bos_token says
    nothing: transformers does not read it beside a tokenizer.json."""
    processor = _as(dict, source.tokenizer.get("post_processor"))
    steps = [processor]
    if processor.get("type") == "Sequence":
        steps = _as(list, processor.get("processors"))
    found = [_template_start(step, ids) for step in steps]
    return next((token for token in found if token is not None), None)


def _template_start(step: Any, ids: Mapping[str, int]) -> int | None:
    if _as(dict, step).get("type") != "TemplateProcessing":
        return None
    first = next(iter(_as(list, step.get("single"))), None)
    token = _as(dict, _as(dict, first).get("SpecialToken")).get("id")
    if not isinstance(token, str):
        return None
    named = _as(list, _as(dict, _as(dict, step.get("special_tokens")).get(token)).get("ids"))
    return named[0] if len(named) == 1 and type(named[0]) is int else ids.get(token)
