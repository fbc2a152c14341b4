"""`edgert export`: add an ONNX model to a bundle, over the same weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from .settings import emit_json, json_option, megabytes


def _pixels(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[int, int] | None:
    """Width and height in pixels."""
    if value is None:
        return None
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", value)
    if not found:
        raise click.BadParameter(f"found {value!r}, expected width and height such as 768x512")
    return int(found[1]), int(found[2])


@click.command("export")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--precision",
    default="f32",
    show_default=True,
    type=click.Choice(("f32", "f16")),
    help="Activations: f32 for CPUs, f16 for GPUs.",
)
@click.option(
    "--standard",
    is_flag=True,
    help="Only ops of the ONNX standard, for openvino, coreml, and qnn (f16 or f32 weights there).",
)
@click.option(
    "--rows",
    default=0,
    type=click.IntRange(0),
    metavar="N",
    help="With --standard: fixed number of tokens a step (QNN takes no dynamic shapes).",
)
@click.option(
    "--capacity",
    default=0,
    type=click.IntRange(0),
    metavar="N",
    help="With --rows: fixed number of tokens a conversation may hold.",
)
@click.option(
    "--tap",
    "taps",
    multiple=True,
    metavar="VALUE",
    help="Give this value of the graph, too (rows behind layer N: layers.N.add2.y); repeatable.",
)
@click.option(
    "--embeddings",
    is_flag=True,
    help="Take embedding rows, too; tokens are then looked up on the CPU.",
)
@click.option(
    "--size",
    callback=_pixels,
    metavar="WIDTHxHEIGHT",
    help="For pictures of this size, of a model that draws; default: the model's own.",
)
@click.option(
    "--batch",
    is_flag=True,
    help="Of a model that draws: several pictures, and both branches of guidance, in one call.",
)
@click.option(
    "--fused",
    is_flag=True,
    help="Of a model that draws: norms take their modulation in (onnxruntime 1.21 and later).",
)
@json_option
def command(bundle: Path, as_json: bool, **options: Any) -> int:
    """Add <part>.onnx to BUNDLE for onnxruntime's providers (`--device cuda` and others).

    A denoiser gets a file for each piece that steps run: embed, body, head and feature. With f16
    the denoiser alone is half; text encoders and decoders stay f32.

    The ONNX file names the bundle's own weights file, so it takes no second copy of the weights.
    """  # fmt: skip
    from ..bundle.store import located
    from ..converters.onnx_emit import export

    made = export(located(bundle), **options)
    if as_json:
        emit_json({"schema": 1, "bundle": str(bundle), "files": [path.name for path in made]})
    else:
        for path in made:
            click.echo(f"{path}: {megabytes(path.stat().st_size)}")
    return 0
