"""A bundle's draft head, from prompts to a bundle with it."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ... import limits
from ...bundle.reader import Bundle
from ...errors import ConvertError
from ...kernels.encodings import asked
from ...session.options import SessionOptions
from ...storage.replace import remove_folder
from ...text.model import TextModel
from ...text.tokenizer import Tokenizer
from ..convert import (
    free_place,
    told_where_work_stays,
    translated_os_errors,
    without_new_folders,
)
from ..heal.ranks import Ranks, joined, local_device
from .answers import ByRuntime, OnTorch, Writer, answered
from .attach import attach
from .options import TrainedHead, TrainOptions
from .prompts import read_prompts
from .saved import FILES, load_head, save_head
from .target import Ids, Target
from .training import DIVERGED, check_options, train_head

HELD = 16  # prompts that are measured on and not trained on, at most; a tenth of few ones
WORK = "draft-work"


@dataclass(frozen=True)
class DraftRequest:
    """What head a bundle shall get.

    data: prompts, see `read_prompts`; or head: a folder with a trained head instead. train: how.
    answers: prompts that are answered at most; answer: tokens of an answer; at_once: prompts
    together. quant: how the head's matrices are stored. force: replace a bundle. keep: leave the
    work folder beside the output. progress: show bars. Raises ConvertError for values that mean
    nothing.
    """

    data: Path | None = None
    head: Path | None = None
    train: TrainOptions = field(default_factory=TrainOptions)
    answers: int = 50_000
    answer: int = 256
    at_once: int = 64
    quant: str = "int4"
    force: bool = False
    keep: bool = False
    progress: bool = False
    threads: int | None = None

    def __post_init__(self) -> None:
        if (self.data is None) == (self.head is None):
            found = "neither data nor head" if self.data is None else "both data and head"
            raise ConvertError(
                f"a draft request has {found}, expected one of them",
                code="draft-options",
                hint="data: prompts to train on; head: a folder with a trained head instead",
            )
        if self.quant not in asked():
            raise _wrong("quant", self.quant, f"one of {sorted(asked())}")
        for name in ("answers", "answer", "at_once"):
            if not 1 <= getattr(self, name) <= limits.TRAINING_BATCH:
                raise _wrong(name, getattr(self, name), f"1 to {limits.TRAINING_BATCH}")

    def key(self) -> list[Any]:
        """What answers and head depend on, besides model and prompts."""
        return [self.train.key(), self.answer, self.at_once]


@dataclass(frozen=True)
class DraftReport:
    """told: of the training, see `TrainedHead`. measured: see `attach`. nbytes: of the head. rank:
    of this process under torchrun; the first one has written the bundle, others measure nothing."""

    path: str
    told: Mapping[str, Any]
    measured: Mapping[str, float]
    nbytes: int
    seconds: float
    rank: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {
            "path": self.path, "training": dict(self.told), "measured": dict(self.measured),
            "bytes": self.nbytes, "seconds": self.seconds,
        }  # fmt: skip


def _wrong(name: str, value: object, expected: str) -> ConvertError:
    return ConvertError(
        f"draft {name} is {str(value)[:80]!r}, expected {expected}", code="draft-options"
    )


def make(
    target: str | os.PathLike[str], out: str | os.PathLike[str], request: DraftRequest
) -> DraftReport:
    """`draft`, which says what is raised."""
    out, start = free_place(out, force=request.force), time.perf_counter()
    work = out.with_name(f"{out.name}.{WORK}")  # all ranks share it
    _check_apart(request, out, work)
    ranks, held = Ranks(), list[Ids]()
    with (
        Bundle.open(target) as bundle, told_where_work_stays(work), without_new_folders(out),
        _without_empty_ones(work), translated_os_errors(out),
    ):  # fmt: skip
        if request.head is not None:
            head = load_head(request.head)
        else:
            ranks = joined(local_device(request.train.device))
            head, held = _trained(bundle, request, work, ranks)
            ranks.wait()  # all have it: the first one may clear up
        nbytes, measured = 0, dict[str, float]()
        if ranks.rank == 0:
            nbytes, measured = attach(
                bundle, out, head, held, quant=request.quant, threads=request.threads
            )
    if request.head is None and not request.keep and ranks.rank == 0:
        remove_folder(work)  # a head from elsewhere left none, and may come from there
    seconds = time.perf_counter() - start
    return DraftReport(str(out), head.told, measured, nbytes, seconds, ranks.rank)


def _check_apart(request: DraftRequest, out: Path, work: Path) -> None:
    """Raise ConvertError for what is to be read in a folder that is replaced or removed."""
    for name, given, gone in (("data", request.data, (out, work)), ("head", request.head, (out,))):
        for folder in gone:
            if given is not None and Path(given).resolve().is_relative_to(folder.resolve()):
                raise ConvertError(
                    f"draft {name} is {given}, which goes with {folder}, expected another place",
                    code="draft-options",
                    hint="move it, or choose another output name",
                )


@contextmanager
def _without_empty_ones(work: Path) -> Iterator[None]:
    """After an error, folders in which nothing was kept are removed."""
    try:
        yield
    except BaseException:
        for folder in (*work.glob("*"), work):
            with suppress(OSError):  # it is no folder, or holds something
                folder.rmdir()
        raise


def _trained(
    bundle: Bundle, request: DraftRequest, work: Path, ranks: Ranks
) -> tuple[TrainedHead, list[Ids]]:
    """The head, and prompts that it did not see."""
    tokenizer = Tokenizer.from_bundle(bundle)
    prompts, held = _prompts(bundle, tokenizer, request)
    folder = work / _key(bundle, prompts, request)
    if (folder / FILES[1]).exists():
        return load_head(folder), held
    device = local_device(request.train.device)
    graph, weights = bundle.graph(), bundle.weights()
    target = Target(graph, weights, device, half=device.startswith("cuda"))
    check_options(graph, target.vocabulary, request.train, ranks)
    with ExitStack() as stack:
        writer = _writer(stack, bundle, target, prompts, request, tokenizer.eos_token_ids)
        ids = answered(
            prompts, writer, folder, batch=request.at_once, seed=request.train.seed, ranks=ranks
        )
    try:
        head = train_head(
            graph, weights, ids, request.train, always=_always(tokenizer), folder=folder,
            progress=request.progress, target=target,
        )  # fmt: skip
    except ConvertError as error:
        if error.code != DIVERGED and not request.keep:  # the same answers would be refused again
            remove_folder(folder)
        raise
    if ranks.rank == 0:
        save_head(head, folder)
    return head, held


def _prompts(
    bundle: Bundle, tokenizer: Tokenizer, request: DraftRequest
) -> tuple[list[Ids], list[Ids]]:
    """To train on, and to measure on."""
    longest = bundle.graph().context - request.answer
    if request.data is None or longest < 2:
        raise _wrong("answer", request.answer, f"less than {bundle.graph().context - 1} tokens")
    template = None
    if bundle.manifest.text_spec.chat_template is not None:
        from ...text.template import ChatTemplate

        template = ChatTemplate.from_bundle(bundle, tokenizer)
    found = read_prompts(request.data, tokenizer, template, longest=longest, answer=request.answer)
    count = min(HELD, len(found) // 10) or 1
    return (found[:-count] or found)[: request.answers], found[-count:]


def _always(tokenizer: Tokenizer) -> list[int]:
    """Ids that a head can guess however rare they are: ends, and tokens that steer a chat."""
    steering = [tokenizer.encode(text, special=True) for text in sorted(tokenizer.control)]
    return [*tokenizer.eos_token_ids, *(ids[0] for ids in steering if len(ids) == 1)]


def _writer(
    stack: ExitStack, bundle: Bundle, target: Target, prompts: Sequence[Ids],
    request: DraftRequest, ends: Sequence[int],
) -> Writer:  # fmt: skip
    """What answers the prompts. The runtime's model is closed with the stack."""
    longest = max(map(len, prompts))
    if OnTorch.takes(target):
        return OnTorch(target, min(request.at_once, len(prompts)), longest, request.answer, ends)
    again = Bundle.open(bundle.path)
    try:
        model = TextModel.from_bundle(again, SessionOptions(threads=request.threads))
    except BaseException:
        again.close()
        raise
    return ByRuntime(stack.enter_context(model), request.answer)


def _key(bundle: Bundle, prompts: Sequence[Ids], request: DraftRequest) -> str:
    """A name for everything that a head depends on."""
    made = hashlib.sha256(bundle.fingerprint.encode())
    made.update(json.dumps(request.key(), sort_keys=True).encode())
    made.update(np.concatenate(prompts).tobytes())
    return made.hexdigest()[:16]
