"""`edgert chat`: talk with a model, at a terminal or through pipes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .sampling import read_answer, sampling_options, sampling_params, stats_line
from .settings import bundle_or_demo, say, session_options, show

if TYPE_CHECKING:
    from ..api import TextModel
    from ..text.results import Generation

HELP = """\
/help           this list
/reset          forget the conversation, keep the system message
/system TEXT    begin again with this system message (no TEXT: without one)
/stats          what the last answer cost
/quit           leave (so does Ctrl-D)
Ctrl-C stops the answer, not the program."""


@click.command("chat")
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option("--system", help="A system message.")
@sampling_options
@session_options
def command(
    bundle: Path | None,
    system: str | None,
    threads: int | None,
    device: str,
    ctx_size: int | None,
    **options: Any,
) -> int:
    """Talk with BUNDLE, or with the model in this package.

    At a terminal, /help lists the commands. Through a pipe, every line is one turn and answers go
    to stdout.
    """
    if sys.stdin is None:
        raise click.UsageError("standard input is closed, expected a terminal or a pipe there")
    from ..api import load

    path = bundle_or_demo(bundle)
    with load(path, device=device, threads=threads, ctx_size=ctx_size) as model:
        room = Room(model, system, sampling_params(options))
        return room.terminal() if sys.stdin.isatty() and sys.stdout.isatty() else room.pipe()


class Room:
    """One conversation and the commands around it."""

    def __init__(self, model: TextModel, system: str | None, params: Mapping[str, Any]) -> None:
        self.model, self.params = model, params
        self.talk = model.conversation(system)
        self.last: Generation | None = None

    def terminal(self) -> int:
        """Lines from a person until Ctrl-D or /quit."""
        _line_editing()
        say(f"{self.model.name}, context of {self.model.context} tokens. /help lists commands.")
        while True:
            try:
                if self._command(input("> ").strip()):
                    return 0
            except EOFError:
                say()
                return 0
            except KeyboardInterrupt:
                say("\n(Ctrl-D or /quit leaves)")

    def pipe(self) -> int:
        """Lines from a pipe until it ends; Ctrl-C ends all."""
        for line in sys.stdin:
            if not line.strip():
                continue
            if self._command(line.strip()):
                break
            if self.last is not None and self.last.finish_reason == "cancelled":
                return 130
        return 0

    def _command(self, line: str) -> bool:
        """Do what a line asks; True means leave."""
        word, _, rest = line.partition(" ")
        if word == "/quit":
            return True
        if word == "/help":
            say(HELP)
        elif word == "/reset":
            self.talk.reset()
            say("(forgotten)")
        elif word == "/system":
            self.talk.close()
            self.talk = self.model.conversation(rest.strip() or None)
            say("(begun again)")
        elif word == "/stats":
            say(stats_line(self.last) if self.last is not None else "no answer yet")
        elif word.startswith("/") and word[1:].isalpha():
            say(f"{word} is no command; /help lists them")
        elif line:
            self._turn(line)
        return False

    def _turn(self, text: str) -> None:
        from ..errors import RequestError

        try:
            stream = self.talk.stream(text, **self.params)
        except RequestError as error:
            if error.code != "context" or not self.talk.messages:
                raise
            say(f"error: {error}\n  or type /reset to begin again")
            return
        self.last, cut = read_answer(self.model, stream, show)
        show(" (stopped)\n" if cut and sys.stdout.isatty() else "\n")


def _line_editing() -> None:
    """Arrow keys and history, where Python was built with readline."""
    try:
        import readline
    except ImportError:
        return
    readline.set_auto_history(True)
