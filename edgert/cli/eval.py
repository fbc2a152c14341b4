"""`edgert eval`: perplexity of texts, accuracy on zero-shot tasks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from ..errors import RequestError
from .settings import Loader, emit_json, json_option, say, session_options

if TYPE_CHECKING:
    from ..bundle.reader import Bundle
    from ..evaluation.perplexity import TextScore
    from ..evaluation.zeroshot import TaskScore
    from ..session.base import Session
    from ..text.tokenizer import Tokenizer


@click.command("eval")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--text", type=click.Path(path_type=Path), help="UTF-8 text, .jsonl, also .gz or .xz."
)
@click.option("--split", metavar="MARK", help="Documents of --text are separated by this mark.")
@click.option("--window", type=int, help="Tokens seen at once; default: the context, at most 1024.")
@click.option("--stride", type=int, help="Tokens between windows; default: half a window.")
@click.option(
    "--task",
    "tasks",
    multiple=True,
    help="A task or a text by name, or all tasks; may be repeated.",
)
@click.option("--data", type=click.Path(path_type=Path), help="Folder with their files.")
@click.option("--limit", type=click.IntRange(1), help="Only the first examples of each task.")
@session_options
@json_option
def command(
    bundle: Path,
    text: Path | None,
    split: str | None,
    window: int | None,
    stride: int | None,
    tasks: tuple[str, ...],
    data: Path | None,
    limit: int | None,
    loader: Loader,
    as_json: bool,
) -> int:
    """Measure BUNDLE on a text and on zero-shot tasks.

    Tasks: blimp, lambada, piqa, arc-easy, copa, winogrande, openbookqa, with the definitions of
    lm-eval 0.4. Texts by name: wikipedia, wikitext2, wikitext2-test, novels, document by document
    in windows that do not overlap.
    """
    if text is None and not tasks:
        raise click.UsageError("nothing to measure: give --text FILE, --task NAME, or both")
    if tasks and data is None:
        raise click.UsageError("--task needs --data, the folder with the tasks' files")
    from ..bundle.reader import Bundle
    from ..text.tokenizer import Tokenizer

    with Bundle.open(bundle, verify=loader.verify) as opened:
        tokenizer = Tokenizer.from_bundle(opened)
        session = loader.session(opened)
        try:
            start = start_id(opened)
            found: dict[str, Any] = {"schema": 1, "bundle": str(bundle), "device": session.device}
            if text is not None:
                score = _text(session, tokenizer, text, split, window, stride, start)
                found |= {"text": str(text), **score.to_dict()}
                if not as_json:
                    _print_text(text, score)
            if data is not None and tasks:
                scores = dict(_tasks(session, tokenizer, tasks, data, limit, start))
                found["tasks"] = {name: msgspec.to_builtins(s) for name, s in scores.items()}
                if not as_json:
                    _print_tasks(scores)
        finally:
            session.close()
    if as_json:
        emit_json(found)
    return 0


def start_id(bundle: Bundle) -> int:
    """The id that stands for an empty beginning: BOS, else the first end token."""
    text = bundle.manifest.text_spec
    return text.eos_token_ids[0] if text.bos_token_id is None else text.bos_token_id


def _text(
    session: Session,
    tokenizer: Tokenizer,
    path: Path,
    split: str | None,
    window: int | None,
    stride: int | None,
    start: int,
) -> TextScore:
    from ..evaluation.perplexity import read_documents, score_text

    documents = read_documents(path, split=split)
    with _bar("windows") as progress:
        return score_text(
            session, tokenizer, documents,
            start=start, window=window, stride=stride, progress=progress,
        )  # fmt: skip


def _tasks(
    session: Session,
    tokenizer: Tokenizer,
    names: tuple[str, ...],
    data: Path,
    limit: int | None,
    start: int,
) -> Iterator[tuple[str, TaskScore | TextScore]]:
    from ..evaluation.corpora import TEXTS, load_text
    from ..evaluation.perplexity import WINDOW, score_text
    from ..evaluation.zeroshot import TASKS, load_task, score_task

    chosen = dict.fromkeys(name for n in names for name in (TASKS if n == "all" else (n,)))
    unknown = sorted(set(chosen) - set(TASKS) - set(TEXTS))
    if unknown:
        raise RequestError(
            f"task {unknown[0]!r} is unknown, expected all or some of {sorted(TASKS)} and of the "
            f"texts {sorted(TEXTS)}",
            code="task",
            hint="edgert eval --help",
        )
    for name in chosen:
        with _bar(name) as progress:
            if name in TASKS:
                examples = load_task(name, data, limit=limit)
                yield (
                    name,
                    score_task(session, tokenizer, name, examples, start=start, progress=progress),
                )
            else:
                size = min(session.context, WINDOW)
                yield name, score_text(
                    session, tokenizer, load_text(name, data)[:limit],
                    start=start, window=size, stride=size, progress=progress,
                )  # fmt: skip


@contextmanager
def _bar(label: str) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr where a person looks at it."""
    from tqdm import tqdm

    with tqdm(desc=label, disable=not sys.stderr.isatty(), leave=False) as bar:

        def progress(count: int) -> None:
            bar.update(count)

        yield progress


def _print_text(path: Path, score: TextScore) -> None:
    click.echo(f"perplexity     {score.perplexity:.4f}")
    click.echo(f"nll per token  {score.nll_per_token:.5f} nats")
    click.echo(f"bits per byte  {score.bits_per_byte:.5f}")
    click.echo(
        f"of {score.tokens} tokens, {score.bytes} bytes, {score.documents} documents of {path}, "
        f"in windows of {score.window} tokens moved on by {score.stride}"
    )


def _print_tasks(scores: dict[str, TaskScore | TextScore]) -> None:
    from ..evaluation.perplexity import TextScore

    for name, score in scores.items():
        if isinstance(score, TextScore):
            click.echo(
                f"{name:14} bits per byte {score.bits_per_byte:.4f}, perplexity "
                f"{score.perplexity:.4f}  ({score.documents} documents, {score.bytes} bytes)"
            )
            continue
        parts = []
        for metric, value in score.metrics.items():
            error = score.metrics.get(f"{metric}_stderr")
            if not metric.endswith("_stderr"):
                parts.append(f"{metric} {value:.4f}" + (f" ± {error:.4f}" if error else ""))
        click.echo(f"{name:14} {', '.join(parts)}  ({score.examples} examples)")
        if score.truncated:
            say(f"{name}: {score.truncated} prompts were longer than the context")
