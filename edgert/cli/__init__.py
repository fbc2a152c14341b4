"""The `edgert` command: one module per verb, imported when it is called.

Exit codes: 0 done, 1 a verification or check failed, 2 an error or wrong usage, 3 a test is not
decided, 130 Ctrl-C, 141 the reader of our output went away, 70 a fault of edgert itself. Errors are
one line and a hint on stderr. With `--json`, stdout holds one JSON object and nothing else: the
result, or {"error": {"type", "code", "message", "hint", "values"}}.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from importlib import import_module
from itertools import chain

import click

from ..errors import EdgertError
from ..extras import missing
from . import completion, logs
from .config import Config, add_sources, named_like_flags
from .faults import for_terminal, wrong_value
from .settings import Settings, emit_json, refuse_nothing

VERBS: Mapping[str, str] = {
    "demo": "Convert the model in this package, measure it and ask it a word problem.",
    "convert": "Make a bundle from a checkpoint.",
    "draft": "Train a head that guesses for a model, and put it into its bundle.",
    "relay-calibrate": "Find where a small model may take over from a large one that thinks.",
    "export": "Add an ONNX model to a bundle, for GPUs and NPUs.",
    "pull": "Have a model in the store, from the hub or from here.",
    "list": "List the models in the store.",
    "rm": "Remove models from the store.",
    "chat": "Talk with a model.",
    "generate": "Continue a prompt.",
    "image": "Draw a picture.",
    "calibrate": "Measure a drawing model, so that steps can be used again.",
    "bench": "Measure speed.",
    "test": "Test a bundle against a budget of times and memory on a device.",
    "plan": "Choose model, bits and compression for a device, before converting.",
    "devices": "List device profiles, or measure this machine.",
    "frontier": "Fit attainable scores over training compute.",
    "eval": "Measure quality: perplexity and zero-shot tasks.",
    "inspect": "Say what a checkpoint or bundle holds and needs.",
    "verify": "Check a bundle's files, tensors and answers.",
    "doctor": "Say what is installed and what this machine can do.",
    "completion": "Print what makes a shell complete verbs, flags and files.",
}
# What other programs call them.
_ELSEWHERE = {"run": "chat", "show": "inspect", "ls": "list", "remove": "rm", "delete": "rm",
              "create": "convert", "quantize": "convert", "perplexity": "eval"}  # fmt: skip
# Of verbs that are called as something of Python's, or as no module can be.
_MODULES = {"list": "list_models", "relay-calibrate": "relay_calibrate"}
INTERRUPTED, PIPE_CLOSED, INTERNAL_ERROR = 130, 141, 70


class _Verbs(click.Group):
    """Subcommands by name; listing them imports none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            if ctx.resilient_parsing:  # a shell asks for completions
                return None
            near = [_ELSEWHERE.get(cmd_name, "")]
            near = near if near[0] else get_close_matches(cmd_name, VERBS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(VERBS)}"
            raise click.UsageError(f"no verb {cmd_name[:40]!r}, {hint}", ctx)
        command = _command(cmd_name)
        config = ctx.obj.config if isinstance(ctx.obj, Settings) else None
        if config is not None:
            config.check(map(_command, (cmd_name, *VERBS)))
            named_like_flags(chain((cli, command), map(_command, VERBS)))
            own = {cmd_name: config.for_verb(cmd_name, command)}
            ctx.default_map = {**(ctx.default_map or {}), **own}
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


def _command(verb: str) -> click.Command:
    """A verb's command, with the flags and sources that all have."""
    command: click.Command = import_module(f".{_MODULES.get(verb, verb)}", __package__).command
    if not any(param.name == "log" for param in command.params):
        command.params += logs.log_options()
        add_sources(command)
        refuse_nothing(command)
    return command


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"edgert {version('edgert')}")
        ctx.exit()


@click.group(
    cls=_Verbs,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Begin with: edgert demo. Every flag of a verb is also read from EDGERT_<FLAG> and from "
    "config.toml, see the README.",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version,
    help="Show the version and leave.",
)  # fmt: skip
@click.option("--debug", is_flag=True, help="Show tracebacks of errors.")
@click.pass_obj
def cli(settings: Settings, debug: bool) -> None:
    """Compress a trained model on a desktop, run it fast on a laptop or a Jetson board."""
    settings.debug = debug


cli.params += logs.log_options()
add_sources(cli)


def main() -> None:
    """Console entry: runs the command line and exits."""
    _hold_standard_descriptors()
    if instruction := os.environ.get(completion.VARIABLE):  # a shell asks
        sys.exit(completion.answer(cli, instruction))
    code = run(sys.argv[1:])
    if code == INTERRUPTED:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C ends the clean-up at once
    sys.exit(code)


def _hold_standard_descriptors() -> None:
    """Open the null device for closed ones, so that no file opened later takes their number."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


class _Closed(io.TextIOBase):
    """Replaces a standard output that was closed at the start."""

    def write(self, text: str) -> int:
        raise OSError(errno.EBADF, "standard output is closed, expected a terminal, pipe or file")


def run(args: Sequence[str]) -> int:
    """Run one command line and print its error, if any; returns the exit code."""
    settings = Settings()
    sys.stdout = sys.stdout or _Closed()
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    with logs.shown(settings):
        return _run(args, settings)


def _run(args: Sequence[str], settings: Settings) -> int:
    try:
        config = settings.config = Config.load(VERBS)
        values = config.shared(cli)
        with cli.make_context("edgert", list(args), obj=settings, default_map=values) as context:
            code = cli.invoke(context)
        sys.stdout.flush()
        return int(code or 0)
    except click.exceptions.Exit as leave:
        return _last_flush(leave.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return _last_flush(INTERRUPTED)
    except Exception as error:
        if settings.debug:
            traceback.print_exc()
        if _follows_interrupt(error):
            return _last_flush(INTERRUPTED)
        return _failed(
            wrong_value(error, settings.config), as_json=settings.json or "--json" in args
        )


def _follows_interrupt(error: BaseException) -> bool:
    """Whether an error arose while a library cleaned up after Ctrl-C."""
    before = error.__context__
    return before is not None and (
        isinstance(before, KeyboardInterrupt) or _follows_interrupt(before)
    )


def _failed(error: Exception, *, as_json: bool) -> int:
    """Report an error as text or JSON; returns its exit code."""
    if isinstance(error, BrokenPipeError) or getattr(error, "errno", 0) == errno.EPIPE:
        return _pipe_closed()
    code, reported = _described(error)
    try:
        if as_json:
            emit_json(reported.to_dict())
        elif isinstance(error, click.UsageError):
            error.show()
        else:
            click.echo(f"error: {reported}", err=True)
    except OSError as worse:
        return _unwritable(worse, 0)
    return _last_flush(code)


def _described(error: Exception) -> tuple[int, EdgertError]:
    if isinstance(error, EdgertError):
        return error.exit_code, for_terminal(error)
    if isinstance(error, click.ClickException):
        return 2, EdgertError(error.format_message(), code="usage", hint="edgert --help")
    if isinstance(error, OSError):
        hint = "check the path, its permissions and the free space"
        reason = error.strerror or str(error)
        where = f"{os.fspath(error.filename)!s}: " if error.filename else ""
        return 2, EdgertError(f"{where}{reason}", code="system", hint=hint)
    if isinstance(error, ModuleNotFoundError) and error.name and not _is_ours(error.name):
        return 2, missing(error.name.partition(".")[0], "what was asked for")
    if isinstance(error, MemoryError):
        hint = "a smaller --ctx-size or a smaller model needs less; see edgert inspect"
        return 2, EdgertError("out of memory", code="memory", hint=hint)
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        hint = "use fewer threads, or allow more (ulimit -u, the container's pids limit)"
        return 2, EdgertError(str(error), code="threads-start", hint=hint)
    message = f"fault in edgert: {type(error).__name__}: {error}"
    hint = "run `edgert --debug …` for the traceback and report it"
    return INTERNAL_ERROR, EdgertError(message, code="internal", hint=hint)


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in (__package__.partition(".")[0], *sys.stdlib_module_names)


def _last_flush(code: int) -> int:
    try:
        sys.stdout.flush()
    except OSError as error:
        return _unwritable(error, code)
    return code


def _unwritable(error: OSError, code: int) -> int:
    """Standard output takes nothing more: say so on stderr, unless its reader just left or we
    leave with another `code` anyway."""
    if error.errno == errno.EPIPE:
        return _pipe_closed()
    with suppress(OSError):  # stderr may fail too
        if code == 0:
            click.echo(f"error: standard output: {error.strerror}", err=True)
    return _drop_output(code or 2)


def _pipe_closed() -> int:
    return _drop_output(PIPE_CLOSED)


def _drop_output(code: int) -> int:
    """Drop further output, so that the interpreter's last flush cannot fail."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # stdout has no descriptor
        pass
    return code
