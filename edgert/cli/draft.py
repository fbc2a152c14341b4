"""`edgert draft`: train a head that guesses for a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .settings import emit_json, json_option, megabytes


@click.command("draft")
@click.argument("target", type=click.Path(path_type=Path), metavar="TARGET.edge")
@click.option(
    "--data",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Prompts, which the model answers: chats or texts in JSON lines (.jsonl), or plain text "
    "to be continued.",
)
@click.option(
    "--head",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Put in a head that was trained elsewhere, instead of training one.",
)
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), metavar="OUT.edge",
    help="The bundle to write: the target with the head.",
)  # fmt: skip
@click.option(
    "--loss", default="lambda", show_default=True,
    type=click.Choice(("lambda", "alpha", "tv", "kl")),
    help="lambda and alpha aim at guesses that stand, kl at the model's law.",
)  # fmt: skip
@click.option("--eta", type=float, metavar="X", help="Of --loss lambda; default 3.")
@click.option(
    "--tokens", type=click.IntRange(1), metavar="N", help="Of training; default 50000000."
)
@click.option("--seconds", type=float, metavar="S", help="Of training, at most.")
@click.option(
    "--answers", type=click.IntRange(1), metavar="N", help="Prompts answered at most; 50000."
)
@click.option("--answer", type=click.IntRange(1), metavar="N", help="Tokens of an answer; 256.")
@click.option(
    "--vocabulary", type=click.IntRange(1), metavar="N",
    help="Tokens that the head can guess; default 16384, or a quarter of a small model's.",
)  # fmt: skip
@click.option("--batch", type=click.IntRange(1), metavar="N", help="Tokens a step; 32768.")
@click.option("--micro", type=click.IntRange(1), metavar="N", help="Tokens at a time; 16384.")
@click.option("--length", type=click.IntRange(1), metavar="N", help="Of a sequence; 512.")
@click.option("--rate", type=float, metavar="X", help="Peak learning rate; 0.001.")
@click.option("--seed", type=int, metavar="N", help="Of first weights and order; 42.")
@click.option("--device", metavar="NAME", help="Of torch: cuda, cpu; default: a GPU, if any.")
@click.option("--quant", default="int4", show_default=True, help="How it is stored.")
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@click.option("--keep", is_flag=True, help="Keep answers and training state beside the output.")
@click.option("-t", "--threads", type=click.IntRange(1), metavar="N")
@json_option
def command(
    target: Path, data: Path | None, head: Path | None, output: Path, as_json: bool,
    **options: Any,
) -> int:  # fmt: skip
    """Train a draft head for the model in TARGET.edge on its own answers; needs torch.

    A run that was stopped goes on where it was when it is started again with the same options.
    Under torchrun the processes share the work.
    """
    from ..converters.draft import draft
    from ..converters.draft.make import DraftRequest
    from ..converters.draft.options import TrainOptions

    if (data is None) == (head is None):
        raise click.UsageError("give either --data or --head")
    given = {name: value for name, value in options.items() if value is not None}
    names = ("loss", "eta", "tokens", "seconds", "batch", "micro", "length", "rate", "vocabulary",
             "seed", "device")  # fmt: skip
    train = TrainOptions(**{name: given.pop(name) for name in names if name in given})
    request = DraftRequest(data, head, train, progress=not as_json, **given)
    report = draft(target, output, request)
    if report.rank:  # it only took part in the training
        return 0
    if as_json:
        emit_json({"schema": 1, **report.to_dict()})
        return 0
    click.echo(f"{output}: a draft head of {megabytes(report.nbytes)}, {report.seconds:.0f} s")
    for mode in ("greedy", "sampled"):
        if (tau := report.measured.get(f"tau_{mode}")) is not None:
            share = report.measured[f"accepted_{mode}"]
            click.echo(f"  {mode}: {tau:.2f} tokens a step, {share:.0%} of its guesses stood")
    return 0
