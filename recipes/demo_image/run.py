"""Command line of the recipe: `python -m recipes.demo_image.run STAGE`.

    prepare    captions -> tokenizer
    train      draws and encodes all pictures, then trains, resuming if there is a checkpoint
    finish     evaluate the trained model and export it as a diffusers directory
    all        prepare, train, finish
`--tiny` runs `all` on a small sample in minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from . import evaluate as judging
from . import pool as pools
from .bind import BindConfig
from .denoiser import TINY_DENOISER, DenoiserConfig
from .export import export
from .text_encoder import TINY_TEXT, TextConfig
from .tokenizer import load_tokenizer, save_tokenizer
from .train import TrainConfig, Trainer, load_trained, read_log

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / ".." / "shared" / "data"


@dataclass(frozen=True)
class Recipe:
    """Everything a stage needs to know."""

    text: TextConfig
    denoiser: DenoiserConfig
    train: TrainConfig
    sample: pools.Sample
    sizes: judging.Sizes
    bind: BindConfig


FULL = Recipe(
    text=TextConfig(),
    denoiser=DenoiserConfig(),
    train=TrainConfig(seconds=1050.0),
    sample=pools.Sample(),
    sizes=judging.Sizes(),
    bind=BindConfig(),
)
TINY = Recipe(
    text=TINY_TEXT,
    denoiser=TINY_DENOISER,
    train=TrainConfig(
        steps=20,
        rows=8,
        warmup=0.1,
        device="cpu",
        compile=False,
        log_every=5,
        validate_every=0.5,
        checkpoint_every=0.0,
    ),
    sample=pools.TINY,
    sizes=judging.TINY,
    bind=BindConfig(steps=10, rows=16, scenes=50),
)


def prepare(recipe: Recipe, data: Path, work: Path) -> None:
    """Train the tokenizer."""
    save_tokenizer(pools.caption_tokenizer(data, recipe.sample), work / "tokenizer")


def train(recipe: Recipe, data: Path, work: Path) -> Trainer:
    """One run below `work`/final."""
    tokenizer = load_tokenizer(work / "tokenizer")
    if tokenizer.get_vocab_size() > recipe.text.vocab:
        raise ValueError(
            f"{work}/tokenizer has {tokenizer.get_vocab_size()} entries, more than the model's "
            f"{recipe.text.vocab}: run the stage prepare again"
        )
    device = torch.device(recipe.train.device)
    pool = pools.build(data, recipe.sample, tokenizer, device, work / "scenes.jsonl.gz")
    made = {name: len(part.z) for name, part in pool.parts.items()}
    print(json.dumps({"pictures": made, "shift": pool.autoencoder.shift,
                      "scale": pool.autoencoder.scale}), flush=True)  # fmt: skip
    trainer = Trainer(recipe.text, recipe.denoiser, recipe.train, pool, work / "final")
    trainer.bind(tokenizer, recipe.bind)
    trainer.run()
    return trainer


def finish(recipe: Recipe, data: Path, work: Path, out: Path) -> dict:
    """Evaluate the last checkpoint of the run and export it to `out`."""
    model, latents = load_trained(work / "final" / "checkpoint.pt")
    tokenizer = load_tokenizer(work / "tokenizer")
    results = judging.evaluate(
        model, latents, data, tokenizer, work / "final",
        sizes=recipe.sizes, sample=recipe.sample, device=recipe.train.device,
    )  # fmt: skip
    print(json.dumps(results, indent=1), flush=True)
    notes = run_notes(recipe, list(read_log(work / "final" / "log.jsonl")))
    export(model, tokenizer, latents, results, data, out, notes=notes)
    (out / "sheet.png").write_bytes((work / "final" / "sheet.png").read_bytes())
    return results


def run_notes(recipe: Recipe, lines: list[dict]) -> dict:
    """What the model card says about the run."""
    config, last = recipe.train, lines[-1]
    speed = [line["rows_per_second"] for line in lines if "rows_per_second" in line]
    run = {
        "optimizer": f"AdamW, betas {config.betas}, weight decay {config.weight_decay} (matrices)",
        "peak learning rate": f"{config.lr:g}, of the caption encoder {config.text_lr:g}",
        "schedule": f"warm-up {100 * config.warmup:g} %, straight line to zero over the last "
        f"{100 * config.decay:g} % of the run",
        "average of the weights": config.ema,
        "pictures per step": ", ".join(f"{n} {name}" for name, n in config.counts().items()),
        "captions left out": config.dropout,
        "steps": last["step"],
        "pictures seen": last["rows"],
        "seconds of training": last["seconds"],
        "pictures per second": speed[-1] if speed else "–",
    }
    return {"run": run, "curve": [line for line in lines if "valid_single" in line]}


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    p = argparse.ArgumentParser(
        prog="recipes.demo_image.run",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    p.add_argument("stage", nargs="?", default="all", choices=("prepare", "train", "finish", "all"))
    p.add_argument("--tiny", action="store_true", help="small sample, small model, CPU")
    p.add_argument("--data", type=Path, default=DATA, help="folder with the open pictures")
    p.add_argument(
        "--work",
        type=Path,
        default=Path("demo_image_work"),
        help="folder for everything in between",
    )
    p.add_argument(
        "--out", type=Path, default=None, help="folder of the exported model (default: WORK/export)"
    )
    p.add_argument("--seconds", type=float, default=None, help="seconds of training")
    p.add_argument("--steps", type=int, default=None, help="steps instead of seconds")
    p.add_argument(
        "--deadline", type=float, default=None, help="end of training, in seconds since the epoch"
    )
    p.add_argument("--rows", type=int, default=None, help="pictures per step")
    p.add_argument("--lr", type=float, default=None)
    p.add_argument("--device", default=None)
    p.add_argument("--workers", type=int, default=None, help="processes that plan scenes")
    return p


def configure(args: argparse.Namespace) -> Recipe:
    """The recipe with the command line's changes."""
    recipe = TINY if args.tiny else FULL
    changes: dict = {
        key: value for key in ("rows", "lr", "device") if (value := getattr(args, key)) is not None
    }
    if args.device == "cpu":
        changes["compile"] = False
    clock = {key: getattr(args, key) for key in ("steps", "seconds", "deadline")}
    if any(value is not None for value in clock.values()):
        changes |= clock
    if args.workers is not None:
        recipe = replace(recipe, sample=replace(recipe.sample, workers=args.workers))
    return replace(recipe, train=replace(recipe.train, **changes))


def main(argv: list[str] | None = None) -> None:
    """Run one stage or all."""
    args = parser().parse_args(argv)
    recipe, work = configure(args), args.work
    work.mkdir(parents=True, exist_ok=True)
    if args.stage in ("prepare", "all"):
        prepare(recipe, args.data, work)
    if args.stage in ("train", "all"):
        train(recipe, args.data, work)
    if args.stage in ("finish", "all"):
        out = args.out or work / "export"
        finish(recipe, args.data, work, out)
        print(f"exported to {out}")


if __name__ == "__main__":
    main()
