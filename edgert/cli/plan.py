"""`edgert plan`: which model, bits and compression to choose, before converting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import RequestError
from .settings import check_outputs, emit_json, json_option, say

if TYPE_CHECKING:
    from ..planning.cards import Card, Workload
    from ..planning.decide import Plan
    from ..scaling.frontier import Frontier

TEXT_ONLY = {  # options that say nothing of pictures, by their names here
    "trained": "--tokens", "fits": "--fits", "task": "--task", "bits": "--bits",
    "ratios": "--ratio", "allow_risky": "--allow-risky", "drafts": "--drafts",
    "prompt_tokens": "--prompt-tokens", "new_tokens": "--max-tokens", "context": "--ctx-size",
    "ttft_budget_s": "--ttft", "tok_budget_s": "--token",
}  # fmt: skip
NOTHING = 1  # exit code where no candidate keeps the limits


@click.command("plan")
@click.option("--device", required=True, metavar="NAME", help="A device profile, by name or file.")
@click.option("--workload", type=click.Path(path_type=Path), help="What is asked, in a TOML file.")
@click.option("--prompt-tokens", type=click.IntRange(1), help="Length of prompts; default: 512.")
@click.option(
    "--max-tokens", "new_tokens", type=click.IntRange(1), help="Of answers; default: 128."
)
@click.option("-c", "--ctx-size", "context", type=click.IntRange(1), help="Default: 2048.")
@click.option(
    "--ttft", "ttft_budget_s", type=float, metavar="S", help="Seconds to the first token."
)
@click.option("--token", "tok_budget_s", type=float, metavar="S", help="Seconds of each token.")
@click.option("--total", "total_budget_s", type=float, metavar="S",
              help="Seconds of an answer, or of a picture.")  # fmt: skip
@click.option("--kind", type=click.Choice(["chat", "vlm", "image"]), help="Default: chat.")
@click.option("--width", type=click.IntRange(1), help="Of pictures; default: the model's own.")
@click.option("--height", type=click.IntRange(1), help="Likewise.")
@click.option("--models", multiple=True, metavar="PATH",
              help="Cards (.toml) or bundles; default: SmolLM2's sizes, or the drawing model in "
              "the package.")  # fmt: skip
@click.option("--tokens", "trained", type=float, metavar="N",
              help="Tokens that bundles were trained on.")  # fmt: skip
@click.option("--fits", type=click.Path(path_type=Path),
              help="Fits of `edgert frontier fit -o`; default: a shape without data.")  # fmt: skip
@click.option("--task", help="Which of the fits; default: the first.")
@click.option("--bits", multiple=True, type=click.IntRange(2, 16), help="Only these.")
@click.option("--ratio", "ratios", multiple=True, type=click.FloatRange(0, 0.9), help="Only these.")
@click.option("--risk", default=0.5, show_default=True, type=click.FloatRange(0, 1),
              help="0: by the mean, 1: by the worst 5 %.")  # fmt: skip
@click.option("--allow-risky", is_flag=True, help="Also 2 and 3 bits without healing.")
@click.option("--drafts", is_flag=True, help="Also pairs with a smaller model that drafts.")
@click.option("--report", type=click.Path(path_type=Path), help="Write a Markdown page here.")
@click.option("--picture", "drawn", type=click.Path(path_type=Path), help="Draw it here, as PNG.")
@json_option
def command(
    device: str,
    workload: Path | None,
    models: tuple[str, ...],
    trained: float | None,
    fits: Path | None,
    task: str | None,
    bits: tuple[int, ...],
    ratios: tuple[float, ...],
    risk: float,
    allow_risky: bool,
    drafts: bool,
    report: Path | None,
    drawn: Path | None,
    as_json: bool,
    **asked: Any,
) -> int:
    """Choose model, bits, compression and cache for a device and a workload; for pictures (--kind
    image) their steps, and how many of them are computed.

    Exits with 1 where nothing keeps the limits.
    """
    from ..devices.load import load
    from ..planning import page
    from ..storage.aside import write_output

    check_outputs({"--report": report, "--picture": drawn}, device, workload, fits, *models)
    wanted = _workload(workload, asked, click.get_current_context().params)
    if wanted.kind == "image":
        plan = _pictures(device, wanted, models, risk)
    else:
        from ..planning.decide import prescribe

        grid: dict[str, Any] = {"allow_risky": allow_risky, "drafts": drafts}
        grid |= {name: value for name, value in (("bits", bits), ("ratios", ratios)) if value}
        plan = prescribe(
            load(device), wanted, _cards(models, trained), frontier=_frontier(fits, task),
            risk=risk, **grid,
        )  # fmt: skip
    if report is not None:
        write_output(report, page.markdown(plan).encode("utf-8"))
    if drawn is not None:
        page.picture(plan, drawn)
    if as_json:
        emit_json(plan.to_dict())
    else:
        click.echo(page.markdown(plan), nl=False)
    if plan.choice is None:
        say("nothing keeps the limits: relax one, or name smaller models")
    return 0 if plan.choice else NOTHING


def _check_options(kind: Any, given: dict[str, Any]) -> None:
    """Raises UsageError for options that a kind of workload has no use for."""
    from ..planning.candidates import BITS

    if kind == "image":
        odd = [label for name, label in TEXT_ONLY.items() if given.get(name)]
        if odd:
            raise click.UsageError(f"{odd[0]} is of text, a plan of pictures has no use for it")
    elif given["width"] or given["height"]:
        raise click.UsageError("--width and --height are of pictures, expected --kind image")
    if few := [bits for bits in given["bits"] if bits not in BITS]:
        raise click.UsageError(f"--bits {few[0]}, expected some of {BITS}")


def _pictures(device: str, wanted: Workload, models: tuple[str, ...], risk: float) -> Plan:
    """The plan of pictures: bundles that draw, and measured scores from cards."""
    from ..bundle.reader import Bundle
    from ..demo import image_bundle
    from ..devices.load import load
    from ..image.expected import Expected
    from ..planning.drawings import Drawn, read_rows
    from ..planning.pictures import prescribe_pictures

    tables = [Path(model) for model in models if model.endswith(".toml")]
    rows = [row for table in tables for row in read_rows(table)]
    drawn: list[Drawn] = []
    for path in [m for m in models if not m.endswith(".toml")] or [str(image_bundle())]:
        with Bundle.open(path) as bundle:
            stored = sum(file.size for file in bundle.manifest.files.values())
            drawn.append(Drawn(bundle.manifest.name, Expected(bundle), float(stored), rows))
    names = sorted({one.name for one in drawn})
    if odd := [row.model for row in rows if row.model not in names]:
        raise RequestError(
            f"a [[picture]] is of {odd[0][:60]!r}, expected one of {names}", code="plan-models",
            hint="name its bundle with another --models",
        )  # fmt: skip
    return prescribe_pictures(load(device), wanted, drawn, risk)


def _workload(path: Path | None, asked: dict[str, Any], given: dict[str, Any]) -> Workload:
    """Of a file and what options say. given: all options."""
    from ..budget.limits import read_toml
    from ..planning.cards import workload_of

    values = read_toml(path, "workload") if path else {}
    values |= {name: value for name, value in asked.items() if value is not None}
    _check_options(values.get("kind"), given)
    return workload_of(values, str(path or "the workload"))


def _cards(models: tuple[str, ...], trained: float | None) -> Sequence[Card]:
    from ..bundle.reader import Bundle
    from ..planning.cards import SMOLLM2, card_of, read_cards

    found: list[Card] = []
    for model in models:
        path = Path(model)
        if path.suffix == ".toml":
            found += read_cards(path)
            continue
        if trained is None or not 1 <= trained <= 1e15:
            raise RequestError(
                f"{model}: how many tokens it was trained on is "
                + ("not known" if trained is None else f"{trained:g}, expected 1 to 1e15"),
                code="plan-tokens", hint="say it with --tokens, as in --tokens 6e9",
            )  # fmt: skip
        with Bundle.open(path) as bundle:
            found.append(card_of(bundle.graph(), bundle.manifest.name, tokens=trained))
    return found or SMOLLM2


def _frontier(path: Path | None, task: str | None) -> Frontier | None:
    if path is None:
        if task is not None:
            raise click.UsageError(f"--task {task[:60]!r} is one of the fits, expected --fits FILE")
        return None
    from ..scaling.fits import read_fit

    return read_fit(path, task)
