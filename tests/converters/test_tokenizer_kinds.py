"""Tokenizers that other programs get wrong, beside transformers on the same files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgert.converters.sources.hf import HfSource
from edgert.converters.sources.hf_text import read_text
from safetensors.numpy import save_file

from edgert.errors import BundleError
from edgert.text.template import ChatTemplate
from edgert.text.tokenizer import Tokenizer
from tests.tiny import TEMPLATE, tiny_tokenizer

WIDTH = 400
CHAT = [
    {"role": "user", "content": "Hi two"},
    {"role": "assistant", "content": " no"},
    {"role": "user", "content": "what is </s> and <|user|>?"},
]
LLAMA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.content }}]{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


def sentencepiece(normalized: bool = False) -> dict[str, Any]:
    """A tokenizer.json as Llama 2's: bytes, letters, pieces, and a normalizer that prepends."""
    letters = sorted({*"\u2581Hitwonahs[]?<>/|ue:r"})
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *letters, "\u2581t"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    special = {"normalized": normalized, "special": True}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [
            {"id": i, "content": text, **flags, **special} for i, text in enumerate(texts[:3])
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "\u2581"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
            ],
        },
        "pre_tokenizer": None, "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "fuse_unk": True,
            "byte_fallback": True, "vocab": {text: i for i, text in enumerate(texts)},
            "merges": [["\u2581", "t"]],
        },
    }  # fmt: skip


def bytes_tokenizer(**changes: Any) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads(tiny_tokenizer())
    return raw | changes


def checkpoint(
    folder: Path, tokenizer: dict[str, Any], config: dict[str, Any], kind: str = "llama"
) -> Path:
    """The text half of a checkpoint; its only tensor is never read."""
    files = {
        "config.json": {"model_type": kind, "eos_token_id": 1},
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": {"bos_token": "<s>", "eos_token": "</s>"} | config,
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    save_file({"x": np.zeros(1, np.float32)}, folder / "model.safetensors")
    return folder


def ours(folder: Path) -> tuple[Tokenizer, ChatTemplate]:
    faults: list[str] = []
    with HfSource(folder) as source:
        text = read_text(source, WIDTH, faults)
    assert not faults
    assert text is not None
    spec = text.spec
    tokenizer = Tokenizer(
        text.files["tokenizer.json"], vocab_size=WIDTH, eos_token_ids=spec.eos_token_ids,
        special=spec.special.values(),
    )  # fmt: skip
    added = tokenizer.vocabulary.added
    template, *others = [
        ChatTemplate(
            text.files[name].decode(), spec.special, control=tokenizer.control, added=added
        )
        for name in (spec.chat_template, spec.tool_template)
        if name is not None
    ]
    template._with_tools = others[0] if others else None
    return tokenizer, template


def compare(folder: Path, tools: Any = None) -> list[int]:
    """Ids of CHAT, which must be transformers'."""
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder)
    tokenizer, template = ours(folder)
    found = tokenizer.encode_segments(template.render(CHAT, tools=tools))
    assert found == theirs.apply_chat_template(
        CHAT, tools=tools, add_generation_prompt=True, return_dict=False,
        sanitize_control_tokens=True,
    )  # fmt: skip
    for text in ("Hi two", " Hi", "a</s>b", "Hi\n\nno", "\u00e9"):
        plain = theirs.encode(text, add_special_tokens=False)
        assert tokenizer.encode(text, special=True) == plain
        assert tokenizer.decode(plain, special=True) == theirs.decode(plain)
    return found


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("llama", {"tokenizer_class": "LlamaTokenizer"}),
        ("llama", {"tokenizer_class": "LlamaTokenizerFast", "legacy": False}),
        ("llama", {"tokenizer_class": "LlamaTokenizer", "legacy": True}),
        ("llama", {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False}),
        ("llama", {"tokenizer_class": "PreTrainedTokenizerFast"}),
        ("llama", {}),
        ("phi3", {"tokenizer_class": "LlamaTokenizer", "legacy": False}),
        ("mistral", {"tokenizer_class": "LlamaTokenizer"}),
        ("qwen3", {"tokenizer_class": "LlamaTokenizer"}),
        ("llama", {"tokenizer_class": "CodeLlamaTokenizer", "legacy": True, "fill_token": None}),
    ],
)
def test_prefix_spaces_as_the_class_puts_them(
    tmp_path: Path, kind: str, config: dict[str, Any], normalized: bool
) -> None:
    settings = {"chat_template": LLAMA_TEMPLATE} | config
    ids = compare(checkpoint(tmp_path, sentencepiece(normalized), settings, kind))
    pieces = sentencepiece()["model"]["vocab"]
    if kind == "llama" and config.get("tokenizer_class", "").startswith("Llama"):
        legacy = config.get("legacy") is True
        assert ids[:3] == [1, *([pieces["\u2581"]] if legacy else []), pieces["["]][:2] + ids[2:3]
        assert ids.count(2) == 3, "each turn ends with the end token, and no text makes one"


def test_specials_are_hidden_whatever_their_flags(tmp_path: Path) -> None:
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": LLAMA_TEMPLATE}
    tokenizer, _ = ours(checkpoint(tmp_path, sentencepiece(normalized=True), config))
    ids = [1, *tokenizer.encode("Hi"), 2, *tokenizer.encode(" two")]
    assert tokenizer.decode(ids) == "Hi  two"


@pytest.mark.parametrize(
    "saved",
    [
        {"padding": {"strategy": {"Fixed": 64}, "direction": "Left", "pad_to_multiple_of": None}},
        {"padding": {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": 8}},
        {"truncation": {"max_length": 3, "strategy": "LongestFirst", "stride": 0}},
    ],
)
def test_saved_padding_and_truncation_touch_no_text(tmp_path: Path, saved: dict[str, Any]) -> None:
    pad = {"pad_id": 1, "pad_type_id": 0, "pad_token": "<|eos|>"}
    extra = pad if "padding" in saved else {"direction": "Right"}
    raw = bytes_tokenizer(**{key: value | extra for key, value in saved.items()})
    config = {
        "bos_token": "<|bos|>", "eos_token": "<|eos|>", "chat_template": TEMPLATE,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }  # fmt: skip
    tokenizer, template = ours(checkpoint(tmp_path, raw, config))
    clean, same = ours(checkpoint(tmp_path, bytes_tokenizer(), config))
    for text in ("What does <|user|> mean?", "<|eos|>"):
        chat = [{"role": "user", "content": text}]
        found = tokenizer.encode_segments(template.render(chat))
        assert found == clean.encode_segments(same.render(chat))
        assert found.count(1) == 1
        assert tokenizer.encode(text) == clean.encode(text)


def test_tools_take_the_template_that_knows_them(tmp_path: Path) -> None:
    named = [
        {"name": "default", "template": TEMPLATE},
        {"name": "tool_use", "template": "{{ tools | tojson }}" + TEMPLATE},
    ]
    config = {
        "bos_token": "<|bos|>", "eos_token": "<|eos|>", "chat_template": named,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }  # fmt: skip
    folder = checkpoint(tmp_path, bytes_tokenizer(), config)
    tools = [{"type": "function", "function": {"name": "w", "description": "<|eos|>"}}]
    assert len(compare(folder, tools)) > len(compare(folder))


OBJECT = {
    "__type": "AddedToken", "lstrip": False, "rstrip": True, "normalized": False,
    "single_word": False, "special": True,
}  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [
        {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]},
        {"extra_special_tokens": ["<|im_start|>", "<|im_end|>"], "pad_token": "<pad>"},
        {"extra_special_tokens": {"start_token": "<|im_start|>", "end_token": "<|im_end|>"}},
        {"eos_token": "<|im_end|>", "start_token": "<|im_start|>"},
        {
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
            "extra_special_tokens": ["<|im_end|>", "<|im_start|>"],
        },
        {
            "additional_special_tokens": ["<|im_start|>"],
            "extra_special_tokens": {"end_token": "<|im_end|>"},
        },
        {"additional_special_tokens": [{**OBJECT, "content": "<|im_start|>"}, "<|im_end|>"]},
        {"model_specific_special_tokens": {"start": "<|im_start|>", "end": "<|im_end|>"}},
        {
            "model_specific_special_tokens": {"end_token": "<|im_end|>"},
            "extra_special_tokens": ["<|im_start|>"],
        },
    ],
)
@pytest.mark.parametrize("where", ["tokenizer_config.json", "special_tokens_map.json"])
def test_tokens_that_only_a_config_names_are_appended(
    tmp_path: Path, config: dict[str, Any], where: str
) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    )
    base = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template}
    base |= {"bos_token": "<|bos|>"}
    base |= {} if "eos_token" in config else {"eos_token": "<|eos|>"}
    in_map = where == "special_tokens_map.json" and not {
        "start_token", "model_specific_special_tokens"
    } & set(config)  # fmt: skip
    folder = checkpoint(tmp_path, bytes_tokenizer(), base | ({} if in_map else config))
    if in_map:
        (folder / where).write_text(json.dumps(config), encoding="utf-8")
    ids = compare(folder)
    assert min(ids[0], ids[-2]) >= 260


def test_a_listed_object_is_special_where_it_says_so(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    plain = {"__type": "AddedToken", "lstrip": True}
    config = {
        "bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": "<|p|>",
        "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE,
        "additional_special_tokens": [
            {**plain, "content": "<|x|>"}, {**plain, "content": "<|y|>", "special": True},
            {**plain, "content": "<|p|>"}, "<|z|>",
        ],
    }  # fmt: skip
    folder = checkpoint(tmp_path, bytes_tokenizer(), config)
    theirs = AutoTokenizer.from_pretrained(folder)
    ids = theirs.encode("a <|x|>b<|y|>c<|z|>d<|p|>")
    mine, _ = ours(folder)
    assert mine.encode("a <|x|>b<|y|>c<|z|>d<|p|>", special=True) == ids
    assert mine.decode(ids) == theirs.decode(ids, skip_special_tokens=True) == "a<|x|>bcd"


def test_roles_beside_model_specific_ones_replace_them(tmp_path: Path) -> None:
    """Whichever file they are in, as transformers has it; templates see all roles."""
    config = {
        "bos_token": "<|bos|>", "eos_token": "<|eos|>", "image_token": "<|image|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_specific_special_tokens": {"audio_token": "<|audio|>"},
        "chat_template": "{{ image_token }}{{ audio_token }}{{ pad_token }}" + TEMPLATE,
    }  # fmt: skip
    folder = checkpoint(tmp_path, bytes_tokenizer(), config)
    in_map = {"pad_token": "<|pad|>", "extra_special_tokens": {"video_token": "<|video|>"}}
    (folder / "special_tokens_map.json").write_text(json.dumps(in_map), encoding="utf-8")
    ids = compare(folder)
    assert ids[:2] == [261, 260], "the image's role comes after the standard ones"


POST = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
    ],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
}  # fmt: skip


@pytest.mark.parametrize("processor", [None, POST])
@pytest.mark.parametrize("named", [{}, {"bos_token": None}, {"add_bos_token": True}])
@pytest.mark.parametrize("extra", [{}, {"add_bos_token": False}, {"add_prefix_space": False}])
@pytest.mark.parametrize("kind", ["LlamaTokenizer", "CodeLlamaTokenizer", "GPTokenizer"])
def test_a_text_begins_as_the_class_has_it(
    tmp_path: Path, processor: Any, named: dict[str, Any], extra: dict[str, Any], kind: str
) -> None:
    from transformers import AutoTokenizer

    raw = sentencepiece() | {"post_processor": processor}
    folder = checkpoint(tmp_path, raw, {"tokenizer_class": kind, **named, **extra})
    theirs = AutoTokenizer.from_pretrained(folder)
    with HfSource(folder) as source:
        text = read_text(source, WIDTH, [])
    assert text is not None
    spec = text.spec
    mine = Tokenizer(text.files["tokenizer.json"], vocab_size=WIDTH, eos_token_ids=(1,))
    for sample in ("Hi two", " Hi", "a</s> b"):
        start = [spec.bos_token_id] if spec.add_bos else []
        assert start + mine.encode(sample, special=True) == theirs.encode(sample)
        assert mine.decode(theirs.encode(sample), special=True) == theirs.decode(
            theirs.encode(sample)
        )


def test_tokens_of_added_tokens_json_count(tmp_path: Path) -> None:
    template = "{% for m in messages %}<|a|>{{ m.content }}<|b|>{% endfor %}"
    config = {
        "bos_token": "<|bos|>", "eos_token": "<|b|>", "chat_template": template,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }  # fmt: skip
    folder = checkpoint(tmp_path, bytes_tokenizer(), config)
    (folder / "added_tokens.json").write_text('{"<|b|>": 261, "<|a|>": 260}', encoding="utf-8")
    assert compare(folder)[0] == 260


def holed(vocabulary: bool) -> dict[str, Any]:
    raw = bytes_tokenizer()
    new = {"<|im_start|>": 262, "<|im_end|>": 265}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    raw["added_tokens"] += [
        {"id": i, "content": text, **flags, "special": True} for text, i in new.items()
    ]
    if vocabulary:
        raw["model"]["vocab"] |= new
    return raw


def test_a_vocabulary_may_have_holes(tmp_path: Path) -> None:
    config = {
        "bos_token": "<|bos|>", "eos_token": "<|im_end|>", "chat_template": TEMPLATE,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }  # fmt: skip
    folder = checkpoint(tmp_path, holed(vocabulary=True), config)
    assert compare(folder).count(265) == 3
    tokenizer, _ = ours(folder)
    assert (tokenizer.size, tokenizer.holes) == (266, (260, 261, 263, 264))
    assert tokenizer.decode([260, 261, *tokenizer.encode("hi")]) == "hi"


def test_tokens_that_would_be_renumbered_are_refused() -> None:
    raw = json.dumps(holed(vocabulary=False)).encode()
    with pytest.raises(BundleError, match=r"'<\|im_start\|>' has id 262, expected 260"):
        Tokenizer(raw, vocab_size=WIDTH, eos_token_ids=(1,))


def test_a_new_token_beside_holes_keeps_its_id(tmp_path: Path) -> None:
    """Where the library, reading a file, would give it another."""
    config = {
        "bos_token": "<|bos|>", "eos_token": "<|im_end|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "additional_special_tokens": ["<|new|>"], "chat_template": "<|new|>" + TEMPLATE,
    }  # fmt: skip
    assert compare(checkpoint(tmp_path, holed(vocabulary=True), config))[0] == 266


def test_a_new_token_takes_no_others_id(tmp_path: Path) -> None:
    """With holes the library's next id may be one that a token has."""
    config = {"bos_token": "<|bos|>", "additional_special_tokens": ["<|new|>"]}
    raw = holed(vocabulary=True)
    raw["added_tokens"] = raw["added_tokens"][:4]
    faults: list[str] = []
    with HfSource(checkpoint(tmp_path, raw, config)) as source:
        assert read_text(source, WIDTH, faults) is None
    assert "would get the id 262, which '<|im_start|>' has" in faults[-1]
