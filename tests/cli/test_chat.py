"""`edgert chat`: its commands, through pipes and at a terminal."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import edgert as package
from edgert.cli import history

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
    ran = edgert("chat", bundle, "-p", "one", "--stats", *NUMPY)
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


def test_one_object_a_turn(edgert: Edgert, bundle: Path) -> None:
    """Ten questions, ten objects, whatever becomes of them."""
    turns = [b"one", b"x" * 200, b"a\xff", b"/dance", b"/reset", b"one", b"", b"two", b"/undo",
             b"/undo", b"/undo", b"three"]  # fmt: skip
    ran = edgert("chat", bundle, "--json", *NUMPY, stdin=b"\n".join(turns))
    found = [json.loads(line) for line in ran.out.splitlines()]
    codes = [each["error"]["code"] if "error" in each else each["finish_reason"] for each in found]
    assert codes == ["length", "context", "prompt-encoding", "chat-command", "length", "length",
                     "nothing-to-undo", "length"]  # fmt: skip
    assert ran.code == 2
    assert "error" not in ran.err
    assert edgert("chat", bundle, "--json", *NUMPY, stdin=b"one\ntwo").code == 0


def test_a_block_is_one_turn(edgert: Edgert, bundle: Path) -> None:
    ask = lambda text: edgert("chat", bundle, *NUMPY, "--json", stdin=text)
    with package.load(bundle, device="reference") as model:
        say = lambda text: model.conversation().say(text, temperature=0, max_tokens=4)
        for typed, meant in (
            ('"""\na\n\n b\n"""\n', "a\n\n b"),
            ('"""a\nb"""', "a\nb"),
            ('"""/reset"""', "/reset"),
            ("\ufeffa\r\n", "a"),
        ):
            assert ask(typed).json["text"] == say(meant).text, typed
    assert ask('"""\n"""\n').out == ""
    ran = ask('one\n"""a\nb')
    assert (ran.code, json.loads(ran.out.splitlines()[1])["error"]["code"]) == (2, "chat-block")


def test_text_of_a_pipe_stands_before_the_question(edgert: Edgert, bundle: Path) -> None:
    ask = lambda *args, **more: edgert("chat", bundle, *NUMPY, *args, **more).out
    assert ask("-p", "one", stdin="\ufefftext\n") == ask("-p", "text\n\none")
    assert ask("-p", "one", stdin=" \n") == ask("-p", "one", stdin="") == ask("-p", "one")
    assert ask("-p", "-", stdin="one\n") == ask("-p", "one") != ask("-p", "text\n\none")
    ran = edgert("chat", bundle, *NUMPY, "-p", "-", stdin="\n")
    assert (ran.code, "standard input is empty" in ran.err) == (2, True)
    ran = edgert("chat", bundle, *NUMPY, "-p", "one", stdin=b"a\xff")
    assert (ran.code, "byte 1 is not UTF-8" in ran.err) == (2, True)


def test_a_full_conversation_can_be_forgotten(edgert: Edgert, bundle: Path) -> None:
    ran = edgert("chat", bundle, *NUMPY, stdin="one\n" + "x" * 200 + "\n/reset\none\n")
    once = edgert("chat", bundle, *NUMPY, stdin="one").out
    assert (ran.code, ran.out) == (2, once * 2)  # one of the three turns failed
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
        terminal.wait_for("iconv -t UTF-8\r\n> ")
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


@pytest.mark.skipif(sys.platform == "win32", reason="needs pseudo-terminals")
def test_a_paste_is_one_message_and_is_remembered(tmp_path: Path) -> None:
    readline = pytest.importorskip("readline")
    if "libedit" in (readline.__doc__ or ""):
        pytest.skip("libedit knows no bracketed paste")
    from .terminal import Terminal

    path = tiny_bundle(tmp_path / "t.edge", quant="f32")
    args = ("chat", path, "--device", "reference", "--temp", "0", "-n", "4", "--stats")
    history = tmp_path / "cache" / "chat-history.jsonl"
    for type_of in ("dumb", "xterm"):
        where = {"EDGERT_CACHE": str(tmp_path / "cache"), "TERM": type_of}
        with Terminal(*args, **where) as terminal:
            terminal.wait_for("> ")
            terminal.write(b"\x1b[200~one\rtwo\r/quit\rfour\x1b[201~")
            terminal.wait_for("four")
            terminal.write(b"\r")
            terminal.wait_for("4 tokens at")
            terminal.write(b'"""\rleft\rright"""\r')
            terminal.wait_for("4 tokens at")
            terminal.write(b"/quit\r")
            assert terminal.exit_code() == 0
        kept = [json.loads(line) for line in history.read_text(encoding="ascii").splitlines()]
        assert kept == ["one\ntwo\n/quit\nfour", "left\nright", "/quit"]
        assert history.stat().st_mode & 0o777 == 0o600
        with Terminal(*args, "--no-history", **where) as terminal:
            terminal.wait_for("> ")
            terminal.write(b"/stats\r")
            terminal.wait_for("no answer yet")
        with Terminal(*args, **where) as terminal:
            terminal.wait_for("> ")
            terminal.write(b"\x1b[A\x1b[A")
            terminal.wait_for("right")
            terminal.write(b"\r")
            terminal.wait_for("4 tokens at")
            terminal.write(b"/stats\r")
            terminal.wait_for("4 tokens at")
            terminal.write(b"\x04")
            assert terminal.exit_code() == 0
        history.unlink()


def test_history_is_bounded_and_survives_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "_readline", lambda: None)  # that of this process stays alone
    monkeypatch.setattr(history, "ENTRIES", 4)
    file = tmp_path / "folder" / "history"
    one = history.History(file)
    for number in range(11):
        one.add(f"{number}\n\udcff")
        one.add(f"{number}\n\udcff")  # twice in a row counts once
    one.add("x" * (history.CHARACTERS + 1))
    one.add(" ")
    kept = [json.loads(line) for line in file.read_text(encoding="ascii").splitlines()]
    assert kept == [f"{number}\n\udcff" for number in range(11)][-len(kept) :]
    assert history.ENTRIES <= len(kept) <= 2 * history.ENTRIES
    file.write_bytes(b"\xff{\n[1]\n" + file.read_bytes())
    assert len(history.History(file)._entries) == 4
    assert history.History(tmp_path)._entries == history.History(None)._entries
    history.History(tmp_path).add("a folder stands there")
