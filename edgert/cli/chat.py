"""`edgert chat`: talk with a model, at a terminal, through pipes, or one question long."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import EdgertError, RequestError
from .drafts import draft_options
from .faults import for_terminal
from .generate import answer_object
from .history import FILE, History
from .inputs import TOO_LONG, decoded, piped_text, read_stdin, stdin_lines
from .lines import QUOTES, Message, next_message
from .sampling import read_answer, sampling_options, sampling_params, stats_line
from .settings import (
    Loader,
    adapter_option,
    bundle_or_demo,
    context_shift_option,
    emit_json,
    json_option,
    prompt_cache_options,
    say,
    session_options,
    show,
)

if TYPE_CHECKING:
    from ..text.model import TextModel
    from ..text.relay import RelayOptions
    from ..text.results import Generation
    from ..text.speculative.options import DraftOptions

HELP = """\
/help           this list
/reset          forget the conversation, keep the system message
/system TEXT    begin again with this system message (no TEXT: without one)
/undo           take the last question and its answer back
/stats          what the last answer cost
/quit           leave (so does Ctrl-D)
A line that ends with \\ goes on in the next one; between two \"\"\" a message may have many lines.
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
@click.option(
    "-p",
    "--prompt",
    help="Ask this, print the answer and leave; text from a pipe comes before it; - is only that.",
)
@click.option("--system", help="A system message.")
@click.option(
    "--chat-template-kwargs",
    "variables",
    callback=_variables,
    metavar="JSON",
    help='Variables for the chat template, such as {"enable_thinking": false}.',
)
@sampling_options
@prompt_cache_options
@session_options
@draft_options
@context_shift_option
@adapter_option
@click.option(
    "--relay",
    type=click.Path(path_type=Path),
    metavar="SMALL",
    help="Let a small bundle of the same tokenizer write what is easy of a thinking "
    "model's text, and its answers: quicker, and another text.",
)
@click.option(
    "--relay-cues",
    "cues",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where it takes over, from edgert relay-calibrate; default: a published list.",
)
@click.option(
    "--relay-guard",
    "guard",
    type=float,
    metavar="X",
    help="Write anew what the model of --relay wrote where BUNDLE's mean log-probability of it is "
    "below X, such as -3.",
)
@click.option("--no-history", is_flag=True, help="Do not keep what is typed for later chats.")
@click.option("--stats", is_flag=True, help="Say on stderr what each answer cost.")
@json_option
def command(
    bundle: Path | None,
    prompt: str | None,
    system: str | None,
    variables: dict[str, Any],
    loader: Loader,
    draft: DraftOptions,
    context_shift: bool,
    adapter: Path | None,
    relay: Path | None,
    cues: Path | None,
    guard: float | None,
    no_history: bool,
    stats: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Talk with BUNDLE, or with the model in this package.

    At a terminal, /help lists the commands. Through a pipe, every line is one turn, as is what
    stands between two triple quotes, and answers go to stdout. A turn that fails does not end the
    others and makes the exit code 2. --json prints one object a turn, also for one that failed.
    """
    if prompt is None and sys.stdin is None:
        raise click.UsageError("standard input is closed, expected a terminal or a pipe there")
    if prompt is not None:
        prompt = question(prompt)

    params = sampling_params(options, as_json=as_json)
    path = bundle_or_demo(bundle)
    relayed = _relay(relay, cues, guard)
    with loader.load(path, draft) as model:
        if relayed is not None:
            params["relay"] = relayed
            model.drafting.small(relayed.small)
        emit = (lambda answer: emit_json(answer_object(path, answer))) if as_json else None
        chat = Chat(
            model, system, variables, params,
            shift=context_shift, adapter=adapter, emit=emit, stats=stats,
        )  # fmt: skip
        if prompt is not None:
            return 130 if chat.answer(prompt) else 0
        if sys.stdin.isatty() and sys.stdout.isatty() and not as_json:
            return chat.terminal(History(None if no_history else _history_file()))
        return chat.pipe()


def _relay(small: Path | None, cues: Path | None, guard: float | None) -> RelayOptions | None:
    """What --relay and the flags that go with it ask for."""
    if small is None:
        for flag, value in (("--relay-cues", cues), ("--relay-guard", guard)):
            if value is not None:
                raise click.UsageError(f"{flag} goes with --relay; give that, too")
        return None
    from ..text.relay import CUES, RelayOptions
    from ..text.relay_cues import read_cues

    return RelayOptions(small, CUES if cues is None else read_cues(cues).cues, guard=guard)


def question(prompt: str) -> str:
    """What -p asks: after the text of a pipe, where there is one. Raises UsageError where that is
    all and is nothing."""
    if prompt != "-":
        text = piped_text()
        return f"{text}\n\n{prompt}" if text.strip() else prompt
    text = read_stdin()
    if not text.strip():
        raise click.UsageError("standard input is empty, expected a question there")
    return text


def _history_file() -> Path:
    from ..storage.cachedir import cache_root

    return cache_root() / FILE


class Chat:
    """One conversation and the commands around it.

    variables: for the chat template. shift: whether the oldest turns may be left out. adapter: of
    all answers. emit: called
    with each whole answer, which is then not shown piece by piece. stats: print each answer's cost.
    Raises RequestError for a model that does not chat and for impossible parameters.
    """

    def __init__(
        self,
        model: TextModel,
        system: str | None,
        variables: Mapping[str, Any],
        params: Mapping[str, Any],
        *,
        shift: bool,
        adapter: Path | None,
        emit: Callable[[Generation], None] | None,
        stats: bool,
    ) -> None:
        self.model, self.params, self.emit, self.stats = model, params, emit, stats
        model.checked_params({name: params[name] for name in params if name != "relay"})
        self.begin = partial(
            model.conversation, template=variables, context_shift=shift, adapter=adapter
        )
        self.conversation = self.begin(system)
        probe = [*self.conversation.messages, {"role": "user", "content": "?"}]
        model.chat_ids(probe, template=variables)
        self.last: Generation | None = None

    def terminal(self, history: History) -> int:
        """Messages from a person until Ctrl-D or /quit."""
        say(f"{self.model.name}, context of {self.model.context} tokens. /help lists commands.")
        while True:
            try:
                message = next_message(_typed, joined=True)
                history.add(message.text)
                if self._take(message):
                    return 0
            except EOFError:
                say()
                return 0
            except KeyboardInterrupt:
                say("\n(Ctrl-D or /quit leaves)")
            except EdgertError as error:  # this turn failed, the conversation is unchanged
                say(f"error: {for_terminal(error)}")

    def pipe(self) -> int:
        """Messages from a pipe until it ends; Ctrl-C ends all. 2 when a turn failed."""
        read, code = _reader(), 0
        while True:
            try:
                if self._take(next_message(read)):
                    return code
            except EOFError:
                return code
            except EdgertError as error:
                code = error.exit_code
                self._report(error)
                if error.code == TOO_LONG:  # what follows would be the rest of it
                    return code
            if self.last is not None and self.last.finish_reason == "cancelled":
                return 130

    def _report(self, error: EdgertError) -> None:
        if self.emit is None:
            say(f"error: {for_terminal(error)}")
        else:
            emit_json(for_terminal(error).to_dict())

    def _take(self, message: Message) -> bool:
        """Do what a message asks; True means leave."""
        if not message.literal and message.text.startswith("/"):
            return self._command(message.text)
        if message.text:
            self._turn(message.text)
        return False

    def _command(self, line: str) -> bool:
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
            self.conversation = self.begin(rest.strip() or None)
            say("(begun again)")
        elif word == "/undo":
            self.conversation.undo()
            say("(taken back)")
        elif word == "/stats":
            say(stats_line(self.last) if self.last is not None else "no answer yet")
        elif word[1:].isalpha():
            raise RequestError(
                f"{word} is no command; /help lists them",
                code="chat-command",
                hint=f"a message that begins with a slash goes between two {QUOTES}",
            )
        else:
            self._turn(line)
        return False

    def _turn(self, text: str) -> None:
        try:
            self.answer(text)
        except RequestError as error:
            if error.code == "context" and self.conversation.messages:
                error.hint = f"{error.hint}; or type /reset to begin again"
            raise

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


def _typed(more: bool) -> str:
    """A line that a person typed, or a pasted text of several."""
    return input(". " if more else "> ")


def _reader() -> Callable[[bool], str]:
    """Reads lines of standard input; RequestError for one that is not UTF-8."""
    lines = enumerate(stdin_lines(), 1)

    def read(more: bool) -> str:
        for number, data in lines:
            return decoded(data, f"standard input, line {number}")
        raise EOFError

    return read
