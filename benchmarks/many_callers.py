"""Several conversations at once on one model: against one alone, and against llama.cpp's batch.

    python -m benchmarks.many_callers --shape 0.5b-llama 1.1b --work FOLDER [--callers 8]

Bursts alternate: one caller, then all callers as threads, then the same prompts in llama.cpp's own
batched decoding (one batch a step, a sequence each, greedy). Every burst feeds the prompts and
writes `--tokens` tokens a caller; tokens per second count all of it. Every answer is compared with
the one that its caller gets alone. Exits with 1 where a goal is missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import edgert
from benchmarks.runners import LlamaRunner
from benchmarks.text_models import gguf_of, random_bundle
from edgert.bundle import Bundle
from edgert.text.model import TextModel

TIMES_ALONE, TIMES_LLAMA = 3.0, 1.3  # goals
PROMPT = 16  # tokens


class LlamaBatch(LlamaRunner):
    """llama.cpp with one sequence a caller in every batch."""

    def __init__(self, path: Path, threads: int, callers: int, context: int) -> None:
        super().__init__(path, threads, context=context)
        params = self.api.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = callers * context, 512, 512
        params.n_seq_max = callers
        params.n_threads = params.n_threads_batch = threads
        self.api.llama_free(self.context)
        self.context = self.api.llama_init_from_model(self.model, params)
        if not self.context:
            raise SystemExit(f"llama.cpp makes no context:\n{''.join(self.log[-20:])}")
        self.memory = self.api.llama_get_memory(self.context)
        self.batch = self.api.llama_batch_init(512, 0, 1)

    def write(self, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
        """`count` greedy tokens after each prompt."""
        self.api.llama_memory_clear(self.memory, True)
        made: list[list[int]] = [[] for _ in prompts]
        pending: list[Sequence[int]] = [list(prompt) for prompt in prompts]
        at = [0] * len(prompts)
        for _ in range(count):
            rows = self._feed(pending, at)
            for caller, row in enumerate(rows):
                made[caller].append(int(row.argmax()))
            at = [place + len(p) for place, p in zip(at, pending, strict=True)]
            pending = [tokens[-1:] for tokens in made]
        return made

    def _feed(self, pending: Sequence[Sequence[int]], at: Sequence[int]) -> list[np.ndarray]:
        batch, n, last = self.batch, 0, []
        for caller, (tokens, place) in enumerate(zip(pending, at, strict=True)):
            for index, token in enumerate(tokens):
                batch.token[n], batch.pos[n] = int(token), place + index
                batch.n_seq_id[n], batch.seq_id[n][0] = 1, caller
                batch.logits[n] = index == len(tokens) - 1
                n += 1
            last.append(n - 1)
        batch.n_tokens = n
        status = self.api.llama_decode(self.context, batch)
        if status:
            raise SystemExit(f"llama_decode returned {status}:\n{''.join(self.log[-20:])}")
        self.api.llama_synchronize(self.context)
        return [
            np.ctypeslib.as_array(self.api.llama_get_logits_ith(self.context, i), (self.width,))
            for i in last
        ]


def write(model: TextModel, prompts: Sequence[Sequence[int]], options: dict[str, Any]) -> list[Any]:
    """Every prompt's answer, a thread each."""
    if len(prompts) == 1:
        return [model.generate(prompts[0], **options).token_ids]
    with ThreadPoolExecutor(len(prompts)) as pool:
        jobs = [pool.submit(model.generate, prompt, **options) for prompt in prompts]
        return [job.result().token_ids for job in jobs]


def compare(shape: str, threads: int, args: argparse.Namespace) -> bool:
    """One shape: prints its ratios; whether the goals are met."""
    bundle = random_bundle(shape, args.work, "int4")
    rng = np.random.default_rng(0)
    with edgert.load(bundle, threads=threads) as model:
        size = min(model.tokenizer.size, model.session.vocab_size)
        prompts = rng.integers(10, size - 10, (args.callers, PROMPT)).tolist()
        ends = {token: -100.0 for token in model.tokenizer.eos_token_ids}
        options = {"max_tokens": args.tokens, "logit_bias": ends, "temperature": args.temperature}
        alone = [write(model, [prompt], options)[0] for prompt in prompts]
        with Bundle.open(bundle) as opened:
            peer = LlamaBatch(gguf_of(opened, args.work), threads, args.callers, 512)
        speeds: dict[str, list[float]] = {"one": [], "all": [], "llama.cpp": []}
        for index in range(args.rounds):
            for name in list(speeds)[:: 1 if index % 2 else -1]:
                start = time.perf_counter()
                if name == "one":
                    count = len(write(model, prompts[:1], options)[0])
                elif name == "all":
                    found = write(model, prompts, options)
                    count = sum(map(len, found))
                    if found != alone:
                        raise SystemExit(f"{shape}: answers differ from those given alone")
                else:
                    count = sum(map(len, peer.write(prompts, args.tokens)))
                speeds[name].append(count / (time.perf_counter() - start))
    one, every, llama = (statistics.median(speeds[name]) for name in ("one", "all", "llama.cpp"))
    print(
        f"{shape}, {threads} threads, {args.callers} callers: alone {one:.1f} tokens/s, together "
        f"{every:.1f} ({every / one:.2f} times, goal {TIMES_ALONE}), llama.cpp {llama:.1f} "
        f"({every / llama:.2f} times its speed, goal {TIMES_LLAMA}); every answer equal",
        flush=True,
    )
    return every / one >= TIMES_ALONE and every / llama >= TIMES_LLAMA


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", nargs="+", default=["0.5b-llama", "1.1b"])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    met = [compare(shape, n, args) for shape in args.shape for n in args.threads]
    sys.exit(0 if all(met) else 1)


if __name__ == "__main__":
    main()
