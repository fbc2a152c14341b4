"""Pictures on a GPU: are they right, where do the nodes run, how fast is it, beside torch.

    python -m benchmarks.image_gpu model.edge --golden pictures.npz --golden-only   # with a CPU
    python -m benchmarks.image_gpu model.edge --golden pictures.npz                 # with a GPU

Golden pictures are the CPU session's, without caches. On the device they are drawn through
onnxruntime in f32 and in f16 (each from its own copy of the bundle, whose weights are linked) and
compared by PSNR; then batches are timed: seconds of steps and decoding, captions left out. "batch"
computes a batch and both branches of guidance in one call, "fused" in fewer nodes, "graph" replays
captured CUDA graphs; a batch's pictures are compared with the same drawn alone. With `--weights`
f32 or f16 all is of a copy whose quantized weights are the same numbers plain: then the CPU rounds
no activations, and the device has products of floats. The same
batches on torch, in float16 and compiled: the checkpoint in diffusers where `--checkpoint` names
it, else the bundle's own graphs (`image_torch.Twin`). Rows go to `--out` as JSON lines.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from edgert.converters.onnx_emit import export
from numpy.typing import NDArray

import edgert
from benchmarks.gpu_edgert import machine
from benchmarks.image_torch import Twin, diffusers_draw
from benchmarks.plain_weights import plain_bundle
from edgert.bundle import Bundle
from edgert.bundle.manifest import MANIFEST_NAME
from edgert.errors import EdgertError
from edgert.image import caching
from edgert.image.emissions import placed_graphs
from edgert.image.model import ImageModel
from edgert.image.request import resolve
from edgert.session.ort import place

CAPTIONS = (
    "a red apple on a wooden table", "a lighthouse in a storm", "a cat that reads a newspaper",
    "mountains at dawn, oil on canvas",
)  # fmt: skip
BATCHES, REPEATS = (1, 8), 3


@dataclass(frozen=True)
class How:
    """One run. precision, batch, fused: of the emission. options: of the CUDA provider. limit: dB
    to the CPU's pictures that are expected."""

    precision: str
    options: str = ""
    limit: float = 25.0
    batch: bool = False
    fused: bool = False


# By default CUDA multiplies float32 in TF32, which has float16's digits.
RUNS = {
    "f32": How("f32", "use_tf32=0", 40.0), "tf32": How("f32"), "f16": How("f16"),
    "f32 batch": How("f32", "use_tf32=0", 40.0, batch=True),
    "f16 batch": How("f16", batch=True),
    "f32 batch fused": How("f32", "use_tf32=0", 40.0, batch=True, fused=True),
    "f16 batch fused": How("f16", batch=True, fused=True),
    "f32 batch fused graph": How("f32", "graph,use_tf32=0", 40.0, batch=True, fused=True),
    "f16 batch graph": How("f16", "graph", batch=True),
    "f16 batch fused graph": How("f16", "graph", batch=True, fused=True),
}  # fmt: skip
CODED = 15.0  # of quantized bundles, whose activations the CPU session rounds to 8 bits
Note = Callable[..., None]


@dataclass
class Golden:
    """Pictures uint8 [n, H, W, 3] of the CPU session. weights: hash of the denoiser's."""

    weights: str
    steps: int
    prompts: list[str]
    pictures: NDArray[np.uint8]

    @staticmethod
    def make(path: Path, prompts: list[str], steps: int) -> Golden:
        with edgert.load(path, kind="image") as model:
            drawn = [model(p, seed=i, steps=steps, cache="none")[0] for i, p in enumerate(prompts)]
            pictures = np.stack([np.asarray(image) for image in drawn])
            return Golden(caching.model_hash(model.bundle), steps, prompts, pictures)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **vars(self))

    @staticmethod
    def load(path: Path, bundle: Path) -> Golden:
        with np.load(path) as file, Bundle.open(bundle) as opened:
            found = Golden(
                str(file["weights"]), int(file["steps"]), list(map(str, file["prompts"])),
                file["pictures"],
            )  # fmt: skip
            if found.weights != caching.model_hash(opened):
                raise EdgertError(f"{path} has pictures of other weights than {bundle}")
        return found


def prompts_of(path: Path, given: list[str], count: int) -> list[str]:
    """The given prompts, or captions, or names of classes."""
    with Bundle.open(path) as bundle:
        image = bundle.manifest.image
    known = list(CAPTIONS)
    if image is not None and image.conditioning == "labels":
        known = [str(number) for number in sorted(image.labels.values())] or ["0"]
    source = given or known
    return [source[i % len(source)] for i in range(count)]


@contextmanager
def emitted(path: Path, how: How) -> Iterator[Path]:
    """A copy of a bundle with one emission alone; large files are linked."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        copy = Path(folder) / path.name

        def link(source: str, target: str) -> None:
            if not source.endswith(".onnx"):
                shutil.copy(source, target) if MANIFEST_NAME in source else os.link(source, target)

        shutil.copytree(path, copy, copy_function=link)
        manifest = json.loads((copy / MANIFEST_NAME).read_text(encoding="utf-8"))
        manifest["files"] = {k: v for k, v in manifest["files"].items() if not k.endswith(".onnx")}
        (copy / MANIFEST_NAME).write_text(json.dumps(manifest), encoding="utf-8")
        export(copy, precision=how.precision, batch=how.batch, fused=how.fused)
        yield copy


def placements(path: Path, device: str) -> dict[str, dict[str, int]]:
    """Nodes by provider, and the ops of those that are not on the device's own."""
    counts, strays = Counter[str](), Counter[str]()
    with Bundle.open(path) as bundle:
        for part in sorted(bundle.manifest.parts):
            for node in place(bundle, device, part, placed_graphs(bundle, part)):
                counts[node.provider] += 1
                if node.provider == "CPUExecutionProvider" and device != "ort-cpu":
                    strays[f"{part}: {node.op}"] += 1
    return {"nodes": dict(counts), "on_the_cpu": dict(strays)}


def psnr(a: NDArray[Any], b: NDArray[Any]) -> float:
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return float(10 * np.log10(255**2 / max(error, 1e-6)))


def checked(model: ImageModel, golden: Golden) -> list[float]:
    """PSNR of each golden picture drawn by `model`."""
    found = []
    for seed, (prompt, picture) in enumerate(zip(golden.prompts, golden.pictures, strict=True)):
        image = model(prompt, seed=seed, steps=golden.steps, cache="none")[0]
        found.append(psnr(np.asarray(image), picture))
    return found


def rate(draw: Callable[[], float], batch: int) -> float:
    """Pictures a second: the median of some batches, after one that does not count."""
    seconds = [draw() for _ in range(REPEATS + 1)][1:]
    return batch / statistics.median(seconds)


def together(model: ImageModel, golden: Golden, batch: int) -> list[float]:
    """PSNR of each picture of a batch to the same picture drawn alone."""
    asked: dict[str, Any] = {"steps": golden.steps, "cache": "none"}
    drawn = model(golden.prompts[0], seed=1, batch=batch, **asked)
    alone = [model(golden.prompts[0], seed=seed, **asked)[0] for seed in drawn.seeds]
    return [psnr(np.asarray(a), np.asarray(b)) for a, b in zip(drawn, alone, strict=True)]


def edgert_row(model: ImageModel, prompt: str, steps: int, batch: int) -> dict[str, float]:
    """Pictures a second, and the seconds of all steps and of decoding, medians."""
    seen: list[Mapping[str, float]] = []

    def draw() -> float:
        seen.append(model(prompt, seed=1, steps=steps, batch=batch, cache="none").timings)
        return seen[-1]["denoise_s"] + seen[-1]["decode_s"]

    speed = rate(draw, batch)
    parts = {
        name: round(statistics.median(timings[name] for timings in seen[1:]), 4)
        for name in ("denoise_s", "decode_s")
    }
    return {"pictures_per_s": round(speed, 3), **parts}


def edgert_rows(path: Path, golden: Golden, args: argparse.Namespace, note: Note) -> None:
    """What edgert does in each run; speeds only of pictures that are right."""
    for name in args.runs:
        try:
            edgert_run(name, path, golden, args, note)
        except Exception as error:  # of one run; the others still count
            note("failed", what=name, error=f"{type(error).__name__}: {error}"[:1500])


def edgert_run(name: str, path: Path, golden: Golden, args: argparse.Namespace, note: Note) -> None:
    """One of `RUNS`."""
    how = RUNS[name]
    on_cuda = how.options and args.device == "cuda"
    device = f"{args.device}:{how.options}" if on_cuda else args.device
    with emitted(path, how) as copy:
        note("placement", run=name, **placements(copy, device))
        with edgert.load(copy, device=device, kind="image") as model:
            exact = set(caching.quantisation(model.bundle).split("+")) <= {"f32", "f16"}
            found = checked(model, golden)
            right = min(found) >= (how.limit if exact else CODED)
            note("psnr", run=name, db=[round(db, 2) for db in found], right=right)
            if right and how.batch:
                apart = together(model, golden, max(args.batches))
                note("together", run=name, db=[round(db, 2) for db in apart])
            for batch in args.batches if right else ():
                row = edgert_row(model, golden.prompts[0], golden.steps, batch)
                note("row", runner=f"edgert {name}", batch=batch, **row)


def torch_rows(path: Path, golden: Golden, args: argparse.Namespace, note: Note) -> None:
    """The same batches on torch."""
    with emitted(path, How("f32")) as copy:
        with edgert.load(copy, device=args.device, kind="image") as model:
            spec, prompt = model.spec, golden.prompts[0]
            asked = {"steps": golden.steps, "seed": 0, "cache": "none"}
            one = resolve(spec, model.latents, prompt, asked)
            twin = None if args.checkpoint else Twin(model, args.torch_device)
            if twin is not None:
                picture = twin.shown(twin.draw(one)[1][0], one)
                note("psnr", runner="torch", db=[round(psnr(picture, golden.pictures[0]), 2)])
            for batch in args.batches:
                request = resolve(spec, model.latents, prompt, {**asked, "batch": batch})
                if twin is not None:
                    runner, draw = "torch, own graphs", lambda r=request: twin.draw(r)[0]
                else:
                    settings = {"steps": one.steps, "cfg_scale": one.cfg_scale}
                    runner = "diffusers"
                    draw = diffusers_draw(args.checkpoint, [prompt] * batch, settings)
                speed = rate(draw, batch)
                note("row", runner=runner, batch=batch, pictures_per_s=round(speed, 3))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--golden", type=Path, required=True)
    parser.add_argument("--golden-only", action="store_true")
    parser.add_argument("--prompt", action="append", default=[])
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--torch-device", default="cuda")
    parser.add_argument("--runs", nargs="*", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--batches", nargs="*", type=int, default=list(BATCHES))
    parser.add_argument("--checkpoint", type=Path, help="of diffusers, for the peer")
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--weights", choices=("f32", "f16"), help="of a copy beside the pictures")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main() -> None:
    args = arguments()

    def note(kind: str, **values: Any) -> None:
        text = json.dumps({"kind": kind, **values})
        print(text, flush=True)
        if args.out:
            with args.out.open("a", encoding="utf-8") as file:
                file.write(text + "\n")

    if args.weights:
        name = f"{args.bundle.stem}-{args.weights}.edge"
        args.bundle = plain_bundle(args.bundle, args.golden.with_name(name), args.weights)
    if args.golden_only or not args.golden.exists():
        prompts = prompts_of(args.bundle, args.prompt, args.pictures)
        Golden.make(args.bundle, prompts, args.steps).save(args.golden)
    if args.golden_only:
        return
    golden = Golden.load(args.golden, args.bundle)
    note("machine", **machine(args.device), bundle=args.bundle.name, steps=golden.steps)
    for name, rows in {"edgert": edgert_rows, "torch": torch_rows}.items():
        if name == "torch" and args.no_torch:
            continue
        try:
            rows(args.bundle, golden, args, note)
        except Exception as error:  # one side's failure does not end the other
            note("failed", what=name, error=f"{type(error).__name__}: {error}"[:1500])


if __name__ == "__main__":
    main()
