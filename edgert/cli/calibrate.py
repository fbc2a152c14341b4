"""`edgert calibrate`: measure a model that draws, so that steps can be used again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from ..errors import RequestError
from .inputs import read_file
from .settings import Loader, emit_json, image_session_options, json_option, say


@click.command("calibrate")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--prompts",
    type=click.Path(readable=False, allow_dash=True),
    metavar="FILE",
    help="Prompts to measure with, one a line; default: eight that come with edgert.",
)
@click.option(
    "--steps", type=click.IntRange(8), metavar="N", help="Of the sampler; default: the model's."
)
@click.option(
    "--pictures",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Measure on these pictures with noise added, one a prompt in the order of their "
    "names, instead of on what the model draws.",
)
@click.option(
    "--policy",
    "policies",
    multiple=True,
    default=("sencache",),
    show_default=True,
    metavar="NAME",
    help="Find thresholds of this policy too; repeatable.",
)
@image_session_options
@json_option
def command(
    bundle: Path, prompts: str | None, steps: int | None, pictures: Path | None,
    policies: tuple[str, ...], loader: Loader, as_json: bool,
) -> int:  # fmt: skip
    """Measure how the model in BUNDLE changes from step to step, and keep that in the bundle.

    `edgert image` then knows which steps need not be computed (SenCache), and --nfe N finds the
    threshold for about N computed steps. Measure on the machine's own precision: a calibration
    belongs to the weights as they are stored.
    """
    from ..image.calibration import calibrate_bundle

    given: dict[str, Any] = {"steps": steps}
    if prompts is not None:
        texts = [text for text in read_file(prompts).splitlines() if text.strip()]
        given["prompts"] = _some(texts, prompts, "a prompt a line")
    if pictures is not None:
        given["pictures"] = _pictures(bundle, pictures)

    def progress(what: str, done: int, total: int) -> None:
        if not as_json:
            say(f"measuring {what} ...")

    made = calibrate_bundle(bundle, loader.options, policies=policies, progress=progress, **given)
    info = made.table.info
    if as_json:
        emit_json({
            "schema": 1, "bundle": str(bundle), "file": made.file.name,
            "info": msgspec.to_builtins(info), "seconds": made.seconds,
            "evaluations": made.evaluations,
        })  # fmt: skip
        return 0
    click.echo(f"{made.file}: {info.steps} steps, {info.samples} drawings, {made.seconds:.0f} s")
    for name, curve in made.thresholds.items():
        for share, threshold in curve:
            click.echo(f"  {name:10} {share * info.steps:5.1f} of {info.steps} steps computed at "
                       f"{threshold:.4g}")  # fmt: skip
    return 0


def _pictures(bundle: Path, folder: Path) -> list[Any]:
    from ..bundle.reader import Bundle
    from ..image.model import spec_of
    from ..image.pictures import load_picture

    with Bundle.open(bundle) as opened:
        spec, _ = spec_of(opened)
    width, height = int(spec.defaults["width"]), int(spec.defaults["height"])
    names = sorted(path for path in folder.iterdir() if path.is_file())
    some = _some(names, folder, "pictures, one a prompt")
    return [load_picture(path, width, height) for path in some]


def _some(found: list[Any], source: object, expected: str) -> list[Any]:
    """What a caller gave; nothing else is taken in place of an empty file or folder."""
    if not found:
        raise RequestError(
            f"{source} is empty, expected {expected}",
            code="calibration",
            hint="leave it out to measure with the prompts that come with edgert",
        )
    return found
