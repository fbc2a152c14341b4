"""Zero-shot accuracy by log-likelihood, with the definitions of EleutherAI's lm-eval 0.4.

acc       share of examples whose right answer has the largest log-likelihood
acc_norm  the same after dividing by the answer's length in characters
LAMBADA   acc: the last word is what greedy decoding gives; perplexity: exp of the mean negative
          log-likelihood of the last word

Prompts and the space between prompt and answer are lm-eval's too, COPA's two spaces included. An
example that is longer than the context loses its beginning, as there; `truncated` counts them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from ..errors import RequestError
from ..session.base import Session
from .finite import finite
from .perplexity import LARGEST, Encoder, read_text
from .scoring import Progress, Request, Score, Scorer

Row = Mapping[str, Any]


class Example(NamedTuple):
    """Pairs of (context, answer) to compare, the right one's index, the answers' lengths in
    characters, and the group the example is averaged in."""

    pairs: tuple[tuple[str, str], ...]
    gold: int
    lengths: tuple[int, ...]
    group: str = ""


class Task(NamedTuple):
    """file: its name under the data folder, without `.gz` or `.xz`."""

    file: str
    read: Callable[[Row], Example]
    metrics: tuple[str, ...]


class TaskScore(msgspec.Struct, frozen=True):
    """Result of `score_task`: metrics by name, standard errors as `<name>_stderr`; groups: acc of
    each group (BLiMP's paradigms); truncated: examples whose beginning was cut off."""

    task: str
    examples: int
    metrics: dict[str, float]
    truncated: int
    groups: dict[str, float] = {}


def _choices(row: Row, context: str, *, lead: str = " ") -> Example:
    choices = [str(choice) for choice in row["choices"]]
    pairs = tuple((context, lead + choice) for choice in choices)
    return Example(pairs, int(row["gold"]), tuple(map(len, choices)))


def _blimp(row: Row) -> Example:
    good, bad = row["sentence_good"], row["sentence_bad"]
    return Example((("", f" {good}"), ("", f" {bad}")), 0, (len(good), len(bad)), row["UID"])


def _lambada(row: Row) -> Example:
    word = row["continuation"].strip()
    return Example(((row["context"], f" {word}"),), 0, (len(word),))


def _question(row: Row) -> Example:
    return _choices(row, row["query"].removesuffix("\n") + "\nAnswer:")


def _copa(row: Row) -> Example:
    premise, _, connector = row["query"].rpartition(", ")
    return _choices(row, f"{premise} {connector}", lead="  ")


def _openbookqa(row: Row) -> Example:
    return _choices(row, row["query"])


def _winogrande(row: Row) -> Example:
    rest = row["continuation"].strip()
    options = row["context_options"]
    pairs = tuple((option, f" {rest}") for option in options)
    return Example(pairs, int(row["gold"]), tuple(map(len, options)))


TASKS: Mapping[str, Task] = {
    "blimp": Task("blimp.jsonl", _blimp, ("acc",)),
    "lambada": Task("lambada_openai.jsonl", _lambada, ("perplexity", "acc")),
    "piqa": Task("piqa.jsonl", _question, ("acc", "acc_norm")),
    "arc-easy": Task("arc_easy.jsonl", _question, ("acc", "acc_norm")),
    "copa": Task("copa.jsonl", _copa, ("acc",)),
    "winogrande": Task("winogrande.jsonl", _winogrande, ("acc",)),
    "openbookqa": Task("openbook_qa.jsonl", _openbookqa, ("acc", "acc_norm")),
}


def load_task(name: str, data: Path, *, limit: int | None = None) -> list[Example]:
    """Examples of a task from the files under `data` (or its bench-* folders).

    limit: the first so many, of each paradigm where the task has some. Raises RequestError.
    """
    if name not in TASKS:
        raise RequestError(
            f"task {name!r} is unknown, expected one of {sorted(TASKS)}", code="task"
        )
    path = _find(data, TASKS[name].file)
    examples = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line:
            examples.append(_example(TASKS[name], path, number, line))
    groups = groupby(examples, lambda example: example.group)
    return [example for _, some in groups for example in list(some)[:limit]]


def _find(data: Path, file: str) -> Path:
    folders = [data, *sorted(data.glob("bench-*"))]
    for folder in folders:
        for suffix in ("", ".gz", ".xz"):
            if (path := folder / f"{file}{suffix}").is_file():
                return path
    raise RequestError(
        f"no {file}, {file}.gz or {file}.xz in {data} or its bench-* folders",
        code="task-data",
        hint="name the folder that holds the task's file with --data",
    )


def _example(task: Task, path: Path, number: int, line: str) -> Example:
    try:
        example = task.read(json.loads(line))
        if not 0 <= example.gold < len(example.pairs):
            raise ValueError(f"answer {example.gold} of {len(example.pairs)} is the right one")
        if not all(answer.strip() for _, answer in example.pairs):
            raise ValueError("an answer is empty")
        return example
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RequestError(
            f"{path}: line {number} is not an example of this task: "
            f"{type(error).__name__}: {error}",
            code="task-data",
        ) from None


def encode_pair(
    tokenizer: Encoder, context: str, answer: str, *, start: int, longest: int
) -> tuple[Request, bool]:
    """Token ids of a pair, as lm-eval cuts them; and whether they had to be truncated.

    Spaces at the end of the context belong to the answer; both are encoded in one go and split
    after as many ids as the context alone has. Where tokens reach over the border and that leaves
    no answer (an error in lm-eval), the answer is encoded apart. An empty context is the id
    `start`. longest: inputs that the session holds.
    """
    kept = context.rstrip()
    answer, context = context[len(kept) :] + answer, kept
    if context:
        whole = tokenizer.encode(context + answer, bos=True)
        alone = tokenizer.encode(context, bos=True)
        front, scored = tuple(alone), tuple(whole[len(alone) :] or tokenizer.encode(answer))
    else:
        front, scored = (start,), tuple(tokenizer.encode(answer))
        if scored[:1] == front:
            scored = scored[1:]
    if len(scored) > longest or not scored:
        raise RequestError(
            f"an answer of {len(scored)} tokens, expected 1 to {longest}", code="task-length"
        )
    excess = len(front) + len(scored) - 1 - longest
    return Request(front[max(0, excess) :], scored), excess > 0


def score_task(
    session: Session,
    tokenizer: Encoder,
    name: str,
    examples: Sequence[Example],
    *,
    start: int,
    progress: Progress | None = None,
) -> TaskScore:
    """Score examples of task `name`; start: id that stands for an empty context. Raises
    RequestError for examples that cannot be scored, DeviceError for a model that computes NaN."""
    if not examples:
        raise RequestError(f"task {name!r} has no examples", code="task-data")
    encoded = [
        encode_pair(tokenizer, context, answer, start=start, longest=session.context)
        for example in examples
        for context, answer in example.pairs
    ]
    scores = finite(Scorer(session).score([request for request, _ in encoded], progress))
    cuts = list(accumulate((len(example.pairs) for example in examples), initial=0))
    parts = [scores[a:b] for a, b in pairwise(cuts)]
    return TaskScore(
        task=name,
        examples=len(examples),
        metrics=_metrics(TASKS[name].metrics, examples, parts),
        truncated=sum(truncated for _, truncated in encoded),
        groups=_group_accuracy(examples, parts),
    )


def _metrics(
    names: Sequence[str], examples: Sequence[Example], parts: Sequence[Sequence[Score]]
) -> dict[str, float]:
    values: dict[str, float] = {}
    for name in names:
        if name == "perplexity":
            nll = -sum(part[0].logprob for part in parts) / len(parts)
            values[name] = math.exp(min(nll, LARGEST))
            continue
        hits = [_hit(name, e, part) for e, part in zip(examples, parts, strict=True)]
        values[name] = float(np.mean(hits))
        if len(hits) > 1:
            values[f"{name}_stderr"] = float(np.std(hits, ddof=1) / math.sqrt(len(hits)))
    return values


def _hit(metric: str, example: Example, part: Sequence[Score]) -> bool:
    if len(part) == 1:
        return part[0].greedy
    values = np.array([score.logprob for score in part])
    if metric == "acc_norm":
        values = values / np.array(example.lengths, np.float64)
    return int(np.argmax(values)) == example.gold


def _group_accuracy(
    examples: Sequence[Example], parts: Sequence[Sequence[Score]]
) -> dict[str, float]:
    hits: dict[str, list[bool]] = {}
    for example, part in zip(examples, parts, strict=True):
        if example.group:
            hits.setdefault(example.group, []).append(_hit("acc", example, part))
    return {group: float(np.mean(values)) for group, values in sorted(hits.items())}
