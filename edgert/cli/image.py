"""`edgert image`: draw a picture."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import limits
from .generate import prompt_text
from .settings import Loader, check_outputs, emit_json, image_session_options, json_option, say

if TYPE_CHECKING:
    from ..image.model import ImageModel, Pictures, Step

OUT = "out.png"


@click.command("image")
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option("-p", "--prompt", help="What to draw; - reads standard input.")
@click.option(
    "-o",
    "--output",
    default=OUT,
    show_default=True,
    type=click.Path(path_type=Path),
    help="PNG to write; further pictures of a batch get a number.",
)
@click.option("--negative-prompt", help="What guidance leads away from.")
@click.option("--steps", type=click.IntRange(1), metavar="N", help="Default: the model's.")
@click.option(
    "--cfg-scale",
    type=click.FloatRange(0),
    metavar="W",
    help="Strength of guidance, 1 for none; default: the model's.",
)
@click.option(
    "-s",
    "--seed",
    type=click.IntRange(0),
    metavar="N",
    help="The same seed draws the same pixels; default: a random one.",
)
@click.option("-W", "--width", type=click.IntRange(1), metavar="PIXELS")
@click.option("-H", "--height", type=click.IntRange(1), metavar="PIXELS")
@click.option(
    "--batch",
    default=1,
    show_default=True,
    type=click.IntRange(1, limits.IMAGE_BATCH),
    metavar="N",
    help="Pictures, with seeds that follow each other.",
)
@click.option(
    "--sampler",
    metavar="NAME",
    help="Another one for the model's schedule: ddim, dpm++, euler, lcm, flow-euler.",
)
@click.option(
    "--cache",
    default="auto",
    show_default=True,
    metavar="POLICY",
    help="How steps are used again: auto, none, fixed, sencache, seacache, teacache, "
    "magcache, easycache, taylor, fora, first-block.",
)
@click.option(
    "--nfe",
    type=click.FloatRange(1),
    metavar="N",
    help="Computed steps that the cache shall take about.",
)
@click.option(
    "--init", type=click.Path(path_type=Path), metavar="FILE", help="A picture to start from."
)
@click.option(
    "--strength",
    type=click.FloatRange(0, 1),
    metavar="S",
    help="How much of it changes; default 0.75.",
)
@click.option(
    "--preview",
    is_flag=True,
    help="Write what is there so far to the output every second, and show the picture "
    "in terminals that can.",
)
@image_session_options
@json_option
def command(
    bundle: Path | None, prompt: str | None, output: Path, loader: Loader, preview: bool,
    init: Path | None, as_json: bool, **options: Any,
) -> int:  # fmt: skip
    """Draw a picture with BUNDLE, or with the model in this package.

    The settings are written into the PNG; `edgert inspect out.png` shows them. Ctrl-C stops within
    a step and exits with 130; no half file is left.
    """
    if bundle is not None and prompt is None and not bundle.exists():
        raise click.UsageError(
            f"no bundle {str(bundle)[:80]!r}; a caption stands behind -p: edgert image -p "
            f'"{str(bundle)[:80]}"'
        )
    text = prompt_text(prompt, None)
    for file in files_of(output, options["batch"] or 1):
        check_output(file)
        check_outputs({"-o": file}, init)
    path = bundle if bundle is not None else _demo()
    with loader.load_image(path) as model:
        asked = {key: value for key, value in options.items() if value is not None}
        if init is None and "strength" in asked:
            say(f"--strength {asked['strength']:g} is not looked at: it belongs to --init")
        if init is not None:
            asked["init"] = _picture(model, init, asked)
        teller = _Teller(output if preview else None, shown=not as_json)
        try:
            made = model(text, on_step=teller, **asked)
        finally:
            teller.close()
        files = _written(made, output)
        if as_json:
            emit_json(_object(path, made, files, model))
        else:
            _report(made, files, show=preview)
    return 0


def _demo() -> Path:
    """The drawing model in this package."""
    from ..demo import image_bundle

    return image_bundle()


def check_output(output: Path) -> None:
    """Before minutes of work: a name and a folder that take a PNG."""
    if output.suffix.lower() != ".png":
        raise click.UsageError(f"-o is {str(output)!r}, expected a name that ends in .png")
    folder = output.parent
    free = not output.exists() or output.is_file()  # no folder, pipe or device
    if not folder.is_dir() or not os.access(folder, os.W_OK) or not free:
        raise click.UsageError(f"-o is {str(output)!r}, expected a file in a folder to write to")


def _picture(model: ImageModel, path: Path, asked: Mapping[str, Any]) -> Any:
    from ..image.pictures import load_picture

    sizes = {name: asked.get(name, int(model.spec.defaults[name])) for name in ("width", "height")}
    return load_picture(path, sizes["width"], sizes["height"])


def _written(made: Pictures, output: Path) -> list[Path]:
    """The pictures' files, written."""
    files = files_of(output, len(made))
    for index, file in enumerate(files):
        made.save(index, file)
    return files


def files_of(output: Path, count: int) -> list[Path]:
    """Names of `count` pictures."""
    if count == 1:
        return [output]
    return [output.with_name(f"{output.stem}-{n + 1}{output.suffix}") for n in range(count)]


def _report(made: Pictures, files: list[Path], *, show: bool) -> None:
    from ..image import terminal

    way = terminal.way_of(sys.stdout) if show else ""
    for index, (image, file) in enumerate(zip(made, files, strict=True)):
        if way:
            sys.stdout.write(terminal.text_of(image, way))
        click.echo(f"{file}  seed {made.seeds[index]}")
    t = made.timings
    say(
        f"{made.settings['steps']} steps, {made.evaluations:g} computed "
        f"({made.settings['cache']}); caption {t['encode_s']:.2f} s, "
        f"steps {t['denoise_s']:.2f} s, decoding {t['decode_s']:.2f} s"
    )


def _object(path: Path, made: Pictures, files: list[Path], model: ImageModel) -> dict[str, Any]:
    return {
        "schema": 1,
        "bundle": str(path),
        "files": [str(file) for file in files],
        "seeds": list(made.seeds),
        "settings": made.settings,
        "evaluations": made.evaluations,
        "timings": {**made.timings, "load_s": model.load_s},
    }


class _Teller:
    """A progress bar on stderr with a unit a step, and previews."""

    EVERY = 1.0  # seconds between previews, at least

    def __init__(self, preview: Path | None, *, shown: bool) -> None:
        self.preview, self.shown = preview, shown
        self.bar: Any = None
        self.last = time.monotonic()

    def __call__(self, step: Step) -> None:
        from tqdm import tqdm

        if self.bar is None:
            quiet = None if self.shown else True
            self.bar = tqdm(total=step.total, unit="step", leave=False, disable=quiet)
        self.bar.set_postfix_str("computed" if step.computed else "reused", refresh=False)
        self.bar.update()
        now = time.monotonic()
        if (
            self.preview is not None
            and step.index + 1 < step.total
            and (now - self.last >= self.EVERY)
        ):
            from ..image.pictures import save

            save(step.preview(), self.preview, {"preview": step.index + 1})
            self.last = time.monotonic()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
