"""The picture of `benchmarks/IMAGE_CACHING.md`: the same prompts by every policy, at equal
evaluations."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import image_methods as methods
from benchmarks.image_measures import psnr
from benchmarks.image_prompts import Prompt
from benchmarks.image_runs import Draw, Drawn
from benchmarks.results import FOLDER

if TYPE_CHECKING:
    from benchmarks.image_caching import Bench

SHEET = FOLDER / "results" / "image_caching.png"
LARGEST = 400_000  # bytes
OTHERS = ("a red apple, 3d style", "a cat, flat style", "a rocket, 3d style")
SEED = 30_000


def draw_sheet(bench: Bench, path: Path = SHEET) -> None:
    """Six prompts by the methods that have rows, with their settings at the lowest target."""
    if bench.test[0].scene is not None:
        texts = [*(p.text for p in bench.test[:3]), *OTHERS]
    else:
        texts = [p.text for p in bench.test[:6]]
    prompts = [Prompt(text, SEED + i) for i, text in enumerate(texts)]
    columns: dict[str, list[Drawn]] = {
        "uncached": bench.workers.map([Draw(p.text, p.seed) for p in prompts])
    }
    rows = [x for x in bench.lines() if x["kind"] == "row" and x["method"] != "Fixed-2"]
    lowest = min((x["target"] for x in rows), default=0.0)
    for line in rows:
        if line["target"] == lowest:
            columns[line["method"]] = bench.draw(as_in(line, bench), prompts)
    data = sheet(columns, texts)
    path.write_bytes(data)
    print(f"{path}: {len(data)} bytes")


def as_in(line: dict[str, Any], bench: Bench) -> methods.Candidate:
    """The candidate of a row."""
    some = methods.candidates(line["method"], bench.table, line["target"], bench.protocol.steps)
    one, settings = some[0], line["settings"]
    if one.policy is None:
        return one
    names = {field.name for field in dataclasses.fields(one.policy)}
    given: dict[str, Any] = {k: v for k, v in settings.items() if k in names}
    return dataclasses.replace(one, policy=dataclasses.replace(one.policy, **given))


def sheet(columns: dict[str, Sequence[Drawn]], texts: Sequence[str]) -> bytes:
    """A PNG with a column a method and a row a prompt, in as many pixels as LARGEST allows."""
    from PIL import Image

    for side in (128, 112, 96, 80, 64):
        image = laid_out(columns, texts, side).quantize(255, Image.Quantize.MEDIANCUT, dither=0)
        file = io.BytesIO()
        image.save(file, "PNG", optimize=True)
        if file.tell() <= LARGEST:
            break
    return file.getvalue()


def laid_out(columns: dict[str, Sequence[Drawn]], texts: Sequence[str], side: int) -> Any:
    from PIL import Image, ImageDraw

    top, line, gap = 30, 14, 4
    height = top + len(texts) * (side + 2 * line + gap)
    image = Image.new("RGB", (len(columns) * (side + gap), height), "white")
    pen = ImageDraw.Draw(image)
    uncached = columns["uncached"]
    for column, (name, drawn) in enumerate(columns.items()):
        x = column * (side + gap)
        mean = np.mean([d.computed.sum() for d in drawn])
        pen.text((x + 2, 2), f"{name}\n{mean:.1f} evaluations"[: 2 * side // 6], fill="black")
        for row, (one, reference) in enumerate(zip(drawn, uncached, strict=True)):
            y = top + row * (side + 2 * line + gap)
            small = Image.fromarray(one.picture).resize((side, side), Image.Resampling.LANCZOS)
            image.paste(small, (x, y + line))
            if column:
                said = f"{one.computed.sum()}: {psnr(one.picture, reference.picture):.1f} dB"
                pen.text((x + 2, y + line + side), said, fill="black")
    for row, text in enumerate(texts):
        pen.text((2, top + row * (side + 2 * line + gap)), text, fill="black")
    return image
