"""Tokenizer files, templates and sampling defaults of a checkpoint, as transformers reads them."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from edgert.converters.sources.base import Text
from edgert.converters.sources.hf import HfSource
from edgert.converters.sources.hf_text import read_text

from benchmarks.make_checkpoint import make_checkpoint
from edgert import notices
from edgert.bundle import Bundle
from edgert.errors import ConvertError
from edgert.text.tokenizer import Tokenizer
from tests.converters.faults import convert_tiny


@pytest.fixture(autouse=True)
def untold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Notices are shown once a process; here, once a test."""
    monkeypatch.setattr(notices, "_shown", set())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_checkpoint("tiny", tmp_path / "tiny")


def change(folder: Path, file: str, **values: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    path = folder / file
    content = json.loads(path.read_text("utf-8")) if path.exists() else {}
    content = {k: v for k, v in (content | values).items() if v is not None}
    path.write_text(json.dumps(content), encoding="utf-8")


def text_of(folder: Path, width: int = 512) -> Text:
    faults: list[str] = []
    with HfSource(folder) as source:
        found = read_text(source, width, faults)
    assert faults == []
    assert found is not None
    return found


def test_what_ends_an_answer_is_resolved_as_transformers_does(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change(folder, "generation_config.json", eos_token_id=[7, 2])
    change(folder, "config.json", eos_token_id=9)
    change(folder, "tokenizer_config.json", eos_token="<|im_start|>")
    assert text_of(folder).spec.eos_token_ids == (7, 2)
    assert "the tokenizer's eos_token '<|im_start|>' is 1" in caplog.text
    change(folder, "generation_config.json", eos_token_id=None, temperature=0.5)
    assert text_of(folder).spec.eos_token_ids == (9,)
    (folder / "generation_config.json").unlink()
    assert text_of(folder).spec.eos_token_ids == (9,)
    change(folder, "config.json", eos_token_id=None)
    assert text_of(folder).spec.eos_token_ids == (1,)


@pytest.mark.parametrize("never", [512, 99_999, -1])
def test_ends_that_never_come_are_left_out(
    folder: Path, never: int, caplog: pytest.LogCaptureFixture
) -> None:
    change(folder, "config.json", eos_token_id=9)
    change(folder, "generation_config.json", eos_token_id=[7, never])
    assert text_of(folder).spec.eos_token_ids == (7,)
    assert f"generation_config.json ends answers at [{never}], the logits have 0 to" in caplog.text
    change(folder, "generation_config.json", eos_token_id=never)
    assert text_of(folder).spec.eos_token_ids == (9,)
    change(folder, "config.json", eos_token_id=[never])
    assert text_of(folder).spec.eos_token_ids == (2,)


def test_no_end_is_a_fault(folder: Path) -> None:
    for file in ("generation_config.json", "config.json"):
        change(folder, file, eos_token_id=None)
    change(folder, "tokenizer_config.json", eos_token="<none>")
    faults: list[str] = []
    with HfSource(folder) as source:
        assert read_text(source, 512, faults) is None
    assert "no eos token" in faults[0]
    change(folder, "generation_config.json", eos_token_id="1")
    with HfSource(folder) as source:
        assert read_text(source, 512, faults) is None
    assert "generation_config eos_token_id is '1', expected an id" in faults[1]


def test_template_files_win_in_transformers_order(folder: Path) -> None:
    assert text_of(folder).files["chat_template.jinja"].startswith(b"{% for message")
    change(folder, "chat_template.json", chat_template="second")
    assert text_of(folder).files["chat_template.jinja"] == b"second"
    (folder / "chat_template.jinja").write_text("third", encoding="utf-8")
    assert text_of(folder).files["chat_template.jinja"] == b"third"


def test_named_templates_and_none(folder: Path) -> None:
    named = [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]
    change(folder, "tokenizer_config.json", chat_template=named)
    found = text_of(folder)
    assert found.files["chat_template.jinja"] == b"b"
    assert found.files["chat_template.tool_use.jinja"] == b"a"
    assert found.spec.tool_template == "chat_template.tool_use.jinja"
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("c", encoding="utf-8")
    (folder / "chat_template.jinja").write_text("d", encoding="utf-8")
    found = text_of(folder)
    assert found.files["chat_template.jinja"] == b"d"
    assert found.files["chat_template.tool_use.jinja"] == b"c"
    (folder / "chat_template.jinja").unlink()
    assert text_of(folder).spec.chat_template is None  # transformers knows no default either
    (folder / "additional_chat_templates" / "tool_use.jinja").unlink()
    change(folder, "tokenizer_config.json", chat_template=None)
    found = text_of(folder)
    assert found.spec.chat_template is None
    assert set(found.files) == {"tokenizer.json"}


def test_special_strings_come_from_either_form(folder: Path) -> None:
    change(folder, "tokenizer_config.json", pad_token={"content": "<|endoftext|>", "lstrip": False})
    change(folder, "special_tokens_map.json", unk_token="<|im_start|>", bos_token="<|wins|>")
    assert text_of(folder, 600).spec.special == {
        "bos_token": "<|wins|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|im_start|>",
    }
    change(
        folder, "tokenizer_config.json", added_tokens_decoder={}
    )  # beside it the map is not read
    assert text_of(folder).spec.special == {
        "bos_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
    }


def test_sampling_defaults(folder: Path) -> None:
    assert text_of(folder).spec.generation == {}
    change(folder, "generation_config.json", temperature=0.6, top_p=0.9, repetition_penalty=1.1)
    assert text_of(folder).spec.generation == {"repetition_penalty": 1.1}
    change(folder, "generation_config.json", do_sample=True)
    assert text_of(folder).spec.generation == {
        "temperature": 0.6,
        "top_k": 50,
        "top_p": 0.9,
        "repetition_penalty": 1.1,
    }
    change(folder, "generation_config.json", top_k=-1)
    assert text_of(folder).spec.generation["top_k"] == 0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("top_k", 5.5),
        ("top_k", "50"),
        ("temperature", "hot"),
        ("temperature", -1),
        ("min_p", True),
        ("min_p", 2.0),
        ("repetition_penalty", 0.0),
    ],
)
def test_impossible_sampling_defaults_are_faults(folder: Path, key: str, value: Any) -> None:
    change(folder, "generation_config.json", **{key: value})
    faults: list[str] = []
    with HfSource(folder) as source:
        assert read_text(source, 512, faults) is None
    assert f"generation_config {key!r} is {str(value)!r}, expected" in faults[0]


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ({"top_k": -2}, {"top_k": 0}),
        ({"top_k": 50.0}, {"top_k": 50}),
        ({"top_k": 1 << 70}, {"top_k": 0}),
        ({"top_p": -1}, {"top_p": 1.0}),
        ({"top_p": 1.5}, {"top_p": 1.0}),
        ({"top_p": 0}, {"top_k": 1}),  # transformers keeps the likeliest token
        ({"min_p": -1}, {"min_p": 0.0}),
    ],
)
def test_sampling_values_as_they_are_meant(
    folder: Path, asked: dict[str, Any], meant: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    change(folder, "generation_config.json", do_sample=True, **asked)
    usual = {"temperature": 1.0, "top_k": 50, "top_p": 1.0}
    assert text_of(folder).spec.generation == usual | meant
    (key,) = asked
    assert f"generation_config {key!r} is {asked[key]}, which is taken as" in caplog.text


def test_what_decoding_leaves_undone_is_told_once(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change(
        folder, "generation_config.json", suppress_tokens=[5], begin_suppress_tokens=[],
        no_repeat_ngram_size=3, bad_words_ids=[[1]], forced_bos_token_id=0, min_length=0,
        min_new_tokens=4, num_beams=1, encoder_no_repeat_ngram_size=2, guidance_scale=1.5,
        repetition_penalty=1.2, typical_p=0.5, max_length=20, diversity_penalty=0.0,
    )  # fmt: skip
    assert text_of(folder).spec.generation == {"repetition_penalty": 1.2}
    (line,) = [r.message for r in caplog.records if "does not do" in r.message]
    named = set(re.findall(r"(\w+) = ", line))
    assert named == {
        "suppress_tokens", "no_repeat_ngram_size", "bad_words_ids", "forced_bos_token_id",
        "min_new_tokens", "encoder_no_repeat_ngram_size", "guidance_scale",
    }  # fmt: skip
    assert "no_repeat_ngram_size = 3 (bars repeated sequences of tokens)" in line
    change(folder, "generation_config.json", do_sample=True)
    text_of(folder)
    assert "typical_p = 0.5 (bars untypical tokens)" in caplog.text


def test_without_generation_config_the_config_says_how_to_decode(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As transformers takes it, legacy though it is."""
    change(folder, "config.json", do_sample=True, temperature=0.5, num_beams=4)
    change(folder, "generation_config.json", eos_token_id=2)
    assert text_of(folder).spec.generation == {}
    (folder / "generation_config.json").unlink()
    assert text_of(folder).spec.generation == {"temperature": 0.5, "top_k": 50, "top_p": 1.0}
    assert "config asks for what edgert does not do" in caplog.text
    assert "num_beams = 4 (searches with beams)" in caplog.text


def test_bos_as_transformers_adds_it(folder: Path) -> None:
    assert not text_of(folder).spec.add_bos
    for kind in ("LlamaTokenizer", "PreTrainedTokenizerFast"):  # not read beside tokenizer.json
        change(folder, "tokenizer_config.json", tokenizer_class=kind, add_bos_token=True)
        assert not text_of(folder).spec.add_bos
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {}}],
        "special_tokens": {},
    }
    steps = {"type": "Sequence", "processors": [{"type": "ByteLevel"}, template]}
    for processor in (template, steps):
        change(folder, "tokenizer.json", post_processor=processor)
        assert text_of(folder).spec.add_bos


@pytest.mark.parametrize(
    ("name", "bos", "eos"), [("tokenizers/phi-3-mini", 1, 32000), ("lm-tinystories-656k", 1, 2)]
)
def test_published_tokenizers(
    folder: Path, shared_data: Path, name: str, bos: int, eos: int
) -> None:
    from transformers import AutoTokenizer

    for path in (shared_data / name).glob("tokenizer*"):
        data = path.read_bytes()
        packed = path.suffix == ".gz"
        (folder / (path.stem if packed else path.name)).write_bytes(
            gzip.decompress(data) if packed else data
        )
    for file in ("config.json", "generation_config.json"):
        change(folder, file, eos_token_id=None, bos_token_id=None)
    faults: list[str] = []
    with HfSource(folder) as opened:
        found = read_text(opened, 32064, faults)
    assert found is not None, faults
    assert (found.spec.bos_token_id, found.spec.eos_token_ids) == (bos, (eos,))
    theirs = AutoTokenizer.from_pretrained(folder)("Hello").input_ids
    assert found.spec.add_bos == (theirs[0] == bos)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", b"{", "not JSON"),
        ("config.json", b'{"model_type": "llama", "model_type": "x"}', "stands twice"),
        ("config.json", b'{"rms_norm_eps": NaN}', "NaN is no JSON number"),
        ("config.json", b"[]", "holds a JSON list, expected an object"),
        ("config.json", b" " * (5 << 20), "the limit is"),
        ("chat_template.jinja", b"\xff\xfe", "is not UTF-8"),
        ("tokenizer_config.json", b'{"chat_template": 3}', "expected text of at most"),
        ("tokenizer_config.json", b'{"chat_template": [3]}', "expected objects of a name and a"),
    ],
)
def test_damaged_files_are_refused(folder: Path, file: str, content: bytes, message: str) -> None:
    (folder / file).write_bytes(content)
    with pytest.raises(ConvertError, match=message) as info:
        text_of(folder)
    assert info.value.hint


def test_a_tokenizer_is_needed(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ConvertError, match=r"has no tokenizer\.json"):
        text_of(folder)


NASTY = (
    True,
    -1,
    1 << 70,
    1.5,
    "x",
    [],
    [None],
    [{}],
    {},
    {"a": 1},
    {"type": "TemplateProcessing"},
)
KEYS = {
    "generation_config.json": (
        "eos_token_id", "bos_token_id", "temperature", "top_k", "do_sample", "repetition_penalty",
    ),
    "tokenizer_config.json": (
        "bos_token", "eos_token", "chat_template", "add_bos_token", "tokenizer_class",
        "added_tokens_decoder", "additional_special_tokens", "extra_special_tokens",
    ),
    "special_tokens_map.json": ("unk_token", "bos_token"),
    "chat_template.json": ("chat_template",),
    "tokenizer.json": ("model", "added_tokens", "post_processor", "decoder", "version"),
}  # fmt: skip


@pytest.mark.parametrize("file", sorted(KEYS))
def test_any_value_of_any_key_is_taken_or_refused(folder: Path, tmp_path: Path, file: str) -> None:
    """Never another exception than ConvertError."""
    good = (folder / file).read_bytes() if (folder / file).exists() else b"{}"
    for key in KEYS[file]:
        for value in NASTY:
            (folder / file).write_bytes(good)
            change(folder, file, **{key: value})
            try:
                convert_tiny(folder, tmp_path / "m.edge")
            except ConvertError as error:
                assert error.hint  # noqa: PT017


def added(folder: Path, width: int = 512) -> dict[str, dict[str, Any]]:
    """Added tokens of the bundle's tokenizer.json by text."""
    data = json.loads(text_of(folder, width).files["tokenizer.json"])
    return {entry["content"]: entry for entry in data["added_tokens"]}


def faults_of(folder: Path, width: int = 512) -> list[str]:
    faults: list[str] = []
    with HfSource(folder) as source:
        read_text(source, width, faults)
    return faults


def last_id(folder: Path) -> int:
    raw = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    return max([*raw["model"]["vocab"].values(), *(e["id"] for e in raw["added_tokens"])])


def test_a_tokenizer_that_says_it_all_keeps_its_bytes(folder: Path) -> None:
    entries = added(folder)
    decoder = {str(e["id"]): {k: v for k, v in e.items() if k != "id"} for e in entries.values()}
    change(folder, "tokenizer_config.json", added_tokens_decoder=decoder)
    assert text_of(folder).files["tokenizer.json"] == (folder / "tokenizer.json").read_bytes()


def test_added_tokens_of_tokenizer_config_count_as_in_transformers(folder: Path) -> None:
    from transformers import AutoTokenizer

    new, known = last_id(folder) + 1, next(iter(added(folder).values()))
    decoder = {
        str(new): {"content": "<|tool|>", "special": True, "normalized": False},
        str(new + 1): {"content": "<think>", "lstrip": True, "special": False},
        str(known["id"]): {**known, "special": not known["special"]},
    }
    change(
        folder, "tokenizer_config.json", added_tokens_decoder=decoder,
        additional_special_tokens=["<|tool|>", "a"], tokenizer_class="PreTrainedTokenizerFast",
    )  # fmt: skip
    theirs = AutoTokenizer.from_pretrained(folder)
    ours = added(folder, 520)
    for text, flags in ((t.content, t) for t in theirs.added_tokens_decoder.values()):
        for flag in ("special", "lstrip", "normalized"):
            assert ours[text][flag] == getattr(flags, flag), (text, flag)
        assert ours[text]["id"] == theirs.convert_tokens_to_ids(text)
    assert len(ours) == len(theirs.added_tokens_decoder)
    assert ours["a"]["special"], "named special, but in the vocabulary as ordinary text"
    data = text_of(folder, 520).files["tokenizer.json"]
    mine = Tokenizer(data, vocab_size=520, eos_token_ids=(1,))
    text = "b <think>b<|tool|>b"
    assert mine.encode(text, special=True) == theirs.encode(text, add_special_tokens=False)


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        ({"7": {"content": "<|new|>"}}, "gives '<|new|>' the id 7, tokenizer.json differs: its "),
        ({"7": {"content": "<|im_end|>"}}, "gives '<|im_end|>' the id 7, tokenizer.json differs"),
        ({"x": {"content": "<|new|>"}}, "'added_tokens_decoder' has 'x'"),
        ({"7": {"content": 3}}, "'added_tokens_decoder' has '7'"),
        ({"7": {"content": "<|n|>", "lstrip": "no"}}, "'added_tokens_decoder' has '7'"),
        ([1], "'added_tokens_decoder' has ''"),
    ],
)
def test_added_tokens_that_contradict_are_faults(folder: Path, decoder: Any, message: str) -> None:
    change(folder, "tokenizer_config.json", added_tokens_decoder=decoder)
    (fault,) = faults_of(folder)
    assert message in fault


def past_the_logits(folder: Path, text: str = "<image_soft_token>") -> None:
    """Gemma 3's text models: their tokenizer is that of larger relatives."""
    raw = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    entry = {"id": 512, "content": text, "special": True, "normalized": False}
    change(folder, "tokenizer.json", added_tokens=[*raw["added_tokens"], entry])


def test_added_tokens_past_the_logits_are_left_out_and_reported(
    folder: Path, tmp_path: Path
) -> None:
    past_the_logits(folder)
    report = convert_tiny(folder, tmp_path / "m.edge")
    assert report.left_out == ("<image_soft_token>",)
    assert "1 added tokens past the logits left out: '<image_soft_token>'" in report.summary()
    with Bundle.open(tmp_path / "m.edge") as bundle:
        assert bundle.manifest.report["tokens_left_out"] == ["<image_soft_token>"]
        tokenizer = Tokenizer.from_bundle(bundle)
        ids = tokenizer.encode("a <image_soft_token>", special=True)
        assert max(ids) < 512
        assert tokenizer.decode(ids) == "a <image_soft_token>"


def test_tokens_past_the_logits_that_matter_are_refused(folder: Path, tmp_path: Path) -> None:
    past_the_logits(folder)
    original = (folder / "tokenizer_config.json").read_bytes()
    for values in ({"unk_token": "<image_soft_token>"}, {"chat_template": "<image_soft_token>"}):
        (folder / "tokenizer_config.json").write_bytes(original)
        change(folder, "tokenizer_config.json", **values)
        with pytest.raises(ConvertError, match="has id 512, the logits have 0 to 511"):
            convert_tiny(folder, tmp_path / "m.edge")


@pytest.mark.parametrize("others", [["tokenizer.model"], ["vocab.json", "merges.txt"]])
def test_other_tokenizer_files_are_named(folder: Path, others: list[str]) -> None:
    (folder / "tokenizer.json").unlink()
    for name in others:
        (folder / name).write_bytes(b"x")
    with pytest.raises(ConvertError, match=rf"\(only {', '.join(others)}\), expected one") as info:
        text_of(folder)
    assert "save_pretrained('tiny')" in str(info.value.hint)
