"""The model's own answers, written on one device by the clock, and packed as ids to train on."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from edgert.converters.draft.options import MARK
from edgert.converters.draft.target import Decoder, Target

HEAT = (1.0, 1.0, 1.0, 0.7, 0.0)  # temperatures of a batch's rows, in turn
KEPT = "answers"


def split(flat: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
    """Arrays end to end, as a list of int32 ones."""
    return [row.astype(np.int32) for row in np.split(flat, np.cumsum(sizes)[:-1])]


def batches(prompts: list[np.ndarray], size: int, seed: int) -> Iterator[list[np.ndarray]]:
    """Prompts of like length together, the batches in random order."""
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    starts = list(range(0, len(order), size))
    for start in np.random.default_rng(seed).permutation(len(starts)):
        yield [prompts[i] for i in order[starts[start] : starts[start] + size]]


class Answers:
    """Answers in `work`, as many as the seconds allow; those of an earlier run are taken over."""

    def __init__(
        self, target: Target, prompts: list[np.ndarray], work: Path, *, ends: list[int],
        batch: int, count: int, seed: int,
    ) -> None:  # fmt: skip
        self.target, self.work, self.ends = target, work, ends
        self.count, self.seed = count, seed
        self.batches = list(batches(prompts, batch, seed))
        self.batch, self.longest = batch, max(map(len, prompts))

    def write(self, seconds: float, say: Callable[..., Any]) -> np.ndarray:
        """All answers behind their prompts, int32 ids with MARK on what the model wrote."""
        whole = self.work / f"{KEPT}.npy"
        if whole.exists():
            return np.load(whole)
        start, texts, decoder = time.perf_counter(), list[np.ndarray](), None
        for index, prompts in enumerate(self.batches):
            file = self.work / f"{KEPT}-{index:04}.npz"
            if file.exists():
                found = np.load(file)
                texts += split(found["ids"], found["sizes"])
                continue
            if time.perf_counter() - start > seconds:
                break
            decoder = decoder or Decoder(self.target, self.batch, self.longest + self.count)
            made = self._answered(decoder, prompts, index)
            sizes = np.asarray([len(ids) for ids in made])
            np.savez(file, ids=np.concatenate(made), sizes=sizes)
            texts += made
        order = np.random.default_rng(self.seed).permutation(len(texts))
        ids = np.concatenate([texts[i] for i in order])
        aside = self.work / f"{KEPT}.new.npy"
        np.save(aside, ids)
        os.replace(aside, whole)
        for file in self.work.glob(f"{KEPT}-*.npz"):
            file.unlink()
        say(answers=len(texts), tokens=len(ids), written=int((ids >= MARK).sum()),
            answers_seconds=round(time.perf_counter() - start, 1))  # fmt: skip
        return ids

    def _answered(self, decoder: Decoder, prompts: list[np.ndarray], index: int) -> list[Any]:
        device = self.target.device
        heat = torch.tensor([HEAT[i % len(HEAT)] for i in range(len(prompts))], device=device)
        random = torch.Generator(device).manual_seed(self.seed + index)
        answers = decoder.write(prompts, self.count, heat, self.ends, random)
        return [
            np.concatenate([prompt, answer | MARK])
            for prompt, answer in zip(prompts, answers, strict=True)
        ]


def say_to(work: Path, start: float) -> Callable[..., None]:
    """Print a JSON line, and keep it in `log.jsonl`."""

    def say(**values: Any) -> None:
        line = json.dumps({"seconds": round(time.perf_counter() - start, 1), **values})
        with (work / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)

    return say
