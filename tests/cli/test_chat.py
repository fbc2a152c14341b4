"""`edgert chat`: its commands, through pipes and at a terminal."""

from __future__ import annotations

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
    assert ask("one", "/quit", "two").out == once
    ran = ask("/help", "/stats", "/dance", "one", "/stats")
    assert ran.out == once
    for said in ("/reset ", "no answer yet", "/dance is no command", "4 tokens at"):
        assert said in ran.err


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
        terminal.write(b"hello\n")
        terminal.wait_for("hello")
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
