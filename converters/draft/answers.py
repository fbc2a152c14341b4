"""A model's own answers, which its draft head learns to guess, written batch by batch and kept.

Models that remember by keys and values alone are computed on torch, many prompts at once; others by
the runtime, where their recurrent states live.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from ...errors import ConvertError
from ...kernels.states import KVState
from ..heal.ranks import Ranks
from .options import MARK
from .target import Decoder, Ids, Target

if TYPE_CHECKING:
    from ...text.model import TextModel

HEAT = (1.0, 1.0, 1.0, 0.7, 0.0)  # temperatures of a batch's prompts, in turn
KEPT = "answers"


class Writer(Protocol):
    """What answers a batch of prompts, each at its temperature; the same for the same seed."""

    def __call__(self, prompts: Sequence[Ids], heat: Sequence[float], seed: int) -> list[Ids]: ...


class OnTorch:
    """Answers of `count` tokens at most, of up to `batch` prompts of up to `longest` tokens."""

    def __init__(
        self, target: Target, batch: int, longest: int, count: int, ends: Sequence[int]
    ) -> None:
        self.target, self.count, self.ends = target, count, ends
        self.sizes = batch, longest + count
        self.decoder: Decoder | None = None

    @staticmethod
    def takes(target: Target) -> bool:
        """Whether a model remembers by keys and values alone."""
        return all(isinstance(state, KVState) for state in target.graph.states.values())

    def __call__(self, prompts: Sequence[Ids], heat: Sequence[float], seed: int) -> list[Ids]:
        self.decoder = self.decoder or Decoder(self.target, *self.sizes)
        device = self.target.device
        if torch.device(device).type == "cuda":
            torch.cuda.empty_cache()  # what batches of other lengths left lies in pieces
        random = torch.Generator(device).manual_seed(seed)
        warm = torch.tensor(list(heat), device=device)
        return self.decoder.write(prompts, self.count, warm, self.ends, random)


class ByRuntime:
    """The same by a loaded model, prompt beside prompt in its lanes."""

    def __init__(self, model: TextModel, count: int, lanes: int = 16) -> None:
        self.model, self.count, self.lanes = model, count, lanes

    def __call__(self, prompts: Sequence[Ids], heat: Sequence[float], seed: int) -> list[Ids]:
        def one(index: int) -> Ids:
            found = self.model.generate(
                prompts[index].tolist(), max_tokens=self.count, temperature=float(heat[index]),
                seed=seed + index, top_k=0, top_p=1.0, min_p=0.0, repeat_penalty=1.0, draft="none",
            )  # fmt: skip
            return np.asarray(found.token_ids, np.int32)

        with ThreadPoolExecutor(self.lanes) as pool:
            return list(pool.map(one, range(len(prompts))))


def split(flat: np.ndarray[Any, Any], sizes: np.ndarray[Any, Any]) -> list[Ids]:
    """Arrays end to end, as a list of int32 ones."""
    return [row.astype(np.int32) for row in np.split(flat, np.cumsum(sizes)[:-1])]


def batches(prompts: Sequence[Ids], size: int, seed: int) -> list[list[Ids]]:
    """Prompts of like length together, the batches in random order."""
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    starts = list(range(0, len(order), size))
    shuffled = np.random.default_rng(seed).permutation(len(starts))
    return [[prompts[i] for i in order[starts[at] : starts[at] + size]] for at in shuffled]


def answered(
    prompts: Sequence[Ids], writer: Writer, folder: Path, *, batch: int, seed: int,
    seconds: float = float("inf"), ranks: Ranks | None = None,
    told: Callable[[int, int], None] | None = None,
) -> Ids:  # fmt: skip
    """Prompts and answers end to end, in random order: ids, plus MARK on what was written.

    folder: keeps each batch, so that a run that was stopped goes on; all ranks share it, each
    writes its part of the batches. seconds: after which no further batch is begun. told(done,
    total): after each batch. Raises ConvertError where nothing was written.
    """
    ranks = ranks or Ranks()
    folder.mkdir(parents=True, exist_ok=True)
    start, every = time.perf_counter(), batches(prompts, batch, seed)
    for index, some in list(enumerate(every))[ranks.slice]:
        file = _file(folder, index)
        if not file.exists():
            if time.perf_counter() - start > seconds:
                break
            _write(file, some, writer, seed + 1000 * index)
        if told is not None:
            told(index + 1, len(every))
    ranks.wait()
    texts: list[Ids] = []
    for index in range(len(every)):
        if (file := _file(folder, index)).exists():
            with np.load(file) as found:
                texts += split(found["ids"], found["sizes"])
    if not texts:
        raise ConvertError(
            f"{len(prompts)} prompts were answered in no time, expected some answers",
            code="draft-text",
            hint="allow more seconds, or give prompts",
        )
    order = np.random.default_rng(seed).permutation(len(texts))
    return np.concatenate([texts[i] for i in order])


def _file(folder: Path, index: int) -> Path:
    return folder / f"{KEPT}-{index:05}.npz"


def _write(file: Path, prompts: Sequence[Ids], writer: Writer, seed: int) -> None:
    heat = [HEAT[i % len(HEAT)] for i in range(len(prompts))]
    answers = writer(prompts, heat, seed)
    texts = [np.concatenate([p, a | MARK]) for p, a in zip(prompts, answers, strict=True)]
    aside = file.with_suffix(".new.npz")
    try:
        np.savez(aside, ids=np.concatenate(texts), sizes=np.asarray([len(ids) for ids in texts]))
        os.replace(aside, file)
    finally:
        aside.unlink(missing_ok=True)
