"""Does `edgert test` tell a slowed bundle from itself: the same test many times, in turns.

    python -m benchmarks.budget_verdicts BUNDLE [--limit p90_token_ms] [--times 20] [--seconds 80]

First what is limited is measured as it is (all cores) and slowed (half of the threads, and a
process that keeps their core busy); the limit stands at their geometric mean. Then both are tested
in turns: every test as it is must pass, every slowed one fail. A test ends when its interval
decides: in a second or two where the limit is far, behind a second look, 20 seconds later, where it
is near. So 20 times take 1 to 15 minutes on a quiet machine, which it wants. (The median token of a
small model hardly shows a busy core, for most of its tokens fit between two turns of the other.)

    python -m benchmarks.budget_verdicts edgert/demo/edgert-demo.edge              # the 20 times
    python -m benchmarks.budget_verdicts edgert/demo/edgert-demo.edge --times 1 --out /tmp/try.jsonl

Results are appended to benchmarks/results/budget_verdicts.jsonl.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks import machine
from edgert.budget.limits import budget_of
from edgert.budget.run import Ask, run
from edgert.session.cores import performance_cores

RESULTS = Path(__file__).resolve().parent / "results" / "budget_verdicts.jsonl"
APART = 1.3  # times that slowing must cost, for the question to mean something


@contextlib.contextmanager
def slowed(yes: bool) -> Iterator[int]:
    """Threads to use, with a busy process on the first core where slowed."""
    cores = len(performance_cores())
    with machine.busy_core() if yes else contextlib.nullcontext():
        yield max(1, cores // 2) if yes else cores


def tested(path: Path, name: str, limit: float, seconds: float, *, slow: bool) -> tuple[str, float]:
    """Verdict and what was measured, in the limit's unit."""
    limits = budget_of({name: limit})
    with slowed(slow) as threads:
        (found,) = run(path, limits, Ask(threads=threads, seconds=seconds)).verdicts
    return found.outcome, found.value or 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--limit", default="p90_token_ms", help="what is limited, a time")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=80.0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    watch = machine.Watch()

    def took(slow: bool) -> float:
        return tested(args.bundle, args.limit, 1e6, 3.0, slow=slow)[1]

    as_it_is, slow = (took(s) for s in (False, True))
    if slow < APART * as_it_is:
        raise SystemExit(
            f"slowed {slow:.3f} ms is not {APART} times {as_it_is:.3f} ms: is this machine busy?"
        )
    limit = (as_it_is * slow) ** 0.5
    print(f"{args.limit}: as it is {as_it_is:.3f} ms, slowed {slow:.3f} ms, limit {limit:.3f} ms")
    counts = {False: Counter[str](), True: Counter[str]()}
    for _ in range(args.times):
        for how in (False, True):
            outcome, value = tested(args.bundle, args.limit, limit, args.seconds, slow=how)
            counts[how][outcome] += 1
            print(f"  {'slowed' if how else 'as it is':9} {outcome:9} {value:.3f} ms", flush=True)
    line = {
        "schema": 1, "kind": "budget_verdicts", "model": args.bundle.stem, "limit": args.limit,
        "limit_ms": limit, "as_it_is_ms": as_it_is, "slowed_ms": slow,
        "as_it_is": dict(counts[False]), "slowed": dict(counts[True]),
        "machine": machine.describe(), "run": watch.summary(),
    }  # fmt: skip
    print(f"as it is {dict(counts[False])}, slowed {dict(counts[True])}; others kept "
          f"{line['run']['other_cores']} cores busy")  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
