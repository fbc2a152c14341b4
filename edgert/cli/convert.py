"""`edgert convert`: make a bundle from a checkpoint."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import ConvertError
from ..extras import require
from ..kernels.encodings import DEFAULT, asked
from .settings import emit_json, json_option

QUANTS = tuple(asked())


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
    "--quant",
    default=DEFAULT,
    show_default=True,
    type=click.Choice(QUANTS),
    help="How matrices are stored.",
)
@click.option(
    "--embed-quant",
    type=click.Choice(QUANTS),
    help="Embedding and head; default: int8-g32 where --quant has codes, else as --quant.",
)
@click.option(
    "--method",
    default="rtn",
    show_default=True,
    type=click.Choice(("rtn", "gptq")),
    help="How codes are chosen: rounding to nearest, or GPTQ with --calibration.",
)
@click.option(
    "--calibration",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="A text like those that the model will see.",
)
@click.option(
    "--sequences",
    default=64,
    show_default=True,
    type=click.IntRange(1),
    metavar="N",
    help="Pieces of 1024 tokens of it that are used.",
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
    quant: str,
    embed_quant: str | None,
    method: str,
    calibration: Path | None,
    sequences: int,
    name: str | None,
    force: bool,
    no_resume: bool,
    no_golden: bool,
    ignore_remote_code: bool,
    onnx: tuple[str, ...],
    threads: int | None,
    as_json: bool,
) -> int:
    """Make a bundle from SOURCE, a checkpoint directory or a Hugging Face hub id.

    The bundle is written aside, verified, then renamed. A conversion that is stopped leaves the old
    bundle, or none, and goes on where it was when it is started again.
    """  # fmt: skip
    from ..converters.calibrate import Calibration
    from ..converters.convert import convert

    if onnx:
        require("onnx", "--onnx", ConvertError)
    if (method == "gptq") != (calibration is not None):
        given = "none" if calibration is None else str(calibration)
        raise ConvertError(
            f"method {method} with calibration text {given}, expected both of gptq and a text, or "
            "neither",
            code="calibration",
            hint="--method gptq --calibration FILE",
        )
    folder = Path(source)
    report = convert(
        folder if folder.exists() else source,
        output,
        quant=quant,
        embed_quant=embed_quant,
        name=name,
        force=force,
        progress=not as_json,
        resume=not no_resume,
        golden=not no_golden,
        ignore_remote_code=ignore_remote_code,
        threads=threads,
        calibration=None if calibration is None else Calibration.read(calibration, sequences),
    )
    if onnx:
        from ..converters.onnx_emit import export

        for precision in onnx:
            export(output, precision=precision)
    if as_json:
        emit_json({"schema": 1, **report.to_dict()})
    else:
        click.echo(f"{report.summary()}\nwritten: {report.path}")
    return 0
