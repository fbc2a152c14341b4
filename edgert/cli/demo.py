"""`edgert demo`: from the checkpoint in this package to a story, and what to type next."""

from __future__ import annotations

import time

import click

from .sampling import read_answer
from .settings import emit_json, json_option, megabytes, say, session_options, show


@click.command("demo")
@click.option(
    "-n",
    "--max-tokens",
    default=200,
    show_default=True,
    type=click.IntRange(1),
    help="Longest story.",
)
@session_options
@json_option
def command(
    max_tokens: int, threads: int | None, device: str, ctx_size: int | None, as_json: bool
) -> int:
    """Convert the small model in this package into a bundle and let it tell a story."""
    from ..api import load
    from ..demo import NAME, PROMPT, demo_bundle, demo_checkpoint
    from ..diagnosis import folder_bytes
    from .generate import answer_object

    start = time.perf_counter()
    path = demo_bundle(progress=say)
    made_s = time.perf_counter() - start
    source, size = folder_bytes(demo_checkpoint()), folder_bytes(path)
    if not as_json:
        say(f"{NAME}: checkpoint {megabytes(source)}, bundle {megabytes(size)} in {path}")
    with load(path, device=device, threads=threads, ctx_size=ctx_size) as model:
        if not as_json:
            say(f"ready after {made_s:.2f} s for the bundle and {model.load_s:.2f} s to load it\n")
            show(PROMPT)
        stream = model.stream(PROMPT, max_tokens=max_tokens, temperature=0.0)
        answer, cut = read_answer(model, stream, (lambda piece: None) if as_json else show)
    if as_json:
        sizes = {"checkpoint_bytes": source, "bundle_bytes": size, "prompt": PROMPT}
        emit_json(answer_object(path, answer) | sizes | {"prepared_s": made_s})
    else:
        show("\n")
        say(
            f"\n{answer.usage.completion_tokens} tokens at {answer.timings.generation_tps:.0f} a "
            f"second, the first after {answer.timings.first_token_s * 1e3:.0f} ms\n\n{NEXT}"
        )
    return 130 if cut else 0


NEXT = """\
Type next:
  edgert generate -p "The little dog"                      another story
  edgert convert HuggingFaceTB/SmolLM2-135M-Instruct -o smol.edge
  edgert chat smol.edge                                    talk with a larger model
  edgert doctor                                            what this machine can do"""
