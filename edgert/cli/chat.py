"""`edgert chat`: talk with a model, at a terminal, through pipes, or one question long."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import EdgertError, RequestError
from .generate import answer_object
from .sampling import read_answer, sampling_options, sampling_params, stats_line
from .settings import Loader, bundle_or_demo, emit_json, json_option, say, session_options, show

if TYPE_CHECKING:
    from ..text.model import TextModel
    from ..text.results import Generation

HELP = """\
/help           this list
/reset          forget the conversation, keep the system message
/system TEXT    begin again with this system message (no TEXT: without one)
/undo           take the last question and its answer back
/stats          what the last answer cost
/quit           leave (so does Ctrl-D)
A line that ends with \\ goes on in the next one.
Ctrl-C stops the answer, not the program."""

LEAVING = (
    "/quit",
    "/exit",
    "/bye",
)  # /help lists the first, other programs the others


def _variables(ctx: click.Context, param: click.Parameter, value: str | None) -> dict[str, Any]:
    """The JSON object of a flag; {} where it was not given."""
    try:
        found = json.loads(value or "{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise click.BadParameter(
            f'found {str(value)[:40]!r}, expected JSON such as {{"enable_thinking": false}}'
        )
    return found


@click.command("chat")
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option("-p", "--prompt", help="Ask this, print the answer and leave.")
@click.option("--system", help="A system message.")
@click.option(
    "--chat-template-kwargs",
    "variables",
    callback=_variables,
    metavar="JSON",
    help='Variables for the chat template, such as {"enable_thinking": false}.',
)
@sampling_options
@session_options
@click.option("--stats", is_flag=True, help="Say on stderr what each answer cost.")
@json_option
def command(
    bundle: Path | None,
    prompt: str | None,
    system: str | None,
    variables: dict[str, Any],
    loader: Loader,
    stats: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Talk with BUNDLE, or with the model in this package.

    At a terminal, /help lists the commands. Through a pipe, every line is one turn and answers go
    to stdout. --json prints one object for an answer.
    """
    if prompt is None and sys.stdin is None:
        raise click.UsageError("standard input is closed, expected a terminal or a pipe there")

    params = sampling_params(options, as_json=as_json)
    path = bundle_or_demo(bundle)
    with loader.load(path) as model:
        emit = (lambda answer: emit_json(answer_object(path, answer))) if as_json else None
        chat = Chat(model, system, variables, params, emit=emit, stats=stats)
        if prompt is not None:
            return 130 if chat.answer(prompt) else 0
        interactive = sys.stdin.isatty() and sys.stdout.isatty() and not as_json
        return chat.terminal() if interactive else chat.pipe()


class Chat:
    """One conversation and the commands around it.

    variables: for the chat template. emit: called with each whole answer, which is then not shown
    piece by piece. stats: print each answer's cost. Raises RequestError for a model that does not
    chat and for impossible parameters.
    """

    def __init__(
        self,
        model: TextModel,
        system: str | None,
        variables: Mapping[str, Any],
        params: Mapping[str, Any],
        *,
        emit: Callable[[Generation], None] | None,
        stats: bool,
    ) -> None:
        self.model, self.params, self.emit, self.stats = model, params, emit, stats
        model.checked_params(params)
        self.variables = variables
        self.conversation = model.conversation(system, template=variables)
        probe = [*self.conversation.messages, {"role": "user", "content": "?"}]
        model.chat_ids(probe, template=variables)
        self.last: Generation | None = None

    def terminal(self) -> int:
        """Lines from a person until Ctrl-D or /quit."""
        _line_editing()
        say(f"{self.model.name}, context of {self.model.context} tokens. /help lists commands.")
        while True:
            try:
                if self._command(_typed().strip()):
                    return 0
            except EOFError:
                say()
                return 0
            except KeyboardInterrupt:
                say("\n(Ctrl-D or /quit leaves)")
            except EdgertError as error:  # this turn failed, the conversation is unchanged
                say(f"error: {error}")

    def pipe(self) -> int:
        """Lines from a pipe until it ends; Ctrl-C ends all."""
        for line in _lines():
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
        if word in LEAVING:
            return True
        if word == "/help":
            say(HELP)
        elif word == "/reset":
            self.conversation.reset()
            say("(forgotten)")
        elif word == "/system":
            self.conversation.close()
            self.conversation = self.model.conversation(
                rest.strip() or None, template=self.variables
            )
            say("(begun again)")
        elif word == "/undo":
            self.conversation.undo()
            say("(taken back)")
        elif word == "/stats":
            say(stats_line(self.last) if self.last is not None else "no answer yet")
        elif word.startswith("/") and word[1:].isalpha():
            say(f"{word} is no command; /help lists them")
        elif line:
            self._turn(line)
        return False

    def _turn(self, text: str) -> None:
        try:
            self.answer(text)
        except RequestError as error:
            if error.code != "context" or not self.conversation.messages:
                raise
            say(f"error: {error}\n  or type /reset to begin again")

    def answer(self, text: str) -> bool:
        """One turn; True when Ctrl-C cut it short."""
        write = show if self.emit is None else lambda piece: None
        self.last, cut = read_answer(
            self.model, self.conversation.stream(text, **self.params), write
        )
        if self.emit is not None:
            self.emit(self.last)
        else:
            write(" (stopped)\n" if cut and sys.stdout.isatty() else "\n")
        if self.stats:
            say(stats_line(self.last))
        self._warn_if_full(self.last)
        return cut

    def _warn_if_full(self, answer: Generation) -> None:
        context, usage = self.model.context, answer.usage
        if answer.finish_reason == "length" and self.params.get("max_tokens") is None:
            say(f"(cut: {usage.prompt_tokens} tokens before and {usage.completion_tokens} of this "
                f"answer fill the context of {context})")  # fmt: skip


def _typed() -> str:
    """What a person typed: a line, or several that end with a backslash."""
    line = input("> ")
    while line.endswith("\\"):
        line = f"{line[:-1]}\n{input('. ')}"
    return line


def _lines() -> Iterator[str]:
    """Lines of standard input; RequestError for one that is not UTF-8."""
    for number, data in enumerate(sys.stdin.buffer, 1):
        try:
            yield data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise RequestError(
                f"standard input, line {number}: byte {error.start} is not UTF-8, expected UTF-8 "
                "text",
                code="prompt-encoding",
                hint="convert it, for example with iconv",
            ) from None


def _line_editing() -> None:
    """Arrow keys and history, where Python was built with readline."""
    try:
        import readline
    except ImportError:
        return
    readline.set_auto_history(True)
