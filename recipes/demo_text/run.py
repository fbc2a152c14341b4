"""Command line of the recipe: `python -m recipes.demo_text.run STAGE`.

    prepare    texts -> tokenizer and token arrays
    pairs      short runs of AdamW, DASH and DASH+MSign at equal time
    train      pre-training and chat tuning, resuming if there is a checkpoint
    finish     evaluate the trained model and export it
    all        prepare, train, finish
`--tiny` runs `all` on a small sample in minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from . import data as corpus_data
from .evaluate import evaluate
from .export import export
from .model import TINY_MODEL, Llama, ModelConfig
from .optimizers import KINDS
from .tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from .train import TrainConfig, Trainer, read_log

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / ".." / "shared" / "data"


@dataclass(frozen=True)
class Recipe:
    """Everything a stage needs to know."""

    model: ModelConfig
    train: TrainConfig
    sample: corpus_data.Sample
    tokenizer_characters: int = 40_000_000
    evaluation_documents: int | None = None
    evaluation_characters: int | None = None  # of each document
    blimp_every: int = 1


FULL = Recipe(
    model=ModelConfig(),
    train=TrainConfig(optimizer="dash", lr=4e-3, weight_decay=0.25, seconds=1421.0, micro=32),
    sample=corpus_data.Sample(),
)
TINY = Recipe(
    model=TINY_MODEL,
    train=TrainConfig(
        steps=40,
        rows=4,
        warmup=4,
        device="cpu",
        compile=False,
        log_every=5,
        validate_every=0.5,
        checkpoint_every=0.0,
    ),
    sample=corpus_data.TINY,
    tokenizer_characters=400_000,
    evaluation_documents=2,
    evaluation_characters=20_000,
    blimp_every=500,
)


def prepare(recipe: Recipe, data: Path, work: Path) -> None:
    """Train the tokenizer, then write the token arrays."""
    texts = corpus_data.tokenizer_texts(
        data, characters=recipe.tokenizer_characters, sample=recipe.sample
    )
    tokenizer = train_tokenizer(texts, vocab_size=recipe.model.vocab)
    save_tokenizer(tokenizer, work / "tokenizer")
    corpus_data.prepare(data, work / "corpus", tokenizer, sample=recipe.sample)


def train(recipe: Recipe, work: Path, *, name: str = "final") -> Trainer:
    """One run below `work`/`name`."""
    trainer = Trainer(recipe.model, recipe.train, work / "corpus", work / name)
    trainer.run()
    return trainer


def pairs(
    recipe: Recipe, work: Path, *, seconds: float, kinds: tuple[str, ...] = KINDS
) -> list[dict]:
    """The same run with each optimizer, `seconds` of training each, without chat tuning."""
    cuda = torch.cuda.is_available()
    table = []
    for kind in kinds:
        config = replace(recipe.train, optimizer=kind, seconds=seconds, steps=None, chat_share=0.0)
        config = replace(config, validate_every=0.1, checkpoint_every=0.0)
        trainer = train(replace(recipe, train=config), work, name=f"paired_{kind}_lr{config.lr:g}")
        last = list(read_log(trainer.log_file))[-1]
        speed = round(last["tokens"] / last["seconds"])
        memory = round(torch.cuda.max_memory_allocated() / 2**30, 1) if cuda else None
        table.append(
            {
                "optimizer": kind,
                "lr": config.lr,
                **last,
                "tokens_per_second": speed,
                "peak_gib": memory,
            }
        )
        trainer.checkpoint.unlink()
        del trainer
        torch.compiler.reset()
        if cuda:
            torch.cuda.empty_cache()
    print(json.dumps({"paired": table}, indent=1), flush=True)
    return table


def finish(recipe: Recipe, data: Path, work: Path, out: Path) -> dict:
    """Evaluate the last checkpoint of the final run and export it to `out`."""
    saved = torch.load(work / "final" / "checkpoint.pt", map_location="cpu", weights_only=True)
    model = Llama(ModelConfig(**saved["model_config"])).to(recipe.train.device)
    model.load_state_dict(saved["model"])
    tokenizer = load_tokenizer(work / "tokenizer")
    results = evaluate(
        model,
        tokenizer,
        data,
        work / "final",
        documents=recipe.evaluation_documents,
        characters=recipe.evaluation_characters,
        every=recipe.blimp_every,
    )
    print(json.dumps(results, indent=1, ensure_ascii=False), flush=True)
    lines = list(read_log(work / "final" / "log.jsonl"))
    pairs_logs = sorted(work.glob("paired_*/log.jsonl"))
    notes = run_notes(recipe, lines, [(p.parent.name, list(read_log(p))) for p in pairs_logs])
    export(model, work / "tokenizer", results, out, notes=notes)
    return results


def run_notes(recipe: Recipe, lines: list[dict], paired: list[tuple[str, list[dict]]]) -> dict:
    """What the model card says about the run; `paired` holds (name, log) of the paired runs."""
    config, last = recipe.train, lines[-1]
    shares = lambda mix: ", ".join(f"{s.part} {100 * s.share:g} %" for s in mix)
    run = {
        "optimizer": config.optimizer,
        "peak learning rate": config.lr,
        "weight decay (matrices)": config.weight_decay,
        "dropout": recipe.model.dropout,
        "schedule": f"{config.warmup} warm-up steps, then a straight line to zero",
        "tokens per step": config.rows * recipe.model.context,
        "steps": last["step"],
        "tokens": last["tokens"],
        "seconds of training": last["seconds"],
        "pre-training rows": shares(config.pretrain),
        f"tuning rows (last {100 * config.chat_share:g} % of the run)": shares(config.chat),
    }
    curve = [line for line in lines if "valid_bpb" in line][:-1]  # the last one is logged twice
    return {"run": run, "curve": curve, "paired": [(name, log[-1]) for name, log in paired]}


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    p = argparse.ArgumentParser(
        prog="recipes.demo_text.run",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    p.add_argument(
        "stage", nargs="?", default="all", choices=("prepare", "pairs", "train", "finish", "all")
    )
    p.add_argument("--tiny", action="store_true", help="small sample, small model, CPU")
    p.add_argument("--data", type=Path, default=DATA, help="folder with the open texts")
    p.add_argument(
        "--work", type=Path, default=Path("demo_text_work"), help="folder for everything in between"
    )
    p.add_argument(
        "--out",
        type=Path,
        default=None,
        help="folder of the exported checkpoint (default: WORK/export)",
    )
    p.add_argument("--optimizer", choices=KINDS, default=None)
    p.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="optimizers of pairs")
    p.add_argument(
        "--seconds", type=float, default=None, help="seconds of training (per run for pairs)"
    )
    p.add_argument("--steps", type=int, default=None, help="steps instead of seconds")
    p.add_argument("--rows", type=int, default=None, help="rows of the context's length per step")
    p.add_argument("--lr", type=float, default=None)
    p.add_argument("--weight-decay", type=float, default=None)
    p.add_argument("--device", default=None)
    return p


def configure(args: argparse.Namespace) -> Recipe:
    """The recipe with the command line's changes."""
    recipe = TINY if args.tiny else FULL
    changes: dict = {
        key: value
        for key in ("optimizer", "rows", "lr", "weight_decay", "device")
        if (value := getattr(args, key)) is not None
    }
    if args.device == "cpu":
        changes["compile"] = False
    if args.steps is not None:
        changes |= {"steps": args.steps, "seconds": None}
    elif args.seconds is not None:
        changes |= {"seconds": args.seconds, "steps": None}
    return replace(recipe, train=replace(recipe.train, **changes))


def main(argv: list[str] | None = None) -> None:
    """Run one stage or all."""
    args = parser().parse_args(argv)
    recipe, work = configure(args), args.work
    if args.stage in ("prepare", "all"):
        prepare(recipe, args.data, work)
    if args.stage == "pairs":
        pairs(recipe, work, seconds=args.seconds or 60.0, kinds=tuple(args.kinds))
    if args.stage in ("train", "all"):
        train(recipe, work)
    if args.stage in ("finish", "all"):
        out = args.out or work / "export"
        finish(recipe, args.data, work, out)
        print(f"exported to {out}")


if __name__ == "__main__":
    main()
