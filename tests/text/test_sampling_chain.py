"""The chain against its formulas in float64, and against llama.cpp where that is installed."""

from __future__ import annotations

import ctypes
import gc
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgert.demo import demo_checkpoint
from edgert.text.breakers import breakers_of
from edgert.text.params import Resolved, SamplingParams
from edgert.text.penalties import History, adjusted, repetitions, unbroken
from edgert.text.sampling import COIN, Sampler, draw, process, uniforms
from edgert.text.tokenizer import Tokenizer

CASES: list[dict[str, Any]] = [
    {"temperature": 0.7},
    {"temperature": 0.8, "top_k": 40, "top_p": 0.95},
    {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05},
    {"temperature": 1.4, "top_p": 0.9},
    {"temperature": 0.5, "min_p": 0.1},
    {"temperature": 0.6, "typical_p": 0.5},
    {"temperature": 1.2, "top_k": 50, "typical_p": 0.9, "top_p": 0.8, "min_p": 0.02},
    {"temperature": 0.9, "xtc_probability": 1.0},
    {"temperature": 1.0, "xtc_probability": 1.0, "xtc_threshold": 0.02, "min_p": 0.01},
    {"temperature": 0.7, "xtc_probability": 1.0, "xtc_threshold": 0.6, "top_k": 10},
    {"temperature": 0.8, "top_k": 30, "typical_p": 0.95, "top_p": 0.9, "xtc_probability": 1.0,
     "xtc_threshold": 0.05},
    {"temperature": 1.0, "dynatemp_range": 0.5},
    {"temperature": 0.5, "dynatemp_range": 0.8, "dynatemp_exponent": 2.5, "top_k": 25},
    {"temperature": 1.0, "dynatemp_range": 0.9, "dynatemp_exponent": 0.5, "min_p": 0.05},
    {"temperature": 0.0, "typical_p": 0.3},
    {"temperature": 0.0, "xtc_probability": 1.0, "xtc_threshold": 0.05},
]  # fmt: skip


def params(**given: Any) -> Resolved:
    asked = {"seed": 0, "temperature_last": True} | given
    return SamplingParams.of(**asked).checked(1 << 30).resolved({})


def logits(size: int, seed: int) -> np.ndarray:
    """Logits float32 [size] shaped like a language model's: a few likely tokens, a long tail."""
    rng = np.random.default_rng(seed)
    z = -1.3 * np.log(1 + np.arange(size)) + rng.normal(0, 0.7, size)
    return z.astype(np.float32)[rng.permutation(size)]


def dense(size: int, law: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    out = np.zeros(size)
    out[law[0]] = law[1]
    return out


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max())
    return e / e.sum()


def formula(z: np.ndarray, p: Resolved) -> np.ndarray:
    """The chain as its formulas read, each on the sorted rest of the one before; XTC always acts
    where its probability is not 0."""
    size, z = len(z), z.astype(np.float64)
    ids = np.argsort(-z, kind="stable")
    if p.top_k:
        ids = ids[: p.top_k]
    if p.typical_p < 1:
        q = softmax(z[ids])
        distance = np.abs(-np.log(q) + (q * np.log(q)).sum())
        order = np.argsort(distance, kind="stable")
        count = int((np.cumsum(q[order]) <= p.typical_p).sum()) + 1
        ids = ids[np.sort(order[:count])]
    if p.top_p < 1:
        ids = ids[: int((np.cumsum(softmax(z[ids])) < p.top_p).sum()) + 1]
    if p.min_p:
        q = softmax(z[ids])
        ids = ids[q >= p.min_p * q[0]]
    if p.xtc_probability:
        over = int((softmax(z[ids]) >= p.xtc_threshold).sum())
        ids = ids[over - 1 :] if over > 1 else ids
    temperature = p.temperature
    if p.dynatemp_range:
        q = softmax(z[ids])
        share = -(q * np.log(q)).sum() / np.log(len(q)) if len(q) > 1 else 0.0
        low, high = max(0.0, temperature - p.dynatemp_range), temperature + p.dynatemp_range
        temperature = low + (high - low) * share**p.dynatemp_exponent
    law = softmax(z[ids] / temperature) if temperature else np.eye(len(ids))[0]
    return dense(size, (ids, law))


@pytest.mark.parametrize("size", [5, 300, 5000])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_chain_is_its_formulas(case: dict[str, Any], size: int) -> None:
    p = params(**case)
    for seed in range(8):
        z = logits(size, seed)
        found, expected = dense(size, process(z, p)), formula(z, p)
        np.testing.assert_allclose(found, expected, atol=2e-6, err_msg=f"seed {seed}")


def applied(z: np.ndarray, chain: Sequence[Any]) -> np.ndarray:
    """Logits float64 [V] that llama.cpp's samplers leave, NaN for dropped tokens; frees them."""
    import llama_cpp as cpp

    data = (cpp.llama_token_data * len(z))()
    for i, value in enumerate(z):
        data[i] = cpp.llama_token_data(i, float(value), 0.0)
    row = cpp.llama_token_data_array(data, len(z), -1, False)
    for sampler in chain:
        cpp.llama_sampler_apply(sampler, ctypes.byref(row))
        cpp.llama_sampler_free(sampler)
    out = np.full(len(z), np.nan)
    for i in range(row.size):
        out[row.data[i].id] = row.data[i].logit
    return out


def llama_law(z: np.ndarray, p: Resolved) -> np.ndarray:
    """The same chain made of llama.cpp's own samplers."""
    cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    chain = [
        cpp.llama_sampler_init_top_k(p.top_k),
        cpp.llama_sampler_init_typical(p.typical_p, 1),
        cpp.llama_sampler_init_top_p(p.top_p, 1),
        cpp.llama_sampler_init_min_p(p.min_p, 1),
        cpp.llama_sampler_init_xtc(p.xtc_probability, p.xtc_threshold, 1, 0),
        cpp.llama_sampler_init_temp_ext(p.temperature, p.dynatemp_range, p.dynatemp_exponent),
    ]
    left = applied(z, chain)
    return np.where(np.isnan(left), 0, softmax(np.nan_to_num(left, nan=-np.inf)))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_chain_is_llama_cpps(case: dict[str, Any]) -> None:
    p = params(**case)
    for seed in range(4):
        z = logits(500, seed)
        found, theirs = dense(500, process(z, p)), llama_law(z, p)
        np.testing.assert_allclose(found, theirs, atol=1e-5, err_msg=f"seed {seed}")


def test_temperature_first_is_another_law() -> None:
    """By hand: probabilities .5 .3 .2, top_p .75; at temperature 1/2 .66 .24 .11 before top-p."""
    z = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    last = process(z, params(temperature=0.5, top_p=0.85))
    first = process(z, params(temperature=0.5, top_p=0.85, temperature_last=False))
    assert last[0].tolist() == [0, 1, 2]
    assert first[0].tolist() == [0, 1]
    np.testing.assert_allclose(last[1], np.array([25, 9, 4]) / 38, atol=1e-6)
    np.testing.assert_allclose(first[1], np.array([25, 9]) / 34, atol=1e-6)


def test_the_coin_of_xtc_is_keyed_and_fair() -> None:
    z = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    p = params(temperature=1.0, xtc_probability=0.3, seed=11)
    acts = [len(process(z, p, [0] * position)[0]) == 1 for position in range(600)]
    assert acts == [uniforms(11, n, np.array([COIN]))[0] < 0.3 for n in range(600)]
    assert 0.24 < np.mean(acts) < 0.36
    assert uniforms(11, 3, np.array([COIN]))[0] not in uniforms(11, 3, np.arange(1000))
    again = Sampler(p)
    picks = [again.pick(z, [0] * n) for n in reversed(range(50))][::-1]
    assert picks == [draw(*process(z, p, [0] * n), 11, n) for n in range(50)]


def test_greedy_means_the_largest_of_what_is_left() -> None:
    assert params(temperature=0.0).greedy
    assert params(temperature=0.0, xtc_probability=0.5, xtc_threshold=0.6).greedy
    assert params(temperature=0.0, xtc_probability=0.5, temperature_last=False).greedy
    assert not params(temperature=0.0, xtc_probability=0.5).greedy
    assert not params(temperature=0.0, dynatemp_range=0.5).greedy
    z = np.log(np.array([0.2, 0.5, 0.3], np.float32))
    assert Sampler(params(temperature=0.0, xtc_probability=1.0)).pick(z, []) == 0


# --- DRY -----------------------------------------------------------------------------------------


def dry(z: np.ndarray, history: Sequence[int], breakers: Sequence[int], p: Resolved) -> np.ndarray:
    """As proposed in oobabooga/text-generation-webui#5677, token by token."""
    z, n = z.astype(np.float64), len(history)
    if p.dry_penalty_last_n > 0:
        history = list(history)[-p.dry_penalty_last_n :]
        n = len(history)
    if n == 0 or history[-1] in breakers:
        return z
    lengths: dict[int, int] = {}
    for i in range(n - 1):
        if history[i] != history[-1] or history[i + 1] in breakers:
            continue
        length = 1
        while i - length >= 0:
            before = history[-(length + 1)]
            if history[i - length] != before or before in breakers:
                break
            length += 1
        lengths[history[i + 1]] = max(length, lengths.get(history[i + 1], 0))
    for token, length in lengths.items():
        if length >= p.dry_allowed_length:
            z[token] -= p.dry_multiplier * p.dry_base ** (length - p.dry_allowed_length)
    return z


@pytest.mark.parametrize("last_n", [-1, 17])
@pytest.mark.parametrize("allowed", [1, 2, 4])
def test_dry_is_its_proposal(allowed: int, last_n: int) -> None:
    p = params(dry_multiplier=0.8, dry_allowed_length=allowed, dry_penalty_last_n=last_n)
    rng = np.random.default_rng(allowed)
    touched = 0
    for length in range(60):
        history = [int(t) for t in rng.choice([1, 2, 3, 4], length, p=[0.55, 0.3, 0.1, 0.05])]
        z = rng.normal(0, 3, 6).astype(np.float32)
        for ends in ((), (4,), (3, 4)):
            found = adjusted(z, p, history, breakers={token: ((),) for token in ends})
            expected = dry(z, history, ends, p)
            np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=str(history))
            touched += int((found != z).any())
    assert touched > 20


def test_dry_grows_within_float32() -> None:
    z = np.zeros(4, np.float32)
    p = params(dry_multiplier=5.0, temperature=1e-4)
    long = adjusted(z, p, [1, 2] * 2000)
    assert long.tolist() == [0, pytest.approx(-1e30), 0, 0]
    assert process(z, p, [1, 2] * 2000)[1].tolist() == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3])
    flat = adjusted(z, params(dry_multiplier=5.0, dry_base=1.0), [1, 2] * 2000)
    assert flat.tolist() == [0, -5, 0, 0]
    assert adjusted(z, params(dry_multiplier=5.0, dry_penalty_last_n=0), [1, 2] * 9) is z


def test_repetitions_of_a_text() -> None:
    """llama.cpp's own example: a b c c b c y a b c."""
    ids = np.array([0, 1, 2, 2, 1, 2, 3, 0, 1, 2])
    assert repetitions(ids, 1, 99) == {1: 1, 2: 3, 3: 2}
    assert repetitions(ids, 2, 99) == {2: 3, 3: 2}
    assert repetitions(ids, 1, 2) == {1: 1, 2: 2, 3: 2}


@pytest.fixture(scope="module")
def stories(shared_data: Path) -> tuple[Any, Any]:
    """One tokenizer twice: ours, and llama.cpp's of the same vocabulary."""
    cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    gguf = shared_data / "lm-stories260k" / "stories260K.gguf"
    if not gguf.is_file():
        pytest.skip("no lm-stories260k in the shared data folder")
    data = (demo_checkpoint() / "tokenizer.json").read_bytes()
    ours = Tokenizer(data, vocab_size=512, eos_token_ids=(2,))
    return ours, cpp.Llama(str(gguf), vocab_only=True, verbose=False)


@pytest.mark.parametrize("text", ["\n", "the", "."])
def test_dry_is_llama_cpps(text: str, stories: tuple[Any, Any]) -> None:
    import llama_cpp as cpp

    tokenizer, theirs = stories
    vocab = cpp.llama_model_get_vocab(theirs.model)
    p = params(dry_multiplier=0.8, dry_allowed_length=2, dry_sequence_breakers=text)
    story = "One day, the mama sat on the mat. The mama and the man ran on the mat\n"
    ids = tokenizer.encode(story * 3)
    touched = 0
    for end in range(len(ids) - 60, len(ids)):
        z = logits(512, end)
        texts = (ctypes.c_char_p * 1)(text.encode())
        sampler = cpp.llama_sampler_init_dry(vocab, 0.8, 1.75, 2, 4096, texts, 1)
        for token in ids[:end]:
            cpp.llama_sampler_accept(sampler, token)
        expected = applied(z, [sampler])
        found = adjusted(z, p, ids[:end], breakers=breakers_of(tokenizer, [text]))
        np.testing.assert_allclose(found, expected, rtol=1e-6, err_msg=str(end))
        touched += int((found != z).any())
    assert 0 < touched


@pytest.mark.parametrize("text", ["\n", " a", "ama", "mat.", "on the mat", "nowhere"])
def test_breakers_are_found_where_the_text_holds_them(text: str) -> None:
    """Also with a space in front and across tokens, where a tail is encoded as it stands there."""
    data = (demo_checkpoint() / "tokenizer.json").read_bytes()
    tokenizer = Tokenizer(data, vocab_size=512, eos_token_ids=(2,))
    story = "One day, the mama sat on the mat. The mama and the man ran on the mat.\nThe"
    ids = tokenizer.encode(story)
    whole = tokenizer.decode(ids)
    at = whole.rfind(text)
    lengths = [len(tokenizer.decode(ids[:n])) for n in range(len(ids) + 1)]
    behind = sum(length >= at + len(text) for length in lengths[:-1]) if at >= 0 else len(ids)
    assert unbroken(ids, breakers_of(tokenizer, [text])) == behind


def test_long_breakers_take_no_time_and_tokenizers_are_let_go() -> None:
    data = (demo_checkpoint() / "tokenizer.json").read_bytes()
    tokenizer = Tokenizer(data, vocab_size=512, eos_token_ids=(2,))
    long = ["once upon " * 25, *(f"{n} and the {n}" for n in range(100))]
    started = time.process_time()
    found = breakers_of(tokenizer, long)
    assert time.process_time() - started < 5
    assert found == breakers_of(tokenizer, long)
    gone = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert gone() is None


def test_breakers_of_several_tokens() -> None:
    ends = {7: ((8,), (8, 9)), 5: ((),)}
    assert unbroken([1, 5, 2, 3], ends) == 2
    assert unbroken([1, 7, 8, 3], ends) == 1
    assert unbroken([1, 7, 8, 9, 3, 4], ends) == 2
    assert unbroken([1, 7, 3], ends) == 3
    assert unbroken([5, 7], ends) == 1
    assert unbroken([5, 1, 7], ends) == 2


def test_a_history_is_followed_or_begun_again() -> None:
    rng = np.random.default_rng(1)
    past, tokens = History(), [int(t) for t in rng.integers(0, 40, 300)]
    for end in (0, 5, 6, 200, 300, 7, 30):
        past.follow(tokens[:end])
        seen, counts = np.unique(np.array(tokens[:end], np.int64), return_counts=True)
        order = np.argsort(past.seen)
        np.testing.assert_array_equal(past.seen[order], seen)
        np.testing.assert_array_equal(past.counts[order], counts)
        np.testing.assert_array_equal(past.ids, tokens[:end])
    past.follow([3, 3, *tokens])
    assert len(past) == 302
    assert past.counts[0] == 2 + tokens.count(3)
