"""An asyncio application with many clients that come, go and vanish, for minutes.

    python -m benchmarks.endurance [BUNDLE] [--clients 64] [--threads 4] [--minutes 10]

Clients read through a small pool of threads, one `next` a hop, as web frameworks do, or as
asynchronous iterators; they chat, generate and keep conversations; some leave in the middle: they
close, cancel, or just drop what they read. Prints answers, memory and descriptors every half
minute. Exits with 1 after an error other than the stated limit, a client that waits for more than a
minute, or memory or descriptors that grow.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

import edgert
from edgert.demo import demo_bundle

PATIENCE = 60.0  # seconds that a piece may take
GROWTH = 1.1  # of memory, after the first quarter
END = object()
WORDS = "the a dog cat tree sea house small big red runs sees likes and then because".split()


class Application:
    """Clients of one model, and what became of their requests."""

    def __init__(self, model: edgert.TextModel, pool: ThreadPoolExecutor, until: float) -> None:
        self.model, self.pool, self.until = model, pool, until
        self.ends: Counter[str] = Counter()
        self.slowest = 0.0

    async def client(self, number: int) -> None:
        random_ = random.Random(number)
        while time.monotonic() < self.until:
            try:
                await self._request(random_)
            except edgert.RequestError as error:
                self.ends[error.code] += 1
                await asyncio.sleep(0.05)

    async def _request(self, random_: random.Random) -> None:
        text = " ".join(random_.choices(WORDS, k=random_.randrange(3, 120)))
        options: dict[str, Any] = {
            "max_tokens": random_.randrange(1, 80),
            "temperature": random_.choice([0.0, 0.8]),
            "seed": random_.randrange(1 << 30),
        }
        leaves = random_.random() < 0.4  # in the middle
        way = random_.randrange(3)
        if way == 0:
            await self._threads(self.model.stream(text, **options), leaves, random_)
        elif way == 1:
            await self._asynchronous(self.model.astream(text, **options), leaves, random_)
        else:
            with self.model.conversation() as chat:
                for _ in range(random_.randrange(1, 4)):
                    # Not merely dropped: the pool's thread holds what it read for a moment, and a
                    # stream that somebody holds is a turn that goes on.
                    stream = chat.stream(text[:80], **options)
                    await self._threads(stream, leaves, random_, ("close", "cancel"))

    async def _timed(self, waiting: Any) -> Any:
        start = time.monotonic()
        found = await asyncio.wait_for(waiting, PATIENCE)
        self.slowest = max(self.slowest, time.monotonic() - start)
        return found

    async def _threads(
        self,
        stream: Any,
        leaves: bool,
        random_: random.Random,
        ways: tuple[str, ...] = ("close", "cancel", "__iter__"),
    ) -> None:
        loop, left = asyncio.get_running_loop(), random_.randrange(1, 20)
        while True:
            piece = await self._timed(loop.run_in_executor(self.pool, next, stream, END))
            if piece is END:
                self.ends[stream.result.finish_reason] += 1
                return
            left -= 1
            if leaves and left == 0:
                getattr(stream, random_.choice(ways))()
                self.ends["left"] += 1
                return

    async def _asynchronous(self, stream: Any, leaves: bool, random_: random.Random) -> None:
        left = random_.randrange(1, 20)
        try:
            while True:
                await self._timed(anext(stream))
                left -= 1
                if leaves and left == 0:
                    if random_.random() < 0.5:
                        await stream.aclose()
                    self.ends["left"] += 1
                    return
        except StopAsyncIteration:
            self.ends[stream.result.finish_reason] += 1


async def watch(app: Application, seen: list[tuple[int, int]]) -> None:
    me, last = psutil.Process(), time.monotonic()
    while time.monotonic() < app.until:
        await asyncio.sleep(1)
        if time.monotonic() - last >= 30 or not seen:
            last = time.monotonic()
            seen.append((me.memory_info().rss, me.num_fds()))
            print(
                f"{app.until - last:5.0f} s left, {seen[-1][0] / 1e6:.0f} MB, {seen[-1][1]} "
                f"descriptors, slowest piece {app.slowest:.2f} s, {dict(app.ends)}",
                flush=True,
            )


async def run(args: argparse.Namespace) -> int:
    seen: list[tuple[int, int]] = []
    with (
        edgert.load(args.bundle or demo_bundle()) as model,
        ThreadPoolExecutor(args.threads) as pool,
    ):
        model.generate("warm", max_tokens=2)
        app = Application(model, pool, time.monotonic() + 60 * args.minutes)
        clients = [asyncio.create_task(app.client(n)) for n in range(args.clients)]
        watcher = asyncio.create_task(watch(app, seen))
        done = await asyncio.gather(*clients, watcher, return_exceptions=True)
    failed = [error for error in done if isinstance(error, BaseException)]
    unstated = set(app.ends) - {"stop", "length", "cancelled", "left", "queue-full"}
    base = seen[len(seen) // 4 : len(seen) // 2 + 1] or seen
    grown = seen[-1][0] > GROWTH * max(memory for memory, _ in base)
    grown |= seen[-1][1] > max(count for _, count in base) + 2
    print(f"{len(failed)} clients failed {failed[:3]}, errors {sorted(unstated)}, grown: {grown}")
    print(f"{sum(app.ends.values())} answers, slowest piece {app.slowest:.2f} s: {dict(app.ends)}")
    return 1 if failed or unstated or grown else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=10)
    sys.exit(asyncio.run(run(parser.parse_args())))


if __name__ == "__main__":
    main()
