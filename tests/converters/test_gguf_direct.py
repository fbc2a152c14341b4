"""GGUF files given to edgert directly, and the same files in llama.cpp."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgert.converters.convert import convert

import edgert
from edgert.bundle import Bundle
from edgert.bundle.converted import as_bundle, is_gguf
from edgert.cli import run
from edgert.errors import BundleError, ConvertError, ResourceError
from edgert.session import SessionOptions, open_session
from tests.closeness import assert_close, distance
from tests.converters.gguf_files import write_model
from tests.converters.test_gguf import RMS, Demo, expected, logits, model_of, mostly, prompt, rows
from tests.hostile.gguf_models import model

TOKENS = 24


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGERT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "converted"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "m-Q8_0.gguf"
    path.write_bytes(model().bytes())
    return path


def test_a_file_is_converted_once(
    file: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with edgert.load(file) as opened:
        first = opened.generate("ab", max_tokens=4, temperature=0).token_ids
        assert opened.name == "m-Q8_0"
    (made,) = cache.iterdir()
    assert f"{file} is converted once, into {made}" in caplog.text
    before = made.stat().st_mtime_ns
    caplog.clear()
    with edgert.load(str(file)) as opened:
        assert opened.generate("ab", max_tokens=4, temperature=0).token_ids == first
    assert "converted" not in caplog.text
    assert [p.stat().st_mtime_ns for p in cache.iterdir()] == [before]
    file.write_bytes(model({"llama.context_length": 32}).bytes())
    with edgert.load(file) as opened:
        assert opened.context == 32
    assert len(list(cache.iterdir())) == 2


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A GGUF file, or a bundle, would do; neither is taken for the other."""
    absent, text = tmp_path / "nosuch.gguf", tmp_path / "text.GGUF"
    text.write_bytes(b"no")
    expected = "expected a GGUF file, or a bundle directory (name.edge)"
    for path, found in ((absent, "is not there"), (text, "does not begin as GGUF files do")):
        assert run(["chat", str(path)]) == 2
        assert f"{path} {found}, {expected}" in capsys.readouterr().err
    (tmp_path / "folder.gguf").mkdir()
    assert as_bundle(tmp_path / "folder.gguf") == tmp_path / "folder.gguf"


def test_the_command_line_takes_it(
    file: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(["generate", str(file), "-p", "ab", "-n", "3", "--temp", "0", "--json"])
    assert code == 0
    assert json.loads(capsys.readouterr().out)["completion_tokens"] == 3
    assert len(list(cache.iterdir())) == 1


def test_what_is_no_gguf_file_is_left_alone(tmp_path: Path, cache: Path) -> None:
    other = tmp_path / "m.gguf"
    other.write_bytes(b"PK")
    assert not is_gguf(other)
    with pytest.raises(BundleError, match="does not begin as GGUF files do"):
        as_bundle(other)
    with pytest.raises(BundleError, match="is not there, expected a GGUF file"):
        as_bundle(tmp_path / "no.gguf")
    assert as_bundle(tmp_path) == tmp_path
    assert as_bundle(tmp_path / "no") == tmp_path / "no"
    assert not cache.exists()


def test_damage_leaves_nothing_behind(file: Path, cache: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ConvertError, match="bytes are missing"):
        edgert.load(file)
    assert not [p for p in cache.iterdir() if p.suffix == ".edge"]


def test_a_cache_that_cannot_be_written(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("EDGERT_CACHE", str(tmp_path / "taken"))
    with pytest.raises(ResourceError, match="expected a place for the bundle of") as caught:
        edgert.load(file)
    assert "edgert convert m-Q8_0.gguf -o m-Q8_0.edge" in caught.value.hint


def test_the_stories_are_the_published_ones(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "lm-stories260k"
    published = (folder / "greedy_expected.txt").read_text("utf-8")
    convert(folder / "stories260K.gguf", tmp_path / "s.edge", progress=False, golden=False)
    with edgert.load(tmp_path / "s.edge") as opened:
        text = opened.generate("", max_tokens=200, temperature=0).text
    assert len(text) > 400
    assert published.startswith(text.strip())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1", "Q4_K", "Q6_K", "IQ4_NL"])
def test_llama_cpp_goes_on_alike(kind: str, tmp_path: Path) -> None:
    """Along its greedy answer: logits as near to those of the exact values as its own are, and the
    same likeliest tokens where these lead by more than the difference."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    demo = Demo()
    write_model(demo, tmp_path / "m.gguf", mostly(kind))
    convert(tmp_path / "m.gguf", tmp_path / "m.edge", progress=False, golden=False)
    theirs = llama_cpp.Llama(
        str(tmp_path / "m.gguf"), n_ctx=64, logits_all=True, verbose=False, n_threads=1
    )
    ids = prompt(16, demo.config.vocab_size).tolist()
    theirs.eval(ids)
    for _ in range(TOKENS):
        ids.append(int(theirs.scores[len(ids) - 1].argmax()))
        theirs.eval(ids[-1:])
    want = np.array(theirs.scores[: len(ids)])
    theirs.close()
    whole = np.array(ids, np.int32)
    with Bundle.open(tmp_path / "m.edge") as bundle:
        got = rows(open_session(bundle, SessionOptions("cpu", threads=1)), whole)
    exact = logits(tmp_path / "m.edge", whole)
    ours, own = distance(exact, got)[0], distance(exact, want)[0]
    print(f"{kind}: from the exact values {ours:.4f}, llama.cpp {own:.4f}")
    assert ours <= 1.2 * own
    lead = want.max(axis=1) - np.take_along_axis(want, got.argmax(axis=1)[:, None], 1)[:, 0]
    apart = np.sqrt(np.mean((got - want) ** 2, axis=1))
    assert (lead <= 3 * apart).all()
    assert np.mean(lead == 0) > 0.8


# Cases with what their files cannot tell llama.cpp, or it does not compute.
WHOLE: dict[str, dict[str, Any]] = {
    "mamba2": {}, "mamba2-tied": {"use_bias": False, "use_conv_bias": True}, "lfm2": {},
    "lfm2-bias": {}, "falcon_h1": {}, "falcon_h1-norm": {"mamba_conv_bias": True},
    "falcon_h1-before": {}, "granitemoehybrid": {},
    "granitemoehybrid-rope": {"mamba_proj_bias": False, "mamba_conv_bias": True},
    "granitemoehybrid-experts": {}, "qwen3_moe": {}, "granitemoe": {},
    "deepseek_v2": {"num_hidden_layers": 27},  # by which llama.cpp knows V2-Lite
    "deepseek_v2-narrow": {"kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", WHOLE)
def test_llama_cpp_computes_what_transformers_does(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the files that the tests write: they are what llama.cpp reads. Its keys and values in
    float32, lest their rounding be compared."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    model, ids = model_of(case, monkeypatch, **WHOLE[case]), prompt(63)
    write_model(model, tmp_path / "m.gguf", apart=case.startswith("deepseek"))
    theirs = llama_cpp.Llama(
        str(tmp_path / "m.gguf"), n_ctx=64, logits_all=True, verbose=False, n_threads=1,
        type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32,
    )  # fmt: skip
    theirs.eval(ids.tolist())
    got = np.array(theirs.scores[: len(ids)])
    theirs.close()
    assert_close(case, expected(model, ids), got, rms=RMS)
