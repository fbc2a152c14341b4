"""H27, H28, H37: parameters, lengths, threads, closing, saved states."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgert
from edgert.errors import RequestError
from edgert.session.base import Feed
from tests.tiny import tiny_bundle

PARAMETERS: list[tuple[str, Any]] = [
    ("max_tokens", -1),
    ("max_tokens", 0),
    ("max_tokens", 10**12),
    ("temperature", math.nan),
    ("temperature", -1),
    ("temperature", 1e30),
    ("temperature", math.inf),
    ("top_p", 0),
    ("top_p", 2),
    ("top_p", math.nan),
    ("top_k", -1),
    ("top_k", 1 << 40),
    ("min_p", -0.1),
    ("min_p", 1.1),
    ("repeat_penalty", 0),
    ("repeat_penalty", -2),
    ("presence_penalty", 3),
    ("frequency_penalty", math.nan),
    ("seed", 2**70),
    ("seed", -1),
    ("logit_bias", {10**6: 1.0}),
    ("logit_bias", {-1: 1.0}),
    ("logit_bias", {3: math.nan}),
    ("logit_bias", {i: 0.0 for i in range(10_000)}),
    ("stop", ["s"] * 10_000),
    ("stop", ["s" * 10_000]),
    ("stop", [""]),
    ("stop_token_ids", [260]),
    ("stop_token_ids", [-1]),
    ("stop_token_ids", list(range(260)) * 2),
]
WRONG_TYPES = [
    ("temperature", "hot"),
    ("top_k", 1.5),
    ("max_tokens", "12"),
    ("seed", True),
    ("logit_bias", [1, 2]),
    ("stop", 3),
    ("n", 1000),
    ("best_of", 2),
]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("b") / "t.edge", quant="f32", context=64)


@pytest.fixture
def model(path: Path) -> Iterator[edgert.TextModel]:
    with edgert.load(path, device="reference") as model:
        yield model


@pytest.mark.parametrize(("field", "value"), PARAMETERS, ids=lambda v: str(v)[:24])
def test_h27_values_out_of_range(model: edgert.TextModel, field: str, value: Any) -> None:
    with pytest.raises(RequestError, match=f"{field.split('_')[0]}.*expected.*to") as caught:
        model.generate("hi", **{field: value})
    assert caught.value.code == "parameter-range"
    assert caught.value.hint
    assert model.generate("hi", max_tokens=1).usage.completion_tokens == 1


@pytest.mark.parametrize(("field", "value"), WRONG_TYPES)
def test_h27_wrong_types_and_names(model: edgert.TextModel, field: str, value: Any) -> None:
    with pytest.raises(RequestError, match=field) as caught:
        model.generate("hi", **{field: value})
    assert caught.value.code in ("parameter-type", "parameter-name")


@pytest.mark.parametrize(
    "ids", [None, 3, b"hi", [1.0], ["a"], [None], {1: 2}, np.array([[1]]), np.array([1.0])], ids=str
)
def test_h27_what_is_no_list_of_token_ids(model: edgert.TextModel, ids: Any) -> None:
    for use in (model.generate, model.logits, model.detokenize):
        with pytest.raises(RequestError, match="expected a list of token ids") as caught:
            use(ids)
        assert caught.value.code == "parameter-type"
    assert model.generate(np.array([5, 6]), max_tokens=1).usage.prompt_tokens == 2


def test_h27_what_is_no_text_and_no_chat(model: edgert.TextModel) -> None:
    user = [{"role": "user", "content": "hi"}]
    for use, said in (
        (lambda: model.tokenize(b"a"), "type bytes, expected str"),  # type: ignore[arg-type]
        (lambda: model.chat("hi"), "messages is of type str"),  # type: ignore[arg-type]
        (lambda: model.chat(None), "messages is of type NoneType"),  # type: ignore[arg-type]
        (lambda: model.chat([{"role": "user", "content": b"hi"}]), "content is of type bytes"),
        (lambda: model.conversation().say(3), "message 0 has content of type int"),  # type: ignore[arg-type]
        (lambda: model.chat(user, tools="x"), "tools is of type str"),
        (lambda: model.chat(user, template="x"), "expected variables"),
        (lambda: model.chat(user, template={"messages": []}), "expected variables"),
    ):
        with pytest.raises(RequestError, match=said) as caught:
            use()
        assert caught.value.hint


@pytest.mark.parametrize(
    ("field", "value"),
    [("threads", "2"), ("threads", 1.5), ("ctx_size", "9"), ("kv_bits", True), ("device", None),
     ("verify", "often")],
)  # fmt: skip
def test_h27_wrong_types_of_load(path: Path, field: str, value: Any) -> None:
    with pytest.raises(RequestError, match=f"{field} is {value!r}, expected") as caught:
        edgert.load(path, **({"device": "reference"} | {field: value}))
    assert caught.value.code == "parameter-type"


@pytest.mark.parametrize("size", [0, -1, 1 << 40])
def test_h27_context_sizes(path: Path, size: int) -> None:
    with pytest.raises(RequestError, match=f"ctx_size is {size}"):
        edgert.load(path, device="reference", ctx_size=size)


def test_h28_lengths_name_both_counts(model: edgert.TextModel) -> None:
    with pytest.raises(RequestError, match=r"65 tokens.*64") as caught:
        model.generate([5] * 65)
    assert caught.value.code == "context"
    with pytest.raises(RequestError, match=r"64 tokens.*64"):
        model.generate([5] * 64)
    with pytest.raises(RequestError, match=r"60 tokens and max_tokens 5 make 65.*64"):
        model.generate([5] * 60, max_tokens=5)
    with pytest.raises(RequestError, match="0 tokens"):
        model.generate("")
    with pytest.raises(RequestError, match="0 tokens"):
        model.generate([])
    with pytest.raises(RequestError, match="characters"):
        model.generate("a" * 10**6)
    with pytest.raises(RequestError, match="messages is empty"):
        model.chat([])
    with pytest.raises(RequestError, match="expected 1 to 64"):
        model.logits([])


def test_h28_an_answer_that_fills_the_context_ends(model: edgert.TextModel) -> None:
    got = model.generate([5] * 60, logit_bias={1: -100.0})
    assert got.finish_reason == "length"
    assert got.usage.completion_tokens == 4


@pytest.mark.parametrize("ids", [[-1], [260], [2**31]])
def test_token_ids_that_do_not_exist(model: edgert.TextModel, ids: list[int]) -> None:
    for use in (model.generate, model.logits, model.detokenize):
        with pytest.raises(RequestError, match="token id"):
            use(ids)


def test_h37_two_threads_are_serialised(model: edgert.TextModel) -> None:
    expected = model.generate("abc", max_tokens=20, temperature=1.0, seed=1)
    results: list[Any] = []

    def work() -> None:
        results.append(model.generate("abc", max_tokens=20, temperature=1.0, seed=1))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [r.token_ids for r in results] == [expected.token_ids] * 4


def test_h37_a_second_stream_in_one_thread_disturbs_nobody(model: edgert.TextModel) -> None:
    alone = model.generate("abc", max_tokens=9, temperature=1.0, seed=3)
    with model.stream("abc", max_tokens=9, temperature=1.0, seed=3) as first:
        next(first)
        assert model.generate("abc", max_tokens=2).usage.completion_tokens == 2
        assert first.finish().token_ids == alone.token_ids


def test_h37_a_dropped_stream_gives_the_model_free(model: edgert.TextModel) -> None:
    stream = model.stream("abc")
    next(stream)
    del stream
    assert model.generate("abc", max_tokens=2).usage.completion_tokens == 2


def test_h37_closed_during_generation(model: edgert.TextModel) -> None:
    stream = model.stream("abc", logit_bias={1: -100.0})
    next(stream)
    model.close()
    with pytest.raises(RequestError, match="closed"):
        list(stream)
    with pytest.raises(RequestError, match="closed"):
        model.generate("abc")
    assert model.session.weights == {}


def test_h37_closed_by_another_thread(model: edgert.TextModel) -> None:
    slow(model)
    caught: list[Exception] = []

    def work() -> None:
        try:
            model.generate("abc", logit_bias={1: -100.0})
        except RequestError as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.1)
    model.close()
    thread.join(30)
    assert [error.code for error in caught] == ["closed"]
    assert model.session.weights == {}


def slow(model: edgert.TextModel, seconds: float = 0.02) -> None:
    step = model.session.step

    def slowed(feeds: Any) -> Any:
        time.sleep(seconds)
        return step(feeds)

    model.session.step = slowed  # type: ignore[method-assign]


def test_cancel_lands_within_one_token(model: edgert.TextModel) -> None:
    slow(model)
    threading.Timer(0.15, model.cancel).start()
    start = time.perf_counter()
    got = model.generate("abc", logit_bias={1: -100.0})
    assert got.finish_reason == "cancelled"
    assert time.perf_counter() - start < 0.6
    assert 1 <= got.usage.completion_tokens <= 30
    assert model.generate("abc", max_tokens=3).finish_reason != "cancelled"


def test_h37_an_exception_in_the_callback(model: edgert.TextModel) -> None:
    def explode(done: int, total: int) -> None:
        raise ZeroDivisionError

    model.session.max_rows = 4
    with pytest.raises(ZeroDivisionError):
        model.generate([5] * 20, progress=explode, max_tokens=2)
    assert model.generate("abc", max_tokens=2).usage.completion_tokens == 2


def test_h37_a_failing_step_leaves_a_usable_conversation(model: edgert.TextModel) -> None:
    chat = model.conversation()
    chat.say("one", max_tokens=4, logit_bias={1: -100.0})
    before, step, calls = list(chat.messages), model.session.step, []

    def failing(feeds: list[Feed]) -> Any:
        calls.append(1)
        out = step(feeds)
        if len(calls) == 3:
            raise OSError("device gone")
        return out

    model.session.step = failing  # type: ignore[method-assign]
    with pytest.raises(OSError, match="device gone"):
        chat.say("two", max_tokens=8, logit_bias={1: -100.0})
    model.session.step = step  # type: ignore[method-assign]
    assert chat.messages == before
    again = chat.say("two", max_tokens=8)
    fresh = model.chat(chat.messages[:-1], max_tokens=8)
    assert again.token_ids == fresh.token_ids
    assert again.usage.cached_tokens > 0


def test_h37_conversations_do_not_mix(model: edgert.TextModel) -> None:
    one, two = model.conversation(), model.conversation()
    for text in ("ab", "cd"):
        for chat in (one, two):
            chat.say(text, max_tokens=3, logit_bias={1: -100.0})
    assert one.messages == two.messages
    assert model.conversation().say("ab", max_tokens=2).usage.cached_tokens == 0


@pytest.fixture
def saved(model: edgert.TextModel, tmp_path: Path) -> Path:
    chat = model.conversation(system="s")
    chat.say("hello", max_tokens=5, logit_bias={1: -100.0})
    chat.save(tmp_path / "chat.state")
    return tmp_path / "chat.state"


def test_a_saved_conversation_goes_on(model: edgert.TextModel, saved: Path) -> None:
    chat = model.restore(saved)
    assert [m["role"] for m in chat.messages] == ["system", "user", "assistant"]
    got = chat.say("more", max_tokens=5)
    assert got.usage.cached_tokens > 0
    assert got.token_ids == model.chat(chat.messages[:-1], max_tokens=5).token_ids


def test_h37_state_of_another_model(saved: Path, tmp_path: Path) -> None:
    for changes in ({"seed": 1, "quant": "f32"}, {"quant": "int4"}):
        other = tiny_bundle(tmp_path / f"{len(changes)}.edge", context=64, **changes)
        with edgert.load(other, device="reference") as model:
            with pytest.raises(RequestError, match="fingerprint") as caught:
                model.restore(saved)
        assert caught.value.code == "state-foreign"


def test_h37_state_of_another_context(path: Path, saved: Path) -> None:
    with edgert.load(path, device="reference", ctx_size=32) as model:
        with pytest.raises(RequestError, match="context"):
            model.restore(saved)


def edited(raw: bytes, what: str) -> bytes:
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])
    if what == "version":
        header["__metadata__"]["format"] = "edgert-conversation-9"
    if what == "tree":
        tree = header["__metadata__"]["tree"]
        header["__metadata__"]["tree"] = tree.replace("hello", "jello")
    if what == "array":
        return raw[:-1] + bytes([raw[-1] ^ 1])
    if what == "short":
        return raw[:-7]
    if what == "empty":
        return b""
    if what == "noise":
        return np.random.default_rng(0).bytes(500)
    new = json.dumps(header).encode()
    return struct.pack("<Q", len(new)) + new + raw[8 + size :]


@pytest.mark.parametrize("what", ["version", "tree", "array", "short", "empty", "noise"])
def test_h37_edited_states(model: edgert.TextModel, saved: Path, what: str) -> None:
    assert model.restore(saved).messages
    saved.write_bytes(edited(saved.read_bytes(), what))
    with pytest.raises(RequestError) as caught:
        model.restore(saved)
    assert caught.value.code == ("state-foreign" if what == "version" else "state-damaged")


@pytest.mark.parametrize("step", ["write_bytes", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_h37_a_save_that_fails_leaves_the_old_one(
    model: edgert.TextModel, saved: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: Any
) -> None:
    before = saved.read_bytes()

    def fail(path: Any, *args: Any) -> None:
        Path(path).write_text("half", encoding="utf-8")
        raise error

    monkeypatch.setattr(Path if step == "write_bytes" else os, step, fail)
    chat = model.conversation()
    with pytest.raises((edgert.ResourceError, KeyboardInterrupt)) as caught:
        chat.save(saved)
    if isinstance(error, OSError):
        assert "cannot be written" in str(caught.value)
    monkeypatch.undo()
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
    chat.save(saved)
    assert model.restore(saved).messages == []


def test_h37_killed_while_saving(model: edgert.TextModel, path: Path, saved: Path) -> None:
    before = saved.read_bytes()
    code = (
        "import os, signal, sys, edgert\n"
        "model = edgert.load(sys.argv[1], device='reference')\n"
        "chat = model.conversation()\n"
        "chat.say('hello', max_tokens=3)\n"
        "os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)\n"
        "chat.save(sys.argv[2])\n"
    )
    run = [sys.executable, "-c", code, str(path), str(saved)]
    assert subprocess.run(run, check=False, timeout=60).returncode == -signal.SIGKILL
    assert saved.read_bytes() == before
    assert len(list(saved.parent.iterdir())) == 2, "the killed process left its half"
    model.conversation().save(saved)
    assert [file.name for file in saved.parent.iterdir()] == [saved.name]


def test_h37_no_such_state(model: edgert.TextModel, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="saved conversation"):
        model.restore(tmp_path / "none")
