"""`edgert chat`: its commands, through pipes and at a terminal."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import edgert as package

from ..tiny import tiny_bundle
from .conftest import Edgert

NUMPY = ("--device", "reference", "--temp", "0", "-n", "4")


def test_every_line_of_a_pipe_is_a_turn(edgert: Edgert, bundle: Path) -> None:
    ran = edgert("chat", bundle, "--system", "s", *NUMPY, stdin="one\n\ntwo\n")
    with package.load(bundle, device="reference") as model:
        talk = model.conversation("s")
        expected = [talk.say(text, temperature=0, max_tokens=4).text for text in ("one", "two")]
    assert (ran.code, ran.out) == (0, "".join(f"{text}\n" for text in expected))


def test_commands(edgert: Edgert, bundle: Path) -> None:
    ask = lambda *lines: edgert("chat", bundle, *NUMPY, stdin="\n".join(lines))
    once = ask("one").out
    assert ask("one", "/reset", "one").out == once * 2
    assert ask("one", "one").out != once * 2
    assert ask("/system s", "one").out == edgert("chat", bundle, "--system", "s", *NUMPY,
                                                  stdin="one").out  # fmt: skip
    for word in ("/quit", "/exit", "/bye"):
        assert ask("one", word, "two").out == once
    ran = ask("/help", "/stats", "/dance", "one", "/stats")
    assert ran.out == once
    for said in ("/reset ", "no answer yet", "/dance is no command", "4 tokens at"):
        assert said in ran.err


def test_a_turn_can_be_taken_back(edgert: Edgert, bundle: Path) -> None:
    ask = lambda *lines: edgert("chat", bundle, *NUMPY, stdin="\n".join(lines))
    once = ask("one").out
    assert ask("one", "/undo", "one").out == once * 2
    ran = ask("/undo")
    assert (ran.code, "no turn to take back" in ran.err) == (2, True)


def test_one_question(edgert: Edgert, bundle: Path) -> None:
    once = edgert("chat", bundle, *NUMPY, stdin="one").out
    ran = edgert("chat", bundle, "-p", "one", "--stats", *NUMPY, stdin="not read")
    assert (ran.code, ran.out) == (0, once)
    assert "4 tokens at" in ran.err
    found = edgert("chat", bundle, "-p", "one", "--json", *NUMPY).json
    assert (found["text"] + "\n", found["finish_reason"]) == (once, "length")
    ran = edgert("chat", bundle, "--json", *NUMPY, stdin="one\ntwo\n")
    answers = [json.loads(line) for line in ran.out.splitlines()]
    assert [bool(answer["cached_tokens"]) for answer in answers] == [False, True]
    assert answers[0]["text"] == found["text"]


def test_variables_for_the_template(edgert: Edgert, tmp_path: Path) -> None:
    template = "{{ word }}{% for m in messages %}{{ m.content }}{% endfor %}"
    path = tiny_bundle(tmp_path / "t.edge", quant="f32", template=template)
    ask = lambda *args: edgert("chat", path, *NUMPY, "--json", *args)
    plain, flag = ask("-p", "ab").json, "--chat-template-kwargs"
    assert plain["prompt_tokens"] == 2
    assert ask("-p", "b", flag, '{"word": "a"}').json["token_ids"] == plain["token_ids"]
    ran = edgert("chat", path, *NUMPY, "--json", flag, '{"word": "a"}', stdin="/system x\nb\n")
    assert ran.json["prompt_tokens"] == 3
    for bad in ("{", "[1]", "3", "[" * 100_000):
        ran = ask("-p", "b", flag, bad)
        assert (ran.code, "expected JSON such as" in ran.json["error"]["message"]) == (2, True)
    ran = ask("-p", "b", flag, '{"messages": []}')
    assert (ran.code, "expected variables" in ran.json["error"]["message"]) == (2, True)


def test_an_answer_cut_by_the_context_says_so(edgert: Edgert, bundle: Path) -> None:
    args = ("--device", "reference", "--temp", "0", "--logit-bias", "1=-100")
    ran = edgert("chat", bundle, "-p", "one", *args)
    assert (ran.code, "fill the context of 128" in ran.err) == (0, True)
    assert edgert("chat", bundle, "-p", "one", *args, "-n", "4").err == ""


def test_what_can_never_work_is_told_before_the_first_question(
    edgert: Edgert, bundle: Path
) -> None:
    for args, said in ((["--temp", "nan"], "temperature is nan"), (["--stop", ""], "stop string")):
        ran = edgert("chat", bundle, *NUMPY, *args, stdin="")
        assert (ran.code, said in ran.err) == (2, True)


def test_lines_that_are_no_text_are_named(edgert: Edgert, bundle: Path) -> None:
    ran = edgert("chat", bundle, *NUMPY, stdin=b"one\na\xff\n")
    assert (ran.code, ran.out.count("\n")) == (2, 1)
    assert "standard input, line 2: byte 1 is not UTF-8" in ran.err


def test_a_full_conversation_can_be_forgotten(edgert: Edgert, bundle: Path) -> None:
    ran = edgert("chat", bundle, *NUMPY, stdin="one\n" + "x" * 200 + "\n/reset\none\n")
    once = edgert("chat", bundle, *NUMPY, stdin="one").out
    assert (ran.code, ran.out) == (0, once * 2)
    assert "type /reset to begin again" in ran.err


def test_a_base_model_does_not_chat(edgert: Edgert, tmp_path: Path) -> None:
    path = tiny_bundle(tmp_path / "base.edge", template=None)
    ran = edgert("chat", path, *NUMPY, stdin="one\n")
    assert (ran.code, ran.out) == (2, "")
    assert "has no chat template" in ran.err
    assert "use generate" in ran.err


@pytest.mark.skipif(sys.platform == "win32", reason="needs pseudo-terminals")
def test_at_a_terminal_ctrl_c_stops_the_answer_and_ctrl_d_leaves(tmp_path: Path) -> None:
    from .terminal import Terminal

    path = tiny_bundle(tmp_path / "long.edge", quant="f32", context=65536)
    with Terminal("chat", path, "--device", "reference", "--logit-bias", "1=-100") as terminal:
        terminal.wait_for("> ")
        terminal.write(b"\xff\n")  # no text: this turn fails, the chat goes on
        terminal.wait_for("replace'\r\n> ")
        assert "lone surrogate" in terminal.seen
        terminal.write(b"hel\\\n")
        terminal.wait_for(". ")
        terminal.write(b"lo\n")
        terminal.wait_for("lo")
        terminal.wait_for_more(200)  # the answer is running, to about 65000 characters
        terminal.write(b"\x03")
        terminal.wait_for(" (stopped)\r\n> ")
        terminal.write(b"\x03")
        terminal.wait_for("(Ctrl-D or /quit leaves)\r\n> ")
        terminal.write(b"/stats\n")
        terminal.wait_for("cancelled\r\n> ")
        terminal.write(b"\x04")
        assert terminal.exit_code() == 0
        assert "Traceback" not in terminal.seen
