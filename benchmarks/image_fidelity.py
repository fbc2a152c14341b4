"""Pictures by quantized weights against those of f32 from the same noise, over prompts and seeds.

    python -m benchmarks.image_fidelity --models DIR --checkpoint FOLDER   a trained pipeline
    python -m benchmarks.image_fidelity --models DIR [--shape dit-s]       random weights
    python -m benchmarks.image_fidelity --print                            the table so far

FOLDER is a diffusers directory (of the drawing demo, what `recipes.demo_image.run finish` writes).
DIR keeps its bundles, made where they are not there. Every prompt is drawn with every seed, in f32
and in each of `--quants`, without caches; PSNR and SSIM are of the 8-bit pictures. Random weights
say whether the numbers are computed, not how pictures look.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edgert
from benchmarks.image_measures import bootstrap, psnr, ssim
from benchmarks.image_peers import copied
from benchmarks.image_prompts import prompts_for
from benchmarks.machine import describe
from benchmarks.random_pictures import SHAPES, bundles_of, random_pipeline
from benchmarks.results import FOLDER, table

RESULTS = FOLDER / "results" / "image_fidelity.jsonl"
CLAIMED = 35.0  # dB of int8 against f32
Line = dict[str, Any]


@dataclass(frozen=True)
class Runs:
    """What is drawn: so many prompts, each with so many seeds. steps, cfg_scale: None for the
    model's own. batch: seeds in one call."""

    prompts: int
    seeds: int
    steps: int | None = None
    cfg_scale: float | None = None
    device: str = "cpu"
    threads: int | None = None
    batch: int = 1


def pictures(bundle: Path, runs: Runs) -> Iterator[NDArray[np.uint8]]:
    """All pictures, those of a prompt together."""
    options: dict[str, Any] = {"kind": "image", "device": runs.device, "threads": runs.threads}
    asked: dict[str, Any] = {"steps": runs.steps, "cfg_scale": runs.cfg_scale, "cache": "none"}
    with edgert.load(bundle, **options) as model:
        for prompt in prompts_for(model, "test", runs.prompts):
            for first in range(0, runs.seeds, runs.batch):
                count = min(runs.batch, runs.seeds - first)
                drawn = model(prompt.text, seed=prompt.seed + first, batch=count, **asked)
                yield from (np.asarray(image) for image in drawn)


def compared(bundles: dict[str, Path], runs: Runs) -> list[Line]:
    """A line for each encoding but f32."""
    reference = list(pictures(bundles["f32"], runs))
    lines = []
    for quant, path in bundles.items():
        if quant == "f32":
            continue
        pairs = list(zip(pictures(path, runs), reference, strict=True))
        found = np.array([psnr(a, b) for a, b in pairs])
        likeness = [ssim(a, b) for a, b in pairs if min(a.shape[:2]) > 10]
        lines.append({
            "kind": "fidelity", "quant": quant, **vars(runs), "psnr": found.round(2).tolist(),
            "ssim": round(float(np.mean(likeness)), 5) if likeness else None,
            "interval": [round(end, 2) for end in bootstrap(found)],
        })  # fmt: skip
    return lines


def tables(lines: Sequence[Line]) -> str:
    """The last line of each model, encoding and device."""
    last = {(x["model"], x["quant"], x["device"]): x for x in lines}
    rows = []
    for (model, quant, device), x in last.items():
        found = np.array(x["psnr"])
        low, high = x["interval"]
        rows.append([
            model, quant, device, f"{x['prompts']} x {x['seeds']}", f"{found.mean():.2f}",
            f"{low:.2f} to {high:.2f}", f"{np.median(found):.2f}", f"{found.min():.2f}",
            f"{100 * np.mean(found >= CLAIMED):.0f} %", x["ssim"],
        ])  # fmt: skip
    head = ("model", "weights", "device", "prompts x seeds", "PSNR mean, dB", "95 %", "median",
            "least", f"at least {CLAIMED:.0f} dB", "SSIM")  # fmt: skip
    return table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=Path)
    parser.add_argument("--checkpoint", type=Path, help="folder of a trained pipeline")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="dit-s")
    parser.add_argument("--quants", nargs="+", default=["int8", "int4"])
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--cfg-scale", type=float)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--print", action="store_true", dest="only_print")
    args = parser.parse_args()
    if args.only_print:
        return print(tables([json.loads(x) for x in args.out.read_text("utf-8").splitlines()]))
    if args.models is None:
        parser.error("--models says where bundles are kept")
    if args.checkpoint is not None:
        folder = copied(args.checkpoint, args.models / args.checkpoint.resolve().name)
    else:
        folder = random_pipeline(args.shape, args.models / args.shape)
    runs = Runs(
        args.prompts, args.seeds, args.steps, args.cfg_scale, args.device, args.threads, args.batch
    )
    lines = compared(bundles_of(folder, ["f32", *args.quants]), runs)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with open(args.out, "a", encoding="utf-8") as file:
        for line in lines:
            line |= {"model": folder.name, "machine": describe()}
            file.write(json.dumps(line, separators=(",", ":")) + "\n")
    print(tables(lines))


if __name__ == "__main__":
    main()
