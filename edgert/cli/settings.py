"""What every verb shares: settings, common options, output."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, fields
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from ..errors import printable
from ..notices import NOTICE, logger
from .config import Config

if TYPE_CHECKING:
    from ..bundle.reader import Bundle, Verify
    from ..image.model import ImageModel
    from ..session import Session, SessionOptions
    from ..text.model import TextModel
    from ..text.speculative.options import Draft

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Settings:
    """debug: tracebacks. json: this call prints one JSON object. allow_cpu_nodes: see --help.
    log_level: of messages to show, log_asked: whether a flag chose it. config: the user's file."""

    debug: bool = False
    json: bool = False
    allow_cpu_nodes: bool = False
    log_level: int = NOTICE
    log_asked: bool = False
    config: Config | None = None


def _note_json(ctx: click.Context, param: click.Parameter, value: bool) -> bool:
    if value and isinstance(ctx.obj, Settings):
        ctx.obj.json = True
    return value


@dataclass(frozen=True)
class Loader:
    """Opens a command's bundle as the flags of `session_options` ask for."""

    options: SessionOptions
    verify: Verify

    def load(self, path: Path, draft: Draft | None = None) -> TextModel:
        """The bundle as a text model, which drafts as `edgert.load` says; close it."""
        from ..api import open_model

        options: dict[str, Any] = {"verify": self.verify, "kind": "text", "draft": draft}
        model: TextModel = open_model(path, self.options, **options)
        logger.info("%s: loaded in %.2f s, computes on %s, context of %d tokens",
                    path, model.load_s, model.session.device, model.context)  # fmt: skip
        return model

    def load_image(self, path: Path) -> ImageModel:
        """The bundle as a model that draws; close it."""
        from ..api import open_model

        model: ImageModel = open_model(path, self.options, verify=self.verify, kind="image")
        logger.info("%s: loaded in %.2f s, computes on %s",
                    path, model.load_s, model.session.device)  # fmt: skip
        return model

    def session(self, bundle: Bundle) -> Session:
        """A session for a bundle that is open; close it."""
        from ..session import open_session

        return open_session(bundle, self.options)


json_option = click.option(
    "--json", "as_json", is_flag=True, is_eager=True, callback=_note_json,
    help="Print one JSON object, errors included.",
)  # fmt: skip


def _note_cpu_nodes(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and isinstance(ctx.obj, Settings):
        ctx.obj.allow_cpu_nodes = True


def _with_flags(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """The device with the flags given apart, as `session.providers.parse_device` reads it."""
    if value and isinstance(ctx.obj, Settings) and ctx.obj.allow_cpu_nodes:
        if value in ("cpu", "reference"):
            raise click.UsageError(f"--allow-cpu-nodes has no meaning with --device {value}")
        return f"{value}{',' if ':' in value else ':'}allow-cpu-nodes"
    return value


def device_options(function: F) -> F:
    """--device and --allow-cpu-nodes, as one argument `device`."""
    for option in (
        click.option("--device", default="cpu", show_default=True, callback=_with_flags,
                     help="Where to compute: auto, cpu, or a provider of onnxruntime: cuda, "
                     "tensorrt, openvino, qnn, coreml, directml, webgpu, ort-cpu (its options "
                     "after a colon, as in cuda:graph)."),
        click.option("--allow-cpu-nodes", is_flag=True, is_eager=True, expose_value=False,
                     callback=_note_cpu_nodes,
                     help="Let a provider leave single nodes to the CPU."),
    ):  # fmt: skip
        function = option(function)
    return function


def _number(ctx: click.Context, param: click.Parameter, value: str | None) -> int:
    return int(value or 0)


kv_bits_option = click.option(
    "--kv-bits", type=click.Choice(("4", "8", "16", "32")), callback=_number,
    help="Precision of keys and values (4: of values, keys have 8); default: the model's.",
)  # fmt: skip


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """A number of bytes, with K, M, G for powers of 1024."""
    if value is None:
        return None
    from ..system_memory import bytes_of

    try:
        return bytes_of(value)
    except (ValueError, OverflowError):
        raise click.BadParameter(f"found {value!r}, expected bytes such as 512M or 2G") from None


def refuse_nothing(command: click.Command) -> None:
    """Have a command refuse files and folders without a name, which would be the current folder
    (an unset variable of a shell leaves such), and nan, which click finds in every range."""
    for param in command.params:
        if isinstance(param.type, (click.Path, click.FloatRange)):
            param.type = copy(param.type)
            setattr(param.type, "convert", partial(_something, param.type.convert))  # noqa: B010


def _something(convert: Callable[..., Any], value: Any, param: Any, context: Any) -> Any:
    if isinstance(param.type, click.Path) and not os.fspath(value):
        raise click.BadParameter(
            "an empty path, expected a name ('.' is the current folder)", context, param
        )
    found = convert(value, param, context)
    if found != found:
        raise click.BadParameter("nan is no number, expected one", context, param)
    return found


def size_option(name: str, **more: Any) -> Callable[[F], F]:
    """An option that takes a number of bytes, such as 512M or 2G."""
    option: Callable[[F], F] = click.option(name, callback=_size, metavar="SIZE", **more)
    return option


_skip_verify = click.option(
    "--skip-verify", is_flag=True, help="Do not compare the bundle's files with their hashes."
)
_threads = click.option(
    "-t", "--threads", type=click.IntRange(1), metavar="N",
    help="Default: one per performance core.",
)  # fmt: skip


def _with_loader(function: F) -> Any:
    """A command whose flags of `SessionOptions`, those that it has, become one argument
    `loader`."""

    @wraps(function)
    def call(*, skip_verify: bool, **given: Any) -> Any:
        from ..session.options import SessionOptions

        names = [field.name for field in fields(SessionOptions) if field.name in given]
        options = SessionOptions(**{name: given.pop(name) for name in names})
        return function(loader=Loader(options, "skip" if skip_verify else "cached"), **given)

    return call


def session_options(function: F) -> F:
    """--threads, --device, --allow-cpu-nodes, --ctx-size, --kv-bits, --kv-memory and --skip-verify,
    as one argument `loader`."""
    decorated: Any = kv_bits_option(device_options(_with_loader(function)))
    for option in (
        _skip_verify,
        click.option("-c", "--ctx-size", type=click.IntRange(1), metavar="TOKENS",
                     help="Tokens of prompt and answer together; default: the model's."),
        click.option("--kv-memory", callback=_size, metavar="SIZE",
                     help="Memory for keys and values, such as 2G; default: half of what is free, "
                     "at most."),
        _threads,
    ):  # fmt: skip
        decorated = option(decorated)
    return cast(F, decorated)


def image_session_options(function: F) -> F:
    """--threads, --device, --allow-cpu-nodes and --skip-verify, as one argument `loader`."""
    return cast(F, _threads(_skip_verify(device_options(_with_loader(function)))))


def prompt_cache_options(function: F) -> F:
    """--prompt-cache and --prompt-cache-size, for a verb that has `session_options`."""
    folder = click.option(
        "--prompt-cache", type=click.Path(path_type=Path), metavar="DIR",
        help="Keep the work on beginnings of texts in this folder, and find it there again.",
    )  # fmt: skip
    size = size_option(
        "--prompt-cache-size",
        help="Room for the files of --prompt-cache, of all models, such as 2G; default: 4G.",
    )
    return folder(size(function))


context_shift_option = click.option(
    "--context-shift", is_flag=True,
    help="Go on when the context is full, without the older half of it but for its beginning.",
)  # fmt: skip


adapter_option = click.option(
    "--adapter", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIR",
    help="A LoRA adapter (a folder of PEFT) to answer with, beside the model's own weights.",
)  # fmt: skip


def check_outputs(outputs: Mapping[str, Path | None], *inputs: str | Path | None) -> None:
    """Before the work: raise UsageError where a file to write, by its flag, is one that is read or
    another one to write, and what `write_output` would. inputs: files, or names that may be."""
    from ..storage.aside import check_target, is_stream

    taken = {os.path.realpath(path): "is read" for path in inputs if path and os.path.isfile(path)}
    for flag, path in outputs.items():
        check_target(path)
        if path is None or is_stream(path):
            continue
        where = os.path.realpath(path)
        if where in taken:
            raise click.UsageError(
                f"{flag} {str(path)[:80]!r} would replace a file that {taken[where]}, expected "
                "another name"
            )
        taken[where] = f"{flag} writes"


def emit_json(value: Any) -> None:
    """Print one JSON object on stdout, in UTF-8 whatever the locale or PYTHONIOENCODING say."""
    if hasattr(sys.stdout, "reconfigure"):  # lone surrogates become JSON's own escapes
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    click.echo(json.dumps(value, ensure_ascii=False, allow_nan=False))


def say(text: str = "") -> None:
    """A line on stderr: progress, notices, statistics."""
    click.echo(text, err=True)


def show(piece: str) -> None:
    """A piece of text on stdout, at once; what could steer a terminal is escaped there."""
    sys.stdout.write(printable(piece) if sys.stdout.isatty() else piece)
    sys.stdout.flush()


def bundle_or_demo(path: Path | None) -> Path:
    """The bundle that was named, or the chat model's in this package."""
    if path is not None:
        return path
    from ..demo import demo_bundle

    return demo_bundle()


def megabytes(size: float) -> str:
    """Bytes as MB (10^6), with a digit after the point below 100."""
    value = size / 1e6
    return (
        f"{value:.2f} MB" if value < 10 else f"{value:.1f} MB" if value < 100 else f"{value:.0f} MB"
    )
