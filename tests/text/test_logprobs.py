"""Log-probabilities of results, and the newer samplers through the whole loop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import edgert
from edgert.demo import demo_bundle, demo_checkpoint
from edgert.errors import RequestError
from edgert.text.logprobs import likeliest, log_softmax, token_logprob
from edgert.text.results import Generation
from edgert.text.token_texts import token_texts
from edgert.text.tokenizer import Tokenizer
from tests.text.test_generate import EOS, NO_END, VOCAB, Oracle, make
from tests.tiny import tiny_tokenizer

OPTIONS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 1.2, "seed": 4, "repeat_penalty": 1.3},
    {"temperature": 0.9, "seed": 1, "xtc_probability": 0.5, "xtc_threshold": 0.004},
    {"temperature": 0.8, "seed": 2, "typical_p": 0.7, "dynatemp_range": 0.5},
    {"temperature": 0, "dry_multiplier": 4.0, "dry_allowed_length": 1},
    {"temperature": 1.0, "seed": 3, "dry_multiplier": 2.0, "top_k": 9, "temperature_last": False},
]


def exact(row: np.ndarray) -> np.ndarray:
    wide = row.astype(np.float64)
    return wide - wide.max() - math.log(np.exp(wide - wide.max()).sum())


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_they_are_the_models_own(options: dict[str, Any]) -> None:
    """Of the raw logits, whatever the sampler made of them; the text is what it is without."""
    with make() as model:
        prompt = model.tokenize("hello")
        plain = model.generate(prompt, max_tokens=12, **NO_END, **options)
        asked = model.generate(prompt, max_tokens=12, logprobs=3, **NO_END, **options)
        rows = model.logits([*prompt, *asked.token_ids])[len(prompt) - 1 :]
    assert plain.token_ids == asked.token_ids
    assert plain.logprobs is None
    assert asked.logprobs is not None
    assert [item.token_id for item in asked.logprobs] == list(asked.token_ids)
    for item, row in zip(asked.logprobs, rows, strict=False):
        law = exact(row)
        assert item.logprob == pytest.approx(law[item.token_id], abs=1e-5)
        best = np.argsort(-row, kind="stable")[:3].tolist()
        assert [other.token_id for other in item.top] == best
        np.testing.assert_allclose([other.logprob for other in item.top], law[best], atol=1e-5)
    assert b"".join(item.bytes for item in asked.logprobs).decode(errors="replace") == asked.text


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("wrong", [0, 2])
def test_drafts_change_nothing(options: dict[str, Any], wrong: int) -> None:
    with make() as model:
        prompt = model.tokenize("abcabcabc")
        ask = {"max_tokens": 24, "logprobs": 1, **NO_END, **options}
        plain = model.generate(prompt, **ask)
        drafter = Oracle([*prompt, *plain.token_ids], wrong)
        drafted = model.generate(prompt, proposer=drafter, **ask)
    assert (drafted.token_ids, drafted.text) == (plain.token_ids, plain.text)
    assert flat(drafted) == pytest.approx(flat(plain), abs=1e-4)
    assert drafter.seen


def flat(answer: Generation) -> list[float]:
    assert answer.logprobs is not None
    return [item.logprob for item in answer.logprobs]


def test_one_for_each_token_however_it_ends() -> None:
    with make() as model:
        prompt = model.tokenize("abc")
        plain = model.generate(prompt, max_tokens=20, **NO_END)
        drafter = Oracle([*prompt, *plain.token_ids])
        for ask in (
            {"stop_token_ids": [plain.token_ids[6]]},
            {"stop": plain.text[3:5]},
            {"max_tokens": 1},
            {"logit_bias": {EOS: 100.0}},
        ):
            answer = model.generate(
                prompt, logprobs=0, proposer=drafter, **({"max_tokens": 20} | NO_END | ask)
            )
            assert answer.logprobs is not None
            assert len(answer.logprobs) == len(answer.token_ids)
            assert all(item.top == () for item in answer.logprobs)
        with pytest.raises(RequestError, match="logprobs is 21, expected from 0 to 20"):
            model.generate(prompt, logprobs=21)
        chat = model.conversation()
        assert len(chat.say("x", max_tokens=2, logprobs=1).logprobs or ()) == 2


def test_ids_that_do_not_exist_are_not_listed() -> None:
    row = np.array([1, 5, 2, 9, 4, 4, 8], np.float32)
    assert likeliest(row, 3, 6, [3]).tolist() == [1, 4, 5]
    assert likeliest(row, 20, 6, [3]).tolist() == [1, 4, 5, 2, 0]
    assert likeliest(row, 0, 6, [3]).tolist() == []
    np.testing.assert_allclose(log_softmax(row, np.arange(7)), exact(row), atol=1e-6)


def test_large_logits_stay_finite() -> None:
    row = np.array([3e38, -3e38, -np.inf], np.float32)
    assert log_softmax(row, np.arange(3)).tolist() == pytest.approx([0.0, -6e38, -np.inf])
    assert likeliest(row, 3, 3, ()).tolist() == [0, 1]


def byte_level() -> Tokenizer:
    return Tokenizer(tiny_tokenizer().encode(), vocab_size=VOCAB, eos_token_ids=(EOS,))


def stories() -> Tokenizer:
    data = (demo_checkpoint() / "tokenizer.json").read_bytes()
    return Tokenizer(data, vocab_size=512, eos_token_ids=(2,))


def demo() -> Tokenizer:
    with edgert.load(demo_bundle(), device="reference") as model:
        return model.tokenizer


@pytest.mark.parametrize("make_tokenizer", [byte_level, stories, demo])
@pytest.mark.parametrize("text", ["one two  three\n", "Zürich 東京 🦊", "a\tb ￿ �"])
def test_bytes_of_tokens_make_the_text(make_tokenizer: Any, text: str) -> None:
    tokenizer = make_tokenizer()
    ids: Sequence[int] = tokenizer.encode("x " + text)
    texts = token_texts(tokenizer)
    assert texts is token_texts(tokenizer)
    assert b"".join(texts.bytes(token) for token in ids).decode().lstrip() == "x " + text
    whole = all("�" not in texts.text(token) for token in ids)
    if whole:
        assert "".join(texts.text(token) for token in ids).lstrip() == "x " + text


def test_special_tokens_show() -> None:
    item = token_logprob(np.zeros(VOCAB, np.float32), EOS, 1, byte_level())
    assert (item.text, item.bytes) == ("<|eos|>", b"<|eos|>")
    assert item.logprob == pytest.approx(-math.log(VOCAB))
    assert [other.token_id for other in item.top] == [0]
