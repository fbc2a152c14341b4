"""`benchmarks/OPTIMIZERS.md`: what `optimizers.py` prints, and what a GPU once printed."""

from __future__ import annotations

import contextlib
import datetime
import io
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from benchmarks.machine import cpu_model

PAGE = """# Optimizers: the papers' reproductions

DASH (arXiv 2602.02016) and MSign (arXiv 2602.01734), `converters/optim/`. Written by
`python -m benchmarks.optimizers --write`; "reference" is the number expected for the same
experiment, and lines that begin with "Falls short" or "Not shown" say what is missing. R1, R3 (and,
marked slow, R2, R4) are also tests: `tests/converters/test_optimizer_reproductions.py`.

## On the CPU

{date}, {cpu}, torch {torch}, one thread.

```
{cpu_text}
```

## On a GPU

Kept from the day of the demo model's training (`python benchmarks/optimizers.py --gpu`,
`recipes/demo_text/curves/optimizer_steps.txt`); how the optimizers trained it is in
`recipes/demo_text/README.md`.

```
{gpu_text}
```

Reading: stacking gains 10 to 200 times over one block at a time with Newton solvers (the smaller
the blocks the more) and little with EVD. The step still costs many times AdamW's on so small a
model: 96 ms with fresh roots, 14 ms on average with roots every tenth step, against 0.5 ms. The
paper's 5.6 times is DASH against Distributed Shampoo at 953M parameters on eight GPUs and is not
reproduced here. Half-precision coupled Newton, the paper's fastest, is slower here than Newton-DB
in float32, because many of its roots fail and are computed again ("repaired").
"""


class Tee(io.StringIO):
    """Keeps what is printed, and prints it."""

    def write(self, text: str) -> int:
        sys.__stdout__.write(text)  # type: ignore[union-attr]
        return super().write(text)


def write(runs: Iterable[Callable[[], None]]) -> None:
    """Run, print, and put what was printed into the page, beside the kept output of a GPU."""
    text = Tee()
    with contextlib.redirect_stdout(text):
        for run in runs:
            run()
    write_page(text.getvalue())


def write_page(cpu_text: str) -> None:
    """The page around the output of the CPU's reproductions."""
    root = Path(__file__).resolve().parent.parent
    kept = root / "recipes" / "demo_text" / "curves" / "optimizer_steps.txt"
    page = PAGE.format(
        date=datetime.date.today().isoformat(),
        cpu=cpu_model(),
        torch=torch.__version__,
        cpu_text=cpu_text.rstrip(),
        gpu_text=kept.read_text(encoding="utf-8").rstrip(),
    )
    (root / "benchmarks" / "OPTIMIZERS.md").write_text(page, encoding="utf-8")
