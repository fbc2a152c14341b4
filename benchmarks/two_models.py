"""Two models in one process, both generating: together against each alone.

    python -m benchmarks.two_models A.edge B.edge [--threads 2] [--seconds 4] [--rounds 4]

Both programs run on the one team of threads of the process. Bursts of a few seconds alternate: A
alone with half the threads, B alone with half, both at once with all of them; and as the machine's
own measure two processes, one for each model with half the threads, at the same time. Prints tokens
a second of each, and the sum of both against the sum of each alone.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from edgert.bundle import Bundle
from edgert.session import Feed, Session, open_session
from edgert.session.options import SessionOptions

DEPTH = 64  # tokens that a state holds when writing begins, and goes back to
CHILD = """
import sys
from benchmarks.two_models import child
child(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
"""


class Writer:
    """One model that writes tokens for a while and counts them."""

    def __init__(self, session: Session) -> None:
        self.session, self.state = session, session.new_state()
        self.token = np.array([5], np.int32)
        self.feed(np.arange(3, 3 + DEPTH, dtype=np.int32))

    def feed(self, tokens: np.ndarray) -> None:
        (result,) = self.session.step([Feed(self.state, tokens)])
        self.state.commit(len(tokens))
        self.token[0] = int(result.logits[0].argmax())

    def write(self, until: float) -> int:
        """Tokens written until the clock shows `until`."""
        count = 0
        while time.perf_counter() < until:
            if self.state.length == self.session.context:
                self.state.rewind(DEPTH)
            self.feed(self.token.copy())
            count += 1
        return count


def rates(writers: Sequence[Writer], seconds: float) -> list[float]:
    """Tokens a second of each, all writing at the same time."""
    counts = [0] * len(writers)
    until = time.perf_counter() + seconds

    def work(index: int) -> None:
        counts[index] = writers[index].write(until)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(writers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [count / seconds for count in counts]


def child(path: str, threads: int, seconds: float) -> None:
    """A process with one model: says when it is ready, writes when it is told, says how fast."""
    with Bundle.open(path) as bundle:
        session = open_session(bundle, SessionOptions(threads=threads))
        writer = Writer(session)
        print("ready", flush=True)
        for _ in sys.stdin:
            print(rates([writer], seconds)[0], flush=True)
        session.close()


def processes(paths: Sequence[Path], threads: int, seconds: float) -> Callable[[], list[float]]:
    """Starts a process a model; each call lets them write at the same time."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(path), str(threads), str(seconds)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for path in paths
    ]  # fmt: skip
    pipes = [(p.stdin, p.stdout) for p in started if p.stdin is not None and p.stdout is not None]
    for _, out in pipes:
        out.readline()

    def measure() -> list[float]:
        for entry, _ in pipes:
            entry.write("go\n")
            entry.flush()
        return [float(out.readline()) for _, out in pipes]

    return measure


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundles", type=Path, nargs=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=4)
    args = parser.parse_args()
    half = max(1, args.threads // 2)
    bundles = [Bundle.open(path) for path in args.bundles]
    alone = [Writer(open_session(bundle, SessionOptions(threads=half))) for bundle in bundles]
    both = [Writer(open_session(b, SessionOptions(threads=args.threads))) for b in bundles]
    apart = processes(args.bundles, half, args.seconds)
    found: list[list[float]] = []
    for turn in range(args.rounds):
        ones = [rates([writer], args.seconds)[0] for writer in alone]
        together = rates(both, args.seconds)
        halves = rates(alone, args.seconds)
        separate = apart()
        found.append([sum(together), sum(halves), sum(separate), sum(ones)])
        print(
            f"{turn + 1}: alone with {half} thread {ones[0]:.1f} + {ones[1]:.1f}, both with "
            f"{args.threads} threads {together[0]:.1f} + {together[1]:.1f}, both with {half} "
            f"{halves[0]:.1f} + {halves[1]:.1f}, two processes {separate[0]:.1f} + "
            f"{separate[1]:.1f} tokens/s",
            flush=True,
        )
    names = (f"both, {args.threads} threads each", f"both, {half} each", "two processes")
    for index, name in enumerate(names):
        against = statistics.median(row[index] / row[3] for row in found)
        print(f"{name}: {against:.2f} of the sum of each alone with {half}")
    share = statistics.median(max(row[0], row[1]) / row[2] for row in found)
    print(f"one process against two processes at the same time: {share:.2f}")


if __name__ == "__main__":
    main()
