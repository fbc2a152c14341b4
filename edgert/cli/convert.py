"""`edgert convert`: make a bundle from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import ConvertError
from ..extras import require
from ..kernels.encodings import DEFAULT, asked
from .settings import emit_json, json_option

QUANTS = tuple(asked())
RECIPES = ("int4", "int3", "mixed", "compot-int8", "compot-int4", "auto")
PRESETS = {"quick": 16, "full": 256}


@click.command("convert")
@click.argument("source", type=click.Path(readable=False))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    metavar="OUT.edge",
    help="The bundle to write, a directory.",
)
@click.option(
    "--recipe",
    type=click.Choice(RECIPES),
    help="Several options by one name; auto measures those that fit --budget-mb (default: "
    "the bytes of --quant).",
)
@click.option(
    "--quant",
    type=click.Choice((*QUANTS, "mixed")),
    help=f"How matrices are stored; default {DEFAULT}. mixed: within --budget-mb.",
)
@click.option(
    "--embed-quant",
    type=click.Choice(QUANTS),
    help="Embedding and head; default: int8-g32 where --quant has codes, else as --quant.",
)
@click.option(
    "--method",
    type=click.Choice(("rtn", "hqq", "gptq")),
    help="How codes are chosen; default gptq, of pictures rtn: to nearest, in seconds, without "
    "calibration.",
)
@click.option(
    "--calibration",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Text, or chats in JSON lines (.jsonl), like what the model will see; default: a sample.",
)
@click.option(
    "--sequences",
    default="quick",
    show_default=True,
    metavar="N",
    callback=lambda _context, _option, value: sequences_asked(value),
    help="Pieces of 1024 tokens of the calibration text: a number, quick (16) or full (256).",
)
@click.option(
    "--compot",
    type=float,
    metavar="CR",
    help="Factor matrices by COMPOT, with this share of their fp16 bits removed; the factors are "
    "stored as --quant says.",
)
@click.option("--budget-mb", type=float, metavar="N", help="Megabytes that the bundle may have.")
@click.option(
    "--heal",
    default=0,
    type=click.IntRange(0),
    metavar="TOKENS",
    help="Train scales for so many tokens of the calibration text, all of it, to answer as the "
    "original does; needs torch.",
)
@click.option(
    "--linearize",
    metavar="all|auto|N",
    callback=lambda _context, _option, value: layers_asked(value),
    help="Linear attention, whose memory does not grow, in all layers, in N of them, or in as many "
    "as pass the gate; trained on the calibration text, needs torch.",
)
@click.option(
    "--tokens",
    type=click.IntRange(1),
    metavar="N",
    help="Of --linearize: tokens of training for each attempt; default 5000000.",
)
@click.option(
    "--features",
    type=click.IntRange(1, 256),
    metavar="R",
    help="Of --linearize: values that a head's features are made of; default its size up to 64, "
    "else 32.",
)
@click.option(
    "--window",
    type=click.IntRange(0, 256),
    metavar="W",
    help="Of --linearize: softmax over the newest W to 2 W tokens beside the state, 0 for none; "
    "default 64 for heads of 64 and more.",
)
@click.option(
    "--serve",
    type=click.IntRange(1),
    metavar="TOKENS",
    help="Of --linearize: the context that the model is for; default its own.",
)
@click.option(
    "--anyway", is_flag=True, help="Linearize even where that takes more memory than it saves."
)
@click.option(
    "--kv-share",
    default=0,
    type=click.IntRange(0),
    metavar="N",
    help="Let up to N layers read the keys and values of others, where the model still says the "
    "same: less memory a token, without training; needs torch.",
)
@click.option(
    "--workers",
    default=1,
    type=click.IntRange(1),
    metavar="N",
    help="Processes for the work on matrices.",
)
@click.option("--cluster", metavar="ADDRESS", help="A dask scheduler whose workers do the work.")
@click.option(
    "--report",
    "report_folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write a page with pictures of what the conversion did.",
)
@click.option("--name", help="The model's name; default: the source's.")
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@click.option("--no-resume", is_flag=True, help="Do not go on from a conversion that was stopped.")
@click.option("--no-golden", is_flag=True, help="Store no answers for `edgert verify --device`.")
@click.option(
    "--ignore-remote-code",
    is_flag=True,
    help="Accept a checkpoint that names its own code, which is never run.",
)
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Merge a LoRA adapter (a folder of PEFT) into the weights; may be repeated.",
)
@click.option(
    "--onnx",
    multiple=True,
    type=click.Choice(("f32", "f16")),
    help="Add an ONNX model with such activations, see `edgert export`; may be repeated.",
)
@click.option("-t", "--threads", type=click.IntRange(1), metavar="N")
@json_option
def command(
    source: str,
    output: Path,
    calibration: Path | None,
    sequences: int,
    report_folder: Path | None,
    no_resume: bool,
    no_golden: bool,
    onnx: tuple[str, ...],
    as_json: bool,
    linearize: str | int | None,
    tokens: int | None,
    features: int | None,
    window: int | None,
    serve: int | None,
    anyway: bool,
    **asked: Any,
) -> int:
    """Make a bundle from SOURCE, a checkpoint or diffusers directory or a Hugging Face hub id.

    The bundle is written aside, verified, then renamed. A conversion that is stopped leaves the old
    bundle, or none, and goes on where it was when it is started again.
    """  # fmt: skip
    from ..converters.calibrate import Calibration
    from ..converters.convert import convert

    if onnx:
        require("onnx", "--onnx", ConvertError)
    text = None
    if calibration is not None:
        text = Calibration.read(calibration, sequences)
    elif sequences != PRESETS["quick"]:
        text = Calibration.sample(sequences)
    linear = linear_asked(linearize, tokens, features, window, serve, anyway=anyway, quiet=as_json)
    folder = Path(source)
    report = convert(
        folder if folder.exists() else source,
        output,
        progress=not as_json,
        resume=not no_resume,
        golden=not no_golden,
        calibration=text,
        report=report_folder,
        linearize=linear,
        **asked,
    )
    if not Path(report.path).exists():  # a rank that only took part in training
        return 0
    if onnx:
        from ..converters.onnx_emit import export

        for precision in onnx:
            export(output, precision=precision)
    if as_json:
        emit_json({"schema": 1, **report.to_dict()})
    else:
        click.echo(f"{report.summary()}\nwritten: {report.path}")
    return 0


def layers_asked(value: str | None) -> str | int | None:
    """Which layers --linearize names."""
    if value in (None, "all", "auto"):
        return value
    if value.isascii() and value.isdecimal() and 0 < int(value) < 1 << 20:
        return int(value)
    raise click.BadParameter(f"{value!r}, expected all, auto or a number of layers")


def linear_asked(
    layers: str | int | None, tokens: int | None, features: int | None, window: int | None,
    serve: int | None, *, anyway: bool, quiet: bool,
) -> Any:  # fmt: skip
    """The options of --linearize, None without it."""
    given: dict[str, Any] = {
        "tokens": tokens,
        "features": features,
        "serve": serve,
        "anyway": anyway,
    }
    given = {name: value for name, value in given.items() if value}
    if window is not None:
        given["window"] = window
    if layers is None:
        if given:
            raise click.UsageError(f"--{next(iter(given))} belongs to --linearize")
        return None
    from ..converters.linearize.options import LinearizeOptions, window_fields

    given |= window_fields(given.pop("window", None))
    return LinearizeOptions(layers, progress=not quiet, **given)


def sequences_asked(value: str) -> int:
    """A number of calibration sequences, or a preset's."""
    if value in PRESETS:
        return PRESETS[value]
    if value.isascii() and value.isdecimal() and 0 < int(value) < 1 << 20:
        return int(value)
    raise click.BadParameter(f"{value!r}, expected a number, quick or full")
