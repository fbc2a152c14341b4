"""`edgert demo`: convert a checkpoint, load the chat model, hear a story, and what to type next."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .sampling import read_answer
from .settings import Loader, emit_json, json_option, megabytes, say, session_options, show

if TYPE_CHECKING:
    from ..text.model import TextModel
    from ..text.results import Generation

STORY, QUESTION = "Tell me a short story about a mouse.", "What does a cow eat?"
STORY_SAMPLING = {"temperature": 0.8, "seed": 5}  # greedy stories mostly follow one plot


@click.command("demo")
@click.option(
    "-n",
    "--max-tokens",
    default=300,
    show_default=True,
    type=click.IntRange(1),
    help="Longest answer.",
)
@session_options
@json_option
def command(
    max_tokens: int,
    loader: Loader,
    as_json: bool,
) -> int:
    """Convert the small checkpoint in this package, then hear a story from its chat model."""
    from ..demo import demo_bundle
    from ..machine.doctor import folder_bytes
    from .generate import answer_object

    def tell(text: str) -> None:
        if not as_json:
            say(text)

    conversion = _convert()
    tell(
        f"{conversion['name']}: a checkpoint of {megabytes(conversion['checkpoint_bytes'])} became "
        f"a bundle of {megabytes(conversion['bundle_bytes'])} in {conversion['seconds']:.2f} s"
    )
    path, answers, cut = demo_bundle(), [], False
    size = folder_bytes(path)
    with loader.load(path) as model:
        tell(f"{model.name}: {megabytes(size)} on disk, loaded in {model.load_s:.2f} s")
        for text, sampling in ((STORY, STORY_SAMPLING), (QUESTION, {"temperature": 0.0})):
            options = {**sampling, "max_tokens": max_tokens}
            answer, cut = _ask(model, text, options, quiet=as_json)
            answers.append({"prompt": text} | answer_object(path, answer))
            tell(
                f"({answer.usage.completion_tokens} tokens at {answer.timings.generation_tps:.0f} "
                f"a second, the first after {answer.timings.first_token_s * 1e3:.0f} ms)"
            )
            if cut:
                break
        load_s = model.load_s
    if as_json:
        emit_json({"schema": 1, "bundle": str(path), "bundle_bytes": size, "load_s": load_s,
                   "conversion": conversion, "answers": answers})  # fmt: skip
    elif not cut:
        say(f"\n{NEXT}")
    return 130 if cut else 0


def _convert() -> dict[str, Any]:
    """Convert the checkpoint into a temporary place: names, bytes and seconds."""
    from ..converters.convert import convert
    from ..demo import demo_checkpoint
    from ..machine.doctor import folder_bytes

    source = demo_checkpoint()
    with tempfile.TemporaryDirectory(prefix="edgert-demo-") as folder:
        report = convert(source, Path(folder) / f"{source.name}.edge", golden=False, progress=False)
    return {
        "name": report.name,
        "checkpoint_bytes": folder_bytes(source),
        "bundle_bytes": report.bundle_bytes,
        "seconds": report.seconds,
    }


def _ask(
    model: TextModel, text: str, options: dict[str, Any], *, quiet: bool
) -> tuple[Generation, bool]:
    """One question in a chat of its own, shown as it is answered."""
    write = (lambda piece: None) if quiet else show
    write(f"\n> {text}\n")
    found = read_answer(model, model.stream_chat([{"role": "user", "content": text}], **options),
                        write)  # fmt: skip
    write("\n")
    return found


NEXT = """\
Type next:
  edgert chat                                              talk with this model
  edgert bench                                             how fast it is here
  edgert convert HuggingFaceTB/SmolLM2-135M-Instruct -o smol.edge
  edgert chat smol.edge                                    talk with a larger model
  edgert doctor                                            what this machine can do"""
